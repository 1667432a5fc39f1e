"""Selectors on a GPU: the kernel against torch, the same lists twice, CUDA graphs, the peer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import maskwright as mw
from benchmarks import list_cases
from benchmarks import tiled
from maskwright.patterns import selectors
from maskwright.patterns.selectors.choose import ascending
from maskwright.patterns.selectors.slash import torch_sums

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

MASK = mw.patterns.vertical_slash()


def inputs(
    q_len: int, kv_len: int, dtype: torch.dtype = torch.bfloat16, *, seed: int = 0, dim: int = 128
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(seed)
    options = {"generator": generator, "device": "cuda", "dtype": dtype}
    return torch.randn(1, 8, q_len, dim, **options), torch.randn(1, 2, kv_len, dim, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("q_len", "kv_len"), [(8192, 8192), (700, 5000), (20, 333), (100, 50)])
def test_sums(q_len: int, kv_len: int, dtype: torch.dtype) -> None:
    from maskwright.patterns.selectors.slash_kernel import triton_sums

    query, key = inputs(q_len, kv_len, dtype, dim=96 if kv_len == 333 else 128)
    scale = query.shape[-1] ** -0.5
    found = triton_sums(query, key, 64, scale)
    wanted = torch_sums(query.double().float(), key.float(), 64, scale)
    for ours, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, right, atol=1e-3, rtol=1e-3)
        assert abs(float(ours.sum() - right.sum())) < 0.05
    for ours, again in zip(found, triton_sums(query, key, 64, scale), strict=True):
        assert torch.equal(ours, again)  # no atomics


def test_lists_have_what_is_forced_and_are_the_same_twice() -> None:
    query, key = inputs(16384, 16384)
    budgets = [1000, 30, 0, 500, 3500, 100, 64, 20000], [328, 800, 100, 6096, 100, 16384, 0, 5]
    found, again = (selectors.vertical_slash(query, key, *budgets) for _ in range(2))
    for name, x in found.items():
        assert torch.equal(ascending(x), ascending(again[name]))
    counts = [(x >= 0).sum(-1)[0].tolist() for x in found.values()]
    assert counts == [[*budgets[0][:7], 16384], budgets[1]]
    assert set(range(30)) <= set(found["v_idx"][0, 0].tolist())
    assert set(range(100)) <= set(found["s_idx"][0, 0].tolist())


def test_the_other_selectors_agree_with_the_cpu() -> None:
    query, key = inputs(700, 1000, torch.float32, dim=64)
    calls = (
        lambda q, k: selectors.block_top_k(q, k, 5, local_blocks=1)["block_idx"],
        lambda q, k: selectors.nsa_blocks(q, k, 6)["block_idx"],
        lambda q, k: selectors.quest_pages(q, k, 20, parts=4)["pages"],
        lambda q, k: selectors.delta_pages(q, k, 30)["pages"],
    )
    for call in calls:
        here, there = call(query, key).cpu(), call(query.cpu(), key.cpu())
        assert (here == there).float().mean() > 0.995  # sums of another order may swap neighbours


def test_a_graph_selects_and_attends_anew_for_each_replay() -> None:
    length = 2048
    query, key = inputs(length, length, dim=64)
    attention = mw.compile(MASK)

    def step() -> Tensor:
        lists = selectors.vertical_slash(query, key, [100] * 7 + [0], 150)
        out: Tensor = attention(query, key, key, **lists)
        return out

    for _ in range(2):  # compiles
        step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for seed in (1, 2):
        fresh = inputs(length, length, seed=seed, dim=64)
        query.copy_(fresh[0])
        key.copy_(fresh[1])
        graph.replay()
        torch.testing.assert_close(out, step(), atol=2e-2, rtol=2e-2)


def test_the_search_on_a_gpu() -> None:
    query, key = inputs(4096, 4096)
    candidates = (selectors.AShape(100, 800), selectors.VerticalSlash(100, 750), selectors.Causal())
    layer = selectors.search(query, key, 0.5, candidates=candidates)
    assert all(head.share <= 0.5 for head in layer)
    lists = selectors.lists_of(layer, query, key)
    out = mw.attention(query, key, key, selectors.mask_of(layer), **lists)
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("text", ["2048/100/300/3", "4096/1000/328/0", "2000/64/110/1"])
def test_the_peer_of_the_benchmarks(text: str) -> None:
    from benchmarks.peers import minference_kernel as peer

    row = list_cases.parse(text)
    query, key = inputs(row.seq, row.seq)
    columns, diagonals = (x.cuda() for x in list_cases.draw(row, 8))
    index = peer.build(columns, diagonals, row.seq)
    out = peer.attend(query, key, key, index)
    queries = np.unique(np.linspace(0, row.seq - 1, 70, dtype=np.int64))
    for head in range(8):
        lists = (x[0, head].cpu().long().numpy() for x in (columns, diagonals))
        keep = torch.tensor(tiled.rows(*lists, queries, row.seq)).cuda()
        picked = torch.tensor(queries).cuda()
        keys = key[0, head // 4].double()
        scores = query[0, head, picked].double() @ keys.T / 128**0.5
        right = scores.masked_fill(~keep, -torch.inf).softmax(-1) @ keys
        error = (out[0, head, picked].double() - right).norm() / right.norm()
        assert error < 1.5e-2
