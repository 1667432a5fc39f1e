"""What GPUs can do in a clock: the constants of the cost model.

Rates of matrix units are a datasheet's TFLOP/s (dense, bfloat16, sums in float32) by its number of
multiprocessors and its boost clock; those of exponentials and of ordinary operations come from the
table of arithmetic throughput in NVIDIA's CUDA C++ Programming Guide, shared memory from its table
of compute capabilities. Only the H100's were compared with times.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace
from typing import Literal
from typing import TypeAlias

from maskwright.autotune.key import Hardware
from maskwright.codegen.config import SHARED_KIB
from maskwright.codegen.config import arch_number

# How products are computed: by a warp-group at a time, with accumulators in tensor memory, or by
# single warps.
Units: TypeAlias = Literal["groups", "tensor memory", "warps"]


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
        name, l2_bytes: of the card whose figures these are.
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
    name: str
    l2_bytes: int

    @property
    def units(self) -> Units:
        """Its matrix units."""
        number = arch_number(self.arch)
        return "groups" if number == 90 else "tensor memory" if number in (100, 103) else "warps"

    @property
    def hardware(self) -> Hardware:
        """The card, as part of a key; its name is the architecture, since it stands for all of it."""
        limit = SHARED_KIB[arch_number(self.arch)] * 1024
        return Hardware(self.arch, self.arch, self.processors, limit, self.l2_bytes)


_MIB = 1 << 20
# H100 SXM: 989 TFLOP/s at 1.83 GHz; 1.74 GHz under this load. The L2's rate was chosen by times.
H100 = Gpu("sm_90", 132, 1.74e9, 4096, 16, 128, 128, 56, 233472, "H100 SXM", 50 * _MIB)
# A100: 312 TFLOP/s at 1.41 GHz; its architecture white paper has 5,120 bytes of L2 reads a clock.
A100 = Gpu("sm_80", 108, 1.41e9, 2048, 16, 64, 128, 47, 167936, "A100 SXM", 40 * _MIB)
# A40: 149.7 TFLOP/s at 1.74 GHz. GeForce cards of this and the next architecture add up in float32
# at half that rate. No rate of the L2 is published for these two: 32 is a guess.
A40 = Gpu("sm_86", 84, 1.74e9, 1024, 16, 128, 128, 32, 102400, "A40", 6 * _MIB)
# L4: 121 TFLOP/s at 2.04 GHz.
L4 = Gpu("sm_89", 58, 2.04e9, 1024, 16, 128, 128, 32, 102400, "L4", 48 * _MIB)
# B200: 2,250 TFLOP/s at 1.86 GHz. The L2's rate is that of an H100: none is published.
B200 = Gpu("sm_100", 148, 1.86e9, 8192, 16, 128, 128, 56, 233472, "B200", 126 * _MIB)

GPUS = {gpu.arch: gpu for gpu in (A100, A40, L4, H100, B200)}
# Architectures without figures of their own take those of the nearest one.
_LIKE = {87: A100, 103: B200, 120: L4, 121: L4}


def gpu_of(hardware: Hardware) -> Gpu:
    """The rates that stand for a GPU, with its own number of multiprocessors."""
    found = GPUS.get(hardware.arch) or _LIKE.get(arch_number(hardware.arch), H100)
    return replace(found, arch=hardware.arch, processors=hardware.processors)
