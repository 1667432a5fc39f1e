"""Time of calls: all contestants of a case in one process, in turn within each round.

The clock of a GPU drifts by percents within seconds. Contestants that take turns see the same
drift, so compare medians of rounds, or better the median of the ratios within each round.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import TypeAlias

Call: TypeAlias = Callable[[], object]
Measure: TypeAlias = Callable[[Call, int], float]
"""Runs a call n times back to back and returns the milliseconds of all n together."""

TARGET_MS = 40.0
MAX_CALLS = 2000


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call, one value a round.

    Attributes:
        rounds: mean of the back-to-back calls of each round.
        calls: how many calls a round made.
    """

    rounds: tuple[float, ...]
    calls: int

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.rounds)

    @property
    def iqr(self) -> float:
        """Distance between the quartiles of the rounds."""
        if len(self.rounds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.rounds, n=4, method="inclusive")
        return high - low

    def to_dict(self) -> dict[str, Any]:
        """For JSON: median, spread, and the rounds themselves."""
        return {
            "ms": round(self.median, 5),
            "min": round(min(self.rounds), 5),
            "max": round(max(self.rounds), 5),
            "iqr": round(self.iqr, 5),
            "rounds": [round(ms, 5) for ms in self.rounds],
            "calls": self.calls,
        }


def interleaved(
    contestants: Mapping[str, Call],
    rounds: int = 7,
    target_ms: float = TARGET_MS,
    *,
    measure: Measure,
    clear: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Time all contestants in turn, in a different order each round.

    Args:
        contestants: name -> call; already correct and compiled.
        rounds: how many values each contestant gets.
        target_ms: length of a contestant's turn; sets its number of back-to-back calls.
        measure: the clock.
        clear: runs before every turn, untimed.
    """
    calls = {name: calibrate(call, target_ms, measure) for name, call in contestants.items()}
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name in order(list(contestants), turn):
            clear()
            total = measure(contestants[name], calls[name])
            samples[name].append(total / calls[name])
    return {name: Timing(tuple(values), calls[name]) for name, values in samples.items()}


def order(names: Sequence[str], turn: int) -> list[str]:
    """Rotated by the round's number, and reversed every other round to vary the neighbours."""
    if not names:
        return []
    start = turn % len(names)
    turned = [*names[start:], *names[:start]]
    return turned[::-1] if turn % 2 else turned


def calibrate(call: Call, target_ms: float, measure: Measure) -> int:
    """Warm up, and choose how many calls make a turn of about ``target_ms``."""
    measure(call, 1)
    count = _fitting(measure(call, 1), target_ms)
    return _fitting(measure(call, count) / count, target_ms)


def _fitting(once_ms: float, target_ms: float) -> int:
    return min(MAX_CALLS, max(1, round(target_ms / max(once_ms, 1e-6))))


def median_ms(call: Call, measure: Measure, repeats: int = 5) -> float:
    """Median of single calls after one warm-up: for mask preparation, host work included."""
    measure(call, 1)
    return statistics.median(measure(call, 1) for _ in range(repeats))


def paired_ratio(base: Timing, other: Timing) -> float:
    """How many times faster ``other`` is: median over rounds of base / other."""
    return statistics.median(
        theirs / ours for theirs, ours in zip(base.rounds, other.rounds, strict=True)
    )
