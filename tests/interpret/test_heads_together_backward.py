"""Gradients with several heads of a KV head in a tile: results, what is visited, defaults, refusals."""

from __future__ import annotations

from unittest.mock import MagicMock

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
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.pipeline import choose_backward
from maskwright.codegen.pipeline import compile_backward
from maskwright.codegen.plan_backward import BackwardRequest
from maskwright.dsl.errors import LoweringError
from maskwright.runtime import build
from maskwright.runtime.interpret import interpreter

BLOCK = 16
TOPK = mw.table("topk", ndim=4)
TOKEN = (k <= q) & (k // BLOCK).isin(TOPK[b, kv_head, q])
ROWS = (k <= q) & (k // BLOCK).isin(TOPK[b, h, q])
SLOPES = mw.table("slopes", ndim=1, dtype=float)
TOGETHER = BackwardConfig(KernelConfig(1, 16, 4, 1, heads=16), KernelConfig(2, 16, 4, 1, heads=8))


def lists(length, count=3, seed=0, batch=1):
    """Random blocks: doubles, padding, out of range; every fifth token has none."""
    rng = np.random.default_rng(seed)
    found = rng.integers(-1, length // BLOCK + 2, (batch, 2, length, count)).astype(np.int32)
    found[:, :, ::5] = -1
    return found


def numbers(*shape):
    return np.random.default_rng(1).uniform(0.2, 1.0, shape).astype(np.float32)


def agrees(mask, q_len, kv_len, group, backward, **options):
    """Output, LSE and all gradients."""
    return checked.agrees(mask, q_len, kv_len, group=group, backward=backward, **options)


# -- results --------------------------------------------------------------------------------------
@pytest.mark.parametrize("group", [1, 4, 6, 16])
@pytest.mark.parametrize("sizes", [(1, 1), (17, 33), (20, 9)])
def test_the_default_on_lists_of_every_token(group, sizes):
    sinks = torch.linspace(-1, 1, 2 * group)
    agrees(TOKEN, *sizes, group, None, topk=lists(max(sizes)), sinks=sinks)


@pytest.mark.parametrize(
    "backward",
    [
        TOGETHER,
        BackwardConfig(KernelConfig(4, 32, 4, 1, heads=4), KernelConfig(32, 16, 4, 1)),
        BackwardConfig(KernelConfig(32, 16, 4, 1), KernelConfig(1, 32, 4, 1, heads=16)),
    ],
    ids=["both", "queries", "keys"],
)
@pytest.mark.parametrize(
    "mask",
    [TOKEN, (k <= q) & ((q - k < 9) | (k // BLOCK).isin(TOPK[b, kv_head, q]))],
    ids=["listed", "beside a window"],
)
def test_tiles_of_either_kernel(mask, backward):
    agrees(mask, 13, 35, 16, backward, topk=lists(35, seed=2))


def test_batches():
    agrees(TOKEN, 9, 20, 16, TOGETHER, topk=lists(20, seed=2, batch=2), batch=2)


def test_half_precision_of_wide_values_and_offsets():
    topk = lists(60, seed=3)
    agrees(TOKEN, 9, 40, 16, TOGETHER, dtype="float16", value_dim=24, topk=topk)
    for offset in (-3, 45):
        agrees(TOKEN, 7, 40, 16, TOGETHER, q_offset=offset, topk=topk)


@pytest.mark.parametrize("mask", [k <= q, (k <= q) & ((k < 20) | (q - k < 9)), None, k < 0])
def test_any_mask_that_heads_share(mask):
    agrees(mask, 19, 37, 16, TOGETHER, sinks=torch.randn(32))


def test_the_general_path_and_diagonals():
    """Tiles listed by pairs; bits of distances are read from the query of a row."""
    agrees((k <= q) & (k % 3 == kv_head), 11, 20, 16, TOGETHER)
    mask = (k <= q) & (q - k).isin(mw.table("distances", ndim=2)[b])
    agrees(mask, 15, 30, 16, TOGETHER, distances=np.array([[3, 0, 17, -1]], np.int32))


@pytest.mark.parametrize(
    ("score", "values"),
    [
        (mw.softcap(s, 2.0) + 0.01 * (k - q), {}),
        (s - SLOPES[kv_head] * (q - k), {"slopes": numbers(2)}),
        (s * SLOPES[q], {"slopes": numbers(40)}),
        (s + SLOPES[k], {"slopes": numbers(40)}),
        (s + SLOPES[q - k], {"slopes": numbers(30)}),
    ],
    ids=["softcap", "a slope", "of a query", "of a key", "of a pair"],
)
def test_scores_and_gradients_of_tables(score, values):
    sinks = torch.linspace(-1, 1, 32)
    found = agrees(
        TOKEN, 13, 30, 16, TOGETHER, score=score, sinks=sinks, topk=lists(30, seed=4), **values
    )
    assert set(found.gradients) == {"query", "key", "value", "sinks", *values}


def test_memory_is_not_read_before_it_is_written(poisoned):
    agrees(TOKEN, 9, 30, 16, TOGETHER, topk=lists(30, seed=5))


def test_heads_beside_each_other_in_memory(attend):
    """Queries of (batch, length, heads, head_dim), as a projection leaves them."""
    tensors = [x.transpose(1, 2).contiguous() for x in attend.inputs(20, 40, heads=32, kv_heads=2)]
    given = {"topk": torch.tensor(lists(40, seed=6))}
    gradients = []
    for backend, config in (("reference", None), ("interpret", TOGETHER)):
        leaves = [x.clone().requires_grad_() for x in tensors]
        found = mw.compile(TOKEN) if config is None else mw.compile(TOKEN).with_config(config)
        out = found(*(x.transpose(1, 2) for x in leaves), backend=backend, **given)
        out.backward(torch.linspace(-1, 1, out.numel()).reshape(out.shape))
        gradients.append([x.grad for x in leaves])
    for wanted, mine in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, wanted)


# -- what is visited ------------------------------------------------------------------------------
def module_of(mask, config):
    made = compile_backward(
        BackwardRequest(mask.node, None, "float32", 16, 16, True, config, tables=())
    )
    return build.load(made, interpreted=True)


def test_keys_visit_only_the_queries_that_list_them():
    """Tiles of one query: what a tile of keys visits is what the lists say, for all heads at once."""
    one = KernelConfig(1, 16, 4, 1, heads=16)
    topk = lists(64, seed=7)
    with interpreter():
        _, _, found = module_of(TOKEN, BackwardConfig(one, one)).prepare(
            64, 64, 1, 32, 2, "cpu", topk=torch.tensor(topk)
        )
    rows = found[-3]
    for head, block in np.ndindex(2, 4):
        tokens = (topk[0, head] == block).any(-1) & (np.arange(64) // BLOCK >= block)
        assert int(rows[0, head, block, 1:].sum()) == tokens.sum()


# -- defaults and refusals ------------------------------------------------------------------------
def chosen(mask, group, score=None, **options):
    sizes = {"arch": "sm_90", "dtype": "bfloat16", "head_dim": 128, "value_dim": 128}
    node = None if score is None else score.node
    return choose_backward(mask.node, group=group, score=node, **(sizes | options))


def test_the_default():
    found = chosen(TOKEN, 16)
    assert (found.queries.heads, found.queries.rows) == (16, 64)
    assert (found.keys.heads, found.keys.rows) == (16, 32)
    assert {found.queries.loads, found.keys.loads} == {"pointer"}
    wide = (k <= q) & (k // 64).isin(TOPK[b, kv_head, q])
    assert {x.block_n for x in (chosen(wide, 4).queries, chosen(wide, 4).keys)} == {64}
    assert (chosen(TOKEN, 6).queries.heads, chosen(TOKEN, 64).keys.heads) == (2, 16)
    alone = [chosen(TOKEN, 1), chosen(ROWS, 16), chosen(TOKEN, 3), chosen(k <= q, 16)]
    alone += [chosen(TOKEN, 16, score=s - SLOPES[h] * (q - k))]
    alone += [chosen(TOKEN & ((q - k) % 128 < 4), 16)]  # evaluated for every pair
    assert [(x.queries.heads, x.keys.heads) for x in alone] == [(1, 1)] * len(alone)
    assert [x.queries.block_m for x in alone] == [64] * len(alone)
    assert chosen(TOKEN, 16, dtype="float32").keys.rows == 32


def test_refusals():
    for mask, score in ((ROWS, None), (k <= q, s - SLOPES[h] * (q - k))):
        with pytest.raises(LoweringError, match="heads of a tile need the same mask"):
            mw.source(mask, op="backward", score=score, config=TOGETHER)
    one = KernelConfig(64, 64, 4, 2, "descriptor")
    with pytest.raises(LoweringError, match="load alike"):
        BackwardConfig(one, KernelConfig(2, 16, 4, 1, heads=8))
    with pytest.raises(LoweringError, match="do not divide a group of 6"):
        agrees(k <= q, 20, 20, 6, TOGETHER)


def test_more_bits_than_kernels_count_are_refused():
    """A bit for each row and block of 2 million tokens: offsets of 32 bits would wrap around."""
    mask = (k <= q) & (k // 64).isin(TOPK[b, kv_head, q])
    topk = torch.empty(1, 1, 1, 16, dtype=torch.int32).expand(1, 4, 2**21, 16)
    with pytest.raises(ValueError, match="8 GiB a head"):
        module_of(mask, TOGETHER).prepare(2**21, 2**21, 1, 64, 4, "cpu", topk=topk)


def test_more_tiles_than_kernels_count_are_refused(monkeypatch):
    module = module_of(TOKEN, BackwardConfig(*[KernelConfig(16, 16, 4, 1)] * 2))
    monkeypatch.setattr(module, "marks_kernel", MagicMock())
    topk = torch.empty(1, 1, 1, 1, dtype=torch.int32).expand(1024, 32, 4096, 256)
    with pytest.raises(ValueError, match="lists of up to 2147483648 tiles"):
        module.prepare(4096, 4096, 1024, 32, 32, "cpu", topk=topk)
