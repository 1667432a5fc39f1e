"""How long a Triton kernel should take, from its mask's own tile counts. It orders, never vetoes.

A step (one tile that is walked over) keeps a multiprocessor's matrix units, its exponential units,
its ordinary ones and the path from the L2 cache busy. Inside a warp-group these follow each other,
since Triton waits for every product; between warp-groups they overlap. So the slowest unit bounds a
step from below, and so does the sum over all units divided by the warp-groups there are.

How warps share a tile, and what they read again because of it, depends on the matrix units:

* Products of warp-groups (sm_90, 64 rows and more): all warps lie along the rows, and those beyond
  one for 16 rows compute scores that others compute, too.
* Products into tensor memory (sm_100): of 128 rows; a tile of 64 takes as long.
* Products of single warps (elsewhere, and smaller tiles): each warp loads what it multiplies. Warps
  lie along the rows of tiles that are at least as high as the accumulator is wide, else along the
  walked side.

The forward was compared with times of an H100 (docs/autotune.md). The two kernels of the backward
take the same constants and were compared with nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from maskwright.autotune.density import Tiles
from maskwright.autotune.density import tiles
from maskwright.autotune.filter import Heads
from maskwright.autotune.filter import Shared
from maskwright.autotune.filter import shared_forward
from maskwright.autotune.filter import shared_key_gradient
from maskwright.autotune.filter import shared_query_gradient
from maskwright.autotune.rates import H100
from maskwright.autotune.rates import Gpu
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.config import padded_heads
from maskwright.codegen.tile import TileShape
from maskwright.codegen.walk import Call
from maskwright.dsl import nodes as n

Tiled = TypeVar("Tiled", KernelConfig, BackwardConfig)

_WARP_GROUP = 4  # warps
_GROUP_ROWS = 64  # of an instruction of a warp-group
_MEMORY_ROWS = 128  # of an instruction with accumulators in tensor memory
_WARP_ROWS, _WARP_KEYS = 16, 8  # of a warp's part of it; of a single warp's instruction
_FILE = 65536  # registers of a multiprocessor
_RESERVED = 1024  # bytes of shared memory that the driver takes for each program
_GAPS = 1024  # bytes for alignment that a bound of shared memory counts
_MOST_REGISTERS = 255
# Instructions of one attended pair beside its exponential: maximum, scaling, sum, conversion; in the
# backward, scaling, the difference to a row's sum, the product, two conversions.
PER_PAIR = 4.5
PER_NODE = 1.0  # of a partial tile, for each node of the mask
# Waits of a step that no unit explains (barriers, shuffles of row maxima), and of a program that
# starts and ends; clocks. The first was chosen by the tile sweep of docs/forward-log.md, like
# _LOCKSTEP, _PER_SPILL and the L2's rate; the second is a guess.
_STEP, _PROGRAM = 300.0, 2500.0
# How much a further warp-group of the same program overlaps: they meet at every step's loads.
_LOCKSTEP = 0.7
# Registers that may be missing before stores and loads inside the loop begin (128 x 64 with four
# warps misses 50 and keeps them outside: docs/forward-log.md), and what each further one costs.
_FREE_SPILLS, _PER_SPILL = 64, 0.02
# The same where nothing is rescaled: what a backward spills is mostly read again at its end only.
_PER_GRADIENT_SPILL = 0.004
# Of a Hopper GPU's matrix units, what instructions of single warps reach.
_SINGLE_WARPS = 0.62
# Clocks of a step whose single warps lie along the walked side: maxima of rows, and weights, cross
# them, with two barriers more. A guess, for GPUs without other products only.
_ACROSS = 300.0
_THROUGH_MEMORY = 3.0  # accumulators in tensor memory are loaded and stored to be scaled


@dataclass(frozen=True)
class Work:
    """A call to be estimated.

    Attributes:
        mask: mask node, with the runtime values it needs in ``call``.
        heads: sizes of heads, and dtype.
    """

    mask: n.Node
    call: Call
    heads: Heads


@dataclass(frozen=True)
class Step:
    """What a program does with one tile that it walks over.

    Attributes:
        rows: of the tile that stays.
        columns: of the tile that is walked over.
        scores: widths of the products that give a tile of scores.
        sums: widths of the accumulators; a product of scores adds to each.
        rescaled: accumulators are scaled at every step.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    scores: tuple[int, ...]
    sums: tuple[int, ...]
    itemsize: int
    rescaled: bool = False


@dataclass(frozen=True)
class Estimate:
    """Where the time should go.

    Attributes:
        seconds: of the kernel; only their order means something.
        full, partial: clocks of a step over such a tile, of one program among its neighbours.
        resident: programs of a multiprocessor.
        registers: of a thread, wanted.
    """

    seconds: float
    full: float
    partial: float
    resident: int
    registers: float


