"""``check``: a user's own mask, its generated kernel against dense float64 attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from functools import partial
from typing import Any
from typing import TypeAlias

import torch
from torch import Tensor

from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.configs import Configs
from maskwright.codegen.gluon import GluonConfig
from maskwright.dsl import nodes as n
from maskwright.dsl.errors import ShapeError
from maskwright.dsl.evaluate import mask_node
from maskwright.dsl.evaluate import to_dense
from maskwright.dsl.expr import Expr
from maskwright.runtime.check_gradients import TOLERANCE as GRADIENT_TOLERANCE
from maskwright.runtime.check_gradients import Attend
from maskwright.runtime.check_gradients import Leaves
from maskwright.runtime.check_gradients import Pair
from maskwright.runtime.check_gradients import gradient_errors
from maskwright.runtime.torch_eval import evaluate

# Largest accepted ||out - truth|| / ||truth||: a small multiple of what each dtype rounds to.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 1.5e-2}
LSE_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Report:
    """Result of a check. ``ok`` is the verdict; errors are against float64.

    Attributes:
        out_error: ||out - truth|| / ||truth||.
        lse_error: largest absolute error of the LSE over rows with keys.
        empty_rows: rows without any key; their output must be 0 and their LSE -inf.
        gradients: error of each gradient by name (query, key, value, sinks, float tables), in
            units of its norm; empty if they were not checked.
    """

    mask: str
    backend: str
    dtype: str
    shape: str
    ok: bool
    out_error: float
    lse_error: float
    empty_rows: int
    empty_rows_right: bool
    gradients: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "WRONG"
        shown = "".join(f", d {name} {error:.2e}" for name, error in self.gradients.items())
        return (
            f"{verdict:5} {self.mask}\n"
            f"      {self.shape}, {self.dtype}, {self.backend}: out {self.out_error:.2e}, "
            f"lse {self.lse_error:.2e}{shown}, {self.empty_rows} empty rows"
            f"{'' if self.empty_rows_right else ' (not zero!)'}"
        )


def check(
    mask: Any,
    *,
    q_len: int = 200,
    kv_len: int | None = None,
    batch: int = 1,
    heads: int = 2,
    kv_heads: int | None = None,
    head_dim: int = 64,
    value_dim: int | None = None,
    dtype: str | torch.dtype | None = None,
    score: Any = None,
    scale: float | None = None,
    q_offset: int | None = None,
    sinks: Tensor | None = None,
    backend: str = "auto",
    config: KernelConfig | GluonConfig | None = None,
    backward: BackwardConfig | None = None,
    gradients: bool = True,
    seed: int = 0,
    **bindings: Any,
) -> Report:
    """Run the generated kernels on random inputs and compare with dense float64 attention.

    Args:
        mask: mask expression.
        q_len, kv_len, batch, heads, kv_heads, head_dim, value_dim: sizes.
        dtype: bfloat16 on a GPU, float32 elsewhere by default.
        backend: ``auto`` is the GPU if there is one, else Triton's interpreter.
        config: configuration of the forward kernel; the heuristic's if None.
        backward: likewise of the backward kernels.
        gradients: check the backward, too, with random gradients of the output and the LSE.
        bindings: params and tables by name (arrays or tensors).

    Raises:
        MaskwrightError: for a mask, binding or size that is wrong.
    """
    from maskwright.runtime.api import Attention

    chosen, where = _place(backend)
    kv_len = q_len if kv_len is None else kv_len
    kv_heads = heads if kv_heads is None else kv_heads
    sizes = (batch, heads, kv_heads, q_len, kv_len)
    inputs = _inputs(sizes, (head_dim, value_dim or head_dim), _dtype(dtype, where), where, seed)
    given = {name: _to(value, where) for name, value in bindings.items()}
    sinks = None if sinks is None else sinks.to(where)
    found = Attention(mask, score=score, configs=Configs.of(config, backward))
    options: dict[str, Any] = {"scale": scale, "q_offset": q_offset}
    attend: Callable[..., Any] = partial(found, return_lse=True, backend=chosen, **options)
    with torch.no_grad():
        out, lse = attend(*inputs, sinks=sinks, **given)
    keep = _dense(mask, sizes, q_offset, bindings).to(where)
    truth = dense_attention(*inputs, keep, scale, sinks, found.score, given, q_offset=q_offset)
    shape = f"B {batch} Hq {heads} Hkv {kv_heads} Sq {q_len} Sk {kv_len} D {head_dim}"
    report = _judge(str(Expr(found.mask)), chosen, shape, out, lse, truth, keep, sinks is not None)
    if not gradients or 0 in (batch, q_len, kv_len):
        return report
    errors = _gradients(attend, found.score, inputs, sinks, keep, options, given, seed)
    right = all(error <= GRADIENT_TOLERANCE[out.dtype] for error in errors.values())
    return replace(report, gradients=errors, ok=report.ok and right)


def _gradients(
    attend: Callable[..., Any],
    score: n.Node | None,
    inputs: tuple[Tensor, Tensor, Tensor],
    sinks: Tensor | None,
    keep: Tensor,
    options: dict[str, Any],
    given: dict[str, Any],
    seed: int,
) -> dict[str, float]:
    """Errors of the gradients of everything that has one."""
    leaves = dict(zip(("query", "key", "value"), inputs, strict=True))
    leaves |= {} if sinks is None else {"sinks": sinks.float()}
    tables = n.tables(score) if score is not None else ()
    leaves |= {t.name: given[t.name].float() for t in tables if t.dtype == "float"}
    empty = ~keep.any(-1) & (sinks is None)

    def kernel(x: Leaves) -> Pair:
        values = given | {name: x[name] for name in given if name in x}
        tensors = (x["query"], x["key"], x["value"])
        out, lse = attend(*tensors, sinks=x.get("sinks"), **values)
        return out, lse

    def truth(x: Leaves) -> Pair:
        out, lse, _ = exact(x)
        return out.masked_fill(empty[..., None], 0.0), lse

    def exact(x: Leaves) -> tuple[Tensor, Tensor, Tensor]:
        # A row without keys attends to all of them here: its gradient is masked, and not NaN.
        shown = keep | empty[..., None]
        values = given | {name: x[name] for name in given if name in x}
        tensors = (x["query"], x["key"], x["value"])
        return dense_parts(
            *(*tensors, shown, options["scale"], x.get("sinks"), score, values),
            q_offset=options["q_offset"],
        )

    def weights(x: Leaves) -> Tensor:
        return exact(x)[2].masked_fill(empty[..., None], 0.0)

    return gradient_errors(Attend(kernel, truth, weights), leaves, empty, seed)


Sizes: TypeAlias = tuple[int, int, int, int, int]  # batch, heads, kv_heads, q_len, kv_len


def _place(backend: str) -> tuple[str, torch.device]:
    """(backend, device): the GPU if there is one, else the interpreter."""
    cuda = torch.cuda.is_available() and backend in ("auto", "gluon", "triton")
    chosen = "triton" if cuda else "interpret"
    chosen = chosen if backend == "auto" else backend
    return chosen, torch.device("cuda" if cuda else "cpu")


def _inputs(
    sizes: Sizes, dims: tuple[int, int], dtype: torch.dtype, where: torch.device, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Random query, key and value."""
    batch, heads, kv_heads, q_len, kv_len = sizes
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int, length: int, size: int) -> Tensor:
        data = torch.randn(batch, count, length, size, generator=generator, dtype=torch.float32)
        return data.to(where, dtype)

    query = draw(heads, q_len, dims[0])
    return query, draw(kv_heads, kv_len, dims[0]), draw(kv_heads, kv_len, dims[1])


