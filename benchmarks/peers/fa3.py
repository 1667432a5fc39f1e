"""FlashAttention-3, forward wheel ``fa3-fwd``: full and causal, on tensors in its own layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.base import Prepared
from benchmarks.peers.base import only_plain

if TYPE_CHECKING:
    from benchmarks.cases import Case
    from benchmarks.cases import Tensors


@dataclass(frozen=True)
class FlashAttention3:
    """``fa3_fwd_interface.flash_attn_func``, layout (B, S, H, D)."""

    name: str

    def available(self) -> str | None:
        """Needs its wheel, and a Hopper GPU."""
        if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
            return "needs a Hopper GPU"
        try:
            import fa3_fwd_interface  # noqa: F401
        except (ImportError, OSError) as error:
            return f"fa3-fwd does not import: {error}"
        return None

    def supports(self, case: Case) -> str | None:
        """Full and causal, 16-bit; this build has no window and no backward."""
        if case.training:
            return "no backward in fa3-fwd"
        return "no float32" if case.shape.dtype == "float32" else only_plain(case)

    def prepare(self, case: Case, tensors: Tensors) -> Prepared:
        """Copy the inputs to its layout, untimed; the output is seen through a view."""
        from fa3_fwd_interface import flash_attn_func

        query, key, value = (x.transpose(1, 2).contiguous() for x in tensors)
        causal = case.name == "causal"

        def call() -> Tensor:
            found: Any = flash_attn_func(query, key, value, causal=causal)
            out: Tensor = found[0] if isinstance(found, tuple) else found
            return out.transpose(1, 2)

        return Prepared(call)
