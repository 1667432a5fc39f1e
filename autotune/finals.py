"""From times to a winner: ratios by round, a band of ties, a fixed order within it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass

from maskwright.autotune.outcome import Build
from maskwright.autotune.outcome import Race
from maskwright.autotune.outcome import config_key
from maskwright.codegen.configs import AnyConfig

BAND = 0.02  # two configurations that are closer than this are equal
_MEDIAN = 1.2533  # standard error of a median, in units of that of a mean
_95 = 1.96
_DEVIATION = 1.4826  # standard deviation, in units of the median absolute one
_THROTTLED = 0.97  # of the median clock: rounds below it do not count


@dataclass(frozen=True)
class Finalist:
    """A configuration in the final race.

    Attributes:
        ms: median of the rounds.
        ratio: median over rounds of its time to the default's.
        spread: half the width of the 95 % interval of that median, from the median deviation.
    """

    config: AnyConfig
    ms: float
    ratio: float
    spread: float
    rounds: int
    clock: int


def finalists(configs: Sequence[AnyConfig], default: AnyConfig, race: Race) -> list[Finalist]:
    """Each configuration's ratio to the default, which ran with them."""
    place = list(configs).index(default)
    rounds, clocks = _steady(race)
    clock = round(statistics.median(clocks)) if clocks else 0
    found = []
    for i, config in enumerate(configs):
        ratios = [times[i] / times[place] for times in rounds]
        ms = statistics.median(times[i] for times in rounds)
        found.append(
            Finalist(config, ms, statistics.median(ratios), _margin(ratios), len(rounds), clock)
        )
    return found


def ranking(
    found: Sequence[Finalist],
    default: AnyConfig,
    builds: Mapping[AnyConfig, Build],
    band: float = BAND,
) -> list[Finalist]:
    """Best first: those in the tie band of the fastest in a fixed order, then the rest by ratio.

    In the band come the default, then fewer registers, then the text of the configuration: so noise
    does not decide, and a second run finds the same.
    """
    fastest = min(found, key=lambda x: x.ratio)

    def order(x: Finalist) -> tuple[object, ...]:
        registers = builds.get(x.config, Build()).registers
        return x.config != default, registers or 256, config_key(x.config)

    tied = [x for x in found if x.ratio - fastest.ratio <= tie(x, fastest, band)]
    rest = sorted((x for x in found if x not in tied), key=lambda x: x.ratio)
    return [*sorted(tied, key=order), *rest]


def tie(x: Finalist, fastest: Finalist, band: float = BAND) -> float:
    """How far ratios may be apart and still be equal."""
    return max(band * fastest.ratio, math.hypot(x.spread, fastest.spread))


def _margin(ratios: Sequence[float]) -> float:
    if len(ratios) < 3:
        return 0.0
    # One round that something else disturbed must not make a slow configuration equal to the fastest.
    middle = statistics.median(ratios)
    deviation = _DEVIATION * statistics.median(abs(x - middle) for x in ratios)
    return _95 * _MEDIAN * deviation / math.sqrt(len(ratios))


def _steady(race: Race) -> tuple[list[tuple[float, ...]], list[int]]:
    """Rounds in which the clock was not throttled."""
    if not any(race.clocks):
        return list(race.rounds), list(race.clocks)
    least = _THROTTLED * statistics.median(race.clocks)
    kept = [i for i, clock in enumerate(race.clocks) if clock >= least]
    return [race.rounds[i] for i in kept], [race.clocks[i] for i in kept]
