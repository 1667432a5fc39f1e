"""What a call may look like: sizes, strides, scores, sinks, scales, offsets, backends."""

from __future__ import annotations

import pytest
import torch

import maskwright as mw
from maskwright import h
from maskwright import k
from maskwright import q
from maskwright.codegen.config import KernelConfig

WINDOW = (k <= q) & ((k < 3) | (q - k < 20))
SLOPE = mw.table("slope", dtype=float)
BACKENDS = ("interpret", "reference")


# -- sizes ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 2), (8, 1)])
def test_groups_of_heads(attend, heads, kv_heads, backend):
    tensors = attend.inputs(37, 45, batch=2, heads=heads, kv_heads=kv_heads)
    attend.matches(tensors, WINDOW, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("head_dim", "value_dim"), [(40, 24), (16, 33), (1, 1), (128, 64), (24, 80)]
)
def test_head_sizes(attend, head_dim, value_dim, backend):
    tensors = attend.inputs(20, 33, head_dim=head_dim, value_dim=value_dim)
    attend.matches(tensors, WINDOW, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("q_len", "kv_len"), [(1, 1), (1, 100), (100, 1), (16, 16), (17, 97), (97, 17)]
)
def test_lengths(attend, q_len, kv_len, backend, poisoned):
    attend.matches(attend.inputs(q_len, kv_len), WINDOW, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("batch", "q_len", "kv_len"), [(0, 5, 5), (1, 0, 5), (1, 5, 0), (1, 0, 0)])
def test_nothing_to_do(attend, batch, q_len, kv_len, backend):
    tensors = attend.inputs(q_len, kv_len, batch=batch, value_dim=8)
    out, lse = mw.attention(*tensors, WINDOW, return_lse=True, backend=backend)
    assert out.shape == (batch, 2, q_len, 8)
    assert lse.shape == (batch, 2, q_len)
    assert (out == 0).all()
    assert (lse == float("-inf")).all()


def test_no_keys_but_sinks(attend):
    sinks = torch.tensor([0.5, -1.0])
    out, lse = mw.attention(
        *attend.inputs(3, 0), WINDOW, sinks=sinks, return_lse=True, backend="interpret"
    )
    assert (out == 0).all()
    assert torch.equal(lse, sinks[None, :, None].expand(1, 2, 3))


