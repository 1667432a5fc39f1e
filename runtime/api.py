"""The public calls: ``attention``, ``compile``, ``prepare``, ``check``, ``tune``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING
from typing import Any

import torch
from torch import Tensor

from maskwright.codegen.api import Explanation
from maskwright.codegen.api import explain
from maskwright.codegen.api import score_node
from maskwright.codegen.api import source
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.configs import AnyConfig
from maskwright.codegen.configs import Configs
from maskwright.codegen.pipeline import Compiled
from maskwright.codegen.pipeline import choose_config
from maskwright.codegen.pipeline import compile_forward
from maskwright.codegen.plan import Request
from maskwright.codegen.plan import WalkPlan
from maskwright.dsl import nodes as n
from maskwright.dsl.errors import ShapeError
from maskwright.dsl.errors import StrictError
from maskwright.dsl.evaluate import mask_node
from maskwright.dsl.expr import Expr
from maskwright.runtime import build
from maskwright.runtime import device
from maskwright.runtime import eager
from maskwright.runtime import gluon
from maskwright.runtime import op
from maskwright.runtime import reference
from maskwright.runtime import settings
from maskwright.runtime import tuned
from maskwright.runtime.bind import DTYPES
from maskwright.runtime.bind import Binder
from maskwright.runtime.bind import Shapes
from maskwright.runtime.bind import check_config
from maskwright.runtime.call import Call
from maskwright.runtime.call import check_backend
from maskwright.runtime.check import Report
from maskwright.runtime.check import check
from maskwright.runtime.hot import Hot
from maskwright.runtime.hot import options_of
from maskwright.runtime.launch import Kernel

if TYPE_CHECKING:
    from maskwright.autotune.result import Tuned

__all__ = ["Attention", "Prepared", "Report", "attention", "check", "compile", "prepare", "tune"]

_MOST_KERNELS = 4096  # kinds of calls remembered for one mask
_SMALL = 512  # up to here a descriptor costs the host more than it saves the GPU


@dataclass(frozen=True)
class Prepared:
    """What the device computed before the kernel. Valid while lengths and runtime values stay.

    Pass it as ``attention(..., prepared=p)``. ``nbytes`` is its size; 0 for closed-form masks.
    """

    kernel: str
    sizes: tuple[int, ...]
    arguments: tuple[Any, ...]

    @property
    def nbytes(self) -> int:
        """Device memory held."""
        return sum(x.numel() * x.element_size() for x in self.arguments if isinstance(x, Tensor))


class Attention:
    """Attention under one mask and score: everything that can be derived once is kept here.

    Call it like ``maskwright.attention``, without the mask.
    """

    def __init__(self, mask: Any, *, score: Any = None, configs: Configs | None = None) -> None:
        self.mask = mask_node(mask)
        self.score = score_node(score)
        self.configs = configs or Configs()
        nodes = (self.mask,) if self.score is None else (self.mask, self.score)
        self.binder = Binder.of(nodes)
        self._config = self.configs.to_text()
        self._kernels: dict[Any, Kernel] = {}
        self.choices: dict[Any, Any] = {}  # of tuned configurations, see ``tuned.choose``
        self.hot = Hot(self.binder.params, tables=bool(self.binder.tables))

    def __repr__(self) -> str:
        return f"<Attention {Expr(self.mask)}>"

    def __getstate__(self) -> dict[str, Any]:
        """Without what was made for this process: a copy makes it again."""
        hot = Hot(self.binder.params, tables=bool(self.binder.tables))
        return self.__dict__ | {"_kernels": {}, "choices": {}, "hot": hot}

    def with_config(self, config: AnyConfig) -> Attention:
        """The same attention with a fixed configuration of one of its kernels."""
        score = None if self.score is None else Expr(self.score)
        return Attention(Expr(self.mask), score=score, configs=self.configs.with_(config))

    def source(self, **options: Any) -> str:
        """Source of the kernel; options as in ``maskwright.source``."""
        fixed = self.configs.of_kernel(options.get("op"), options.get("backend"))
        options.setdefault("config", fixed)
        score = None if self.score is None else Expr(self.score)
        return source(Expr(self.mask), score=score, **options)

    def explain(self, q_len: int, kv_len: int | None = None, **options: Any) -> Explanation:
        """Loop bounds, tiles and FLOPs; options as in ``maskwright.explain``."""
        return explain(Expr(self.mask), q_len, kv_len, **options)

    def tune(self, **options: Any) -> Tuned:
        """Choose a configuration by measurement; options as in ``maskwright.tune``.

        Kernels that this object has made already stay; equal objects made later take the winner.
        """
        score = None if self.score is None else Expr(self.score)
        return tune(Expr(self.mask), score=score, **options)

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scale: float | None = None,
        sinks: Tensor | None = None,
        q_offset: int | None = None,
        return_lse: bool = False,
        backend: str = "auto",
        prepared: Prepared | None = None,
        **bindings: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention; see ``maskwright.attention``."""
        plain = sinks is None and prepared is None and not torch.compiler.is_compiling()
        if plain and not torch.is_autocast_enabled("cuda"):
            kind = options_of(scale, q_offset, backend)
            launch = self.hot.find((query, key, value), bindings, kind)
            if launch is not None:
                out, lse = launch(query, key, value, bindings)
                return (out, lse) if return_lse else out
        tensors = op.autocast(query, key, value)
        options: dict[str, Any] = {"scale": scale, "q_offset": q_offset, "backend": backend}
        options |= {"sinks": sinks, "prepared": prepared}
        if op.dispatched(*tensors):
            out, lse = op.attention(self.texts, tensors, bindings, **options)
        elif eager.needed(*tensors, sinks, *bindings.values()):
            out, lse = eager.attention(self, tensors, bindings, **options)
        else:
            out, lse = self.run(tensors, bindings, **options)
        return (out, lse) if return_lse else out

    # -- what a call is made of; PyTorch's operators come in here ---------------------------------
    @property
    def texts(self) -> op.Texts:
        """Mask, score and configuration as text, from which an equal object can be made."""
        score = None if self.score is None else Expr(self.score)
        return op.text(Expr(self.mask)), op.text(score), self._config

    def call(
        self, query: Tensor, key: Tensor, value: Tensor, bindings: Mapping[str, Any], **options: Any
    ) -> Call:
        """The checked call."""
        call = Call.of(self.binder, query, key, value, bindings, **options)
        return gluon.settle(self, call, asked=check_backend(options.get("backend", "auto")))

    def run(
        self,
        tensors: tuple[Tensor, Tensor, Tensor],
        bindings: Mapping[str, Any],
        *,
        sinks: Tensor | None,
        prepared: Prepared | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor]:
        """(out, lse) of a call, by the hot path if it is like an earlier one."""
        kind = options_of(**options)
        plain = sinks is None and prepared is None and not self.hot.off
        launch = self.hot.find(tensors, bindings, kind) if plain else None
        if launch is not None:
            return launch(*tensors, bindings)
        call = self.call(*tensors, bindings, sinks=sinks, **options)
        out, lse = self.forward(call, prepared)
        failed = call.backend == "gluon" and gluon.given_up(self, "forward")
        if plain and call.backend in ("triton", "gluon") and not (call.empty or failed):
            kernel = self._ready(call, sinks=None, interpreted=False)
            self.hot.remember(call, tensors, kernel, kind)
        return out, lse

    def forward(self, call: Call, prepared: Prepared | None = None) -> tuple[Tensor, Tensor]:
        """(out, lse) of a checked call; autograd does not see it."""
        if call.empty:
            return call.nothing()
        if call.backend == "reference":
            return reference.attention(self.mask, self.score, call)
        eager.refuse_tangents(call.query, call.key, call.value)
        try:
            return self._direct(call, prepared)
        except Exception as error:
            if not (call.chosen and gluon.gives_up(self, "forward", error)):
                raise
        return self._direct(replace(call, backend="triton"), prepared)

    def prepare(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor | None = None,
        *,
        q_offset: int | None = None,
        backend: str = "auto",
        **bindings: Any,
    ) -> Prepared:
        """The device work before the kernel, to be shared by calls; see ``maskwright.prepare``."""
        value = key if value is None else value
        call = self.call(query, key, value, bindings, q_offset=q_offset, backend=backend)
        interpreted = call.backend in ("interpret", "reference")
        return self._prepare(call, self._ready(call, sinks=None, interpreted=interpreted))

    # -- the kernel -----------------------------------------------------------------------------
    def _direct(self, call: Call, prepared: Prepared | None) -> tuple[Tensor, Tensor]:
        """Straight to the kernel."""
        interpreted, sinks, scale = call.backend == "interpret", call.sinks, call.scale
        sinks = None if sinks is None else sinks.float().contiguous()
        kernel = self._ready(call, sinks=sinks, interpreted=interpreted)
        if prepared is not None:
            self._check_prepared(prepared, call, kernel.compiled)
        if prepared is None and kernel.prepares:
            prepared = self._prepare(call, kernel)
        keywords = {text: call.values[name] for name, text in kernel.names}
        if prepared is not None:
            keywords["prepared"] = list(prepared.arguments)
        if sinks is not None:
            keywords["sinks"] = sinks
        # The running maximum of scaled scores needs a non-negative scale.
        query = call.query if scale >= 0 else -call.query
        return kernel.launch(
            *(query, call.key, call.value),
            scale=abs(scale),
            q_offset=call.shapes.q_offset,
            **keywords,
        )

    def _ready(self, call: Call, *, sinks: Tensor | None, interpreted: bool) -> Kernel:
        """The kernel for this kind of call: one look-up once it has been made."""
        tensors = [call.query, call.key, call.value]
        tensors += [x for x in call.values.values() if isinstance(x, Tensor)]
        key = (
            call.backend == "gluon",
            tuple((x.dtype, x.stride(), x.data_ptr() % 16) for x in tensors),
            None if sinks is None else sinks.data_ptr() % 16,
            (call.shapes, call.query.device, call.inside, interpreted),
        )
        found = self._kernels.get(key)
        if found is None:
            compiled = self._compiled(call, sinks=sinks is not None, interpreted=interpreted)
            found = Kernel(compiled, build.load(compiled, interpreted=interpreted), interpreted)
            if len(self._kernels) >= _MOST_KERNELS:
                self._kernels.clear()
            self._kernels[key] = found
        return found

    def _prepare(self, call: Call, kernel: Kernel) -> Prepared:
        plan, s = kernel.compiled.plan, call.shapes
        if plan.tile_list is not None:
            self.announce(plan.schedule.reasons)
        arguments = kernel.prepare(
            *(s.q_len, s.kv_len, s.batch, s.heads, s.kv_heads, call.query.device),
            q_offset=s.q_offset,
            **{text: call.values[name] for name, text in kernel.names},
        )
        return Prepared(self._work(kernel.compiled), _sizes(s), tuple(arguments))

    def _work(self, compiled: Compiled[WalkPlan]) -> str:
        """What prepared work depends on besides sizes and values."""
        plan = compiled.plan
        lists = [x.name for x in plan.bindings if x.sorted_list]
        parts = plan.listed.parts if plan.listed else 1
        return f"{n.structure(self.mask)} {plan.request.tile} {lists} {parts}"

    def _check_prepared(self, prepared: Prepared, call: Call, compiled: Compiled[WalkPlan]) -> None:
        if prepared.sizes != _sizes(call.shapes) or prepared.kernel != self._work(compiled):
            raise ShapeError(
                "prepared= was made for another mask, tile shape or other sizes",
                expression=Expr(self.mask),
                fix="call mw.prepare again",
            )

    def announce(self, reasons: tuple[str, ...]) -> None:
        """The general path is never taken silently."""
        if settings.current().strict:
            raise StrictError(
                "this mask needs the general path: " + "; ".join(reasons),
                expression=Expr(self.mask),
                fix="unset MASKWRIGHT_STRICT to allow it",
            )
        device.announce(self.mask, reasons)

    def _compiled(self, call: Call, *, sinks: bool, interpreted: bool) -> Compiled[WalkPlan]:
        if call.backend == "gluon":
            made, _ = gluon.request(self, call)
            return compile_forward(made, settings.current().debug)
        s, dtype = call.shapes, DTYPES[call.query.dtype]
        arch = "sm_80" if interpreted else device.arch(call.query.device)
        tensors = (call.query, call.key, call.value)
        aligned = all(device.aligned(x) for x in tensors)
        bulk = aligned and max(s.q_len, s.kv_len) > _SMALL
        config = (
            self.configs.forward
            or tuned.forward_config(self, tensors, s, inside=call.inside)
            or _config(
                (self.mask, self.score),
                arch,
                dtype,
                (s.head_dim, s.value_dim, _bucket(s.q_len), s.heads // s.kv_heads),
                aligned=bulk,
                interpreted=interpreted,
            )
        )
        check_config(config, s, aligned=aligned)
        request = Request(
            self.mask, self.score, dtype, s.head_dim, s.value_dim, call.inside, sinks, config
        )
        return compile_forward(request, settings.current().debug)


@lru_cache(maxsize=1024)
def _config(
    nodes: tuple[n.Node, n.Node | None],
    arch: str,
    dtype: str,
    sizes: tuple[int, int, int, int],
    *,
    aligned: bool,
    interpreted: bool,
) -> KernelConfig:
    head_dim, value_dim, q_len, group = sizes
    config = choose_config(
        nodes[0],
        score=nodes[1],
        arch=arch,
        dtype=dtype,
        head_dim=head_dim,
        value_dim=value_dim,
        q_len=q_len,
        aligned=aligned,
        group=group,
    )
    if not interpreted:
        return config
    # The interpreter pays per step, not per element; small tiles show every kind of tile.
    tile = min(config.block_m, 32), min(config.block_n, 32)
    return KernelConfig(*tile, 4, 1, heads=config.heads)


def _bucket(q_len: int) -> int:
    """Short queries take shorter tiles; beyond 128 all lengths are alike."""
    return next((size for size in (16, 32, 64) if q_len <= size), 128)


def _sizes(s: Shapes) -> tuple[int, ...]:
    return (s.batch, s.heads, s.kv_heads, s.q_len, s.kv_len, s.q_offset)


@lru_cache(maxsize=512)
def cached_attention(
    mask: n.Node, score: n.Node | None = None, configs: Configs | None = None
) -> Attention:
    """One object for equal arguments."""
    score_ = None if score is None else Expr(score)
    return Attention(Expr(mask), score=score_, configs=configs)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any = None,
    *,
    score: Any = None,
    scale: float | None = None,
    sinks: Tensor | None = None,
    q_offset: int | None = None,
    return_lse: bool = False,
    backend: str = "auto",
    prepared: Prepared | None = None,
    **bindings: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(score(scale * query @ key^T) where mask) @ value.

    Args:
        query: (B, Hq, Sq, D), float16, bfloat16 or float32; strides are honoured.
        key, value: (B, Hkv, Sk, D) and (B, Hkv, Sk, Dv); Hq is a multiple of Hkv.
        mask: mask expression; True means attend. None attends everywhere.
        score: expression over ``mw.s``, the scaled logit.
        scale: factor on the logits, 1 / sqrt(D) by default.
        sinks: (Hq,) float, one extra logit a query head in the denominator (its value is zero).
        q_offset: position of query row 0 in key coordinates; Sk - Sq by default.
        return_lse: also return the log-sum-exp of the logits, sinks included: float32
            (B, Hq, Sq), natural logarithm.
        backend: ``auto``, ``gluon`` (sm_90), ``triton``, ``interpret`` or ``reference``.
        prepared: result of ``prepare`` for the same sizes and runtime values.
        bindings: params (int) and tables (tensors on the query's device) by name.

    Returns:
        out (B, Hq, Sq, Dv) in the query's dtype, or (out, lse). A row that attends to nothing
        has output 0 and LSE -inf.

    Raises:
        MaskwrightError: a subclass that names the expression and what to do.
    """
    options: dict[str, Any] = {
        "sinks": sinks,
        "scale": scale,
        "q_offset": q_offset,
        "backend": backend,
    }
    if torch.compiler.is_compiling():
        texts = (op.text(mask), op.text(score), "")
        tensors = op.autocast(query, key, value)
        out, lse = op.attention(texts, tensors, bindings, prepared=prepared, **options)
        return (out, lse) if return_lse else out
    # A handle is checked once, when its attention is made.
    found = cached_attention(
        mask.node if isinstance(mask, Expr) else mask_node(mask),
        score.node if isinstance(score, Expr) else score_node(score),
    )
    options |= {"return_lse": return_lse, "prepared": prepared}
    return found(query, key, value, **options, **bindings)


def compile(mask: Any, *, score: Any = None) -> Attention:  # noqa: A001
    """Everything derived once: a callable like ``attention`` without the mask."""
    return Attention(mask, score=score)


def prepare(
    mask: Any, query: Tensor, key: Tensor, value: Tensor | None = None, **bindings: Any
) -> Prepared:
    """What the device must compute before the kernel; nothing for closed-form masks.

    Args:
        mask: mask expression.
        query, key, value: tensors of the calls to come (their sizes, dtype, layout and device count);
            ``value`` may be left out if it is like ``key``.
        bindings: runtime values, and ``q_offset`` or ``backend`` as in ``attention``.
    """
    return cached_attention(mask_node(mask)).prepare(query, key, value, **bindings)


def tune(
    mask: Any,
    *,
    q_len: int,
    budget: float = 60.0,
    trials: int | None = None,
    effort: str | None = None,
    progress: bool = False,
    sampler: str = "tpe",
    distributed: bool = False,
    **options: Any,
) -> Tuned:
    """Choose a configuration by measurement on this GPU, for calls like the one described.

    Candidates are compiled and run in other processes; numbers are checked before times. The winner
    is kept in the cache directory, and kernels that are made from then on take it.

    Args:
        mask: mask expression.
        q_len: of the calls; their bucket shares the result (docs/autotune.md).
        budget: seconds.
        trials: candidates at most; follows the budget if None.
        effort: ``quick`` (15 s), ``standard`` (60 s) or ``full`` (600 s) instead of a budget.
        progress: show a line on stderr.
        sampler: ``tpe`` proposes by Optuna, ``random`` needs no Optuna, and more trials.
        distributed: in a distributed job rank 0 searches and all ranks get the same; every rank must
            call. Without it such a process refuses.
        options: ``kv_len``, ``batch`` (1), ``heads`` (16), ``kv_heads``, ``head_dim`` (128),
            ``value_dim``, ``dtype`` ("bfloat16"), ``score``, ``op`` ("forward" or "backward"),
            ``backend`` ("triton" or "gluon"; by default the one that calls take by default), ``q_offset``, ``layout`` ("heads" or "tokens"),
            ``seed``, and runtime values by name.

    Raises:
        TuningError: no GPU, nothing to choose from, a recording graph, or one of many ranks.
    """
    from maskwright.autotune.ask import budget_of
    from maskwright.autotune.tune import Options
    from maskwright.autotune.tune import tune as search
    from maskwright.autotune.tune import tune_on_rank_0

    limits = budget_of(None if effort else budget, trials, effort)
    run = tune_on_rank_0 if distributed else search
    return run(mask, limits, Options(quiet=not progress, sampler=sampler), q_len=q_len, **options)
