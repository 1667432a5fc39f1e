"""Helpers of the interpreter tests: random tensors, and dense attention in float64 as the truth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import maskwright as mw
from maskwright.runtime.check import LSE_TOLERANCE
from maskwright.runtime.check import TOLERANCE
from maskwright.runtime.check import dense_attention


class Attend:
    """Random inputs of some sizes, and the comparison of a call with dense float64 attention."""

    def inputs(
        self,
        q_len: int,
        kv_len: int | None = None,
        *,
        batch: int = 1,
        heads: int = 2,
        kv_heads: int | None = None,
        head_dim: int = 16,
        value_dim: int | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        kv_len = q_len if kv_len is None else kv_len
        kv_heads = heads if kv_heads is None else kv_heads
        shapes = [
            (batch, heads, q_len, head_dim),
            (batch, kv_heads, kv_len, head_dim),
            (batch, kv_heads, kv_len, value_dim or head_dim),
        ]
        query, key, value = (torch.randn(s, generator=generator).to(dtype) for s in shapes)
        return query, key, value

    def truth(self, tensors, mask, *, score=None, scale=None, sinks=None, q_offset=None, **values):
        query, key, value = tensors
        node = mw.Expr(mask.node) if mask is not None else None
        names = [] if mask is None else _names(mask)
        dense = mw.to_dense(
            node,
            query.shape[2],
            key.shape[2],
            batch=query.shape[0],
            heads=query.shape[1],
            kv_heads=key.shape[1],
            q_offset=q_offset,
            **{name: x for name, x in values.items() if name in names},
        )
        score_node = None if score is None else score.node
        given = {n: torch.as_tensor(x) for n, x in values.items()}
        return dense_attention(
            query, key, value, torch.tensor(dense), scale, sinks, score_node, given, q_offset
        )

    def matches(self, tensors, mask, *, backend="interpret", attention=None, **options):
        """Run one call and compare output and LSE with the truth; returns both."""
        prepared = options.pop("prepared", None)
        wanted = self.truth(tensors, mask, **options)
        if attention is None:
            attention = mw.compile(mask, score=options.pop("score", None))
        else:
            options.pop("score", None)
        options |= {"backend": backend, "prepared": prepared}
        out, lse = attention(*tensors, return_lse=True, **options)
        same(out, lse, *wanted)
        return out, lse


def same(out: Tensor, lse: Tensor, true_out: Tensor, true_lse: Tensor) -> None:
    """Output within the tolerance of its dtype, LSE too; infinities in the same places."""
    assert out.shape == true_out.shape
    assert lse.dtype == torch.float32
    error = (out.double() - true_out).norm() / true_out.norm().clamp_min(1e-30)
    assert error <= TOLERANCE[out.dtype]
    torch.testing.assert_close(
        lse.double(), true_lse, atol=LSE_TOLERANCE[out.dtype], rtol=1e-4, equal_nan=True
    )


def _names(mask: mw.Expr) -> set[str]:
    from maskwright.dsl import nodes as n

    return {p.name for p in n.params(mask.node)} | {t.name for t in n.tables(mask.node)}


@pytest.fixture
def attend() -> Attend:
    return Attend()


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tensors hold NaN (or an absurd integer): what a kernel does not write shows."""

    def poison(plain):
        def made(*args, **kwargs):
            tensor = plain(*args, **kwargs)
            return tensor.fill_(float("nan") if tensor.is_floating_point() else 0x5BADBAD)

        return made

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
