"""Gradients are as exact as those of dense torch attention in the same dtype, every catalogue mask."""

from __future__ import annotations

import math

import pytest
import torch

import maskwright as mw
from maskwright.patterns.catalog import entries

BATCH, HEADS, KV_HEADS, Q_LEN, KV_LEN, HEAD_DIM = 1, 4, 2, 45, 70, 16
ENTRIES = entries("small", heads=HEADS, kv_heads=KV_HEADS)

pytestmark = pytest.mark.filterwarnings("ignore::maskwright.MaskwrightWarning")


def dense_gradients(tensors, keep, grad_out):
    """Gradients of plain attention, computed in the tensors' own dtype."""
    query, key, value = (x.detach().requires_grad_() for x in tensors)
    group = query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    empty = ~keep.any(-1, keepdim=True)
    scores = (query @ keys.mT * HEAD_DIM**-0.5).masked_fill(~keep & ~empty, -math.inf)
    out = scores.softmax(-1).masked_fill(empty, 0.0) @ values
    return torch.autograd.grad(out, (query, key, value), grad_out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_error_is_at_most_twice_that_of_dense_torch(entry, dtype, attend, poisoned):
    values = entry.bindings(BATCH, HEADS, KV_HEADS, Q_LEN, KV_LEN)
    keep = torch.as_tensor(
        mw.to_dense(
            entry.mask, Q_LEN, KV_LEN, batch=BATCH, heads=HEADS, kv_heads=KV_HEADS, **values
        )
    )
    tensors = attend.inputs(
        Q_LEN, KV_LEN, batch=BATCH, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, dtype=dtype
    )
    grad_out = torch.randn(BATCH, HEADS, Q_LEN, HEAD_DIM).to(dtype)
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = mw.attention(*leaves, entry.mask, backend="interpret", **values)
    mine = torch.autograd.grad(out, leaves, grad_out)
    peer = dense_gradients(tensors, keep, grad_out)
    truth = dense_gradients([x.double() for x in tensors], keep, grad_out.double())
    for x, other, exact in zip(mine, peer, truth, strict=True):
        error, allowed = (x.double() - exact).norm(), (other.double() - exact).norm()
        assert error <= 2 * allowed + 1e-7 * exact.norm()
