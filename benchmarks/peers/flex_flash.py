"""FlexAttention over FlashAttention-4's CuTe kernels; needs the flash-attn-4 package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.peers.base import no_flash_attn_4
from benchmarks.peers.flex import prepare_flex

if TYPE_CHECKING:
    from benchmarks.cases import Case
    from benchmarks.cases import Tensors
    from benchmarks.peers.base import Prepared


@dataclass(frozen=True)
class FlexFlash:
    """FlexAttention with ``BACKEND="FLASH"``."""

    name: str

    def available(self) -> str | None:
        """Needs the CuTe kernels, and a Hopper or newer GPU."""
        return no_flash_attn_4()

    def supports(self, case: Case) -> str | None:
        """Every 16-bit mask."""
        return "no float32" if case.shape.dtype == "float32" else None

    def prepare(self, case: Case, tensors: Tensors) -> Prepared:
        """As FlexAttention, with other kernels."""
        return prepare_flex(case, tensors, kernel_options={"BACKEND": "FLASH"})