def forward_cost(config: KernelConfig, work: Work, gpu: Gpu = H100) -> Estimate | None:
    """The estimate of one configuration; None if the mask has no closed form to count by."""
    tile = TileShape(config.block_m, config.block_n, work.call.inside)
    shared = shared_forward(config, work.heads, gpu.arch)
    return _estimate(forward_step(config, work.heads), tile, shared, work, gpu)


def query_gradient_cost(
    config: KernelConfig, work: Work, gpu: Gpu = H100, rows: int = _GROUP_ROWS
) -> Estimate | None:
    """Likewise of the backward kernel that keeps queries; ``rows`` as in ``filter``."""
    head, value = _widths(work.heads, rows)
    step = _step_of(config, work.heads, (head, value), (head,))
    tile = TileShape(config.block_m, config.block_n, work.call.inside)
    shared = shared_query_gradient(config, work.heads, gpu.arch, rows)
    return _estimate(step, tile, shared, work, gpu)


def key_gradient_cost(
    config: KernelConfig, work: Work, gpu: Gpu = H100, rows: int = _GROUP_ROWS
) -> Estimate | None:
    """Likewise of the backward kernel that keeps keys and walks over queries."""
    head, value = _widths(work.heads, rows)
    turned = KernelConfig(config.block_n, config.rows, config.num_warps, config.num_stages)
    step = _step_of(turned, work.heads, (head, value), (head, value))
    tile = TileShape(config.block_n, config.block_m, work.call.inside, transposed=True)
    shared = shared_key_gradient(config, work.heads, gpu.arch, rows)
    return _estimate(step, tile, shared, work, gpu)


def ranked(configs: Iterable[Tiled], work: Work, gpu: Gpu = H100) -> list[Tiled]:
    """The cheapest first; as given where nothing can be counted."""
    return sorted(configs, key=seconds(work, gpu))


def seconds(work: Work, gpu: Gpu = H100) -> Callable[[KernelConfig | BackwardConfig], float]:
    """A function of configurations: of a forward, or the sum of the two kernels of a backward.

    It is 0 where nothing can be counted. Each kernel is estimated once, however many pairs have it.
    """
    forward = cache(lambda x: _seconds(forward_cost(x, work, gpu)))
    queries = cache(lambda x: _seconds(query_gradient_cost(x, work, gpu)))
    keys = cache(lambda x: _seconds(key_gradient_cost(x, work, gpu)))

    def found(config: KernelConfig | BackwardConfig) -> float:
        if isinstance(config, BackwardConfig):
            return queries(config.queries) + keys(config.keys)
        return forward(config)

    return found


def forward_step(config: KernelConfig, heads: Heads) -> Step:
    """A step of the forward."""
    head, value = _widths(heads, config.rows)
    return _step_of(config, heads, (head,), (value,), rescaled=True)


def register_estimate(step: Step, gpu: Gpu) -> float:
    """Registers that a thread wants, spilled ones counted.

    Fitted to 12 tiles of the forward compiled for sm_90, worst error 36: it finds tiles that spill
    in the loop, and decides nothing near the limit.
    """
    threads = 32 * step.warps
    rows, columns = computed(step, gpu)
    scores = rows * columns * len(step.scores) / threads
    return 65 + 0.94 * step.rows * sum(step.sums) / threads + 1.93 * scores


def computed(step: Step, gpu: Gpu) -> tuple[int, int]:
    """(rows, columns) of the scores that a program computes; more than its tile if warps repeat.

    So Triton 3.6 lays out warps: ``warpsPerCTA`` in its code for sm_80 and sm_90.
    """
    if step.rows >= _GROUP_ROWS and gpu.units == "tensor memory":
        return step.rows, step.columns
    if _along_rows(step, gpu):
        return max(step.rows, _WARP_ROWS * step.warps), step.columns
    return step.rows, max(step.columns, _WARP_KEYS * step.warps)


def _along_rows(step: Step, gpu: Gpu) -> bool:
    if step.rows >= _GROUP_ROWS and gpu.units == "groups":
        return True
    return step.rows >= max(step.sums)


def _widths(heads: Heads, rows: int) -> tuple[int, int]:
    return padded_heads(heads.head_dim, heads.value_dim, heads.dtype, rows)


def _step_of(
    config: KernelConfig,
    heads: Heads,
    scores: tuple[int, ...],
    sums: tuple[int, ...],
    *,
    rescaled: bool = False,
) -> Step:
    """Of a configuration whose rows stay."""
    sizes = (config.rows, config.block_n, config.num_warps, config.num_stages)
    return Step(*sizes, scores, sums, heads.itemsize, rescaled)