# -- memory ---------------------------------------------------------------------------------------
def layouts(x: torch.Tensor) -> dict[str, torch.Tensor]:
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))
    wide[..., ::2] = x
    padded = torch.full((x.shape[0], x.shape[1] + 1, x.shape[2] + 3, x.shape[3] + 5), float("nan"))
    padded[:, 1:, :-3, 5:] = x
    return {
        "bshd": x.transpose(1, 2).contiguous().transpose(1, 2),
        "column-major": x.transpose(2, 3).contiguous().transpose(2, 3),
        "every second": wide[..., ::2],
        "part of a larger one": padded[:, 1:, :-3, 5:],
        "one head for all": x[:, :1].expand_as(x),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", layouts(torch.zeros(1, 1, 1, 1)))
def test_strides_are_honoured(attend, layout, backend):
    tensors = [layouts(x)[layout] for x in attend.inputs(37, 45, batch=2, heads=4, kv_heads=2)]
    before = [x.clone() for x in tensors]
    attend.matches(tensors, WINDOW, backend=backend)
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_tables_may_have_any_strides(attend, backend):
    doc = mw.table("doc", ndim=2, sorted=True)
    ids = torch.arange(45)[:, None] // torch.tensor([9, 20])  # (position, batch)
    attend.matches(
        attend.inputs(37, 45, batch=2),
        (k <= q) & (doc[mw.b, q] == doc[mw.b, k]),
        backend=backend,
        doc=ids.T,
    )


# -- scores ---------------------------------------------------------------------------------------
SCORES = {
    "softcap": mw.softcap(mw.s, 3.0),
    "bias": mw.s - 0.1 * mw.absolute(q - k),
    "where": mw.where(k < 5, mw.s * 2.0, mw.s - 1.0),
    "functions": mw.tanh(mw.s) + mw.exp(-abs(mw.s)) + mw.sigmoid(mw.s) + mw.log(abs(mw.s) + 1.0),
    "of the head": mw.s / (1.0 + h) + mw.kv_head,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SCORES)
def test_score_expressions(attend, name, backend):
    tensors = attend.inputs(37, 90, heads=4, kv_heads=2)
    attend.matches(tensors, WINDOW, score=SCORES[name], backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mask", [WINDOW, k <= q, None], ids=str)
def test_alibi(attend, mask, backend):
    slopes = 2.0 ** -torch.arange(1, 5)
    tensors = attend.inputs(37, 90, heads=4)
    attend.matches(tensors, mask, score=mw.s + SLOPE[h] * (k - q), slope=slopes, backend=backend)


def test_a_score_reads_the_same_table_as_the_mask(attend):
    doc = mw.table("doc", sorted=True)
    ids = torch.arange(60) // 13
    score = mw.s + mw.where(doc[k] == 0, 1.0, 0.0) + (q - k) // 2
    attend.matches(attend.inputs(60), (k <= q) & (doc[q] == doc[k]), score=score, doc=ids)


# -- options --------------------------------------------------------------------------------------
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [0.3, 2, 0.0, -0.4])
@pytest.mark.parametrize("score", [None, mw.softcap(mw.s, 2.0)], ids=str)
def test_scale(attend, scale, score, backend):
    attend.matches(attend.inputs(37, 90), WINDOW, scale=scale, score=score, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("q_offset", [0, 7, -5, 60, -60, 200])
def test_q_offset(attend, q_offset, backend, poisoned):
    attend.matches(attend.inputs(40, 50), WINDOW, q_offset=q_offset, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sinks_also_in_empty_rows(attend, dtype, backend):
    sinks = torch.tensor([2.0, -3.0, 0.0, 30.0])
    mask = (k <= q) & (q >= 20)
    tensors = attend.inputs(50, heads=4, dtype=dtype)
    out, lse = attend.matches(tensors, mask, sinks=sinks, backend=backend)
    assert (out[:, :, :20] == 0).all()
    torch.testing.assert_close(lse[0, :, :20], sinks[:, None].expand(4, 20))


def test_a_sink_of_minus_infinity_is_no_sink(attend):
    sinks = torch.full((2,), float("-inf"))
    attend.matches(attend.inputs(37, 90), (k <= q) & (q > 60), sinks=sinks)


# -- rows without keys, odd values ----------------------------------------------------------------
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "mask",
    [k < 0, (k < q) & (q % 3 == 0), (k <= q) & (q >= 33), k > q + 10, mw.parse("False")],
    ids=str,
)
def test_empty_rows_are_exactly_zero(attend, mask, backend, poisoned):
    tensors = attend.inputs(50, 70)
    out, lse = attend.matches(tensors, mask, backend=backend)
    empty = torch.tensor(~mw.to_dense(mask, 50, 70, heads=2).any(-1))
    assert empty.any()
    assert (out[empty] == 0).all()
    assert (lse[empty] == float("-inf")).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("mask", [(k <= q) & (q - k < 6), mw.parse("True")], ids=str)
def test_nan_and_inf_go_where_torch_lets_them_go(attend, mask, which, bad, backend):
    tensors = attend.inputs(160)
    tensors[which][0, 0, 12, 3] = bad
    keep = torch.tensor(mw.to_dense(mask, 160, heads=2))
    query, key, value = (x.double() for x in tensors)
    logits = (query @ key.transpose(2, 3) / 4).masked_fill(~keep, float("-inf"))
    wanted = (logits.softmax(-1) @ value)[0, 0]
    out = mw.attention(*tensors, mask, backend=backend)[0].double()
    # Rows that attend to the odd value are as dense torch has them. Of the others those that
    # share its tile may show it, too: 0 * nan is nan.
    touched = keep[0, 0, :, 12] if which else torch.arange(160) == 12
    torch.testing.assert_close(
        out[0, touched], wanted[touched], atol=1e-4, rtol=1e-4, equal_nan=True
    )
    assert torch.isfinite(out[1]).all()
    if which == 0:
        assert torch.isfinite(out[0, ~touched]).all()
    elif not keep.all():
        assert torch.isfinite(out[0, 128:]).all()  # tiles that never saw it


# -- the parts of the interface -------------------------------------------------------------------
def test_descriptor_loads(attend):
    attention = mw.compile(WINDOW).with_config(KernelConfig(16, 32, 4, 2, "descriptor"))
    attend.matches(attend.inputs(37, 45, heads=4, kv_heads=2), WINDOW, attention=attention)


@pytest.mark.parametrize("tile", [(16, 16), (16, 64), (64, 16), (128, 32)])
def test_with_config_changes_no_result(attend, tile):
    attention = mw.compile(WINDOW).with_config(KernelConfig(*tile))
    attend.matches(attend.inputs(70, 90), WINDOW, attention=attention)


def test_attention_and_compile_agree(attend):
    tensors = attend.inputs(30, 40)
    window = mw.param("window", min=1)
    mask = (k <= q) & (q - k < window)
    once = mw.attention(*tensors, mask, backend="interpret", window=9)
    assert torch.equal(once, mw.compile(mask)(*tensors, backend="interpret", window=9))
    _, lse = mw.attention(*tensors, mask, backend="interpret", window=9, return_lse=True)
    assert lse.dtype == torch.float32


def test_no_mask_is_plain_attention(attend):
    tensors = attend.inputs(30, 40)
    wanted = torch.nn.functional.scaled_dot_product_attention(*tensors)
    for backend in BACKENDS:
        torch.testing.assert_close(mw.attention(*tensors, backend=backend), wanted)
