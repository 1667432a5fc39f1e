"""Runtime lists on a GPU: long lists in bfloat16, and preparation inside a CUDA graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import maskwright as mw
from maskwright.runtime.check import dense_attention

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

MASK = mw.patterns.vertical_slash()
HEADS, KV_HEADS, LENGTH = 4, 2, 2048


def lists(seed: int, *, run: int) -> dict[str, Tensor]:
    """Columns and diagonals of every head, and a run of the nearest diagonals."""
    generator = torch.Generator().manual_seed(seed)
    columns = torch.randint(-2, LENGTH + 50, (1, HEADS, 300), generator=generator)
    diagonals = torch.randint(-2, LENGTH + 50, (1, HEADS, 40), generator=generator)
    near = torch.arange(run).expand(1, HEADS, -1)
    found = {"v_idx": columns, "s_idx": torch.cat([diagonals, near], -1)}
    return {name: x.int().cuda() for name, x in found.items()}


@pytest.mark.parametrize("run", [0, 100, 500])
def test_long_lists(run: int) -> None:
    for seed, (q_len, kv_len) in enumerate(((LENGTH, LENGTH), (700, LENGTH), (1, 1500))):
        report = mw.check(
            MASK,
            q_len=q_len,
            kv_len=kv_len,
            heads=HEADS,
            kv_heads=KV_HEADS,
            head_dim=128,
            gradients=False,
            **{name: x.cpu() for name, x in lists(seed, run=run).items()},
        )
        assert report.ok, str(report)


def test_a_graph_prepares_anew_for_each_replay() -> None:
    """Nothing comes back to the host, so new entries in the same tensors are followed."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, HEADS, LENGTH, 64)
    query = torch.randn(shape, generator=generator).bfloat16().cuda()
    key, value = (
        torch.randn((1, KV_HEADS, *shape[2:]), generator=generator).bfloat16().cuda()
        for _ in range(2)
    )
    attention, given = mw.compile(MASK), lists(1, run=100)
    for _ in range(2):  # compiles
        attention(query, key, value, **given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attention(query, key, value, **given)
    for seed in (2, 3):
        other = lists(seed, run=100)
        for name, x in other.items():
            given[name].copy_(x)
        graph.replay()
        host = {name: x.cpu().numpy() for name, x in other.items()}
        dense = mw.to_dense(MASK, LENGTH, heads=HEADS, kv_heads=KV_HEADS, **host)
        truth, _ = dense_attention(query, key, value, torch.tensor(dense).cuda())
        error = (out.double() - truth).norm() / truth.norm()
        assert error < 1.5e-2