def _dense(mask: Any, sizes: Sizes, q_offset: int | None, bindings: dict[str, Any]) -> Tensor:
    batch, heads, kv_heads, q_len, kv_len = sizes
    dense = to_dense(
        mask,
        q_len,
        kv_len,
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        q_offset=q_offset,
        **_only(mask, bindings),
    )
    return torch.as_tensor(dense.copy())


def _dtype(dtype: str | torch.dtype | None, where: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.bfloat16 if where.type == "cuda" else torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in TOLERANCE:
        raise ShapeError(f"no kernel for dtype {dtype}", fix="float16, bfloat16 or float32")
    return found


def _only(mask: Any, bindings: dict[str, Any]) -> dict[str, Any]:
    """The runtime values of the mask itself (others belong to the score)."""
    node = mask_node(mask)
    names = {p.name for p in n.params(node)} | {t.name for t in n.tables(node)}
    return {name: value for name, value in bindings.items() if name in names}


def _to(value: Any, where: torch.device) -> Any:
    if isinstance(value, int):
        return value
    return torch.as_tensor(value).to(where)


def dense_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keep: Tensor,
    scale: float | None = None,
    sinks: Tensor | None = None,
    score: Any = None,
    values: dict[str, Any] | None = None,
    q_offset: int | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse) of attention in float64 under a dense mask: the truth of every check."""
    return dense_parts(query, key, value, keep, scale, sinks, score, values, q_offset)[:2]


def dense_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keep: Tensor,
    scale: float | None = None,
    sinks: Tensor | None = None,
    score: Any = None,
    values: dict[str, Any] | None = None,
    q_offset: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(out, lse, weights) of ``dense_attention``."""
    group = query.shape[1] // key.shape[1]
    q, k, v = query.double(), key.double(), value.double()
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if score is not None:
        logits = evaluate(
            score, _positions(query, key, q_offset) | (values or {}) | {"s": logits}, q.device
        ).double()
    logits = logits.masked_fill(~keep, float("-inf"))
    if sinks is not None:
        sink = sinks.to(q).reshape(1, -1, 1, 1).expand(*logits.shape[:3], 1)
        logits = torch.cat([logits, sink], -1)
    lse = torch.logsumexp(logits, -1)
    weights = torch.exp(logits - torch.where(lse.isinf(), 0.0, lse)[..., None])
    weights = weights[..., : k.shape[2]]
    return weights @ v, lse, weights


