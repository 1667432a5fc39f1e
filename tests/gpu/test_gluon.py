"""The Gluon forward on a Hopper GPU: against float64, and that it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import q
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon_plan import gluon_request
from maskwright.patterns.catalog import CatalogEntry
from maskwright.patterns.catalog import entries
from maskwright.runtime.check import dense_attention

HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
pytestmark = pytest.mark.skipif(not HOPPER, reason="needs a Hopper GPU (sm_90)")

CHILD = Path(__file__).with_name("gluon_child.py")
ROOT = Path(__file__).parents[2]
SECONDS = 240  # of a child: most of it compiles
GROUPS = (
    *("one_stage", "two_stages", "three_stages", "four_stages", "three_consumers"),
    *("producer_first", "producer_first_one_stage", "pingpong", "pingpong_three", "lists"),
    "query_registers",
    *("several", "several_one_program", "several_plain", "several_pingpong", "several_lists"),
    *("others", "several_others", "columns", "columns_of_heads"),
)
HEADS, KV_HEADS, BATCH = 4, 2, 2
SIZES = [(512, 512), (333, 1000), (1, 257), (300, 77)]


@pytest.mark.parametrize("group", GROUPS)
def test_every_number_of_tiles_ends(group: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            [sys.executable, str(CHILD), group],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=env,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        shown = (error.stdout or b"").decode() if isinstance(error.stdout, bytes) else error.stdout
        pytest.fail(f"no end after {SECONDS} s; last words: {(shown or '')[-500:]}")
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
    assert "calls are right" in done.stdout


def serves(entry: CatalogEntry) -> bool:
    sizes: dict[str, Any] = {"dtype": "bfloat16", "head_dim": 128, "value_dim": 128}
    return not gluon_request(entry.mask.node, None, **sizes)[1]


@pytest.mark.filterwarnings("ignore::maskwright.MaskwrightWarning")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "entry",
    [e for e in entries("small", heads=HEADS, kv_heads=KV_HEADS) if serves(e)],
    ids=lambda e: e.name,
)
def test_matches_float64(entry: CatalogEntry, dtype: str) -> None:
    for seed, (q_len, kv_len) in enumerate(SIZES):
        bindings = entry.bindings(BATCH, HEADS, KV_HEADS, q_len, kv_len, seed)
        # Freed memory is handed out again: what the kernel does not write would show as NaN.
        del_me = torch.full((BATCH * HEADS * q_len * 128 * 4,), float("nan"), device="cuda")
        del del_me
        report = mw.check(
            entry.mask,
            q_len=q_len,
            kv_len=kv_len,
            batch=BATCH,
            heads=HEADS,
            kv_heads=KV_HEADS,
            head_dim=64 if seed % 2 else 128,
            dtype=dtype,
            seed=seed,
            backend="gluon",
            gradients=seed < 2,
            **bindings,
        )
        assert report.ok, str(report)


@pytest.mark.parametrize(
    "sizes", [(64, 64), (96, 96), (128, 128), (192, 128), (256, 256), (80, 40), (64, 128), (8, 8)]
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_head_sizes(sizes: tuple[int, int], dtype: str) -> None:
    for mask in (k <= q, None):
        report = mw.check(
            mask,
            q_len=450,
            kv_len=515,
            heads=6,
            kv_heads=2,
            head_dim=sizes[0],
            value_dim=sizes[1],
            dtype=dtype,
            backend="gluon",
            gradients=max(sizes) <= 128,
        )
        assert report.ok, str(report)


@pytest.mark.parametrize("sizes", [(64, 64), (128, 128), (256, 256), (40, 24)])
def test_results_through_the_copy_engine(sizes: tuple[int, int]) -> None:
    config = GluonConfig(block_n=64, bulk_store=True)
    for q_len, kv_len in ((450, 515), (64, 64), (300, 77)):
        report = mw.check(
            k <= q,
            q_len=q_len,
            kv_len=kv_len,
            heads=6,
            kv_heads=2,
            head_dim=sizes[0],
            value_dim=sizes[1],
            dtype="bfloat16",
            backend="gluon",
            config=config,
            gradients=False,
        )
        assert report.ok, str(report)


def test_scores_and_sinks() -> None:
    slope = mw.table("slope", dtype=float)
    bias = mw.table("bias", ndim=2, dtype=float)
    values: dict[str, Any] = {
        "slope": torch.linspace(0.01, 0.2, HEADS),
        "bias": torch.randn(BATCH, 400),
    }
    sinks = torch.tensor([0.5, -1.0, 3.0, float("-inf")])
    scores = {
        (): None,
        ("slope",): mw.s + slope[h] * (k - q),
        ("bias",): mw.s + bias[b, k],
        (None,): mw.softcap(mw.s, 5.0),
    }
    for names, score in scores.items():
        for mask in ((k <= q) & (q - k < 90), (k <= q) & (k >= 130), None):
            report = mw.check(
                mask,
                q_len=333,
                kv_len=400,
                batch=BATCH,
                heads=HEADS,
                kv_heads=KV_HEADS,
                head_dim=128,
                dtype="bfloat16",
                score=score,
                sinks=sinks,
                backend="gluon",
                gradients=False,
                **{name: values[name] for name in names if name},
            )
            assert report.ok, f"{score} {report}"


def test_strides() -> None:
    """Heads inside rows, parts of longer tensors, a batch of one."""
    shape = (2, 300, 3, 4, 128)
    packed = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    query, key, value = packed.permute(2, 0, 3, 1, 4)
    long = torch.randn(1, 4, 1000, 128, device="cuda", dtype=torch.bfloat16)
    keep = torch.ones(300, 300, device="cuda", dtype=torch.bool).tril()
    for tensors in ((query, key, value), (long[:, :, 17:317],) * 3, (long[:, :2, :300],) * 3):
        out = mw.attention(*tensors, k <= q, backend="gluon")
        truth, _ = dense_attention(*tensors, keep)
        assert float((out.double() - truth).norm() / truth.norm()) < 6e-3


def test_large_values_and_scales() -> None:
    query, key, value = (
        torch.randn(1, 4, 257, 64, device="cuda", dtype=torch.float16) * 30 for _ in range(3)
    )
    keep = torch.ones(257, 257, device="cuda", dtype=torch.bool).tril()
    for scale in (1.0, 0.0, -0.5):
        out = mw.attention(query, key, value, k <= q, scale=scale, backend="gluon")
        truth, _ = dense_attention(query, key, value, keep, scale)
        assert float((out.double() - truth).norm() / truth.norm()) < 3e-3


def test_what_it_cannot_serve() -> None:
    query, key, value = (
        torch.randn(1, 2, 100, 64, device="cuda", dtype=torch.float32) for _ in range(3)
    )
    with pytest.raises(mw.DispatchError, match="16-bit"):
        mw.attention(query, key, value, k <= q, backend="gluon")
    tuned = mw.compile(k <= q).with_config(GluonConfig(block_n=64))
    plain = mw.attention(query, key, value, k <= q, backend="triton")
    assert torch.equal(tuned(query, key, value), plain)  # type: ignore[arg-type]


def gradients(found: mw.Attention, tensors: list[torch.Tensor], backend: str) -> list[torch.Tensor]:
    leaves = [x.clone().requires_grad_() for x in tensors]
    loss = found(*leaves, backend=backend).float().square().sum()
    return list(torch.autograd.grad(loss, leaves))


def made(kv_heads: int = 2, length: int = 1000) -> list[torch.Tensor]:
    options: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    heads = (4, kv_heads, kv_heads)
    return [torch.randn(2, n, length, 128, **options) for n in heads]


def test_gradients_of_repeated_calls() -> None:
    """The checked way, then the hot one; sums start at zero each time."""
    found = mw.compile(k <= q)
    for _ in range(4):
        tensors = made()
        pairs = zip(
            gradients(found, tensors, "gluon"), gradients(found, tensors, "triton"), strict=True
        )
        assert all(float((x - y).norm() / y.norm()) < 5e-3 for x, y in pairs)
    assert len(found.hot.backward) == 2


@pytest.mark.parametrize("length", [1000, 20000])
def test_sections_of_heads(length: int) -> None:
    """Long enough for one KV head at a time."""
    found, tensors = mw.compile((k <= q) & (q - k < 700)), made(4, length)
    pairs = zip(
        gradients(found, tensors, "gluon"), gradients(found, tensors, "triton"), strict=True
    )
    assert all(float((x - y).norm() / y.norm()) < 5e-3 for x, y in pairs)


def test_deterministic_programs_get_deterministic_kernels() -> None:
    found, tensors = mw.compile(k <= q), made(length=4000)
    torch.use_deterministic_algorithms(True)
    warnings.simplefilter("error", mw.MaskwrightWarning)
    try:
        runs = [gradients(found, tensors, "gluon") for _ in range(4)]
    finally:
        torch.use_deterministic_algorithms(False)
        warnings.simplefilter("default", mw.MaskwrightWarning)
    assert all(torch.equal(x, y) for run in runs for x, y in zip(runs[0], run, strict=True))
    assert not found.hot.off
    assert found.hot.backward
