"""Gradients through score expressions: of the inputs, of float tables wherever read, of sinks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import kv_len
from maskwright import q
from maskwright import s
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig

BATCH, HEADS, Q_LEN, KV_LEN = 2, 4, 50, 70
RNG = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return RNG.uniform(0.2, 1.0, shape).astype(np.float32)


def table(name: str, ndim: int = 1):
    return mw.table(name, ndim=ndim, dtype=float)


CASES = {
    "softcap": (mw.softcap(s, 2.0), {}),
    "functions": (mw.exp(s * 0.2) + mw.sigmoid(s) + mw.absolute(s) * 0.1, {}),
    "a slope a head": (s - table("slope")[h] * (q - k), {"slope": numbers(HEADS)}),
    "a bias a pair": (
        s + table("bias", 3)[h, q, k],
        {"bias": numbers(HEADS, KV_LEN, KV_LEN)},
    ),
    "a factor a key": (s * (1.0 + table("of_key", 2)[b, k]), {"of_key": numbers(BATCH, KV_LEN)}),
    "a factor a query": (s * table("of_query")[q], {"of_query": numbers(KV_LEN)}),
    "a bias a distance, partly outside": (s + table("rel")[q - k], {"rel": numbers(20)}),
    "branches": (
        mw.where(k < 20, s * 2.0, mw.tanh(s) * table("slope")[h]) + mw.maximum(s, 0.0) * 0.3,
        {"slope": numbers(HEADS)},
    ),
    "softcap of a slope": (mw.softcap(s - (q - k) * 0.05, 2.0), {}),
    "a product of two tables": (
        s + table("of_key")[k] * table("of_query")[q],
        {"of_key": numbers(KV_LEN), "of_query": numbers(KV_LEN)},
    ),
    "not finite beyond the rows": (
        s / table("of_query")[q] + table("slope")[h] + table("of_key")[k],
        {"of_query": numbers(KV_LEN), "slope": numbers(HEADS), "of_key": numbers(KV_LEN)},
    ),
    "a logarithm that ends with the rows": (s * mw.log(kv_len - q + 1.0), {}),
    "one table read twice": (
        s * table("twice")[q] + table("twice")[k],
        {"twice": numbers(KV_LEN)},
    ),
}


@pytest.mark.parametrize("backend", ["interpret", "reference"])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_gradients_match_float64(name: str, with_sinks: bool, backend: str) -> None:
    score, bindings = CASES[name]
    report = mw.check(
        (k <= q) & (q - k < 40),
        q_len=Q_LEN,
        kv_len=KV_LEN,
        batch=BATCH,
        heads=HEADS,
        kv_heads=2,
        head_dim=16,
        value_dim=24,
        dtype="float32",
        score=score,
        sinks=torch.linspace(-1.0, 2.0, HEADS) if with_sinks else None,
        backend=backend,
        **bindings,
    )
    assert report.ok, str(report)
    assert set(report.gradients) == {"query", "key", "value", *bindings} | (
        {"sinks"} if with_sinks else set()
    )


def test_a_table_without_a_gradient_costs_none() -> None:
    """Constant slopes: the kernel adds nothing up."""
    from maskwright.codegen.pipeline import compile_backward
    from maskwright.codegen.plan_backward import BackwardRequest

    score = s - table("slope")[h] * (q - k)
    request = BackwardRequest(
        (k <= q).node, score.node, "float16", 64, 64, True, BackwardConfig(), ()
    )
    assert "atomic_add" not in compile_backward(request).source


def test_a_deterministic_program_is_told(attend) -> None:
    tensors = attend.inputs(20, heads=HEADS)
    slope = torch.rand(HEADS, requires_grad=True)
    found = mw.compile(k <= q, score=s - table("slope")[h] * (q - k))
    torch.use_deterministic_algorithms(True)
    try:
        for backend in ("interpret", "reference"):
            out = found(*tensors, slope=slope, backend=backend)
            if backend == "reference":
                out.sum().backward()
                continue
            with pytest.raises(mw.DispatchError, match="order"):
                out.sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_tiles_longer_than_the_padding(attend) -> None:
    config = BackwardConfig(KernelConfig(256, 32, 4, 1), KernelConfig(32, 32, 4, 1))
    report = mw.check(
        k <= q,
        q_len=100,
        heads=HEADS,
        head_dim=16,
        dtype="float32",
        score=s + table("slope")[h] + table("of_key")[k],
        backend="interpret",
        backward=config,
        slope=numbers(HEADS),
        of_key=numbers(100),
    )
    assert report.ok, str(report)


def test_overlapping_inputs(attend) -> None:
    key, value = attend.inputs(8, heads=2)[1:]
    base = torch.randn(4000)
    query = base.as_strided((1, 2, 8, 16), (1000, 500, 1, 1)).requires_grad_()
    wanted = None
    for backend in ("reference", "interpret"):
        out = mw.attention(query, key, value, k <= q, backend=backend)
        (found,) = torch.autograd.grad(out.square().sum(), query)
        wanted = found if wanted is None else wanted
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
