"""The real search on recorded times: how far from the best, how often another choice, how sure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from maskwright.autotune.chance import proposer_of
from maskwright.autotune.filter import Limits
from maskwright.autotune.finals import BAND
from maskwright.autotune.flat import Flat
from maskwright.autotune.outcome import NoCompiler
from maskwright.autotune.search import Budget
from maskwright.autotune.search import Found
from maskwright.autotune.search import Study
from maskwright.autotune.search import search
from maskwright.autotune.seeds import ordered
from maskwright.autotune.seeds import seeds
from maskwright.autotune.space import Target
from maskwright.autotune.table import Table
from maskwright.autotune.table import TableDevice
from maskwright.codegen.configs import AnyConfig
from maskwright.dsl.errors import TuningError

_NO_TIME = 1e9  # seconds: a replay is limited by trials alone
_TOP = 10
_CLOSE = 0.10
_SPARSE = 0.1  # of a space's points: a table of less is searched by its nearest rows


@dataclass(frozen=True)
class Nearest(Flat):
    """A space of a few points: choices mean the nearest of them, in steps of its knobs.

    Of a table with a hundredth of all configurations no search would ever hit a row.
    """

    rows: tuple[AnyConfig, ...] = ()

    def config(self, values: dict[str, Any], target: Target) -> tuple[AnyConfig | None, str]:
        """See ``Flat``; there is always one."""
        del target
        steps = np.abs(self._places - self._place(values))
        return self.rows[int(np.argmin(steps.sum(1)))], ""

    @cached_property
    def _places(self) -> Any:
        return np.array([self._place(self.values(x) or {}) for x in self.rows])

    def _place(self, values: dict[str, Any]) -> Any:
        return np.array([x.values.index(values[x.name]) for x in self.knobs])


@dataclass(frozen=True)
class Replay:
    """Searches on one table, each with another seed. Regrets: 0.03 is 3 % slower than the best row.

    Attributes:
        exploration: regret of the best candidate that was tried.
        selection: how much slower the winner is than that one.
        default: regret of the default configuration.
        flips: share of searches whose winner lies outside the tie band of the usual one's.
        slower: searches whose winner is slower than the default, beyond the tie band.
        spearman: rank correlation of the cost model with all recorded times; None without a model.
        top: a configuration within 10 % of the best is among the recorded ten that the model likes
            most.
    """

    name: str
    rows: int
    searches: int
    trials: int
    mean: float
    p90: float
    most: float
    exploration: float
    selection: float
    default: float
    flips: float
    slower: int
    spearman: float | None
    top: bool | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def replay(
    table: Table, name: str, searches: int = 50, trials: int = 80, sampler: str = "tpe"
) -> Replay:
    """Search a table many times.

    Raises:
        TuningError: the table has no times.
    """
    if not any(row.ratio for row in table.rows):
        raise TuningError(f"{name} holds no times")
    target = Target(table.key, Limits.of(table.job.mask_node, table.job.score_node))
    space = Flat.of(table.job)
    if len(table.rows) < _SPARSE * table.points:
        space = Nearest(*(space.op, space.template, space.together), tuple(table.by_config))
    study = _study(table, space, target, trials)
    found = [_search(table, study, seed, sampler) for seed in range(searches)]
    winners = [x.winner.config for x in found if x.winner is not None]
    regrets = [table.regret(x) for x in winners]
    tried = [min(table.regret(x) for x in one.state.measured) for one in found]
    usual = Counter(winners).most_common(1)[0][0]
    rank, top = _cost_model(table, target)
    default = table.regret(table.config(table.default))
    return Replay(
        *(name, len(table.rows), searches, trials),
        mean=statistics.fmean(regrets),
        p90=_p90(regrets),
        most=max(regrets),
        exploration=statistics.fmean(tried),
        selection=statistics.fmean(x - y for x, y in zip(regrets, tried, strict=True)),
        default=default,
        flips=statistics.fmean(_apart(table, x, usual) for x in winners),
        slower=sum(x > default + BAND * (1 + default) for x in regrets),
        spearman=rank,
        top=top,
    )


def _study(table: Table, space: Flat, target: Target, trials: int) -> Study:
    """Of what was recorded: nothing else is proposed, by the cost model neither."""
    default, recorded = table.config(table.default), table.by_config.__contains__
    return Study(
        *(space, target, default),
        seeds=seeds(table.job, space, target, default, (), recorded),
        budget=Budget(_NO_TIME, trials),
        accept=recorded,
    )


def _search(table: Table, study: Study, seed: int, sampler: str) -> Found:
    compiler = NoCompiler({config: row.build for config, row in table.by_config.items()})
    proposer = proposer_of(sampler, study.space.knobs, None, seed)
    return search(study, TableDevice(table, seed), compiler, proposer)


def _apart(table: Table, one: AnyConfig, other: AnyConfig) -> bool:
    times = sorted((table.by_config[one].median, table.by_config[other].median))
    return times[1] > times[0] * (1 + BAND)


def _cost_model(table: Table, target: Target) -> tuple[float | None, bool | None]:
    """(rank correlation over all rows with times, whether its first ten hold a good one)."""
    timed = {config: row.median for config, row in table.by_config.items() if row.ratio}
    order = ordered(table.job, timed, target)
    if len(order) < 3:
        return None, None
    close = any(table.regret(x) <= _CLOSE for x in order[:_TOP])
    return _spearman([timed[x] for x in order]), close


def _spearman(values: Sequence[float]) -> float:
    """Of values in the order that a model gave them."""
    places = sorted(range(len(values)), key=lambda i: values[i])
    ranks = [0] * len(values)
    for rank, i in enumerate(places):
        ranks[i] = rank
    return statistics.correlation(ranks, range(len(values)))


def _p90(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