def _estimate(step: Step, tile: TileShape, shared: Shared, work: Work, gpu: Gpu) -> Estimate | None:
    counts = tiles(work.mask, work.call, tile)
    if counts is None:
        return None
    registers = register_estimate(step, gpu)
    resident = _resident(step, shared.most - _unused(step, gpu), registers, gpu)
    nodes = len(n.walk(work.mask))
    full = _clocks(step, 0.0, resident, gpu)
    partial = _clocks(step, PER_NODE * nodes, resident, gpu)
    clocks = makespan(counts, work.call, full, partial, resident * gpu.processors)
    most = min(_MOST_REGISTERS, _FILE // (32 * step.warps))
    missing = registers - most - _FREE_SPILLS
    price = _PER_SPILL if step.rescaled else _PER_GRADIENT_SPILL
    seconds = clocks / gpu.clock * (1.0 + price * max(0.0, missing))
    return Estimate(seconds, full, partial, resident, registers)


def _seconds(estimate: Estimate | None) -> float:
    return 0.0 if estimate is None else estimate.seconds


def _unused(step: Step, gpu: Gpu) -> int:
    """Bytes of the bound for single warps that are not taken: their gaps, and, along the rows, weights.

    Seen in six forwards compiled for sm_80. A filter has to be a bound; here it would halve the
    programs of a multiprocessor.
    """
    if gpu.units != "warps":
        return 0
    handed = step.itemsize * step.rows * step.columns
    return _GAPS + (handed if _along_rows(step, gpu) else 0)


def _resident(step: Step, shared: int, registers: float, gpu: Gpu) -> int:
    """Programs that share a multiprocessor."""
    taken = 32 * step.warps * min(_MOST_REGISTERS + 1, -(-int(registers) // 8) * 8)
    return max(1, min(gpu.shared_bytes // (shared + _RESERVED), _FILE // taken))


def _clocks(step: Step, extra: float, resident: int, gpu: Gpu) -> float:
    """Clocks of a step of one program while its neighbours run, times the programs resident.

    Args:
        extra: instructions of a pair that only partial tiles have.
    """
    rows, columns = computed(step, gpu)
    pairs = rows * columns
    matrix = _products(step, gpu)
    scaled = step.rows * sum(step.sums) / gpu.lanes if step.rescaled else 0.0
    if gpu.units == "tensor memory":
        scaled *= _THROUGH_MEMORY
    ordinary = pairs * (PER_PAIR + extra) / gpu.lanes + scaled
    exponentials = pairs / gpu.exponentials
    copied = step.itemsize * step.columns * _walked(step) / gpu.l2_read
    # A pipeline hides copies; without one they come on top.
    waits = _STEP + (copied if step.stages == 1 else 0.0)
    if gpu.units == "warps" and not _along_rows(step, gpu):
        waits += _ACROSS
    groups = max(1.0, step.warps / _WARP_GROUP)
    overlap = resident * (1.0 + _LOCKSTEP * (groups - 1.0))
    alone = matrix + ordinary + exponentials + waits
    return resident * max(matrix, exponentials, ordinary, copied, alone / overlap)


def _walked(step: Step) -> int:
    """Columns of the walked tiles that a step loads: keys and values, or queries and gradients."""
    return sum(step.scores) + (sum(step.sums) if len(step.scores) == 1 else 0)


def _products(step: Step, gpu: Gpu) -> float:
    """Clocks of a step's products, if nothing else ran."""
    rows, columns = computed(step, gpu)
    scores, sums = sum(step.scores), sum(step.sums)
    single = step.rows < _GROUP_ROWS or gpu.units == "warps"
    reached = gpu.products * (_SINGLE_WARPS if single and gpu.units == "groups" else 1.0)
    first = 2 * step.rows * columns * scores / reached
    second = 2 * step.rows * step.columns * sums / reached
    rate = gpu.shared_read / step.itemsize
    if single:
        if _along_rows(step, gpu):
            # Each warp loads all that is walked over; weights stay in registers.
            read, again = step.warps * columns * scores, step.warps * step.columns * sums
        else:
            # Each warp loads its keys, all weights, and its columns of the values; queries stay.
            read = columns * scores
            again = len(step.sums) * step.warps * step.rows * step.columns + step.columns * sums
        return max(first, read / rate) + max(second, again / rate)
    if gpu.units == "tensor memory":
        return (first + second) * max(1.0, _MEMORY_ROWS / step.rows)
    # Repeated rows share the keys among them, but each piece reads its queries again.
    blocks, pieces = step.rows // _GROUP_ROWS, rows // step.rows
    read = blocks * (_GROUP_ROWS * pieces + step.columns) * scores
    return max(first, read / rate) + second


def makespan(counts: Tiles, call: Call, full: float, partial: float, slots: int) -> float:
    """Clocks until the last program ends. Heads are fastest in the grid, last queries first."""
    programs = (counts.full * full + counts.partial * partial + _PROGRAM).mean((0, 1))
    alike = call.batch * call.heads
    total = float(programs.sum()) * alike
    last = programs[: max(1, slots // alike)]  # what starts last: the first queries
    return max(float(programs.max()), total / slots + 0.5 * float(last.mean()))
