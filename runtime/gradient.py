"""The backward kernels of a call: chosen, loaded, launched."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from functools import lru_cache
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING
from typing import Any
from typing import TypeAlias

import torch
from torch import Tensor

from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.pipeline import Compiled
from maskwright.codegen.pipeline import choose_backward
from maskwright.codegen.pipeline import compile_backward
from maskwright.codegen.plan_backward import BackwardPlan
from maskwright.codegen.plan_backward import BackwardRequest
from maskwright.dsl import nodes as n
from maskwright.dsl.errors import DispatchError
from maskwright.runtime import build
from maskwright.runtime import device
from maskwright.runtime import gluon
from maskwright.runtime import settings
from maskwright.runtime import tuned
from maskwright.runtime.bind import DTYPES
from maskwright.runtime.bind import Shapes
from maskwright.runtime.bind import check_config
from maskwright.runtime.bind import check_tensors
from maskwright.runtime.cache import MaskwrightWarning
from maskwright.runtime.interpret import interpreter

if TYPE_CHECKING:
    from maskwright.runtime.api import Attention

Gradients: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor | None, dict[str, Tensor]]
_MOST_KERNELS = 4096  # kinds of calls remembered


@dataclass(frozen=True)
class How:
    """What decides on kernels beside mask, tensors and sizes.

    Attributes:
        inside: every query position is inside ``[0, kv_len)``.
        interpreted: Triton's interpreter runs them.
        gluon: Gluon kernels are wanted, where they can serve. They add up gradients of queries in
            no fixed order, so they are not wanted where results must be deterministic.
        deterministic: nor may several programs add up the gradients of keys.
    """

    inside: bool
    interpreted: bool
    gluon: bool
    deterministic: bool

    @staticmethod
    def of(inside: bool, *, interpreted: bool, gluon: bool) -> How:
        """As things are now."""
        fixed_order = torch.are_deterministic_algorithms_enabled()
        return How(inside, interpreted, gluon and not fixed_order, fixed_order)


@dataclass
class BackwardKernel:
    """Backward kernels for one kind of call; see ``launch.Kernel``."""

    compiled: Compiled[BackwardPlan]
    module: ModuleType
    interpreted: bool
    handles: dict[str, Any] = field(default_factory=dict)

    def run(self, *tensors: Tensor, **options: Any) -> Any:
        """(grad_query, grad_key, grad_value, row_lse, row_delta, ..., gradients of tables)."""
        if self.interpreted:
            with interpreter():
                return self.module.backward(*tensors, **options)
        with torch.cuda.device(tensors[0].device):
            return self._launch(tensors, options)

    def _launch(self, tensors: tuple[Tensor, ...], options: dict[str, Any]) -> Any:
        module = self.module
        launches, gradients = module.arguments(*tensors, **options)
        for name, grid, found in launches:
            if name in self.handles:
                self.handles[name][grid](*found)
            else:
                kernel = getattr(module, name)
                self.handles[name] = kernel[grid](*found, **module.OPTIONS[name])
        return gradients


def backward(
    found: Attention,
    grad_out: Tensor,
    grad_lse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    sinks: Tensor | None,
    values: dict[str, Any],
    q_offset: int,
    scale: float,
    interpreted: bool,
    use_gluon: bool = False,
) -> Gradients:
    """Gradients of query, key, value, sinks and float tables of one call.

    With ``P = exp(scores - lse)`` and ``delta = sum(out * grad_out) - grad_lse`` of each row:
    ``dV = P^T dO``, ``dS = P * (dO V^T - delta)``, ``dQ = scale dS K``, ``dK = scale dS^T Q``; a
    sink gets ``-sum(exp(sink - lse) * delta)``. A row without keys contributes 0.

    Args:
        out, lse: results of the forward.
        values: runtime values as ``Binder.bind`` returns them; float tables that require a
            gradient get one.
        use_gluon: Gluon kernels are wanted, where they can serve.
    """
    shapes = check_tensors(query, key, value, q_offset)
    if any(x.requires_grad for x in values.values() if isinstance(x, Tensor)):
        _tell_not_deterministic()
    tables = {t.name: values[t.name] for t in _float_tables(found)}
    wanted = tuple(sorted(name for name, x in tables.items() if x.requires_grad))
    inside = shapes.positions_inside and found.binder.sorted_inside(values, shapes.kv_len)
    query, key, value, out, grad_out = (_plain(x) for x in (query, key, value, out, grad_out))
    lse = lse.contiguous()
    grad_lse = None if grad_lse is None else grad_lse.float().contiguous()
    values = values | {name: x.contiguous() for name, x in tables.items()}
    tensors = (query, key, value, grad_out)
    offsets = _offsets(out, lse, grad_lse, *values.values())
    how = How.of(inside, interpreted=interpreted, gluon=use_gluon)
    make = partial(ready, found, tensors, shapes, wanted, how, offsets)
    plan = make().compiled.plan
    _announce(found, plan)
    names = {x.name: x.text for x in plan.bindings}
    given = (query, key, value, out, lse, grad_out)
    options = {"grad_lse": grad_lse, "scale": scale, "q_offset": q_offset}
    options |= {names[name]: x for name, x in values.items()}
    results = _run(found, how, make, given, options)
    grad_query, grad_key, grad_value, _, delta, *_, of_tables = results
    grad_sinks = None if sinks is None else _of_sinks(sinks, lse, delta[:, :, : shapes.q_len])
    return (
        grad_query,
        grad_key,
        grad_value,
        grad_sinks,
        {name: of_tables[names[name]] for name in wanted},
    )


def _run(
    found: Attention,
    how: How,
    make: Callable[[], BackwardKernel],
    given: tuple[Tensor, ...],
    options: dict[str, Any],
) -> Any:
    """Results of the kernels; those of Triton if the Gluon kernel cannot be built."""
    try:
        return make().run(*given, **options)
    except Exception as error:
        if not (how.gluon and gluon.gives_up(found, "backward", error)):
            raise
    _kernels.clear()
    return make().run(*given, **options)


def _of_sinks(sinks: Tensor, lse: Tensor, delta: Tensor) -> Tensor:
    share = torch.exp(sinks.float()[None, :, None] - lse).masked_fill(lse == -torch.inf, 0.0)
    return -(share * delta).sum((0, 2)).to(sinks.dtype)


def _offsets(*tensors: Any) -> tuple[int, ...]:
    """Distances from 16-byte alignment; empty if there are none, as nearly always."""
    found = tuple(x.data_ptr() % 16 for x in tensors if isinstance(x, Tensor))
    return found if any(found) else ()


def _tell_not_deterministic() -> None:
    """Gradients of float tables are added up by atomics; everything else is deterministic if asked for.

    Raises:
        DispatchError: if ``torch.use_deterministic_algorithms`` asks for better.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return
    text = "gradients of float tables in a score are added up in no fixed order"
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise DispatchError(text, fix='backend="reference", or a table without requires_grad')
    warnings.warn(text, MaskwrightWarning, stacklevel=3)


