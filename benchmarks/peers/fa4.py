"""FlashAttention-4's CuTe kernels, package ``flash-attn-4``: full, causal and window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import Any

from torch import Tensor

from benchmarks.peers.base import Prepared
from benchmarks.peers.base import no_flash_attn_4

if TYPE_CHECKING:
    from benchmarks.cases import Case
    from benchmarks.cases import Tensors


@dataclass(frozen=True)
class FlashAttention4:
    """``flash_attn.cute.flash_attn_func``, layout (B, S, H, D)."""

    name: str

    def available(self) -> str | None:
        """Needs its package, and a Hopper or newer GPU."""
        return no_flash_attn_4()

    def supports(self, case: Case) -> str | None:
        """What its arguments can say, 16-bit."""
        if case.shape.dtype == "float32":
            return "no float32"
        return None if case.name in _windows() else "no mask but causal and windows"

    def prepare(self, case: Case, tensors: Tensors) -> Prepared:
        """Copy the inputs to its layout, untimed; output and gradients are seen through views."""
        from flash_attn.cute import flash_attn_func

        query, key, value = (own(x, training=case.training) for x in tensors)
        options = _windows()[case.name]

        def call() -> Tensor:
            found: Any = flash_attn_func(query, key, value, **options)
            out: Tensor = found[0] if isinstance(found, tuple) else found
            return out.transpose(1, 2)

        return Prepared(call)


def _windows() -> dict[str, dict[str, Any]]:
    from benchmarks.cases import WINDOW

    # A query counts among the keys of its window here, and not there.
    window = {"causal": True, "window_size": (WINDOW - 1, 0)}
    return {"full": {}, "causal": {"causal": True}, "window": window}


def own(given: Tensor, *, training: bool) -> Tensor:
    """The same numbers in memory as (B, S, H, D); its gradient shows up as that of ``given``.

    A view of ``given`` would do for the check, but autograd would copy every gradient into the
    layout of ``given``, which is no work of this library's.
    """
    found = given.detach().transpose(1, 2).contiguous()
    if not training:
        return found

    def show(leaf: Tensor) -> None:
        given.grad, leaf.grad = leaf.grad.transpose(1, 2), None  # type: ignore[union-attr]

    found.requires_grad_().register_post_accumulate_grad_hook(show)
    return found
