"""Gradients of one call: whose backward computes them, and in which shape they come back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import Any
from typing import TypeAlias

import torch
from torch import Tensor

from maskwright.runtime import reference
from maskwright.runtime.call import Call
from maskwright.runtime.call import dense

if TYPE_CHECKING:
    from maskwright.runtime.api import Attention

Gradients: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor | None, dict[str, Tensor]]


@dataclass(frozen=True)
class Outputs:
    """What the forward returned, and the gradients with respect to it."""

    out: Tensor
    lse: Tensor
    grad_out: Tensor | None
    grad_lse: Tensor | None


def gradients(found: Attention, call: Call, given: Outputs, wanted: Collection[str]) -> Gradients:
    """(dq, dk, dv, dsinks or None, gradients of at least the ``wanted`` float tables by name).

    Of the values that a backward gets, exactly the wanted tables require grad.
    """
    grad_out = torch.zeros_like(given.out) if given.grad_out is None else dense(given.grad_out)
    grad_lse = None if given.grad_lse is None else given.grad_lse.contiguous()
    values = {name: _leaf(x, name in wanted) for name, x in call.values.items()}
    if call.empty:
        return _nothing(call, grad_lse, values)
    if call.backend == "reference":
        problem = reference.Problem.of(found.mask, found.score, call, values)
        return reference.backward(problem, given.lse, grad_out, grad_lse)
    from maskwright.runtime import gradient

    return gradient.backward(
        *(found, grad_out, grad_lse, call.query, call.key, call.value, given.out, given.lse),
        sinks=call.sinks,
        values=values,
        q_offset=call.shapes.q_offset,
        scale=call.scale,
        interpreted=call.backend == "interpret",
        use_gluon=call.backend == "gluon",
    )


def _leaf(x: Any, wanted: bool) -> Any:
    """A bound value; a tensor requires grad exactly if its gradient is wanted."""
    return x.detach().requires_grad_(wanted) if isinstance(x, Tensor) else x


def _nothing(call: Call, grad_lse: Tensor | None, values: dict[str, Any]) -> Gradients:
    """Without keys the LSE is the sink; nothing else has an effect."""
    sinks = None if call.sinks is None else torch.zeros_like(call.sinks)
    if sinks is not None and grad_lse is not None:
        sinks += grad_lse.sum((0, 2)).to(sinks.dtype)
    tensors = {t: x for t, x in values.items() if isinstance(x, Tensor) and x.requires_grad}
    dq, dk, dv = (torch.zeros_like(x) for x in (call.query, call.key, call.value))
    return dq, dk, dv, sinks, {t: torch.zeros_like(x) for t, x in tensors.items()}


def like(gradient: Tensor, x: Tensor) -> Tensor:
    """A gradient with the dtype of ``x`` and the strides of ``torch.empty_like(x)``."""
    if gradient.dtype == x.dtype and gradient.is_contiguous() and x.is_contiguous():
        return gradient
    wanted = torch.empty_like(x)
    same = gradient.dtype == x.dtype and gradient.stride() == wanted.stride()
    return gradient if same else wanted.copy_(gradient)