def _announce(found: Attention, plan: BackwardPlan) -> None:
    """The general path is never taken silently."""
    for walk in plan.walks:
        if walk.tile_list is not None:
            found.announce(walk.schedule.reasons)


def _float_tables(found: Attention) -> list[n.Table]:
    return [t for t in n.tables(found.score) if t.dtype == "float"] if found.score else []


def _plain(x: Tensor) -> Tensor:
    """A tensor that kernels can read: unit stride in the last dimension, nothing broadcast."""
    return x if x.stride(-1) == 1 and 0 not in x.stride() else x.contiguous()


def ready(
    found: Attention,
    tensors: tuple[Tensor, ...],
    shapes: Shapes,
    wanted: tuple[str, ...],
    how: How,
    offsets: tuple[int, ...] = (),
) -> BackwardKernel:
    """The kernels for this kind of call: one look-up once they have been made."""
    kind = tuple((x.dtype, x.stride(), x.data_ptr() % 16) for x in tensors)
    mine = (found.mask, found.score, found.configs, wanted, offsets)
    key = (mine, kind, shapes, tensors[0].device, how)
    if key not in _kernels:
        if len(_kernels) >= _MOST_KERNELS:
            _kernels.clear()
        _kernels[key] = _made(found, tensors, shapes, wanted, how)
    return _kernels[key]


_kernels: dict[Any, BackwardKernel] = {}


def _made(
    found: Attention,
    tensors: tuple[Tensor, ...],
    shapes: Shapes,
    wanted: tuple[str, ...],
    how: How,
) -> BackwardKernel:
    dtype = DTYPES[tensors[0].dtype]
    request = BackwardRequest(
        *(found.mask, found.score, dtype, shapes.head_dim, shapes.value_dim, how.inside),
        _chosen(found, tensors, shapes, how),
        wanted,
    )
    gluon_serves = how.gluon and not gluon.given_up(found, "backward")
    if gluon_serves and not found.configs.keeps_triton_backward:
        fixed = found.configs.gluon_backward
        best = tuned.gluon_backward_config(found, tensors, shapes, inside=how.inside)
        request = gluon.backward_request(request, fixed, tensors, None if fixed else best)
    compiled = compile_backward(request, settings.current().debug)
    return BackwardKernel(
        compiled, build.load(compiled, interpreted=how.interpreted), how.interpreted
    )


def _chosen(
    found: Attention, tensors: tuple[Tensor, ...], shapes: Shapes, how: How
) -> BackwardConfig:
    """Configuration of the Triton kernels."""
    aligned = all(device.aligned(x) for x in tensors)
    arch = "sm_80" if how.interpreted else device.arch(tensors[0].device)
    dtype = DTYPES[tensors[0].dtype]
    config = (
        found.configs.backward
        or tuned.backward_config(found, tensors, shapes, inside=how.inside)
        or _config(
            (found.mask, found.score),
            arch,
            dtype,
            (shapes.head_dim, shapes.value_dim, shapes.heads // shapes.kv_heads),
            aligned=aligned,
            interpreted=how.interpreted,
        )
    )
    for kernel in (config.queries, config.keys):
        check_config(kernel, shapes, aligned=aligned)
    return replace(config, parts=1) if how.deterministic else config


@lru_cache(maxsize=1024)
def _config(
    nodes: tuple[n.Node, n.Node | None],
    arch: str,
    dtype: str,
    sizes: tuple[int, int, int],
    *,
    aligned: bool,
    interpreted: bool,
) -> BackwardConfig:
    head_dim, value_dim, group = sizes
    config = choose_backward(
        nodes[0],
        score=nodes[1],
        arch=arch,
        dtype=dtype,
        head_dim=head_dim,
        value_dim=value_dim,
        aligned=aligned,
        group=group,
    )
    return _interpreted(config) if interpreted else config


def _interpreted(config: BackwardConfig) -> BackwardConfig:
    """For the interpreter, which pays per step, not per element."""

    def small(kernel: KernelConfig) -> KernelConfig:
        queries = kernel.block_m if kernel.heads > 1 else 32
        return KernelConfig(queries, 32, 4, 1, heads=kernel.heads)

    return BackwardConfig(small(config.queries), small(config.keys), config.parts)
