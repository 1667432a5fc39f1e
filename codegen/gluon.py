"""The Gluon forward for Hopper: its configuration, and what its template cannot serve.

A program is one producer and two or three consumers. The producer only copies; each consumer is a
warp-group with 64 rows of queries of its own, and all walk over the same tiles of keys.
"""

from __future__ import annotations

from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import replace
from typing import Any
from typing import Literal
from typing import TypeAlias

from maskwright.codegen.config import SHARED_KIB
from maskwright.codegen.config import dividing
from maskwright.codegen.config import padded
from maskwright.dsl.errors import LoweringError

# Whether ``backend="auto"`` takes Gluon kernels on sm_90 where they can serve.
GLUON_BY_DEFAULT = True

ROWS = 64  # of a consumer: what one asynchronous product of a warp-group takes
THREADS = 128  # of a warp-group
_FILE = 64 * 1024  # registers of a multiprocessor
SWIZZLE = 64  # 16-bit elements in the widest swizzle of shared memory
WIDEST = 256  # columns of one product
_SHARED = SHARED_KIB[90] * 1024
BARRIERS = 1024  # bytes: barriers, and what partitions hand over

WINDOW = 64  # keys of a tile whose diagonals are looked up at once
_SECTION_MIB = 32  # of the L2 for keys and values, as in FlashAttention-3

_GATHERERS = 56  # registers that a producer's thread needs to gather rows

Role: TypeAlias = Literal["producer", "consumer"]

NAMES = range(6, 16)  # of named barriers; Triton uses those below


class GluonTemplate:
    """What the configurations of Gluon kernels have in common."""

    stages: int

    @property
    def first_name(self) -> int:
        """Named barriers of the two rings: one a slot of the first, then one a slot of the second."""
        return NAMES.start

    @property
    def loads(self) -> Literal["descriptor"]:
        """As of ``KernelConfig``."""
        return "descriptor"

    @property
    def num_warps(self) -> int:
        """Warps that a program starts with."""
        return 4

    @property
    def num_stages(self) -> int:
        """As of ``KernelConfig``."""
        return self.stages

    def pads(self, head_dim: int, value_dim: int) -> tuple[int, int]:
        """Columns of the tiles of keys and of values: whole swizzles, powers of two."""
        return max(padded(head_dim), SWIZZLE), max(padded(value_dim), SWIZZLE)


