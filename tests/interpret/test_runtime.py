"""Kernels are generated once, device work is shared, values change freely, gradients are right."""

from __future__ import annotations

import warnings

import pytest
import torch

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import q
from maskwright.runtime import build
from maskwright.runtime import device

COLS = mw.table("cols", ndim=3)
DOC = mw.table("doc", ndim=2, sorted=True)
SLASH = (k <= q) & (k.isin(COLS[b, h]) | (q - k < 5))
SEARCHED = (k <= q) & ((k + 1).isin(COLS[b, h]) | (q - k < 5))
IN_DOCUMENT = (k <= q) & (DOC[b, q] == DOC[b, k])


def cols(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 70, (1, 2, 6), generator=generator, dtype=torch.int32)


# -- one kernel -----------------------------------------------------------------------------------
def test_a_new_value_needs_no_new_kernel(attend):
    window = mw.param("window", min=1)
    attention = mw.compile((k <= q) & (q - k < window))
    attend.matches(attend.inputs(20, 30), attention_mask(attention), attention=attention, window=3)
    before = build.loaded()
    for value in (1, 2, 7, 1000):
        attend.matches(
            attend.inputs(20, 30), attention_mask(attention), attention=attention, window=value
        )
    assert build.loaded() == before


def attention_mask(attention):
    return mw.Expr(attention.mask)


def test_new_lengths_and_tables_need_no_new_kernel(attend):
    attention = mw.compile(IN_DOCUMENT)
    attend.matches(
        attend.inputs(40, 50), IN_DOCUMENT, attention=attention, doc=torch.arange(50)[None] // 7
    )
    before = build.loaded()
    for q_len, kv_len, size in ((39, 39, 5), (35, 80, 11), (60, 64, 100)):
        doc = torch.arange(kv_len)[None] // size
        attend.matches(attend.inputs(q_len, kv_len), IN_DOCUMENT, attention=attention, doc=doc)
    assert build.loaded() == before


def test_equal_masks_share_a_kernel(attend):
    tensors = attend.inputs(20)
    mw.attention(*tensors, (k <= q) & (q - k < 9), backend="interpret")
    before = build.loaded()
    mw.attention(*tensors, mw.parse("(k<=q)&(q-k<9)"), backend="interpret")
    assert build.loaded() == before


