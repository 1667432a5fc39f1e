"""The Gluon backward for Hopper: its configuration, and what its template cannot serve."""

from __future__ import annotations

from dataclasses import asdict
from dataclasses import dataclass
from typing import Any
from typing import Literal

from maskwright.codegen.config import SHARED_KIB
from maskwright.codegen.config import padded
from maskwright.codegen.gluon import BARRIERS
from maskwright.codegen.gluon import NAMES
from maskwright.codegen.gluon import ROWS
from maskwright.codegen.gluon import SWIZZLE
from maskwright.codegen.gluon import THREADS
from maskwright.codegen.gluon import GluonTemplate
from maskwright.dsl.errors import LoweringError

_WIDEST = 128  # columns of a head: gradients of keys and values fill the registers


@dataclass(frozen=True)
class GluonBackwardConfig(GluonTemplate):
    """Tunable choices of a Gluon backward kernel; see ``GluonConfig``.

    A program keeps 128 keys and values, 64 in each of two consumers, and walks over queries. Each
    consumer also computes its part of the gradient of a tile of queries: half of its columns if the
    tile has 64 queries, half of its rows if it has 128.

    Attributes:
        block_m: queries of a tile: 64 for heads of more than 64 columns, else 128.
        stages: tiles of queries, and of gradients of the output, that fit the ring.
        links: tiles of gradients of scores in shared memory.
        registers: of a consumer's thread.
        release: how consumers hand slots of the rings back: by barriers in shared memory, at which
            all warps of a consumer meet before one arrives, or by named ones, as the forward does.
            They also meet at a named one once a step: who comes there has read the link before, so
            two links need no other barrier.
    """

    block_m: int = 64
    stages: int = 2
    links: int = 2
    registers: int = 240
    release: Literal["barrier", "named"] = "barrier"

    def __post_init__(self) -> None:
        if self.block_m not in (64, 128):
            raise LoweringError("block_m is 64 or 128", expression=self)
        if not 1 <= self.stages <= 4 or not 1 <= self.links <= 4:
            raise LoweringError("one to four stages and links", expression=self)
        if self.release not in ("barrier", "named"):
            raise LoweringError("release is barrier or named", expression=self)
        if self.release == "named" and (self.links < 2 or 2 * self.stages >= len(NAMES)):
            raise LoweringError("named barriers: two links or more, four stages", expression=self)
        if self.registers % 8 or not 160 <= self.registers <= 240:
            raise LoweringError(
                f"{self.registers} registers of a consumer's thread",
                expression=self,
                fix="a multiple of 8 from 160 to 240",
            )

    @property
    def consumers(self) -> int:
        """Warp-groups that compute."""
        return 2

    @property
    def block_n(self) -> int:
        """Keys of a tile."""
        return self.consumers * ROWS

    @property
    def empty_threads(self) -> int:
        """Threads that come to a named barrier of the rings: all consumers, and the producer."""
        return THREADS * self.consumers + 32

    @property
    def splits(self) -> Literal["columns", "rows"]:
        """What of the gradient of queries a consumer computes a part of."""
        return "columns" if self.block_m == ROWS else "rows"

    def part_dims(self, head_pad: int) -> int:
        """Columns of a consumer's part."""
        return head_pad // self.consumers if self.splits == "columns" else head_pad

    @property
    def launch_registers(self) -> int:
        """Of a thread when the kernel starts: an equal share of three warp-groups."""
        return 168

    @property
    def worker_warps(self) -> list[int]:
        """Warps of the second consumer and the producer."""
        return [4, 1]

    @property
    def worker_registers(self) -> list[int]:
        """Registers of their threads; the first consumer gets what is left."""
        return [self.consumer_registers, self.producer_registers]

    @property
    def consumer_registers(self) -> int:
        """Of a consumer's thread."""
        return self.registers

    @property
    def producer_registers(self) -> int:
        """Of a producer's thread: the rest."""
        return 3 * self.launch_registers - 2 * self.registers

    def shared_bytes(self, head_dim: int, value_dim: int) -> int:
        """Shared memory of a program, about."""
        head, value = self.pads(head_dim, value_dim)
        halves = (self.block_n + self.stages * self.block_m) * (head + value)
        halves += self.links * self.block_n * self.block_m
        words = 2 * self.stages * self.block_m + self.block_n * self.part_dims(head)
        return 2 * halves + 4 * words + BARRIERS

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def default_gluon_backward(
    head_dim: int, value_dim: int, *, triangle: bool = False
) -> GluonBackwardConfig:
    """A configuration for a head size.

    Args:
        triangle: in some part of the mask no query attends to a later key.
    """
    if max(padded(head_dim), padded(value_dim)) > SWIZZLE:
        return GluonBackwardConfig(64)
    # Of 16 masks on an H100 (docs/hopper-log.md): one link costs the others up to 16 %.
    return GluonBackwardConfig(128, stages=3, links=1) if triangle else GluonBackwardConfig(128)


def unfit_backward(dtype: str, head_dim: int, value_dim: int, config: GluonBackwardConfig) -> str:
    """Why the template cannot serve heads; empty if it can."""
    if dtype not in ("float16", "bfloat16"):
        return f"asynchronous products take 16-bit numbers, not {dtype}"
    for size in (head_dim, value_dim):
        if size > _WIDEST:
            return f"gradients of heads of {size} do not fit the registers (at most {_WIDEST})"
        if size % 8:
            return f"rows of {size} numbers are no multiple of 16 bytes"
    head, _ = config.pads(head_dim, value_dim)
    if config.splits == "columns" and head < _WIDEST:
        return "parts of 32 columns are narrower than a swizzle: block_m=128"
    if config.shared_bytes(head_dim, value_dim) > SHARED_KIB[90] * 1024:
        return "the tiles do not fit shared memory"
    return ""
