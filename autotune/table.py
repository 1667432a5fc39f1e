"""Recorded times of every configuration of a space: written by a GPU once, replayed on any CPU."""

from __future__ import annotations

import gzip
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import Any

from maskwright.autotune.entry import Checks
from maskwright.autotune.entry import parse_json
from maskwright.autotune.job import Job
from maskwright.autotune.key import Key
from maskwright.autotune.outcome import Build
from maskwright.autotune.outcome import Facts
from maskwright.autotune.outcome import Outcome
from maskwright.autotune.outcome import Race
from maskwright.autotune.outcome import Start
from maskwright.autotune.outcome import Status
from maskwright.autotune.outcome import config_from
from maskwright.autotune.record import RecordError
from maskwright.autotune.record import canonical
from maskwright.autotune.record import from_plain
from maskwright.autotune.record import round_floats
from maskwright.codegen.configs import AnyConfig
from maskwright.dsl.errors import TuningError

SCHEMA = 2
_WITHOUT_TENSORS = 1  # the first schema: of tensors, it names a temporary file
_TURNS = 4  # pairs that a measurement takes the median of
_SLOW = 2.0


@dataclass(frozen=True)
class Row:
    """One configuration.

    Attributes:
        ms, ratio: by round: its time, and that divided by the default's in the same round.
        error: as in ``Outcome``.
        code: hash of its machine code.
        seconds: of compilation.
    """

    config: dict[str, Any]
    status: Status
    message: str = ""
    ms: tuple[float, ...] = ()
    ratio: tuple[float, ...] = ()
    error: float = 0.0
    code: str = ""
    registers: int = 0
    stack: int = 0
    shared: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        round_floats(self)
        for name in ("ms", "ratio"):
            values = tuple(float(f"{x:.5g}") for x in getattr(self, name))
            object.__setattr__(self, name, values)

    @property
    def median(self) -> float:
        """Of the ratios; infinite for a configuration without times."""
        return statistics.median(self.ratio) if self.ratio else float("inf")

    @property
    def build(self) -> Build:
        """As the compiler told it."""
        ok: Status = self.status if self.status in ("infeasible", "compile") else "ok"
        numbers = (self.registers, self.stack, self.shared, self.seconds)
        return Build(ok, self.message, self.code, *numbers)


@dataclass(frozen=True)
class Table:
    """All rows of one job on one GPU.

    Attributes:
        job: a lasting one, with its runtime tensors inside.
        default: what ratios are relative to.
        points: of the whole space; fewer rows if only a sample was taken or time was up.
        date: ISO 8601, UTC.
    """

    job: Job
    key: Key
    default: dict[str, Any]
    ms: float
    points: int
    rows: tuple[Row, ...]
    date: str
    gpu: str = ""
    driver: str = ""
    torch: str = ""

    @cached_property
    def by_config(self) -> dict[AnyConfig, Row]:
        """Rows by configuration."""
        return {self.config(row.config): row for row in self.rows}

    @cached_property
    def best(self) -> AnyConfig:
        """The fastest."""
        return min(self.by_config, key=lambda x: self.by_config[x].median)

    def config(self, data: Any) -> AnyConfig:
        """A configuration of the job's kernel."""
        return config_from(self.job.op, self.job.template, data)

    def regret(self, config: AnyConfig) -> float:
        """How much slower than the fastest: 0.03 is 3 %."""
        return self.by_config[config].median / self.by_config[self.best].median - 1.0

    def write(self, path: Path) -> None:
        """One line of JSON, compressed; equal tables give equal files."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = canonical({"schema": SCHEMA, **asdict(self)})
        path.write_bytes(gzip.compress(text.encode(), mtime=0))

    @staticmethod
    def read(path: Path) -> Table:
        """The inverse.

        Raises:
            TuningError: it is no table.
        """
        try:
            data = parse_json(gzip.decompress(path.read_bytes()).decode())
            schema = data.pop("schema", None) if isinstance(data, dict) else None
            if schema not in (SCHEMA, _WITHOUT_TENSORS):
                raise RecordError(f"this is no table of schema {SCHEMA}")
            if schema == _WITHOUT_TENSORS and isinstance(data.get("job"), dict):
                data["job"] |= {"tables": "", "packed": {}}
            found = from_plain(Table, data)
            found.job.arrays()  # says so if they are damaged
            return found
        except (OSError, EOFError, UnicodeDecodeError, RecordError) as error:
            what = error.what if isinstance(error, RecordError) else error
            raise TuningError(f"{path} is no table of times: {what}") from error


@dataclass
class TableDevice:
    """A ``Device`` that draws its times from a table, with the noise that was recorded.

    In a race every recorded round comes once before one comes again: drawn freely, one that was
    disturbed would be the median of nine now and then, and no GPU is disturbed like that.
    """

    table: Table
    seed: int = 0
    random: random.Random = field(init=False)
    left: dict[AnyConfig, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def start(self) -> Start:
        """See ``Device``."""
        return Start(self.table.key, self.table.config(self.table.default))

    def ready(self) -> Facts:
        """See ``Device``."""
        table = self.table
        default = table.config(table.default)
        error = table.by_config[default].error
        provenance = (table.gpu, table.driver, table.torch)
        return Facts(table.key, default, table.ms, error, 0.0, *provenance)

    def measure(self, config: AnyConfig, best: float) -> Outcome:
        """See ``Device``."""
        row = self.table.by_config.get(config)
        if row is None:
            return Outcome("infeasible", message="not in the table")
        if not row.ratio:
            return Outcome(row.status, message=row.message)
        ratio = statistics.median(self.random.choices(row.ratio, k=_TURNS))
        status: Status = "slow" if ratio > _SLOW * best else "ok"
        return Outcome(status, ratio * self.table.ms, ratio, row.error)

    def race(self, configs: Sequence[AnyConfig], rounds: int) -> Race:
        """See ``Device``."""
        times = tuple(tuple(self.table.ms * self._ratio(x) for x in configs) for _ in range(rounds))
        return Race(times, (0,) * rounds)

    def _ratio(self, config: AnyConfig) -> float:
        left = self.left.setdefault(config, [])
        if not left:
            left += self.table.by_config[config].ratio
            self.random.shuffle(left)
        return left.pop()

    def verify(self, config: AnyConfig) -> tuple[bool, Checks, str]:
        """See ``Device``."""
        return True, Checks(self.table.by_config[config].error, 1.0, ("recorded",)), ""

    def close(self) -> None:
        """See ``Device``."""


def sorted_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
    """In an order of their own, so that tables of equal content are equal."""
    return tuple(sorted(rows, key=lambda row: canonical(row.config)))


def row_of(
    config: AnyConfig, outcome: Outcome, build: Build, times: Sequence[tuple[float, float]] = ()
) -> Row:
    """A row; ``times`` are (ms, ratio) by round."""
    return Row(
        config.to_dict(),
        outcome.status,
        outcome.message[:200],
        tuple(ms for ms, _ in times),
        tuple(ratio for _, ratio in times),
        outcome.error,
        build.code,
        *(build.registers, build.stack, build.shared, build.seconds),
    )


def slug(job: Job, key: Key) -> str:
    """A file name without its ending."""
    p = key.problem
    words = (p.slug, job.op, job.backend, job.dtype, f"d{job.head_dim}", f"q{job.q_len}")
    return "_".join((*words, key.hardware.folder))
