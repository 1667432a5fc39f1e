"""How long a Triton forward should take, from its mask's own tile counts. It orders, never vetoes.

A step (one tile of keys) keeps a multiprocessor's matrix units, its exponential units, its ordinary
ones and the path from the L2 cache busy. Inside a warp-group these follow each other, since Triton
waits for every product; between warp-groups they overlap. So the slowest unit bounds a step from
below, and so does the sum over all units divided by the warp-groups there are.

Products of 64 rows and more are those of warp-groups, and all warps lie along the rows: warps
beyond one for 16 rows compute scores that others compute, too. Smaller tiles take instructions of
single warps, which lie along the keys, and load what they multiply themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from maskwright.autotune.density import Tiles
from maskwright.autotune.density import tiles
from maskwright.autotune.filter import Heads
from maskwright.autotune.filter import shared_forward
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.config import padded_heads
from maskwright.codegen.tile import TileShape
from maskwright.codegen.walk import Call
from maskwright.dsl import nodes as n

_WARP_GROUP = 4  # warps
_GROUP_ROWS = 64  # of an instruction of a warp-group
_WARP_ROWS, _WARP_KEYS = 16, 8  # of a warp's part of it; of a single warp's instruction
_FILE = 65536  # registers of a multiprocessor
_RESERVED = 1024  # bytes of shared memory that the driver takes for each program
_MOST_REGISTERS = 255
# Instructions of one attended pair beside its exponential: maximum, scaling, sum, conversion.
_PER_PAIR = 4.5
_PER_NODE = 1.0  # of a partial tile, for each node of the mask
# Waits of a step that no unit explains (barriers, shuffles of row maxima), and of a program that
# starts and ends; clocks. The first was chosen by the tile sweep of docs/forward-log.md, like
# _LOCKSTEP, _PER_SPILL and the L2's rate below; the second is a guess.
_STEP, _PROGRAM = 300.0, 2500.0
# How much a further warp-group of the same program overlaps: they meet at every step's loads.
_LOCKSTEP = 0.7
# Registers that may be missing before stores and loads inside the loop begin (128 x 64 with four
# warps misses 50 and keeps them outside: docs/forward-log.md), and what each further one costs.
_FREE_SPILLS, _PER_SPILL = 64, 0.02


@dataclass(frozen=True)
class Gpu:
    """A GPU's rates, per multiprocessor and clock.

    Attributes:
        clock: of multiprocessors under load, Hz.
        products: floating-point operations of 16-bit matrix units.
        exponentials: of the special-function units.
        lanes: ordinary operations.
        shared_read: bytes that matrix units read from shared memory.
        l2_read: bytes from the L2 cache, when all multiprocessors read.
        shared_bytes: of a multiprocessor.
    """

    arch: str
    processors: int
    clock: float
    products: float
    exponentials: float
    lanes: float
    shared_read: float
    l2_read: float
    shared_bytes: int


# H100 SXM: 989 TFLOP/s of bfloat16 at 1.83 GHz, 16 exponentials a clock; 1.74 GHz under this load.
H100 = Gpu("sm_90", 132, 1.74e9, 4096.0, 16.0, 128.0, 128.0, 56.0, 233472)


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
    counts = tiles(work.mask, work.call, tile)
    if counts is None:
        return None
    registers = register_estimate(config, work.heads)
    resident = _resident(config, work.heads, registers, gpu)
    nodes = len(n.walk(work.mask))
    full = _step(config, work.heads, 0.0, resident, gpu)
    partial = _step(config, work.heads, _PER_NODE * nodes, resident, gpu)
    clocks = _makespan(counts, work.call, full, partial, resident * gpu.processors)
    most = min(_MOST_REGISTERS, _FILE // (32 * config.num_warps))
    missing = registers - most - _FREE_SPILLS
    seconds = clocks / gpu.clock * (1.0 + _PER_SPILL * max(0.0, missing))
    return Estimate(seconds, full, partial, resident, registers)


def ranked(configs: Iterable[KernelConfig], work: Work, gpu: Gpu = H100) -> list[KernelConfig]:
    """The cheapest first; as given where nothing can be counted."""
    found = [(forward_cost(config, work, gpu), config) for config in configs]
    order = sorted(range(len(found)), key=lambda i: (_seconds(found[i][0]), i))
    return [found[i][1] for i in order]


def register_estimate(config: KernelConfig, heads: Heads) -> float:
    """Registers that a thread of the forward wants, spilled ones counted.

    Fitted to 12 tiles compiled for sm_90, worst error 36: it finds tiles that spill in the loop,
    and decides nothing near the limit.
    """
    _, value = padded_heads(heads.head_dim, heads.value_dim, heads.dtype, config.block_m)
    threads = 32 * config.num_warps
    accumulator = config.block_m * value / threads
    rows, keys = computed(config)
    scores = rows * keys / threads
    return 65 + 0.94 * accumulator + 1.93 * scores


def computed(config: KernelConfig) -> tuple[int, int]:
    """(rows, keys) of the scores that a program computes in a step; more than its tile if warps repeat.

    So Triton 3.6 lays out warps for sm_90: ``warpsPerCTA`` in its code for the GPU.
    """
    if config.block_m >= _GROUP_ROWS:
        return max(config.block_m, _WARP_ROWS * config.num_warps), config.block_n
    return config.block_m, max(config.block_n, _WARP_KEYS * config.num_warps)


def _seconds(estimate: Estimate | None) -> float:
    return 0.0 if estimate is None else estimate.seconds


def _resident(config: KernelConfig, heads: Heads, registers: float, gpu: Gpu) -> int:
    """Programs that share a multiprocessor."""
    shared = shared_forward(config, heads, gpu.arch).most + _RESERVED
    threads = 32 * config.num_warps
    taken = threads * min(_MOST_REGISTERS + 1, -(-int(registers) // 8) * 8)
    return max(1, min(gpu.shared_bytes // shared, _FILE // taken))


def _step(config: KernelConfig, heads: Heads, extra: float, resident: int, gpu: Gpu) -> float:
    """Clocks of a step of one program while its neighbours run, times the programs resident.

    Args:
        extra: instructions of a pair that only partial tiles have.
    """
    head, value = padded_heads(heads.head_dim, heads.value_dim, heads.dtype, config.block_m)
    rows, columns = computed(config)
    pairs = rows * columns
    matrix = _products(config, heads, gpu)
    rescaled = config.block_m * value / gpu.lanes
    softmax = pairs * (_PER_PAIR + extra) / gpu.lanes + rescaled
    exponentials = pairs / gpu.exponentials
    copied = heads.itemsize * config.block_n * (head + value) / gpu.l2_read
    # A pipeline hides copies; without one they come on top.
    waits = _STEP + (copied if config.num_stages == 1 else 0.0)
    groups = max(1.0, config.num_warps / _WARP_GROUP)
    overlap = resident * (1.0 + _LOCKSTEP * (groups - 1.0))
    alone = matrix + softmax + exponentials + waits
    return resident * max(matrix, exponentials, softmax, copied, alone / overlap)


def _products(config: KernelConfig, heads: Heads, gpu: Gpu) -> float:
    """Clocks of a step's two products, if nothing else ran."""
    head, value = padded_heads(heads.head_dim, heads.value_dim, heads.dtype, config.block_m)
    rows, columns = computed(config)
    keys = 2 * config.block_m * columns * head / gpu.products
    values = 2 * config.block_m * config.block_n * value / gpu.products
    if config.block_m < _GROUP_ROWS:
        # Each warp loads its keys, all weights, and its columns of the values; queries stay.
        read = columns * head
        weights = config.num_warps * config.block_m * config.block_n + config.block_n * value
        rate = gpu.shared_read / heads.itemsize
        return max(keys, read / rate) + max(values, weights / rate)
    # Repeated rows share the keys among them, but each piece reads its queries again.
    blocks, pieces = config.block_m // _GROUP_ROWS, rows // config.block_m
    read = heads.itemsize * blocks * (_GROUP_ROWS * pieces + config.block_n) * head
    return max(keys, read / gpu.shared_read) + values


def _makespan(counts: Tiles, call: Call, full: float, partial: float, slots: int) -> float:
    """Clocks until the last program ends. Heads are fastest in the grid, last queries first."""
    programs = (counts.full * full + counts.partial * partial + _PROGRAM).mean((0, 1))
    alike = call.batch * call.heads
    total = float(programs.sum()) * alike
    last = programs[: max(1, slots // alike)]  # what starts last: the first queries
    return max(float(programs.max()), total / slots + 0.5 * float(last.mean()))
