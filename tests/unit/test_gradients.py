"""Gradients of the reference backend against dense attention in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import maskwright as mw
from maskwright import h
from maskwright import k
from maskwright import q
from maskwright.runtime.check import dense_attention

SLOPE = mw.table("slope", dtype=float)
BIAS = mw.table("bias", ndim=2, dtype=float)
ALIBI = mw.s + SLOPE[h] * (k - q)


pytestmark = pytest.mark.usefixtures("one_thread")


def inputs(
    q_len: int = 40,
    kv_len: int | None = None,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    value_dim: int = 6,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kv_len = q_len if kv_len is None else kv_len
    shapes = [(heads, q_len, 8), (kv_heads, kv_len, 8), (kv_heads, kv_len, value_dim)]
    tensors = [torch.randn(2, *x, generator=generator).to(dtype) for x in shapes]
    return [x.requires_grad_() for x in tensors]


def gradients(loss: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, tensors)


def weigh(out: Tensor, lse: Tensor | None = None) -> Tensor:
    """A loss that is no symmetric function of its inputs; infinite LSEs do not count."""
    loss = (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out)).sum()
    if lse is not None:
        loss = loss + 0.3 * torch.where(lse.isinf(), 0.0, lse).square().sum()
    return loss


def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
    for mine, true in zip(ours, theirs, strict=True):
        assert torch.isfinite(mine).all()
        torch.testing.assert_close(mine.double(), true.double(), atol=tolerance, rtol=1e-4)


# -- gradients ------------------------------------------------------------------------------------
SCORES = {
    "none": (None, {}),
    "alibi": (ALIBI, {"slope": (4,)}),
    "bias by distance": (mw.softcap(mw.s + BIAS[h, q - k], 3.0), {"bias": (4, 30)}),
    "one read twice": (mw.s * mw.exp(SLOPE[h]) + SLOPE[k % 4], {"slope": (4,)}),
}


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(
    "mask", [k <= q, (k <= q) & (q % 5 > 1) & (k % 3 != h % 3), k < 0, None], ids=str
)
def test_every_gradient_is_that_of_dense_torch(mask, name, sinks):
    score, shapes = SCORES[name]
    tensors = inputs(37, 150)
    tables = {t: 0.3 * torch.randn(x) for t, x in shapes.items()}
    extra = [torch.tensor([0.5, -1.0, 2.0, 0.0])] if sinks else []
    ours = [*tensors, *(x.requires_grad_() for x in (*extra, *tables.values()))]
    theirs = [x.detach().double().requires_grad_() for x in ours]
    given = dict(zip(tables, ours[3 + len(extra) :], strict=True))
    options = {"sinks": ours[3] if sinks else None, "return_lse": True}
    found = mw.attention(*ours[:3], mask, score=score, **options, **given)
    keep = torch.tensor(mw.to_dense(mask, 37, 150, batch=2, heads=4, kv_heads=2))
    values = dict(zip(tables, theirs[3 + len(extra) :], strict=True))
    node = None if score is None else score.node
    dense = dense_attention(*theirs[:3], keep, None, theirs[3] if sinks else None, node, values)
    used = [x for x, y in zip(theirs, _used(weigh(*dense), theirs), strict=True) if y is not None]
    wanted = dict(zip(map(id, used), gradients(weigh(*dense), used), strict=True))
    true = tuple(wanted.get(id(x), torch.zeros_like(x)) for x in theirs)
    same(gradients(weigh(*found), ours), true, 2e-4)


def _used(loss: Tensor, tensors: list[Tensor]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)


def test_an_infinite_gradient_of_an_empty_row_is_dropped():
    tensors = inputs()
    out, lse = mw.attention(*tensors, (k <= q) & (q > 10), return_lse=True)
    found = gradients(out.sum() + lse.square().sum(), tensors)
    assert all(torch.isfinite(x).all() for x in found)
    assert (found[0][:, :, :11] == 0).all()


@pytest.mark.parametrize(("q_len", "kv_len"), [(0, 5), (5, 0)])
def test_gradients_of_nothing(q_len, kv_len):
    tensors, sinks = inputs(q_len, kv_len), torch.zeros(4, requires_grad=True)
    _, lse = mw.attention(*tensors, k <= q, sinks=sinks, return_lse=True)
    found = gradients(lse.sum(), [*tensors, sinks])
    assert all((x == 0).all() for x in found[:3])
    assert (found[3] == 2.0 * q_len).all()


def test_only_what_requires_a_gradient_gets_one():
    query, key, value = inputs()
    slope = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    out = mw.attention(query.detach(), key, value.detach(), k <= q, score=ALIBI, slope=slope)
    out.sum().backward()
    assert query.grad is None
    assert value.grad is None
    assert key.grad is not None
    assert slope.grad is not None
    assert slope.grad.dtype == torch.float64


def test_the_lse_alone_and_the_output_alone():
    tensors = inputs()
    out, lse = mw.attention(*tensors, k <= q, return_lse=True)
    both = gradients(out.sum() + lse.sum(), tensors)
    out, lse = mw.attention(*tensors, k <= q, return_lse=True)
    one = torch.autograd.grad(out.sum(), tensors, retain_graph=True)
    two = gradients(lse.sum(), tensors)
    same(tuple(x + y for x, y in zip(one, two, strict=True)), both)
    assert (two[2] == 0).all()


def test_gradients_have_the_strides_and_dtype_of_their_tensors():
    base = torch.randn(2, 30, 4, 8, dtype=torch.bfloat16, requires_grad=True)
    tensors = [base.transpose(1, 2) for _ in range(3)]
    tensors = [x.detach().requires_grad_() for x in tensors]
    found = gradients(mw.attention(*tensors, k <= q).sum(), tensors)
    assert all(x.stride() == y.stride() for x, y in zip(found, tensors, strict=True))
    assert all(x.dtype == torch.bfloat16 for x in found)


def test_gradients_are_deterministic():
    tensors, bias = inputs(200), torch.randn(4, 30, requires_grad=True)
    score = mw.s + BIAS[h, q - k]
    runs = [
        gradients(weigh(mw.attention(*tensors, k <= q, score=score, bias=bias)), [*tensors, bias])
        for _ in range(3)
    ]
    assert all(torch.equal(x, y) for run in runs[1:] for x, y in zip(runs[0], run, strict=True))


def test_second_derivatives_are_refused():
    tensors = inputs()
    out = mw.attention(*tensors, k <= q)
    (first,) = torch.autograd.grad(out.sum(), tensors[:1], create_graph=True)
    with pytest.raises(mw.DispatchError, match="no second derivative"):
        (mw.attention(*tensors, k <= q).sum() + first.square().sum()).backward()
    operator = torch.ops.maskwright.attention
    out, _ = operator(*tensors, None, [], [], [], "k <= q", "", "", None, None, "auto")
    (first,) = torch.autograd.grad(out.sum(), tensors[:1], create_graph=True)
    with pytest.raises(mw.DispatchError, match="no second derivative"):
        first.sum().backward()