# -- prepare --------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore::maskwright.MaskwrightWarning")
@pytest.mark.parametrize(
    "mask", [SLASH, SEARCHED, IN_DOCUMENT], ids=["columns", "tile list", "table bounds"]
)
def test_prepared_work_is_shared(attend, mask, monkeypatch):
    values = {"cols": cols()} if mask is not IN_DOCUMENT else {"doc": torch.arange(70)[None] // 20}
    first, second = attend.inputs(50, 70), attend.inputs(50, 70, seed=1)
    prepared = mw.prepare(mask, first[0], first[1], backend="interpret", **values)
    assert prepared.nbytes > 0
    attention = mw.compile(mask)
    monkeypatch.setattr(attention, "_prepare", None)  # a second preparation would fail
    for tensors in (first, second):
        attend.matches(tensors, mask, attention=attention, prepared=prepared, **values)


def test_a_closed_form_needs_no_preparation(attend):
    tensors = attend.inputs(50, 70)
    assert mw.prepare(k <= q, tensors[0], tensors[1], backend="interpret").nbytes == 0


def test_prepared_for_other_sizes_is_refused(attend):
    doc = torch.arange(70)[None] // 20
    tensors = attend.inputs(50, 70)
    prepared = mw.prepare(IN_DOCUMENT, tensors[0], tensors[1], backend="interpret", doc=doc)
    with pytest.raises(mw.ShapeError, match="prepare"):
        mw.attention(
            *attend.inputs(49, 70), IN_DOCUMENT, backend="interpret", prepared=prepared, doc=doc
        )


# -- the general path is announced ----------------------------------------------------------------
def test_the_general_path_is_announced_once(attend):
    device.announce.cache_clear()
    tensors = attend.inputs(50, 70)
    with pytest.warns(mw.MaskwrightWarning, match="no closed form"):
        mw.attention(*tensors, SEARCHED, backend="interpret", cols=cols())
    with warnings.catch_warnings():
        warnings.simplefilter("error", mw.MaskwrightWarning)
        mw.attention(*tensors, SEARCHED, backend="interpret", cols=cols(1))


def test_strict_refuses_the_general_path(attend, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_STRICT", "1")
    with pytest.raises(mw.StrictError, match="isin") as caught:
        mw.attention(*attend.inputs(50, 70), SEARCHED, backend="interpret", cols=cols())
    assert "MASKWRIGHT_STRICT" in str(caught.value)
    mw.attention(*attend.inputs(50, 70), k <= q, backend="interpret")


# -- gradients of the reference -------------------------------------------------------------------
def dense(query, key, value, keep, scale, sinks, score=lambda s: s):
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    logits = score(query @ key.transpose(2, 3) * scale).masked_fill(~keep, float("-inf"))
    if sinks is not None:
        sink = sinks.reshape(1, -1, 1, 1).expand(*logits.shape[:3], 1)
        logits = torch.cat([logits, sink], -1)
    lse = logits.logsumexp(-1)
    rows = torch.isfinite(lse)
    weights = torch.exp(logits - torch.where(rows, lse, 0.0)[..., None])
    return weights[..., : key.shape[2]] @ value, torch.where(rows, lse, 0.0)


@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("softcap", [False, True])
@pytest.mark.parametrize(
    "mask",
    [k <= q, (k <= q) & (q - k < 9) & (q % 4 != 1), (k < 7) | (k == q), mw.parse("False")],
    ids=str,
)
def test_reference_gradients_are_those_of_dense_torch(attend, mask, softcap, with_sinks):
    tensors = attend.inputs(33, 150, batch=2, heads=4, kv_heads=2, value_dim=8)
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0]) if with_sinks else None
    score = mw.softcap(mw.s, 2.0) if softcap else None
    ours = [x.clone().requires_grad_() for x in (*tensors, *([sinks] if with_sinks else []))]
    out, lse = mw.attention(
        *ours[:3],
        mask,
        score=score,
        sinks=ours[3] if with_sinks else None,
        return_lse=True,
        backend="reference",
    )
    theirs = [x.detach().double().requires_grad_() for x in ours]
    keep = torch.tensor(mw.to_dense(mask, 33, 150, batch=2, heads=4, kv_heads=2))
    cap = (lambda s: 2.0 * torch.tanh(s / 2.0)) if softcap else (lambda s: s)
    wanted = dense(*theirs[:3], keep, 0.25, theirs[3] if with_sinks else None, cap)
    lse = torch.where(torch.isfinite(lse), lse, 0.0)
    weight = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    for (x, y), tensors_ in (((out, lse), ours), (wanted, theirs)):
        ((x * weight.to(x)).sum() + (y * y).sum() * 0.01).backward()
        assert all(t.grad is not None and torch.isfinite(t.grad).all() for t in tensors_)
    torch.testing.assert_close(out.double(), wanted[0], atol=1e-5, rtol=1e-4)
    for mine, true in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad.double(), true.grad, atol=1e-5, rtol=1e-4)


# -- dispatch -------------------------------------------------------------------------------------
def test_cpu_tensors_take_the_reference(attend):
    tensors = attend.inputs(20)
    wanted = mw.attention(*tensors, k <= q, backend="reference")
    assert torch.equal(mw.attention(*tensors, k <= q), wanted)


def test_the_backend_is_a_setting(attend, monkeypatch):
    tensors = attend.inputs(20)
    wanted = mw.attention(*tensors, k <= q, backend="interpret")
    monkeypatch.setenv("MASKWRIGHT_BACKEND", "interpret")
    assert torch.equal(mw.attention(*tensors, k <= q), wanted)


def test_the_source_runs_by_itself(attend, tmp_path):
    """The text of ``source`` is a module with ``forward``; no other file is needed."""
    text = mw.source((k <= q) & (q - k < mw.param("window")), dtype="float32", head_dim=16)
    assert "import maskwright" not in text
    compile(text, str(tmp_path / "kernel.py"), "exec")
