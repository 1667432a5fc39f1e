"""Attention as PyTorch operators: what ``torch.compile`` and ``torch.export`` see of a call.

``maskwright::attention`` and ``maskwright::attention_backward`` take the mask and the score as
their canonical text, which parses back to the same expression in any process: a graph that holds
them can be saved, and loaded wherever ``maskwright.runtime.op`` is imported.

Values travel so that a new one builds nothing anew: params as ``SymInt[]`` and tables as
``Tensor[]``, the names of both in ``names``. Under ``torch.compile`` an int that is an argument of
the compiled function becomes a symbol when it first changes, as a length does: one recompilation,
none with ``dynamic=True``. Later changes cost none, since nothing outside of the operator asks for
the value; a value that is not allowed raises when it comes. PyTorch takes ints that are attributes
of an ``nn.Module`` for constants: hand such a value to ``forward``, or make it a table with one
element.

Eager calls avoid the dispatcher, see ``eager.py``: it costs more than all else on the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING
from typing import Any
from typing import NoReturn
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import Parameter

from maskwright.codegen.api import score_node
from maskwright.codegen.configs import Configs
from maskwright.dsl.errors import BindingError
from maskwright.dsl.errors import DispatchError
from maskwright.dsl.errors import MaskError
from maskwright.dsl.evaluate import mask_node
from maskwright.dsl.expr import Expr
from maskwright.dsl.parser import parse
from maskwright.dsl.text import to_text
from maskwright.dsl.text import traced_text
from maskwright.runtime.backward import Outputs
from maskwright.runtime.backward import gradients
from maskwright.runtime.backward import like
from maskwright.runtime.bind import check_sinks
from maskwright.runtime.bind import check_tensors
from maskwright.runtime.call import Call
from maskwright.runtime.call import check_backend
from maskwright.runtime.eager import refuse_second_derivative

if TYPE_CHECKING:
    from maskwright.runtime.api import Attention

Pair: TypeAlias = tuple[Tensor, Tensor]
Texts: TypeAlias = tuple[str, str, str]  # mask, score, kernel configuration; "" for none

_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor? sinks, SymInt[] params, Tensor[] tables"
_STATIC = (
    "str[] names, str mask, str score, str config, float? scale, SymInt? q_offset, str backend"
)
_LIBRARY: Any = torch.library.Library("maskwright", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(f"attention({_INPUTS}, {_STATIC}) -> (Tensor out, Tensor lse)")
_LIBRARY.define(
    "attention_backward(Tensor? grad_out, Tensor? grad_lse, Tensor out, Tensor lse, "
    f"bool[] wanted, {_INPUTS}, {_STATIC}) -> Tensor[]"
)


# -- the way into the operator --------------------------------------------------------------------
def dispatched(*tensors: object) -> bool:
    """PyTorch must see the call as one operator: a trace, a mode, a tensor subclass, no data."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0  # noqa: SLF001
        or any(isinstance(x, Tensor) and (type(x) not in _PLAIN or x.is_meta) for x in tensors)
    )


_PLAIN = (Tensor, Parameter)


def autocast(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors as SDPA would see them: under autocast all three in its dtype.

    Sinks and tables keep theirs; inside, everything but the products is float32 anyway.
    """
    if not isinstance(query, Tensor) or query.is_meta:
        return query, key, value
    kind = query.device.type
    if not torch.is_autocast_enabled(kind):
        return query, key, value
    dtype = torch.get_autocast_dtype(kind)
    return query.to(dtype), key.to(dtype), value.to(dtype)


def text(expression: Any) -> str:
    """Canonical text of a mask or score; ``torch.compile`` can follow it, and guards it."""
    match expression:
        case Expr():
            traced = torch.compiler.is_compiling()
            return traced_text(expression.node) if traced else to_text(expression.node)
        case None:
            return ""
        case bool():
            return str(expression)
    raise MaskError("this is not a mask expression", expression=type(expression).__name__)


def attention(
    texts: Texts,
    tensors: tuple[Tensor, Tensor, Tensor],
    bindings: Mapping[str, Any],
    *,
    sinks: Tensor | None,
    scale: float | None,
    q_offset: int | None,
    backend: str,
    prepared: object,
) -> Pair:
    """(out, lse) by ``maskwright::attention``. Traced, so it asks for no value."""
    if prepared is not None:
        raise DispatchError(
            "prepared= cannot be part of a graph", fix="leave it out: the graph prepares by itself"
        )
    params = {name: x for name, x in bindings.items() if isinstance(x, (int, torch.SymInt))}
    tables = {name: torch.as_tensor(x) for name, x in bindings.items() if name not in params}
    for name, x in params.items():
        if isinstance(x, bool):
            raise BindingError(f'param "{name}" needs a Python int, not bool')
    out, lse = torch.ops.maskwright.attention.default(
        *tensors,
        sinks,
        list(params.values()),
        list(tables.values()),
        [*params, *tables],
        *texts,
        scale,
        q_offset,
        backend,
    )
    return out, lse


# -- the operators --------------------------------------------------------------------------------
@lru_cache(maxsize=512)
def _found(mask: str, score: str, config: str) -> Attention:
    """The attention of some texts; what it derives is kept, as for ``mw.attention``."""
    from maskwright.runtime.api import cached_attention

    chosen = Configs.from_text(config)
    mask_ = mask_node(parse(mask) if mask else None)
    return cached_attention(mask_, score_node(parse(score) if score else None), chosen)


class _Arguments:
    """The arguments both operators share, by name."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        params: Sequence[int],
        tables: Sequence[Tensor],
        names: Sequence[str],
        mask: str,
        score: str,
        config: str,
        scale: float | None,
        q_offset: int | None,
        backend: str,
    ) -> None:
        self.found = _found(mask, score, config)
        self.tensors, self.sinks = (query, key, value), sinks
        self.tables = dict(zip(names[len(params) :], tables, strict=True))
        self.bindings = dict(zip(names, params, strict=False)) | self.tables
        self.scale, self.q_offset, self.backend = scale, q_offset, backend

    def call(self) -> Call:
        """The checked call; for tensors with data."""
        return self.found.call(
            *self.tensors,
            self.bindings,
            sinks=self.sinks,
            scale=self.scale,
            q_offset=self.q_offset,
            backend=self.backend,
        )

    def inputs(self, wanted: Sequence[bool]) -> list[Tensor]:
        """Tensors that have a gradient, in the order of the backward's results."""
        sinks = [] if self.sinks is None else [self.sinks]
        tables = [x for x, chosen in zip(self.tables.values(), wanted, strict=True) if chosen]
        return [*self.tensors, *sinks, *tables]


