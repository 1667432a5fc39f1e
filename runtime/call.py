"""One checked call: tensors, sizes, bound values, and the backend that serves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskwright.dsl.errors import DispatchError
from maskwright.dsl.errors import ShapeError
from maskwright.runtime import settings
from maskwright.runtime.bind import Binder
from maskwright.runtime.bind import Shapes
from maskwright.runtime.bind import check_sinks
from maskwright.runtime.bind import check_tensors

BACKENDS = ("auto", "gluon", "triton", "interpret", "reference")


@dataclass(frozen=True)
class Call:
    """One checked call; the last dimension of query, key and value has stride 1.

    Attributes:
        chosen: nobody asked for this backend by name, so another may serve.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    sinks: Tensor | None
    shapes: Shapes
    values: dict[str, Any]
    inside: bool
    scale: float
    backend: str
    chosen: bool = False

    @staticmethod
    def of(
        binder: Binder,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bindings: Mapping[str, Any],
        *,
        sinks: Tensor | None = None,
        scale: float | None = None,
        q_offset: int | None = None,
        backend: str = "auto",
    ) -> Call:
        """The call, checked.

        Raises:
            MaskwrightError: ShapeError, BindingError or DispatchError.
        """
        shapes = check_tensors(query, key, value, q_offset)
        values = binder.bind(bindings, query.device, shapes.heads)
        inside = shapes.positions_inside and binder.sorted_inside(values, shapes.kv_len)
        check_sinks(sinks, query)
        chosen = choose_backend(backend, query)
        factor = shapes.head_dim**-0.5 if scale is None else _scale(scale)
        tensors = (dense(query), dense(key), dense(value))
        return Call(*tensors, sinks, shapes, values, inside, factor, chosen)

    @property
    def empty(self) -> bool:
        """There is nothing to compute."""
        return 0 in (self.shapes.batch, self.shapes.q_len, self.shapes.kv_len)

    def nothing(self) -> tuple[Tensor, Tensor]:
        """No queries, or no keys: zeros, and the LSE of nothing."""
        s = self.shapes
        out = self.query.new_zeros((s.batch, s.heads, s.q_len, s.value_dim))
        lse = torch.full((s.batch, s.heads, s.q_len), float("-inf"), device=out.device)
        return out, lse if self.sinks is None else lse.copy_(self.sinks.float()[None, :, None])


def dense(x: Tensor) -> Tensor:
    """The tensor, or a copy of it if its last dimension is strided."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _scale(value: object) -> float:
    if isinstance(value, (int, float)):
        return float(value)
    raise ShapeError(f"scale is a number, not {type(value).__name__}", fix="scale=0.125, say")


def check_backend(backend: str) -> str:
    """The backend asked for, by the call or by the settings.

    Raises:
        DispatchError: if it does not exist.
    """
    if backend == "auto":
        backend = settings.current().backend
    if backend not in BACKENDS:
        raise DispatchError(f"unknown backend {backend!r}", fix=f"one of {', '.join(BACKENDS)}")
    return backend


def choose_backend(backend: str, query: Tensor) -> str:
    """The backend that serves a call.

    Raises:
        DispatchError: if it does not exist, or cannot run on this device.
    """
    backend = check_backend(backend)
    cuda = query.device.type == "cuda"
    match backend:
        case "auto":
            return "triton" if cuda else "reference"
        case "triton" | "gluon" if not cuda:
            fix = 'use backend="reference" or "interpret" for CPU tensors'
            raise DispatchError(
                f"the {backend} backend needs a GPU, query is on {query.device}", fix=fix
            )
        case "interpret" if cuda:
            raise DispatchError("the interpreter runs on CPU tensors", fix="move the inputs to cpu")
        case "interpret" if query.dtype == torch.bfloat16:
            raise DispatchError(
                "Triton's interpreter computes bfloat16 dots wrongly", fix="use float16 or float32"
            )
    return backend