def _positions(query: Tensor, key: Tensor, q_offset: int | None) -> dict[str, Any]:
    def place(size: int, *shape: int) -> Tensor:
        return torch.arange(size, device=query.device).reshape(shape)

    q_len, kv_len = query.shape[2], key.shape[2]
    offset = kv_len - q_len if q_offset is None else q_offset
    head = place(query.shape[1], 1, -1, 1, 1)
    return {
        "q": place(q_len, 1, 1, -1, 1) + offset,
        "k": place(kv_len, 1, 1, 1, -1),
        "h": head,
        "kv_head": head // (query.shape[1] // key.shape[1]),
        "b": place(query.shape[0], -1, 1, 1, 1),
        "q_len": q_len,
        "kv_len": kv_len,
    }


def _judge(
    mask: str,
    backend: str,
    shape: str,
    out: Tensor,
    lse: Tensor,
    truth: tuple[Tensor, Tensor],
    keep: Tensor,
    has_sinks: bool,
) -> Report:
    empty = ~keep.any(-1)
    error = (out.double() - truth[0]).norm() / truth[0].norm().clamp_min(1e-30)
    if not truth[0].numel() or not truth[0].any():
        error = out.double().norm()
    finite = torch.where(
        truth[1].isinf() & (lse.double() == truth[1]), 0.0, lse.double() - truth[1]
    )
    lse_error = float(finite.abs().max()) if finite.numel() else 0.0
    right = bool((out[empty] == 0).all()) and (
        has_sinks or bool((lse[empty] == float("-inf")).all())
    )
    ok = float(error) <= TOLERANCE[out.dtype] and lse_error <= LSE_TOLERANCE[out.dtype] and right
    return Report(
        mask,
        backend,
        str(out.dtype).removeprefix("torch."),
        shape,
        ok,
        float(error),
        lse_error,
        int(empty.sum()),
        right,
    )
