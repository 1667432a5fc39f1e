"""torch's scaled_dot_product_attention by named backend: its own choice is not the fastest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.attention import sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.peers.base import Prepared
from benchmarks.peers.base import only_plain

if TYPE_CHECKING:
    from benchmarks.cases import Case
    from benchmarks.cases import Tensors


@dataclass(frozen=True)
class Sdpa:
    """One backend of SDPA: ``CUDNN_ATTENTION``, or ``FLASH_ATTENTION`` (FlashAttention-2)."""

    name: str
    backend: str

    def available(self) -> str | None:
        """Needs a GPU."""
        return None if torch.cuda.is_available() else "needs a CUDA GPU"

    def supports(self, case: Case) -> str | None:
        """Full and causal, 16-bit."""
        return "no float32" if case.shape.dtype == "float32" else only_plain(case)

    def prepare(self, case: Case, tensors: Tensors) -> Prepared:
        """Nothing to prepare."""
        backend = getattr(SDPBackend, self.backend)
        causal = case.name == "causal"
        gqa = case.shape.heads != case.shape.kv_heads

        def call() -> Tensor:
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(*tensors, is_causal=causal, enable_gqa=gqa)

        return Prepared(call)
