"""One tuned configuration: what for, which, how good, and where that comes from. Readable JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from functools import cached_property
from typing import Any
from typing import Literal
from typing import TypeAlias
from typing import get_args

from maskwright.autotune.key import Key
from maskwright.autotune.record import RecordError
from maskwright.autotune.record import canonical
from maskwright.autotune.record import from_plain
from maskwright.autotune.record import pretty
from maskwright.autotune.record import round_floats
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.configs import AnyConfig
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon_backward import GluonBackwardConfig
from maskwright.dsl import nodes as n
from maskwright.dsl.errors import LoweringError

SCHEMA = 1
RUNNERS_UP = 4

# From the least to the most trusted: a cost model's choice, a search that was cut short, a search.
Kind: TypeAlias = Literal["model", "partial", "measured"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# (op, template) -> type of its configurations.
CONFIGS: dict[tuple[str, str], type[Any]] = {
    ("forward", "triton"): KernelConfig,
    ("backward", "triton"): BackwardConfig,
    ("forward", "gluon_sm90"): GluonConfig,
    ("backward", "gluon_sm90"): GluonBackwardConfig,
}


# Choices that came later, and what every configuration before them was.
LATER: dict[type[Any], dict[str, Any]] = {
    KernelConfig: {"heads": 1},
    GluonConfig: {"counter": False},
    BackwardConfig: {"parts": 1},
}


@dataclass(frozen=True)
class Result:
    """Times of the winner.

    Attributes:
        ms: median over rounds.
        ratio: of its time to that of the untuned default, in the same rounds; below 1 is faster.
        spread: of that ratio over rounds: half the width of its 95 % interval.
        clock: median MHz of the multiprocessors.
    """

    ms: float
    ratio: float
    spread: float
    rounds: int
    clock: int
    tflops: float

    def __post_init__(self) -> None:
        round_floats(self)


@dataclass(frozen=True)
class Provenance:
    """Where an entry comes from. Nothing here decides whether it is found.

    Attributes:
        date: ISO 8601, UTC; orders entries that are equally good.
        gpu: hash of the card's UUID.
        space: hash of the search space.
    """

    kind: Kind
    date: str
    gpu: str
    driver: str
    torch: str
    package: str
    budget: float
    trials: int
    space: str

    def __post_init__(self) -> None:
        round_floats(self)


@dataclass(frozen=True)
class Checks:
    """How far the winner's numbers were from the truth, on which shapes."""

    max_error: float
    tolerance: float
    shapes: tuple[str, ...]

    def __post_init__(self) -> None:
        round_floats(self)


@dataclass(frozen=True)
class Entry:
    """A tuned configuration for a key.

    Attributes:
        config: of the type that the key's op and template take.
        runner_up: configurations inside the tie band, best first.
        failed: candidates that failed, by reason.
        cost_rank: place of the winner in the order of the cost model; 0 if it was not asked.
    """

    key: Key
    config: AnyConfig
    result: Result
    provenance: Provenance
    checks: Checks
    runner_up: tuple[AnyConfig, ...] = ()
    failed: dict[str, int] = field(default_factory=dict)
    cost_rank: int = 0

    def __post_init__(self) -> None:
        wanted = CONFIGS[self.key.problem.op, self.key.problem.template]
        for config in (self.config, *self.runner_up):
            if type(config) is not wanted:
                raise RecordError(f"{self.key.name} takes a {wanted.__name__}", expression=config)
        if len(self.runner_up) > RUNNERS_UP:
            raise RecordError(f"at most {RUNNERS_UP} runners-up", expression=self.key.name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with schema and digest."""
        return self._body | {"digest": self.digest}

    def to_text(self) -> str:
        """The file."""
        return pretty(self.to_dict())

    @cached_property
    def _body(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    @cached_property
    def digest(self) -> str:
        """Of everything else: tells a damaged file from a whole one."""
        return n.digest(canonical(self._body))

    @staticmethod
    def from_dict(data: Any) -> Entry:
        """The inverse of ``to_dict``.

        Raises:
            RecordError: it is not an entry of this schema, or not as it was written.
        """
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise RecordError(f"this is no entry of schema {SCHEMA}")
        body = {name: x for name, x in data.items() if name not in ("schema", "digest")}
        if n.digest(canonical({"schema": SCHEMA, **body})) != data.get("digest"):
            raise RecordError("the digest does not fit the entry")
        key = Key.from_dict(body.pop("key", None))
        kind = CONFIGS[key.problem.op, key.problem.template]
        config = read_config(kind, body.pop("config", None), "config")
        found = body.pop("runner_up", None)
        if not isinstance(found, list):
            raise RecordError("runner_up is no list")
        runner_up = tuple(read_config(kind, x, "runner_up") for x in found)
        rest = from_plain(_Rest, body, "entry")
        return Entry(
            *(key, config, rest.result, rest.provenance, rest.checks, runner_up),
            *(rest.failed, rest.cost_rank),
        )

    @staticmethod
    def from_text(text: str) -> Entry:
        """The inverse of ``to_text``.

        Raises:
            RecordError: it is not an entry of this schema, or not as it was written.
        """
        return Entry.from_dict(parse_json(text))


@dataclass(frozen=True)
class _Rest:
    """An entry without what depends on the key."""

    result: Result
    provenance: Provenance
    checks: Checks
    failed: dict[str, int]
    cost_rank: int


def read_config(kind: type[Any], data: Any, where: str) -> Any:
    """A configuration from plain values.

    Choices of ``LATER`` may be missing: entries and tables are older than they are.

    Raises:
        RecordError: it is no configuration of that type.
    """
    try:
        return from_plain(kind, _with_later(kind, data), where)
    except LoweringError as error:
        raise RecordError(f"{where}: {error.what}", expression=data) from error


def _with_later(kind: type[Any], data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    if kind is BackwardConfig:
        data = {name: _with_later(KernelConfig, x) for name, x in data.items()}
    return LATER.get(kind, {}) | data


def parse_json(text: str) -> Any:
    """JSON as plain values.

    Raises:
        RecordError: it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"this is no JSON: {error}") from error
