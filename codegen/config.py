"""Kernel configurations: what a plan takes besides the mask, and a first guess per GPU."""

from __future__ import annotations

from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import replace
from typing import Any
from typing import Literal
from typing import TypeAlias

from maskwright.dsl.errors import LoweringError

Loads: TypeAlias = Literal["pointer", "descriptor"]
_BULK_BYTES = 128  # what the copy engine's destinations are multiples of


@dataclass(frozen=True)
class KernelConfig:
    """Tunable choices. They never change results beyond rounding.

    Attributes:
        block_m: queries of a tile.
        block_n: keys of a tile.
        num_warps: warps of a program.
        num_stages: depth of the load pipeline.
        loads: ``pointer``, or ``descriptor`` for the bulk copy engine (sm_90 and up).
        heads: query heads of one KV head in a tile, for masks that no query head differs in; keys are
            then read once for all of them. Pointer loads; it must divide the group.
    """

    block_m: int = 128
    block_n: int = 64
    num_warps: int = 8
    num_stages: int = 3
    loads: Loads = "pointer"
    heads: int = 1

    def __post_init__(self) -> None:
        for name in ("block_m", "block_n", "num_warps", "heads"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise LoweringError(f"{name} must be a power of two, not {value}")
        if self.rows < 16 or self.block_n < 16:
            raise LoweringError("tiles have at least 16 queries and 16 keys", expression=self)
        if self.heads > 1 and self.loads != "pointer":
            raise LoweringError("several heads in a tile take pointer loads", expression=self)
        if self.num_stages < 1 or self.loads not in ("pointer", "descriptor"):
            raise LoweringError("num_stages >= 1, loads is pointer or descriptor", expression=self)

    @property
    def rows(self) -> int:
        """Rows of a tile: its queries, for each of its heads."""
        return self.block_m * self.heads

    @property
    def statistics_in_bulk(self) -> bool:
        """The copy engine brings LSE and delta to a backward's tile, too.

        It writes at multiples of 128 bytes, and Triton 3.6 lays the slots of a ring of 16 float32 64
        bytes apart: a misaligned address on the device. So shorter rows are loaded by their threads.
        """
        return self.loads == "descriptor" and 4 * self.block_m >= _BULK_BYTES

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def arch_number(arch: str) -> int:
    """``sm_90`` or ``sm_90a`` to 90.

    Raises:
        LoweringError: for anything else.
    """
    digits = arch.removeprefix("sm_").rstrip("af")
    if not arch.startswith("sm_") or not digits.isdigit():
        raise LoweringError(f"unknown GPU architecture {arch!r}", fix='use e.g. arch="sm_90"')
    number = int(digits)
    if number < 80:
        raise LoweringError(f"{arch} is too old", fix="the kernels need sm_80 (Ampere) or newer")
    return number


# Largest shared memory of one program, KiB, by architecture.
SHARED_KIB = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}


# Rows from which Triton takes a Hopper GPU's asynchronous matrix instructions.
WGMMA_ROWS = 64


def padded(size: int) -> int:
    """Next power of two, at least 16: what a matrix unit takes."""
    return max(16, 1 << (size - 1).bit_length())


def padded_heads(head_dim: int, value_dim: int, dtype: str, rows: int) -> tuple[int, int]:
    """Columns of the tiles of keys (and queries), and of values.

    ptxas 12.8 (Triton 3.6) takes the shared-memory descriptor of one operand from a register that
    it never set, if its constant part differs from the other's: tiles narrower than a 128-byte
    swizzle beside tiles of another width (docs/forward-log.md). Padding makes them alike.

    Args:
        rows: of the smallest tile of a kernel.
    """
    pads = padded(head_dim), padded(value_dim)
    if dtype == "float32" or rows < WGMMA_ROWS or pads[0] == pads[1]:
        return pads
    return max(pads[0], 64), max(pads[1], 64)


MOST_PARTS = 64


