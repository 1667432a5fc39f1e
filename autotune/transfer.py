"""What a look-up in the nearest bucket loses: one table's best configuration in another table."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping
from dataclasses import asdict
from dataclasses import dataclass
from typing import Any

from maskwright.autotune.lookup import distance
from maskwright.autotune.table import Table
from maskwright.dsl.errors import TuningError


@dataclass(frozen=True)
class Transfer:
    """One direction of a pair of tables.

    Attributes:
        common: configurations with times in both; only they count.
        loss: how much slower the first table's best is in the second than the second's own: 0.03 is
            3 %.
        default: likewise of the second table's default, which serves without any entry; None if it
            is not in both.
    """

    source: str
    target: str
    common: int
    config: dict[str, Any]
    loss: float
    default: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def transfers(tables: Mapping[str, Table]) -> list[Transfer]:
    """All pairs of tables, in both directions, that a look-up would join.

    Raises:
        TuningError: there is none.
    """
    found = []
    for (source, a), (target, b) in itertools.permutations(tables.items(), 2):
        if a.key.bucket != b.key.bucket and distance(b.key, a.key) is not None:
            found.append(_transfer(source, a, target, b))
    if not found:
        raise TuningError(
            "no entry of one of these tables would serve another one",
            fix="tables of one kernel and GPU, lengths within a factor of 4",
        )
    return found


def summary(found: list[Transfer]) -> dict[str, Any]:
    """Mean and 90 % of the losses."""
    losses = sorted(x.loss for x in found)
    p90 = losses[min(len(losses) - 1, int(0.9 * len(losses)))]
    return {"pairs": len(losses), "mean": statistics.fmean(losses), "p90": p90}


def _transfer(source: str, a: Table, target: str, b: Table) -> Transfer:
    times = [
        {config: row.median for config, row in table.by_config.items() if row.ratio}
        for table in (a, b)
    ]
    common = times[0].keys() & times[1].keys()
    if not common:
        raise TuningError(f"{source} and {target} have no configuration in common")
    here, there = times
    best = min(there[x] for x in common)
    # Equal times: the text decides, not the order of a set.
    config = min(common, key=lambda x: (here[x], str(x)))
    own = b.config(b.default)
    default = there[own] / best - 1.0 if own in common else None
    return Transfer(
        source, target, len(common), config.to_dict(), there[config] / best - 1.0, default
    )
