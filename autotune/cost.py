"""How long a Triton forward should take, from its mask's own tile counts. It orders, never vetoes.

A step (one tile of keys) keeps a multiprocessor's matrix units, its exponential units, its ordinary
ones and the path from the L2 cache busy. Inside a warp-group these follow each other, since Triton
waits for every product; between warp-groups they overlap. So the slowest unit bounds a step from
below, and so does the sum over all units divided by the warp-groups there are.
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
    missing = registers - _MOST_REGISTERS - _FREE_SPILLS
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
    scores = config.block_m * config.block_n / threads
    return 65 + 0.94 * accumulator + 1.93 * scores


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
    pairs = config.block_m * config.block_n
    blocks = max(1, config.block_m // 64)  # of rows: each reads the operands again
    keys = 2 * pairs * head / gpu.products
    read = heads.itemsize * blocks * (min(64, config.block_m) + config.block_n) * head
    values = 2 * pairs * value / gpu.products
    matrix = max(keys, read / gpu.shared_read) + values
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


def _makespan(counts: Tiles, call: Call, full: float, partial: float, slots: int) -> float:
    """Clocks until the last program ends. Heads are fastest in the grid, last queries first."""
    programs = (counts.full * full + counts.partial * partial + _PROGRAM).mean((0, 1))
    alike = call.batch * call.heads
    total = float(programs.sum()) * alike
    last = programs[: max(1, slots // alike)]  # what starts last: the first queries
    return max(float(programs.max()), total / slots + 0.5 * float(last.mean()))
