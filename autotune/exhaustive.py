"""Every point of a space, compiled in parallel and timed in turn: a table, the truth of replays."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace
from datetime import datetime
from datetime import timezone

from maskwright.autotune.job import Job
from maskwright.autotune.outcome import Build
from maskwright.autotune.outcome import Compiler
from maskwright.autotune.outcome import Device
from maskwright.autotune.outcome import Outcome
from maskwright.autotune.outcome import Start
from maskwright.autotune.table import Row
from maskwright.autotune.table import Table
from maskwright.autotune.table import row_of
from maskwright.autotune.table import sorted_rows
from maskwright.codegen.configs import AnyConfig
from maskwright.dsl.errors import TuningError

ROUNDS = 9
_CHUNK = 16  # configurations of one race: short enough that little is lost with a worker
_COMPILING = 0.5  # of the time at most
_MEASURING = 0.85  # until then; the rest is for rounds
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What is recorded.

    Attributes:
        points: all configurations of the space.
        sample: how many of them, drawn at random; 0 is all.
        seconds: then it stops, and what is missing is missing.
        known: a table of an earlier run, whose rows are kept.
        accept: the mask does not forbid a configuration; asked of those that a sample would have.
    """

    points: Sequence[AnyConfig]
    seconds: float
    sample: int = 0
    rounds: int = ROUNDS
    seed: int = 0
    known: Table | None = None
    accept: Callable[[AnyConfig], bool] = lambda config: True


def record(
    job: Job,
    plan: Plan,
    start: Start,
    device: Device,
    compiler: Compiler,
    tell: Tell = lambda phase, done, total: None,
    clock: Callable[[], float] = time.monotonic,
) -> Table:
    """The table. Time that runs out, and Ctrl-C, leave a random part of it."""
    began = clock()

    def left(share: float) -> float:
        return began + share * plan.seconds - clock()

    job = job.lasting()
    kept = _kept(plan.known, job, start)
    chosen = _chosen(plan, start.default, kept)
    builds: dict[AnyConfig, Build] = {}
    outcomes: dict[AnyConfig, Outcome] = {}
    times: dict[AnyConfig, list[tuple[float, float]]] = {}
    try:
        builds = _compiled(chosen, compiler, lambda: left(_COMPILING), tell)
        device.ready()
        for config in chosen:
            if left(_MEASURING) < 0:
                break
            if config in builds:
                outcomes[config] = _measured(config, builds[config], device)
                tell("measuring", len(outcomes), len(builds))
        timed = [x for x in chosen if x in outcomes and outcomes[x].measured]
        _race(timed, start.default, plan.rounds, device, lambda: left(1.0), tell, times)
    except KeyboardInterrupt:
        pass
    facts = device.ready()
    rows = [_row(x, outcomes[x], builds[x], times.get(x, [])) for x in outcomes if x not in kept]
    rows += kept.values()
    return Table(
        *(job, start.key, start.default.to_dict(), facts.ms, len(plan.points), sorted_rows(rows)),
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
        *(facts.gpu, facts.driver, facts.torch),
    )


def _kept(known: Table | None, job: Job, start: Start) -> dict[AnyConfig, Row]:
    """Rows of an earlier run.

    Raises:
        TuningError: it was for another job, GPU or software.
    """
    if known is None:
        return {}
    # Tables of the first schema do not tell which tensors they were made with.
    same = known.job == (job if known.job.packed else replace(job, packed={}))
    if not same or known.key != start.key or known.config(known.default) != start.default:
        differences = "; ".join(known.key.difference(start.key)) or "another job"
        raise TuningError(f"the table is for something else: {differences}", fix="another file")
    return known.by_config


def _chosen(plan: Plan, default: AnyConfig, kept: Collection[AnyConfig]) -> list[AnyConfig]:
    """In random order, so that a part is a fair sample; the default first."""
    others = [x for x in plan.points if x != default and x not in kept]
    random.Random(plan.seed).shuffle(others)
    if plan.sample:
        others = list(itertools.islice(filter(plan.accept, others), plan.sample - 1))
    return [default, *others]


def _compiled(
    chosen: Sequence[AnyConfig], compiler: Compiler, left: Callable[[], float], tell: Tell
) -> dict[AnyConfig, Build]:
    builds: dict[AnyConfig, Build] = {}
    waiting = list(reversed(chosen))
    while len(builds) < len(chosen) and left() > 0:
        while waiting and compiler.room > 0:
            compiler.submit(waiting.pop())
        for config, build in compiler.take(1.0):
            builds[config] = build
            tell("compiling", len(builds), len(chosen))
    return builds


def _measured(config: AnyConfig, build: Build, device: Device) -> Outcome:
    if build.status != "ok":
        return Outcome(build.status, message=build.message)
    try:
        return device.measure(config, float("inf"))
    except TuningError as error:
        return Outcome("harness", message=error.what)


def _race(
    timed: Sequence[AnyConfig],
    default: AnyConfig,
    rounds: int,
    device: Device,
    left: Callable[[], float],
    tell: Tell,
    times: dict[AnyConfig, list[tuple[float, float]]],
) -> None:
    """Rounds over all, in pieces, each with the default beside it."""
    others = [x for x in timed if x != default]
    chunks = [others[i : i + _CHUNK] for i in range(0, len(others), _CHUNK)] or [[]]
    for turn in range(rounds):
        for i, chunk in enumerate(chunks):
            if left() < 0:
                return
            configs = [default, *chunk]
            first = turn % len(configs)  # nobody always follows the same one
            configs = configs[first:] + configs[:first]
            try:
                (found,) = device.race(configs, 1).rounds
            except TuningError:  # one of them is worse in company; the others are not to blame
                continue
            base = found[configs.index(default)]
            for config, ms in zip(configs, found, strict=True):
                if config != default or i == 0:
                    times.setdefault(config, []).append((ms, ms / base))
        tell("rounds", turn + 1, rounds)


def _row(
    config: AnyConfig, outcome: Outcome, build: Build, times: Sequence[tuple[float, float]]
) -> Row:
    """One measurement at least, even if no round was left."""
    if outcome.measured and not times:
        times = [(outcome.ms, outcome.ratio)]
    return row_of(config, outcome, build, times)
