"""How evenly the programs of a persistent grid share its items: known from the mask, before anything runs.

An item is a tile of queries of a head. The template hands items out lap by lap, every other lap
backwards over the programs; with a counter, the next one goes to whoever is free.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.listed import schedule_of
from maskwright.codegen.tile import TileShape
from maskwright.codegen.walk import Call
from maskwright.codegen.walk import counted
from maskwright.dsl import nodes as n

Costs = npt.NDArray[np.float64]

PROGRAMS = 132  # multiprocessors of an H100
# In tiles without masking: what a masked tile, and what an item beside its tiles, is taken to cost.
_PARTIAL, _ITEM = 1.25, 0.8
# Keys, and query heads of a KV head: nobody knows the call yet. The first is looked at alone.
_CALLS = ((8192, 4), (8192, 1), (32768, 4))
_HEADS = 32
# The counter is cleared by a launch, and asked before every item: 2 to 5 % of 0.4 ms (docs/hopper-log.md).
_WORTH = 0.95


@lru_cache(maxsize=512)
def wants_counter(mask: n.Node, config: GluonConfig, head_dim: int, value_dim: int) -> bool:
    """The fixed order would leave programs idle for longer than a counter costs, in typical calls.

    Where tables decide nobody knows in advance how long an item takes: True.
    """
    if n.tables(mask):
        return True
    tile = TileShape(config.block_m, config.block_n, inside=True)
    schedule = schedule_of(mask, tile)
    if n.params(mask) or not schedule.closed:
        return False
    kinds = (x.kinds for x in n.walk(mask) if isinstance(x, n.ByHead))
    heads = next((len(x) for x in kinds if isinstance(x, tuple)), _HEADS)
    ratios: list[float] = []
    for kv_len, group in _CALLS:
        call = Call(kv_len, kv_len, 0, 1, heads, heads // math.gcd(heads, group), {})
        full, partial = counted(schedule, call, tile)
        costs = full + _PARTIAL * partial + _ITEM
        items = in_order(costs[0], section(call, config, head_dim + value_dim))
        ratios.append(as_free(items) / in_turn(items))
        if ratios[0] > _WORTH:
            return False
    return statistics.geometric_mean(ratios) <= _WORTH


def section(call: Call, config: GluonConfig, columns: int) -> int:
    """Query heads that are worked on at a time: their keys and values fit a part of the L2."""
    parts = call.batch * call.kv_heads
    fitting = max(1, (config.section_mib << 20) // (2 * columns * call.kv_len))
    sections = next(x for x in range(1, parts + 1) if parts % x == 0 and parts <= x * fitting)
    return call.batch * call.heads // sections


def in_order(costs: Costs, heads: int) -> Costs:
    """Of (heads, tiles of queries), items as they are numbered: sections of ``heads``.

    The last section begins with the last tiles; every other one runs the other way round, so that
    neighbours are alike.
    """
    parts = costs.reshape(-1, heads, costs.shape[1])
    ways = [-1 if (len(parts) - i) % 2 else 1 for i in range(len(parts))]
    return np.concatenate([x.T[::way].ravel() for x, way in zip(parts, ways, strict=True)])


def in_turn(items: Costs, programs: int = PROGRAMS) -> float:
    """When the last program ends in the fixed order."""
    laps = -(-len(items) // programs)
    table = np.zeros((laps, programs))
    table.ravel()[: len(items)] = items
    table[1::2] = table[1::2, ::-1]
    return float(table.sum(0).max())


def as_free(items: Iterable[float], programs: int = PROGRAMS) -> float:
    """When the last program ends if each item goes to the first that is free."""
    busy = [0.0] * programs
    for cost in items:
        heapq.heapreplace(busy, busy[0] + cost)
    return max(busy)
