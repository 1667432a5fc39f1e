"""Tiles whose rows are queries of several heads of a KV head: results, defaults, refusals."""

from __future__ import annotations

import checked
import numpy as np
import pytest
import torch

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import kv_head
from maskwright import q
from maskwright import s
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.pipeline import choose_config
from maskwright.dsl.errors import LoweringError

TOKEN = (k <= q) & (k // 16).isin(mw.table("topk", ndim=4)[b, kv_head, q])
ROWS = (k <= q) & (k // 16).isin(mw.table("topk", ndim=4)[b, h, q])
SLOPES = mw.table("slopes", ndim=1, dtype=float)


def lists(batch, heads, length, count=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(-1, length // 16 + 2, (batch, heads, length, count)).astype(np.int32)


def agrees(mask, q_len, kv_len, group, config, **options):
    options |= {"config": config, "gradients": False}
    checked.agrees(mask, q_len, kv_len, group=group, **options)


@pytest.mark.parametrize("group", [2, 6, 16])
@pytest.mark.parametrize("sizes", [(1, 1), (17, 33), (20, 9)])
def test_lists_of_every_token(group, sizes):
    for dtype in ("float32", "float16"):
        topk = lists(2, 2, max(sizes))
        agrees(TOKEN, *sizes, group, None, batch=2, dtype=dtype, topk=topk)


@pytest.mark.parametrize(("block_m", "heads"), [(1, 16), (4, 4), (16, 2), (8, 8)])
@pytest.mark.parametrize(
    "mask", [k <= q, (k <= q) & ((k < 20) | (q - k < 9)), None, k < 0], ids=str
)
def test_any_mask_that_heads_share(mask, block_m, heads):
    config = KernelConfig(block_m, 16, 4, 1, heads=heads)
    for sizes in ((35, 50), (50, 30)):
        agrees(mask, *sizes, 16, config, sinks=torch.randn(32))


def test_scores_and_heads_of_a_group_one_after_the_other():
    config = KernelConfig(8, 16, 4, 1, heads=2)
    agrees(k <= q, 30, 40, 6, config, score=mw.tanh(s / 5) * 5, sinks=torch.randn(12))
    agrees((k <= q) & (k % 3 == kv_head), 30, 40, 6, config)


def test_the_default():
    def chosen(mask, group, score=None, **options):
        sizes = {"arch": "sm_90", "dtype": "bfloat16", "head_dim": 128, "value_dim": 128}
        node = None if score is None else score.node
        return choose_config(mask.node, group=group, score=node, **(sizes | options))

    together = chosen(TOKEN, 16)
    assert (together.heads, together.rows, together.loads) == (16, 64, "pointer")
    assert (chosen(TOKEN, 6).heads, chosen(TOKEN, 6).rows) == (2, 64)
    assert chosen(TOKEN, 64).heads == 16
    alone = [chosen(TOKEN, 1), chosen(ROWS, 16), chosen(TOKEN, 3)]
    alone += [chosen(TOKEN, 16, score=s - SLOPES[h] * (q - k))]
    assert [(x.heads, x.rows) for x in alone] == [(1, 64)] * 4
    general = TOKEN & ((q - k) % 128 < 4)  # evaluated for every pair
    for mask in (k <= q, general):
        assert (chosen(mask, 16).heads, chosen(mask, 16).rows) == (1, 128)
    assert chosen(TOKEN, 16, dtype="float32").rows == 32


def test_refusals():
    config = KernelConfig(4, 16, 4, 1, heads=4)
    for mask, score in ((ROWS, None), (k <= q, s - SLOPES[h] * (q - k))):
        with pytest.raises(LoweringError, match="heads of a tile need the same mask"):
            mw.source(mask, score=score, config=config)
    with pytest.raises(LoweringError, match="pointer loads"):
        KernelConfig(64, 64, 4, 2, "descriptor", 2)
    with pytest.raises(LoweringError, match="at least 16"):
        KernelConfig(4, 64, 4, 2, heads=2)
    with pytest.raises(LoweringError, match="do not divide a group of 6"):
        agrees(k <= q, 20, 20, 6, config)