@dataclass(frozen=True)
class GluonConfig(GluonTemplate):
    """Tunable choices of a Gluon kernel. They never change results beyond rounding.

    Attributes:
        block_n: keys of a tile.
        consumers: warp-groups that compute, 64 queries each.
        stages: tiles of keys, and of values, that fit the ring in shared memory.
        registers: of a consumer's thread; 0 is the most that leaves 24 for the producer.
        first: who runs in the warps that a program starts with; the others are its workers.
        bulk_store: results leave through shared memory and the copy engine.
        persistent: as many programs as fit the GPU compute all tiles of queries in turn, so that
            the end of one overlaps with the first copies of the next.
        programs: of a persistent grid; 0 is one for each multiprocessor.
        counter: programs of a persistent grid fetch their next tile of queries from a counter in
            memory when they are done with one, instead of sharing all out in advance.
        pingpong: consumers issue their products one after the other, not at the same time.
        query_registers: full tiles are multiplied by queries in registers, not in shared memory.
    """

    block_n: int = 128
    consumers: int = 2
    stages: int = 2
    registers: int = 0
    first: Role = "consumer"
    bulk_store: bool = False
    persistent: bool = False
    programs: int = 0
    counter: bool = False
    pingpong: bool = False
    query_registers: bool = False

    def __post_init__(self) -> None:
        if self.block_n not in (16, 32, 64, 128, 256):
            raise LoweringError("block_n is a power of two from 16 to 256", expression=self)
        if self.consumers not in (2, 3) or not 1 <= self.stages <= 5:
            raise LoweringError("two or three consumers, one to five stages", expression=self)
        if self.registers % 8 or self.registers < 0 or not 24 <= self.producer_registers <= 240:
            raise LoweringError(
                f"{self.registers} registers leave {self.producer_registers} for the producer",
                expression=self,
                fix="multiples of 8, up to 240 with two consumers and 160 with three",
            )
        if self.first not in ("producer", "consumer"):
            raise LoweringError("first is producer or consumer", expression=self)
        if self.programs < 0 or (self.programs and not self.persistent):
            raise LoweringError("programs are those of a persistent grid", expression=self)
        if self.counter and not self.persistent:
            raise LoweringError("a counter is for a persistent grid", expression=self)
        if self.first_turn + self.consumers * self.pingpong > NAMES.stop:
            raise LoweringError(f"more than {len(NAMES)} named barriers", expression=self)

    @property
    def block_m(self) -> int:
        """Queries of a tile."""
        return ROWS * self.consumers

    @property
    def launch_registers(self) -> int:
        """Of a thread when the kernel starts: an equal share, in steps of 8."""
        return _FILE // (THREADS * (self.consumers + 1)) // 8 * 8

    @property
    def consumer_registers(self) -> int:
        """Of a consumer's thread."""
        return self.registers or (240 if self.consumers == 2 else 160)

    @property
    def producer_registers(self) -> int:
        """Of a producer's thread: the rest."""
        every = self.launch_registers * (self.consumers + 1)
        return every - self.consumer_registers * self.consumers

    @property
    def worker_warps(self) -> list[int]:
        """Warps of each worker."""
        if self.first == "producer":
            return [4] * self.consumers
        return [4] * (self.consumers - 1) + [1]

    @property
    def worker_registers(self) -> list[int]:
        """Registers of each worker's threads; who runs first gets the rest."""
        if self.first == "producer":
            return [self.consumer_registers] * self.consumers
        return [self.consumer_registers] * (self.consumers - 1) + [self.producer_registers]

    @property
    def first_turn(self) -> int:
        """Named barriers of the turns of consumers: one each."""
        return NAMES.start + 2 * self.stages

    @property
    def empty_threads(self) -> int:
        """Threads that come to a named barrier of the rings: all consumers, and the producer."""
        return THREADS * self.consumers + (THREADS if self.first == "producer" else 32)

    @property
    def section_mib(self) -> int:
        """Keys and values of the heads that a persistent grid works on at a time, in MiB."""
        return _SECTION_MIB

    def query_slots(self, head_dim: int, value_dim: int) -> int:
        """Tiles of queries of a consumer: a second one for the next, where it fits."""
        return 2 if self.persistent and self._bytes(head_dim, value_dim, 2) <= _SHARED else 1

    def shared_bytes(self, head_dim: int, value_dim: int) -> int:
        """Shared memory of a program, about."""
        return self._bytes(head_dim, value_dim, self.query_slots(head_dim, value_dim))

    def _bytes(self, head_dim: int, value_dim: int, query_slots: int) -> int:
        head, value = self.pads(head_dim, value_dim)
        ring = self.stages * self.block_n * (head + value)
        return 2 * (query_slots * self.block_m * head + ring) + BARRIERS

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def listed_gluon(head_dim: int, value_dim: int) -> GluonConfig:
    """For runtime lists of columns and diagonals: a producer that can gather."""
    made = GluonConfig(block_n=WINDOW, stages=4, registers=216, first="producer")
    head, value = made.pads(head_dim, value_dim)
    if value > 128:  # 64 keys spill
        made = replace(made, block_n=32, registers=224)
    elif head > 128:
        made = replace(made, stages=2)
    made = replace(made, bulk_store=head == value, persistent=True, counter=True)
    if made.query_slots(head_dim, value_dim) == 2:
        return made
    return replace(made, persistent=False, counter=False)


def unfit_lists(config: GluonConfig, *, gathers: bool) -> str:
    """Why a configuration cannot follow lists of columns and diagonals; empty if it can."""
    if config.block_n > WINDOW:
        return f"listed diagonals are looked up in tiles of {WINDOW} keys at most"
    if config.pingpong:
        return "consumers that leave out tiles of their own cannot take turns"
    if not gathers:
        return ""
    if config.first != "producer" or config.producer_registers < _GATHERERS:
        return f"listed columns are gathered by four warps with {_GATHERERS} registers a thread"
    return "" if config.stages > 1 else "gathered tiles are handed over one late: two stages"


def default_gluon(
    head_dim: int,
    value_dim: int,
    *,
    granule: int | None = None,
    uneven: bool = True,
    lists: bool = False,
) -> GluonConfig:
    """The fastest of what docs/hopper-log.md has measured, as far as it compiles without spills.

    Args:
        granule: key tiles should divide this (the period or block of a strided mask).
        uneven: there is a mask; without one all tiles of queries take equally long.
        lists: tiles are listed; consumers that leave out some want a longer ring (docs/lists-log.md).
    """
    width = max(padded(head_dim), padded(value_dim))
    block_n = dividing(128 if width <= 128 else 64, granule)
    stages = 3 if width <= 64 else 4 if lists and block_n == 64 and width <= 128 else 2
    made = GluonConfig(block_n=block_n, stages=stages, first="producer")
    head, value = made.pads(head_dim, value_dim)
    held = not uneven and width <= 128
    return replace(made, bulk_store=head == value, persistent=uneven, query_registers=held)