@dataclass(frozen=True)
class BackwardConfig:
    """Tunable choices of the backward: one configuration a kernel.

    Attributes:
        queries: of the kernel that keeps queries and walks over keys.
        keys: of the kernel that keeps ``block_n`` keys and walks over tiles of ``block_m`` queries (of
            ``heads`` heads).
        parts: programs that share out the queries of a tile of keys, for masks in which some keys have
            many more queries than others; 16 is chosen where every token lists blocks. They add up
            in float32 and in no fixed order, so programs that ask for deterministic algorithms have 1.
    """

    queries: KernelConfig = KernelConfig(64, 64, 4, 2)
    keys: KernelConfig = KernelConfig(64, 64, 4, 2)
    parts: int = 1

    def __post_init__(self) -> None:
        if self.queries.loads != self.keys.loads:
            raise LoweringError("both kernels of a backward load alike", expression=self)
        if type(self.parts) is not int or not 1 <= self.parts <= MOST_PARTS:
            raise LoweringError(
                f"parts is an int from 1 to {MOST_PARTS}, not {self.parts!r}", expression=self
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def default_config(
    *,
    arch: str = "sm_90",
    dtype: str = "bfloat16",
    head_dim: int = 128,
    value_dim: int | None = None,
    q_len: int | None = None,
    granule: int | None = None,
    aligned: bool = True,
) -> KernelConfig:
    """A configuration that compiles without spills on ``arch``; the tuner's stand-in.

    Args:
        granule: key tiles should divide this (the period or block of a strided mask).
        aligned: strides and addresses suit the bulk copy engine.
    """
    number = arch_number(arch)
    width = max(padded(head_dim), padded(value_dim or head_dim))
    if dtype == "float32":
        config = _float32(width)
    elif number in (90, 100, 103):
        config = _large_shared(width, aligned=aligned and number == 90)
    else:
        config = _portable(width, small=SHARED_KIB.get(number, 99) < 160)
    block_m = config.block_m
    if q_len is not None:
        block_m = min(block_m, max(16, padded(q_len)))
    warps = config.num_warps if block_m >= 64 else min(config.num_warps, 4)
    return _dividing(replace(config, block_m=block_m, num_warps=warps), granule)


def default_backward(
    *,
    arch: str = "sm_90",
    dtype: str = "bfloat16",
    head_dim: int = 128,
    value_dim: int | None = None,
    granule: int | None = None,
    row_granule: int | None = None,
    aligned: bool = True,
) -> BackwardConfig:
    """Configurations of the backward kernels; arguments as for ``default_config``.

    Args:
        row_granule: tiles of queries that are walked over should divide this.
    """
    width = max(padded(head_dim), padded(value_dim or head_dim))
    descriptors = aligned and arch_number(arch) == 90 and dtype != "float32"
    loads: Loads = "descriptor" if descriptors else "pointer"
    if dtype == "float32":
        queries = keys = KernelConfig(32, 32, 4, 1) if width <= 128 else KernelConfig(16, 16, 4, 1)
    elif width <= 128 and descriptors:
        # docs/backward-log.md: two programs a multiprocessor, ahead on an H100 for both kernels.
        queries = keys = KernelConfig(64, 64, 4, 2, loads)
    elif width <= 128:
        hopper = arch_number(arch) == 90
        queries = KernelConfig(64, 64, 4 if hopper else 8, 2)
        keys = KernelConfig(32, 64, 4, 2) if hopper or width <= 64 else KernelConfig(64, 64, 8, 2)
    elif width <= 256 and descriptors:
        queries, keys = KernelConfig(64, 32, 8, 2, loads), KernelConfig(32, 64, 8, 2, loads)
    else:
        size = 32 if width <= 256 else 16
        queries = keys = KernelConfig(size, size, 8, 1)
    keys = _dividing(keys, granule)
    rows = dividing(keys.block_m, row_granule)
    return BackwardConfig(_dividing(queries, granule), replace(keys, block_m=rows))


def _dividing(config: KernelConfig, granule: int | None) -> KernelConfig:
    """Key tiles that divide the blocks of a mask."""
    return replace(config, block_n=dividing(config.block_n, granule))


def dividing(block: int, granule: int | None) -> int:
    """The largest tile up to ``block`` that divides the blocks of a mask."""
    if granule is not None and granule % 16 == 0:  # else no tile divides it
        while granule % block:
            block //= 2
    return block


def _float32(width: int) -> KernelConfig:
    # IEEE dots run on the ordinary cores: small tiles keep registers free.
    return KernelConfig(64, 32, 8, 2) if width <= 64 else KernelConfig(32, 32, 8, 1)


def _large_shared(width: int, *, aligned: bool) -> KernelConfig:
    loads: Loads = "descriptor" if aligned else "pointer"
    if width <= 64:
        return KernelConfig(128, 64, 4, 3, loads)
    if width <= 128:
        # docs/forward-log.md: two programs a multiprocessor; ahead on an H100 for most masks.
        return KernelConfig(128, 64, 4, 2, loads) if aligned else KernelConfig(128, 64, 8, 3)
    return KernelConfig(128, 32 if width > 256 else 64, 8, 2, loads)


def _portable(width: int, *, small: bool) -> KernelConfig:
    if width <= 64:
        return KernelConfig(128, 64, 4, 3)
    if width <= 128:
        return KernelConfig(128, 32, 4, 2) if small else KernelConfig(128, 64, 8, 3)
    return KernelConfig(32, 32, 4, 1) if small else KernelConfig(64, 32, 8, 2)
