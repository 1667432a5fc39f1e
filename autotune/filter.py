"""The hard filter: configurations that cannot be launched, found without compiling.

Shared memory was fitted to what Triton 3.6 allocates (docs/autotune.md). Of the mask and the score
only reads of tables matter: Triton loads those ahead, too, one buffer a stage. Three regimes:

* Asynchronous products (sm_90, 16 bits, 64 and more rows a tile): every operand lies in shared
  memory. With pointer loads the formula is exact. Descriptor loads add barriers and the gaps of
  1024-byte alignment, which depend on the order the allocator finds: the formula is a bound.
* Tensor memory (sm_100 and sm_103): as that, and weights go through shared memory: a bound.
* Products of registers (elsewhere): one buffer a stage less, and room to hand weights from one
  product to the next where warps share rows. Whether Triton needs it depends on its layouts: a bound.
"""

from __future__ import annotations

from dataclasses import dataclass

from maskwright.autotune.key import Key
from maskwright.codegen.config import WGMMA_ROWS
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.config import arch_number
from maskwright.codegen.config import padded_heads
from maskwright.codegen.configs import AnyConfig
from maskwright.codegen.gluon import WIDEST
from maskwright.codegen.gluon import GluonTemplate
from maskwright.codegen.gluon_backward import GluonBackwardConfig
from maskwright.codegen.gluon_backward import unfit_backward
from maskwright.codegen.granule import granule
from maskwright.dsl import nodes as n

_ALIGNMENT = 1024  # of what the copy engine writes
_LARGEST_BLOCK = 1024  # threads
_REGISTERS = 90  # asynchronous products with accumulators in registers
_ASYNCHRONOUS = (_REGISTERS, 100, 103)


@dataclass(frozen=True)
class Heads:
    """Sizes of heads, and their dtype: what a configuration's memory depends on."""

    head_dim: int
    value_dim: int
    dtype: str

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return 4 if self.dtype == "float32" else 2


@dataclass(frozen=True)
class Reads:
    """Reads of tables that a step may have to load ahead, and whose gradients are added up.

    Attributes:
        fixed: reads by neither the query nor the key.
        lines: reads by one of them, one value each.
        pairs: reads by both; lists are searched for every pair at worst.
    """

    fixed: int = 0
    lines: int = 0
    pairs: int = 0

    @staticmethod
    def of(*nodes: n.Node | None) -> Reads:
        """Of a mask and a score."""
        found = [0, 0, 0]
        for x in (x for node in nodes if node is not None for x in n.walk(node)):
            if not isinstance(x, (n.Read, n.Member)):
                continue
            found[len(n.symbols(x) & {"q", "k"})] += 1
        return Reads(*found)

    def bytes_of(self, config: KernelConfig) -> int:
        """Shared memory for them, at most: a buffer for each stage, and room for sums."""
        m, keys = config.rows, config.block_n
        if not self.fixed + self.lines + self.pairs:
            return 0
        size = 4 * (self.pairs * m * keys + self.lines * max(m, keys))
        return config.num_stages * size + _ALIGNMENT


@dataclass(frozen=True)
class Limits:
    """What a mask and a score ask of a configuration.

    Attributes:
        granule: key tiles should divide this many keys; None if the mask does not care.
        reads: of tables.
    """

    granule: int | None = None
    reads: Reads = Reads()

    @staticmethod
    def of(mask: n.Node, score: n.Node | None) -> Limits:
        """Of a kernel's expressions."""
        return Limits(granule(mask), Reads.of(mask, score))


ANYTHING = Limits()


@dataclass(frozen=True)
class Shared:
    """Shared memory of a program: at most ``most`` bytes, exactly that if ``exact``."""

    most: int
    exact: bool


def shared_forward(config: KernelConfig, heads: Heads, arch: str) -> Shared:
    """Shared memory of the Triton forward."""
    head, value = padded_heads(heads.head_dim, heads.value_dim, heads.dtype, config.rows)
    size, stages = heads.itemsize, config.num_stages
    query = size * config.rows * head
    key, values = size * config.block_n * head, size * config.block_n * value
    if _asynchronous(config.rows, heads, arch):
        # Without a pipeline the key's buffer is free again when the values come.
        walked = max(key, values) if stages == 1 else stages * (key + values)
        return _operands(query + walked, config, arch, _handed(config, heads))
    walked = max(key, values) if stages == 1 else (stages - 1) * (key + values)
    return Shared(query + walked + _handed(config, heads) + _ALIGNMENT, exact=False)


def shared_query_gradient(config: KernelConfig, heads: Heads, arch: str, rows: int) -> Shared:
    """Shared memory of the backward kernel that keeps queries.

    Args:
        rows: the smallest tile that either kernel keeps: it decides on the padding of heads.
    """
    head, value = padded_heads(heads.head_dim, heads.value_dim, heads.dtype, rows)
    size, stages = heads.itemsize, config.num_stages
    kept = size * config.rows * (head + value)
    walked = size * config.block_n * (head + value)
    if _asynchronous(config.rows, heads, arch):
        return _operands(kept + stages * walked, config, arch, 2 * _handed(config, heads))
    most = kept + max(1, stages - 1) * walked + _handed(config, heads)
    return Shared(most + _ALIGNMENT, exact=False)


