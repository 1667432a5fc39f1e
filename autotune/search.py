"""The search: seeds, proposals, compilation, measurement, finals, verification; one straight line.

It knows neither processes nor GPUs nor Optuna: those stand behind ``Device``, ``Compiler`` and
``Proposer``, which tests replace by recorded tables and fakes with faults.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace

from maskwright.autotune.entry import RUNNERS_UP
from maskwright.autotune.entry import Checks
from maskwright.autotune.finals import BAND
from maskwright.autotune.finals import Finalist
from maskwright.autotune.finals import finalists
from maskwright.autotune.finals import ranking
from maskwright.autotune.finals import tie
from maskwright.autotune.flat import Flat
from maskwright.autotune.outcome import Build
from maskwright.autotune.outcome import Compiler
from maskwright.autotune.outcome import Device
from maskwright.autotune.outcome import Facts
from maskwright.autotune.outcome import Outcome
from maskwright.autotune.outcome import Race
from maskwright.autotune.proposer import Ask
from maskwright.autotune.proposer import Proposer
from maskwright.autotune.space import Target
from maskwright.codegen.configs import AnyConfig

FINALISTS, ROUNDS = 8, 9
_PIECE = 3  # rounds of the finals between two looks at the clock
_SPILLS = 128  # bytes of a thread's stack from which the sampler is told to stay away
_STALE, _SURE, _GAIN = 30, 40, 0.005  # no gain in so many trials, after so many: it is over
_REFUSED = 300  # proposals in a row that are no points, or known: the space is used up
_CRASHES = 3  # candidates that took the GPU's process with them
_FINALS = 5.0  # seconds kept for the finals, at most a fifth of all
_GRACE = 5.0  # seconds that they may take beyond the budget, if calls are slow
# Where getting ready took the whole budget: so many candidates, if they come this soon and are short.
_FEWEST, _LATE, _SHORT = 8, 5.0, 100.0


@dataclass(frozen=True)
class Budget:
    """Seconds and trials; what is used up first ends the search."""

    seconds: float
    trials: int


EFFORTS = {
    "quick": Budget(15.0, 30),
    "standard": Budget(60.0, 80),
    "full": Budget(600.0, 600),
}


@dataclass(frozen=True)
class Study:
    """What is searched.

    Attributes:
        seeds: proposed first, best guess first; the default is always among them.
        accept: further limits, as of tables that hold only some points.
        ranked: the cost model's order, for the record.
    """

    space: Flat
    target: Target
    default: AnyConfig
    seeds: tuple[AnyConfig, ...]
    budget: Budget
    accept: Callable[[AnyConfig], bool] = lambda config: True
    rounds: int = ROUNDS
    band: float = BAND
    ranked: tuple[AnyConfig, ...] = ()


@dataclass
class State:
    """Where a search stands; what is shown and logged.

    Attributes:
        facts: what the device says once it is ready.
        outcomes: of every candidate that was tried.
        tried: candidates of this run; those of a run that was cut short are not counted.
        events: duplicates, twins, refusals and failures.
    """

    study: Study
    started: float
    facts: Facts | None = None
    outcomes: dict[AnyConfig, Outcome] = field(default_factory=dict)
    builds: dict[AnyConfig, Build] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    tried: int = 0
    since_gain: int = 0
    best: float = 1.0
    partial: bool = False
    reason: str = ""
    met: set[AnyConfig] = field(default_factory=set)
    asked: dict[AnyConfig, list[Ask]] = field(default_factory=dict)
    codes: dict[str, AnyConfig] = field(default_factory=dict)

    @property
    def measured(self) -> list[AnyConfig]:
        """Candidates with a time, the fastest first."""
        found = [x for x, outcome in self.outcomes.items() if outcome.measured]
        return sorted(found, key=lambda x: self.outcomes[x].ratio)


@dataclass(frozen=True)
class Found:
    """What came out.

    Attributes:
        winner: None if nothing survived verification.
        tied: configurations in the winner's tie band, best first.
        wrong: (configuration, what is wrong) of all that computed something else.
        partial: it was cut short.
        reason: why it ended.
    """

    winner: Finalist | None
    checks: Checks | None
    tied: tuple[AnyConfig, ...]
    wrong: tuple[tuple[AnyConfig, str], ...]
    partial: bool
    reason: str
    state: State


Watch = Callable[[State, AnyConfig, Outcome], None]


def search(
    study: Study,
    device: Device,
    compiler: Compiler,
    proposer: Proposer,
    watch: Watch = lambda state, config, outcome: None,
    clock: Callable[[], float] = time.monotonic,
    started: float | None = None,
) -> Found:
    """Try candidates until the budget is used up, then let the best of them race.

    The device was started; it gets ready while the first candidates are compiled.

    An interrupt (Ctrl-C) ends the trials; the finals run on what there is.
    """
    state = State(study, clock() if started is None else started)
    _remember(state, proposer)
    for config in (study.default, *study.seeds):
        values = study.space.values(config)
        if values is not None:
            proposer.seed(values)
    _propose(state, proposer, compiler)
    state.facts = device.ready()  # while the compilers are at work
    try:
        while not _over(state, clock):
            _remember(state, proposer)
            _propose(state, proposer, compiler)
            _measure(state, device, compiler, proposer, watch, clock)
    except KeyboardInterrupt:
        state.partial, state.reason = True, "interrupted"
    _remember(state, proposer)
    found = _finals(state, device, clock)
    proposer.close(finished=not state.partial)
    return found


# -- trials -------------------------------------------------------------------------------------
def _remember(state: State, proposer: Proposer) -> None:
    """What a run before this one found out, or somebody who searches the same."""
    for values, outcome in proposer.known():
        config, _ = state.study.space.config(values, state.study.target)
        if config is not None and config not in state.outcomes:
            _note(state, config, outcome)


def _over(state: State, clock: Callable[[], float]) -> bool:
    """Whether, and why, no more candidates are tried."""
    budget, spent = state.study.budget, clock() - state.started
    reserve = min(_FINALS, budget.seconds / 5)
    if state.reason:
        return True
    if spent > budget.seconds + (_LATE if _few(state) else -reserve):
        state.reason = "time is up"
    elif state.tried >= budget.trials:
        state.reason = "enough trials"
    elif state.tried >= _SURE and state.since_gain >= _STALE:
        state.reason = f"no gain in {state.since_gain} trials"
    elif state.events["sticky"] + state.events["timeout"] > _CRASHES:
        state.reason, state.partial = "too many crashes", True
    return bool(state.reason)


def _few(state: State) -> bool:
    """Not much is known yet, and some more cost little."""
    return state.tried < _FEWEST and _slowest(state) < _SHORT


def _slowest(state: State) -> float:
    return max((x.ms for x in state.outcomes.values() if x.status == "ok"), default=0.0)


def _propose(state: State, proposer: Proposer, compiler: Compiler) -> None:
    """Keep the compilers busy; what is known already is told at once, and free."""
    study, in_vain = state.study, 0
    while compiler.room > 0 and not state.reason:
        if state.tried + len(state.asked) >= study.budget.trials:
            return
        ask = proposer.ask()
        config, refused = study.space.config(ask.values, study.target)
        if config is None or not study.accept(config):
            state.events["refused"] += 1
            proposer.tell(ask, Outcome("infeasible", message=refused))
        elif config in state.outcomes:
            state.events["duplicate"] += 1
            proposer.tell(ask, state.outcomes[config])
        elif config in state.asked:
            state.events["duplicate"] += 1
            state.asked[config].append(ask)
        else:
            state.asked[config] = [ask]
            compiler.submit(config)
            in_vain = -1
        in_vain += 1
        if in_vain > _REFUSED:
            state.reason = "nothing new to try"
        if in_vain and state.asked and in_vain > _REFUSED // 20:
            return  # first see what comes of those under way


def _measure(
    state: State,
    device: Device,
    compiler: Compiler,
    proposer: Proposer,
    watch: Watch,
    clock: Callable[[], float],
) -> None:
    """Candidates that are compiled; those that come when the search is over are left out."""
    for config, build in compiler.take(0.5):
        state.builds[config] = build
        if state.outcomes and _over(state, clock):
            return
        outcome = state.outcomes.get(config)  # somebody else may have been faster
        if outcome is None:
            outcome = _outcome(state, device, config, build)
            state.tried += 1
            if not outcome.measured:
                state.events[outcome.status] += 1
            _note(state, config, outcome)
        for ask in state.asked.pop(config):
            proposer.tell(ask, outcome, spills=build.stack > _SPILLS)
        watch(state, config, outcome)


def _outcome(state: State, device: Device, config: AnyConfig, build: Build) -> Outcome:
    if build.status != "ok":
        return Outcome(
            "compile" if build.status == "timeout" else build.status, message=build.message
        )
    if build.stack > _SPILLS:
        state.events["spills"] += 1
    twin = state.codes.get(build.code) if build.code else None
    if twin is not None:
        state.events["twin"] += 1
        return replace(state.outcomes[twin], twin=True)
    outcome = device.measure(config, state.best)
    if outcome.status == "ok" and outcome.ratio < state.best:
        # A new best counts when it was seen twice: noise makes half of them.
        again = device.measure(config, state.best)
        if again.measured:
            ratio = max(outcome.ratio, again.ratio)
            outcome = replace(outcome, ratio=ratio, ms=max(outcome.ms, again.ms))
        else:
            outcome = again
    if outcome.measured:
        state.met.add(config)
    if build.code:
        state.codes[build.code] = config
    return outcome


def _note(state: State, config: AnyConfig, outcome: Outcome) -> None:
    state.outcomes[config] = outcome
    state.since_gain += 1
    if outcome.status == "ok" and outcome.ratio < state.best:
        if outcome.ratio < state.best * (1 - _GAIN):
            state.since_gain = 0
        state.best = outcome.ratio


# -- finals -------------------------------------------------------------------------------------
def _finals(state: State, device: Device, clock: Callable[[], float]) -> Found:
    """The best of the trials and the default in turn; the first of the ranking that is right."""
    study = state.study
    left = max(0.0, state.started + study.budget.seconds - clock()) + _GRACE
    first = [x for x in state.measured if x != study.default][: _fitting(state, left)]
    configs = [study.default, *first]
    for config in set(first) - state.met:  # those of an earlier run are new to this device
        if not device.measure(config, math.inf).measured:
            configs.remove(config)
    race = _race(state, device, configs, clock)
    order = ranking(
        finalists(configs, study.default, race), study.default, state.builds, study.band
    )
    wrong = [(x, y.message) for x, y in state.outcomes.items() if y.status == "wrong"]
    fastest = min(order, key=lambda x: x.ratio)
    for winner in order:
        right, checks, what = device.verify(winner.config)
        if right:
            tied = [x.config for x in order if x.ratio - fastest.ratio <= tie(x, fastest)]
            others = tuple(x for x in tied if x != winner.config)[:RUNNERS_UP]
            how = (tuple(wrong), state.partial, state.reason, state)
            return Found(winner, checks, others, *how)
        wrong.append((winner.config, what))
    return Found(None, None, (), tuple(wrong), state.partial, state.reason, state)


def _fitting(state: State, seconds: float) -> int:
    """How many candidates may race: slow ones would hold the least number of rounds for too long."""
    race = _PIECE * _slowest(state) / 1e3
    return max(1, min(FINALISTS, int(seconds / race) - 1)) if race else FINALISTS


def _race(
    state: State, device: Device, configs: Sequence[AnyConfig], clock: Callable[[], float]
) -> Race:
    """All rounds, or at least three if time is up."""
    rounds: tuple[tuple[float, ...], ...] = ()
    clocks: tuple[int, ...] = ()
    end = state.started + state.study.budget.seconds
    while len(rounds) < state.study.rounds and (not rounds or clock() < end):
        found = device.race(configs, min(_PIECE, state.study.rounds - len(rounds)))
        rounds, clocks = rounds + found.rounds, clocks + found.clocks
    return Race(rounds, clocks)
