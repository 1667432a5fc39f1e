"""Compiled FlexAttention, Triton path; its block mask is built by compiled code and timed apart."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.attention.flex_attention import create_block_mask
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.peers.base import Prepared

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.cases import Case
    from benchmarks.cases import Tensors


@dataclass(frozen=True)
class Flex:
    """FlexAttention; ``mode`` as in ``torch.compile``."""

    name: str
    mode: str | None = None

    def available(self) -> str | None:
        """Its compiled path needs a GPU."""
        return None if torch.cuda.is_available() else "needs a CUDA GPU"

    def supports(self, case: Case) -> str | None:
        """Every mask."""
        return None

    def prepare(self, case: Case, tensors: Tensors) -> Prepared:
        """Build the block mask once for the calls."""
        return prepare_flex(case, tensors, mode=self.mode)


def prepare_flex(
    case: Case,
    tensors: Tensors,
    *,
    mode: str | None = None,
    kernel_options: dict[str, Any] | None = None,
) -> Prepared:
    """Compile FlexAttention for the case, with static shapes."""
    chosen = functools.partial(flex_attention, kernel_options=kernel_options)
    attend = torch.compile(chosen if kernel_options else flex_attention, dynamic=False, mode=mode)
    setup = mask_builder(case, str(tensors.query.device))
    block_mask = None if setup is None else setup()
    gqa = case.shape.heads != case.shape.kv_heads

    def call() -> Tensor:
        return attend(*tensors, block_mask=block_mask, enable_gqa=gqa)

    return Prepared(call, setup)


def mask_builder(case: Case, device: str) -> Callable[[], BlockMask] | None:
    """A function that builds the case's block mask anew, or None for the full mask."""
    if case.flex_mod is None:
        return None
    shape = case.shape
    return functools.partial(
        torch.compile(create_block_mask, dynamic=False),
        case.flex_mod,
        B=None,
        H=shape.heads if case.per_head else None,
        Q_LEN=shape.seq,
        KV_LEN=shape.seq,
        device=device,
    )