def shared_key_gradient(config: KernelConfig, heads: Heads, arch: str, rows: int) -> Shared:
    """Shared memory of the backward kernel that keeps keys, and walks over statistics of rows, too."""
    head, value = padded_heads(heads.head_dim, heads.value_dim, heads.dtype, rows)
    size, stages = heads.itemsize, config.num_stages
    kept = size * config.block_n * (head + value)
    walked = size * config.rows * (head + value)
    statistics = (stages - 1) * 2 * 4 * config.rows
    gaps = _rounded(statistics)
    if _asynchronous(config.block_n, heads, arch):
        weights = 4 * _handed(config, heads)
        found = _operands(kept + stages * walked + gaps, config, arch, weights)
        return Shared(found.most, found.exact and not statistics)
    handed = _handed(config, heads)
    if stages == 1:  # measured: up to two tiles of weights, or one of queries
        handed = max(2 * handed, size * config.rows * max(head, value))
    return Shared(kept + max(1, stages - 1) * walked + gaps + handed + _ALIGNMENT, exact=False)


def shared(config: AnyConfig, heads: Heads, arch: str, reads: Reads = ANYTHING.reads) -> Shared:
    """Shared memory of the kernel that needs most."""
    match config:
        case KernelConfig():
            return _beside_reads(shared_forward(config, heads, arch), config, reads)
        case BackwardConfig(queries, keys):
            rows = min(queries.rows, keys.block_n)
            both = (
                _beside_reads(shared_query_gradient(queries, heads, arch, rows), queries, reads),
                _beside_reads(shared_key_gradient(keys, heads, arch, rows), keys, reads),
            )
            return max(both, key=lambda found: found.most)
    return Shared(config.shared_bytes(heads.head_dim, heads.value_dim), exact=False)


def _beside_reads(found: Shared, config: KernelConfig, reads: Reads) -> Shared:
    more = reads.bytes_of(config)
    return Shared(found.most + more, exact=False) if more else found


def unfit(config: AnyConfig, key: Key, limits: Limits = ANYTHING) -> str:
    """Why a configuration cannot serve calls of a key; empty if it can."""
    p, hardware = key.problem, key.hardware
    kernels = (config.queries, config.keys) if isinstance(config, BackwardConfig) else (config,)
    if any(kernel.loads == "descriptor" for kernel in kernels):
        if arch_number(hardware.arch) < 90:
            return f"{hardware.arch} has no bulk copy engine"
        if not p.aligned:
            return "the copy engine needs 16-byte bases and strides, and nothing broadcast"
    heads = Heads(p.head_dim, p.value_dim, p.dtype)
    if isinstance(config, GluonTemplate):
        reason = _unfit_gluon(config, key)
        if reason:
            return reason
    else:
        tiles = (config,) if isinstance(config, KernelConfig) else (config.queries, config.keys)
        packed = max(tile.heads for tile in tiles)  # powers of two
        if p.group % packed:
            return f"{packed} heads a tile do not divide a group of {p.group}"
        if any(32 * kernel.num_warps > _LARGEST_BLOCK for kernel in kernels):
            return f"a block has at most {_LARGEST_BLOCK} threads"
        blocks = limits.granule
        if blocks and any(straddles(kernel.block_n, blocks) for kernel in kernels):
            return f"key tiles do not divide the mask's blocks of {blocks} keys"
    found = shared(config, heads, hardware.arch, limits.reads)
    if found.most > hardware.shared_bytes:
        return f"it needs {found.most} of {hardware.shared_bytes} bytes of shared memory"
    return ""


def _unfit_gluon(config: GluonTemplate, key: Key) -> str:
    """What the sizes alone tell; the mask decides, too (``codegen/gluon_plan.py``)."""
    p = key.problem
    if arch_number(key.hardware.arch) != 90:
        return f"Gluon kernels are for sm_90, not {key.hardware.arch}"
    if isinstance(config, GluonBackwardConfig):
        return unfit_backward(p.dtype, p.head_dim, p.value_dim, config)
    if p.dtype == "float32":
        return "asynchronous products take 16-bit numbers"
    if max(p.head_dim, p.value_dim) > WIDEST or p.head_dim % 8 or p.value_dim % 8:
        return f"heads are multiples of 8 up to {WIDEST}"
    return ""


def straddles(block: int, blocks: int) -> bool:
    """A tile of keys crosses the edges of the mask's own blocks though it need not."""
    return blocks % 16 == 0 and blocks % block != 0


def _asynchronous(rows: int, heads: Heads, arch: str) -> bool:
    return arch_number(arch) in _ASYNCHRONOUS and rows >= WGMMA_ROWS and heads.dtype != "float32"


def _operands(bytes_: int, config: KernelConfig, arch: str, weights: int) -> Shared:
    """All operands, and what else asynchronous products need.

    Args:
        weights: bytes of those that an accumulator in tensor memory hands on.
    """
    if arch_number(arch) != _REGISTERS:
        return Shared(bytes_ + weights + _ALIGNMENT, exact=False)
    bulk = config.loads == "descriptor"
    return Shared(bytes_ + (_ALIGNMENT if bulk else 0), exact=not bulk)


def _handed(config: KernelConfig, heads: Heads) -> int:
    """Weights on their way from one product to the next, if their layouts differ."""
    return heads.itemsize * config.rows * config.block_n


def _rounded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
