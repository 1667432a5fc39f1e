"""Gradients of a backend against float64: the second half of ``check``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Leaves: TypeAlias = dict[str, Tensor]
Pair: TypeAlias = tuple[Tensor, Tensor]

# Largest accepted error of a gradient, in units of ``_sizes``: a small multiple of rounding.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
_CANCELLED = 0.25


@dataclass(frozen=True)
class Attend:
    """Both sides of a comparison, as functions of the tensors that have gradients.

    Attributes:
        kernel: (out, lse) of the backend.
        truth: (out, lse) in float64. Rows without keys must not be NaN.
        weights: attention weights in float64, (B, Hq, Sq, Sk).
    """

    kernel: Callable[[Leaves], Pair]
    truth: Callable[[Leaves], Pair]
    weights: Callable[[Leaves], Tensor]


def gradient_errors(attend: Attend, given: Leaves, empty: Tensor, seed: int) -> dict[str, float]:
    """Error of each gradient, by the name of its tensor.

    Args:
        given: tensors that have gradients: query, key, value, perhaps sinks and float tables.
        empty: rows that attend to nothing, (B, Hq, Sq).
    """
    mine = {name: x.detach().requires_grad_() for name, x in given.items()}
    exact = {name: x.detach().double().requires_grad_() for name, x in given.items()}
    out, lse = attend.kernel(mine)
    generator = torch.Generator().manual_seed(seed + 1)
    grad_out = torch.randn(out.shape, generator=generator).to(out)
    grad_lse = torch.randn(lse.shape, generator=generator).to(lse)
    found = torch.autograd.grad((out, lse), list(mine.values()), (grad_out, grad_lse))
    out, lse = attend.truth(exact)
    grads = (grad_out.double(), grad_lse.double().masked_fill(empty, 0.0))
    lse = lse.masked_fill(empty, 0.0)
    right = torch.autograd.grad((out, lse), list(exact.values()), grads)
    sizes = _sizes(attend.weights(exact), exact, out.detach(), *grads)
    return {
        name: _error(x, truth, sizes.get(name, 0.0))
        for name, x, truth in zip(given, found, right, strict=True)
    }


def _error(x: Tensor, truth: Tensor, size: float) -> float:
    unit = max(float(truth.norm()), _CANCELLED * size, 1e-12)
    return float((x.double() - truth).norm()) / unit


@torch.no_grad()
def _sizes(
    weights: Tensor, given: Leaves, out: Tensor, grad_out: Tensor, grad_lse: Tensor
) -> dict[str, float]:
    """Norms that the gradients would have without cancellation.

    Where a row has one key, ``dP - delta`` is 0 in theory and rounding in practice: a relative
    error says nothing there. (A score's slope is left out; scores scale by at most 1 or so.)
    """
    query, key, value = given["query"], given["key"], given["value"]
    group = query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    delta = (out * grad_out).sum(-1) - grad_lse
    sizes = weights * ((grad_out @ values.transpose(-1, -2)).abs() + delta.abs()[..., None])
    scale = query.shape[-1] ** -0.5
    shape = (key.shape[0], key.shape[1], group, *key.shape[2:])
    of_keys = (sizes.transpose(-1, -2) @ query.abs()).reshape(shape).sum(2)
    return {
        "query": scale * float((sizes @ keys.abs()).norm()),
        "key": scale * float(of_keys.norm()),
    }
