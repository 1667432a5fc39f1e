"""Tiles from runtime lists on a GPU: block lists, per-token lists, gradients, CUDA graphs, no general path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import kv_head
from maskwright import q
from maskwright.runtime.check import dense_attention

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

BLOCKS, TOPK = mw.table("blocks", ndim=4), mw.table("topk", ndim=4)
LISTED = (k <= q) & (k // 64).isin(BLOCKS[b, h, q // 128])
TOKEN = (k <= q) & (k // 64).isin(TOPK[b, kv_head, q])
LENGTH = 2048


@pytest.fixture(autouse=True)
def _no_general_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKWRIGHT_STRICT", "1")


def drawn(seed: int, *shape: int, limit: int = LENGTH // 64) -> Tensor:
    """Any order, doubles, padding, out of range."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, limit + 3, shape, generator=generator).int()


def agrees(mask: mw.Expr, q_len: int, kv_len: int = LENGTH, **options: object) -> None:
    report = mw.check(mask, q_len=q_len, kv_len=kv_len, head_dim=128, **options)
    assert report.ok, str(report)
    assert report.gradients


@pytest.mark.parametrize("sizes", [(LENGTH, LENGTH), (700, LENGTH), (1, 1500)])
def test_block_lists(sizes: tuple[int, int]) -> None:
    agrees(LISTED, *sizes, batch=2, heads=4, kv_heads=2, blocks=drawn(0, 2, 4, LENGTH // 128, 6))
    near = LISTED | ((k <= q) & (q - k < 200))
    agrees(near, *sizes, heads=4, kv_heads=2, blocks=drawn(1, 1, 4, LENGTH // 128, 3))


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_blocks_that_gluon_kernels_follow(head_dim: int, block: int) -> None:
    """Forward; and backward, whose tiles have 128 keys, of heads of up to 128."""
    mask = mw.patterns.block_list(64 if head_dim == 128 else block, block)
    for offset, top in ((0, 1), (70, 5)):
        lists = drawn(top, 2, 4, LENGTH // 64 + 2, top, limit=LENGTH // block)
        sizes = {"q_len": 700, "kv_len": LENGTH, "batch": 2, "heads": 4, "kv_heads": 2}
        sizes |= {"head_dim": head_dim, "q_offset": offset, "dtype": torch.bfloat16}
        sizes |= {"gradients": block == 128 and head_dim <= 128, "block_idx": lists}
        report = mw.check(mask, backend="gluon", **sizes)
        assert report.ok, str(report)


@pytest.mark.parametrize("group", [1, 4, 16])
def test_lists_of_every_token(group: int) -> None:
    heads = {"heads": 2 * group, "kv_heads": 2}
    agrees(TOKEN, 1024, **heads, topk=drawn(2, 1, 2, LENGTH, 5))
    agrees(TOKEN | ((k <= q) & (q - k < 100)), 1024, **heads, topk=drawn(3, 1, 2, LENGTH, 2))


def test_pages_and_unions() -> None:
    pages = mw.table("pages", ndim=2)
    mask = (k // 16).isin(pages[b])
    given = {"pages": drawn(4, 2, 40, limit=LENGTH // 16)}
    agrees(mask, 64, batch=2, heads=4, kv_heads=2, **given)
    given["blocks"] = drawn(5, 2, 4, LENGTH // 128, 3)
    agrees(LISTED | (mask & (k <= q)), 500, batch=2, heads=4, kv_heads=2, **given)


def test_gradients_of_columns_and_diagonals() -> None:
    given = {name: drawn(i, 1, 4, 60, limit=LENGTH) for i, name in enumerate(("v_idx", "s_idx"))}
    for q_len in (LENGTH, 700):
        agrees(mw.patterns.vertical_slash(), q_len, heads=4, kv_heads=2, **given)


@pytest.mark.parametrize(("mask", "name", "shape"), [
    (LISTED, "blocks", (1, 4, LENGTH // 128, 6)),
    (TOKEN, "topk", (1, 2, LENGTH, 5)),
])  # fmt: skip
def test_a_graph_prepares_anew_for_each_replay(
    mask: mw.Expr, name: str, shape: tuple[int, ...]
) -> None:
    """Nothing comes back to the host, so new entries in the same tensor are followed."""
    generator = torch.Generator().manual_seed(0)
    sizes = ((1, 4, LENGTH, 64), (1, 2, LENGTH, 64), (1, 2, LENGTH, 64))
    query, key, value = (torch.randn(x, generator=generator).bfloat16().cuda() for x in sizes)
    attention, given = mw.compile(mask), {name: drawn(1, *shape).cuda()}
    for _ in range(2):  # compiles
        attention(query, key, value, **given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(query, key, value, **given)
    for seed in (2, 3):
        other = drawn(seed, *shape)
        given[name].copy_(other)
        graph.replay()
        dense = mw.to_dense(mask, LENGTH, heads=4, kv_heads=2, **{name: other.numpy()})
        truth, _ = dense_attention(query, key, value, torch.tensor(dense).cuda())
        error = (out.double() - truth).norm() / truth.norm()
        assert error < 1.5e-2


def test_what_is_prepared_can_be_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn((1, n, LENGTH, 128), generator=generator).bfloat16().cuda() for n in (4, 2, 2)
    )
    given = {"topk": drawn(1, 1, 2, LENGTH, 5).cuda()}
    ready = mw.prepare(TOKEN, query, key, **given)
    wanted = mw.attention(query, key, value, TOKEN, **given)
    for _ in range(2):
        found = mw.attention(query, key, value, TOKEN, prepared=ready, **given)
        # Lists may lie elsewhere in memory; what a program does, and in which order, is the same.
        torch.testing.assert_close(found, wanted, atol=0, rtol=0)