def _forward(*arguments: Any) -> Pair:
    given = _Arguments(*arguments)
    return given.found.forward(given.call())


def _fake_forward(*arguments: Any) -> Pair:
    given = _Arguments(*arguments)
    query, key, value = given.tensors
    check_backend(given.backend)
    check_tensors(query, key, value, 0)
    check_sinks(given.sinks, query)
    given.found.binder.check_kinds(given.bindings, query.device)
    shape = (*query.shape[:3], value.shape[3])
    return query.new_empty(shape), query.new_empty(shape[:3], dtype=torch.float32)


def _backward(
    grad_out: Tensor | None,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    wanted: Sequence[bool],
    *arguments: Any,
) -> list[Tensor]:
    """Gradients of query, key, value, of the sinks if any, of the wanted tables."""
    given = _Arguments(*arguments)
    names = [name for name, chosen in zip(given.tables, wanted, strict=True) if chosen]
    outputs = Outputs(out, lse, grad_out, grad_lse)
    *found, dsinks, dtables = gradients(given.found, given.call(), outputs, names)
    found += [] if dsinks is None else [dsinks]
    found += [dtables[name] for name in names]
    return [like(gradient, x) for gradient, x in zip(found, given.inputs(wanted), strict=True)]


def _fake_backward(
    grad_out: Any, grad_lse: Any, out: Tensor, lse: Tensor, wanted: Sequence[bool], *arguments: Any
) -> list[Tensor]:
    return [torch.empty_like(x) for x in _Arguments(*arguments).inputs(wanted)]


# -- autograd of the operators --------------------------------------------------------------------
def _save(ctx: Any, inputs: tuple[Any, ...], output: Pair) -> None:
    query, key, value, sinks, params, tables, *static = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(query, key, value, sinks, *output, *tables)
    ctx.params, ctx.static = params, static


def _differentiate(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    query, key, value, sinks, out, lse, *tables = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[5]) if tables else []
    dq, dk, dv, *rest = torch.ops.maskwright.attention_backward.default(
        *(grad_out, grad_lse, out, lse, wanted),
        *(query, key, value, sinks, ctx.params, tables, *ctx.static),
    )
    dsinks = None if sinks is None else rest.pop(0)
    dtables = [rest.pop(0) if chosen else None for chosen in wanted]
    # A gradient has the structure of its argument: that of an empty list is an empty list.
    plain: list[Any] = [None if x != [] else [] for x in (ctx.params, *ctx.static)]
    return dq, dk, dv, dsinks, plain[0], dtables, *plain[1:]


def _no_second_derivative(*_: object) -> NoReturn:
    refuse_second_derivative()


for _name, _kernel, _fake in (
    ("attention", _forward, _fake_forward),
    ("attention_backward", _backward, _fake_backward),
):
    _LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"maskwright::{_name}", _fake, lib=_LIBRARY)
torch.library.register_autograd(
    "maskwright::attention", _differentiate, setup_context=_save, lib=_LIBRARY
)
torch.library.register_autograd(
    "maskwright::attention_backward", _no_second_derivative, lib=_LIBRARY
)
