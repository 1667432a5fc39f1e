"""Autograd without the dispatcher: what an eager call that needs gradients goes through.

``torch.func.grad`` comes this way, too. Tensors are what autograd may see; all else is in ``Run``.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field
from typing import TYPE_CHECKING
from typing import Any
from typing import NoReturn
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd import forward_ad

from maskwright.dsl.errors import DispatchError
from maskwright.runtime.backward import Outputs
from maskwright.runtime.backward import gradients
from maskwright.runtime.backward import like
from maskwright.runtime.call import Call
from maskwright.runtime.hot import options_of

if TYPE_CHECKING:
    from maskwright.runtime.api import Attention
    from maskwright.runtime.api import Prepared

Inputs: TypeAlias = tuple[Any, ...]  # query, key, value, sinks, and the tensors of ``Run.names``


@dataclass(frozen=True)
class Run:
    """A call without its tensors."""

    found: Attention
    prepared: Prepared | None
    names: tuple[str, ...]
    values: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)

    def call(self, query: Tensor, key: Tensor, value: Tensor, sinks: Any, *given: Tensor) -> Call:
        """The checked call of some tensors."""
        bindings = self.values | dict(zip(self.names, given, strict=True))
        return self.found.call(query, key, value, bindings, sinks=sinks, **self.options)


def needed(*given: object) -> bool:
    """Some tensor requires a gradient, or a functorch transform is active."""
    if torch._C._are_functorch_transforms_active():  # noqa: SLF001
        return True
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in given)


def attention(
    found: Attention,
    tensors: tuple[Tensor, Tensor, Tensor],
    bindings: dict[str, Any],
    *,
    prepared: Prepared | None,
    sinks: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """(out, lse) of a call, connected to its tensors; options as of ``Attention.call``."""
    given = {name: x for name, x in bindings.items() if isinstance(x, Tensor)}
    values = {name: x for name, x in bindings.items() if name not in given}
    run = Run(found, prepared, tuple(given), values, options)
    out, lse = _Attention.apply(run, *tensors, sinks, *given.values())  # type: ignore[no-untyped-call]
    return out, lse


class _Attention(Function):
    @staticmethod
    def forward(
        run: Run, query: Tensor, key: Tensor, value: Tensor, sinks: Any, *given: Tensor
    ) -> tuple[Tensor, Tensor]:
        bindings = run.values | dict(zip(run.names, given, strict=True))
        options = {"sinks": sinks, "prepared": run.prepared}
        return run.found.run((query, key, value), bindings, **options, **run.options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.run, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output, *tensors)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
        compute = _Gradients.apply if torch.is_grad_enabled() else _Gradients.forward
        wanted = ctx.needs_input_grad[5:]
        alive = torch._C._functorch.unwrap_if_dead  # noqa: SLF001  (a vjp may outlive its transform)
        saved: list[Any] = [x if x is None else alive(x) for x in ctx.saved_tensors]
        return None, *compute(ctx.run, wanted, grad_out, grad_lse, *saved)

    @staticmethod
    def vmap(*_: object) -> NoReturn:
        """There is no batching rule."""
        raise DispatchError(
            "attention cannot be vmapped", fix="make the mapped axis part of the batch axis"
        )


class _Gradients(Function):
    """The backward as a function of its own: a second derivative is refused, not forgotten."""

    @staticmethod
    def forward(
        run: Run,
        wanted: tuple[bool, ...],
        grad_out: Tensor | None,
        grad_lse: Tensor | None,
        out: Tensor,
        lse: Tensor,
        *tensors: Any,
    ) -> tuple[Tensor | None, ...]:
        plain = not run.names and tensors[3] is None and grad_out is not None
        given = (*tensors[:3], out, lse, grad_out, *(() if grad_lse is None else (grad_lse,)))
        # Kernels of another kind serve where results must be deterministic.
        kind = (*options_of(**run.options), torch.are_deterministic_algorithms_enabled())
        hot = run.found.hot
        launch = hot.find_backward(given, run.values, kind) if plain else None
        if launch is not None:
            return *launch(given, run.values), None
        names = [name for name, chosen in zip(run.names, wanted, strict=True) if chosen]
        outputs, call = Outputs(out, lse, grad_out, grad_lse), run.call(*tensors)
        *dense, tables = gradients(run.found, call, outputs, names)
        if plain:
            hot.remember_backward(run.found, call, given, kind)
        found = [*dense, *(tables[name] if name in names else None for name in run.names)]
        pairs = zip(found, tensors, strict=True)
        return tuple(None if gradient is None else like(gradient, x) for gradient, x in pairs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        """Nothing is kept: there is no second derivative."""

    @staticmethod
    def backward(*_: object) -> NoReturn:
        refuse_second_derivative()


def refuse_second_derivative() -> NoReturn:
    """There is none.

    Raises:
        DispatchError: always.
    """
    raise DispatchError(
        "attention has no second derivative",
        fix="leave out create_graph=True, or use dense attention for this part of the model",
    )


def refuse_tangents(*tensors: Tensor) -> None:
    """The kernels have no forward-mode derivative.

    Raises:
        DispatchError: if a tensor carries a tangent.
    """
    if forward_ad._current_level < 0:  # noqa: SLF001
        return
    unpack: Any = forward_ad.unpack_dual
    if any(unpack(x).tangent is not None for x in tensors):
        raise DispatchError(
            "the generated kernels have no forward-mode derivative",
            fix='use torch.func.vjp, or backend="reference"',
        )
