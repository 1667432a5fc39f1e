"""How long a Gluon kernel for Hopper should take. It orders, never vetoes; see ``cost``.

One program fills a multiprocessor: a producer copies, and its consumers, 64 rows each, share the
matrix units. While one consumer computes weights the others multiply, so a step takes as long as the
slower of the two kinds of work, and some clocks in which all wait for each other. With a ring of one
tile nothing is copied ahead. Registers are the user's choice, so what is missing is known better than
for Triton: the accumulators, a tile of scores, and its weights in 16 bits.

The constants were chosen by recorded times of causal (docs/autotune.md), all on an H100.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from maskwright.autotune.cost import PER_NODE
from maskwright.autotune.cost import PER_PAIR
from maskwright.autotune.cost import Work
from maskwright.autotune.cost import makespan
from maskwright.autotune.density import Tiles
from maskwright.autotune.density import tiles
from maskwright.autotune.rates import H100
from maskwright.autotune.rates import Gpu
from maskwright.codegen.gluon import ROWS
from maskwright.codegen.gluon import THREADS
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon_backward import GluonBackwardConfig
from maskwright.codegen.tile import TileShape
from maskwright.dsl import nodes as n

# Clocks of a step in which consumers wait for each other and for barriers; of a copy until it begins
# to arrive.
_STEP, _LATENCY = 550.0, 750.0
# Registers of a thread beside its tiles, and what each missing one costs.
_OTHERS, _PER_SPILL = 44, 0.03
# With tiles of 128 queries, by registers, means of recorded times: more are not always better, since
# ptxas spills more with 224 than with 208.
_OF_ROWS = {160: 1.92, 184: 1.37, 208: 1.02, 224: 1.61, 232: 1.32, 240: 1.0}
_ITEMSIZE = 2


def seconds(work: Work, gpu: Gpu = H100) -> Callable[[GluonConfig | GluonBackwardConfig], float]:
    """A function of configurations; 0 where the mask has no closed form to count by."""
    extras = 0.0, PER_NODE * len(n.walk(work.mask))

    @cache
    def counted(tile: TileShape) -> Tiles | None:
        return tiles(work.mask, work.call, tile)

    def found(config: GluonConfig | GluonBackwardConfig) -> float:
        if isinstance(config, GluonBackwardConfig):
            tile = TileShape(config.block_n, config.block_m, work.call.inside, transposed=True)
            full, partial = (gradient_step(config, work, gpu, x) for x in extras)
            programs = gpu.processors
        else:
            tile = TileShape(config.block_m, config.block_n, work.call.inside)
            full, partial = (forward_step(config, work, gpu, x) for x in extras)
            programs = config.programs or gpu.processors
        counts = counted(tile)
        if counts is None:
            return 0.0
        return makespan(counts, work.call, full, partial, programs) / gpu.clock

    return found


def forward_step(config: GluonConfig, work: Work, gpu: Gpu, extra: float = 0.0) -> float:
    """Clocks of a tile of keys; ``extra`` instructions a pair that only partial tiles have."""
    head, value = config.pads(work.heads.head_dim, work.heads.value_dim)
    rows, keys = config.block_m, config.block_n
    products = 2 * rows * keys * (head + value) / gpu.products
    others = rows * keys * ((PER_PAIR + extra) / gpu.lanes + 1 / gpu.exponentials)
    others += rows * value / gpu.lanes
    wanted = _of_thread(value + keys + keys / 2 + config.query_registers * head / 2)
    copied = _ITEMSIZE * keys * (head + value) / gpu.l2_read
    spilled = _spilled(config.consumer_registers, wanted)
    return _clocks(config, max(products, others), copied) * spilled


def gradient_step(config: GluonBackwardConfig, work: Work, gpu: Gpu, extra: float = 0.0) -> float:
    """Clocks of a tile of queries: five products, of which two give scores."""
    head, value = config.pads(work.heads.head_dim, work.heads.value_dim)
    keys, queries = config.block_n, config.block_m
    products = 2 * keys * queries * (3 * head + 2 * value) / gpu.products
    others = keys * queries * ((PER_PAIR + extra) / gpu.lanes + 1 / gpu.exponentials)
    wanted = _of_thread(head + value + 2 * queries)
    copied = _ITEMSIZE * queries * (head + value) / gpu.l2_read
    spilled = _spilled(config.registers, wanted)
    if config.splits == "rows":
        limit = min(_OF_ROWS, key=lambda x: abs(x - config.registers))
        spilled = _OF_ROWS[limit] * _spilled(max(_OF_ROWS), wanted)
    return _clocks(config, products + others, copied) * spilled


def _of_thread(columns: float) -> float:
    """Registers of a consumer's thread that hold so many columns of 64 rows in float32."""
    return ROWS * columns / THREADS


def _clocks(config: GluonConfig | GluonBackwardConfig, busy: float, copied: float) -> float:
    waits = _STEP + (_LATENCY + copied if config.stages == 1 else 0.0)
    return max(busy, copied) + waits


def _spilled(registers: int, wanted: float) -> float:
    return 1.0 + _PER_SPILL * max(0.0, wanted + _OTHERS - registers)
