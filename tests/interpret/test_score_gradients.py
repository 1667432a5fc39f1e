"""Gradients through score expressions: of the inputs, of float tables wherever read, of sinks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import q
from maskwright import s

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
    from maskwright.codegen.config import BackwardConfig
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
