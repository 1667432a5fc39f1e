"""The tuner on a GPU: end to end, the cache that compile workers fill, faults of real kernels."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import pytest
import torch

import maskwright as mw
from maskwright import k
from maskwright import q
from maskwright.autotune import ask
from maskwright.autotune import lookup
from maskwright.autotune.child import Child
from maskwright.autotune.compile_pool import CompilePool
from maskwright.autotune.gpu_device import GpuDevice
from maskwright.codegen.config import KernelConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

MASK = (k <= q) & (q - k < 777)
SIZES = {"q_len": 2048, "heads": 8, "kv_heads": 4, "head_dim": 64}
GOOD = KernelConfig(64, 64, 4, 2)
SAMPLER = "tpe" if importlib.util.find_spec("optuna") else "random"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE_DIR", str(tmp_path))
    lookup.forget()
    yield
    lookup.forget()


@pytest.mark.parametrize("op", ["forward", "backward"])
def test_a_search_ends_in_an_entry_that_serves(op):
    found = mw.tune(MASK, **SIZES, op=op, budget=40.0, trials=12, progress=True, sampler=SAMPLER)
    print(found)
    assert found.kept is not None
    assert found.wrong == ()
    assert found.seconds < 70.0
    assert found.ratio <= 1.02
    shapes = ((1, 8, 2048, 64), (1, 4, 2048, 64), (1, 4, 2048, 64))
    tensors = [torch.randn(x, device="cuda", dtype=torch.bfloat16) for x in shapes]
    attention = mw.compile(MASK)
    if op == "forward":
        attention(*tensors)
        (kernel,) = attention._kernels.values()
        assert kernel.compiled.plan.request.config == found.config
    report = mw.check(MASK, q_len=300, heads=8, kv_heads=4, **{_name(op): found.config})
    assert report.ok, report


def _name(op):
    return "backward" if op == "backward" else "config"


def test_a_gluon_search():
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs sm_90")
    found = mw.tune(
        MASK, **SIZES, backend="gluon", budget=40.0, trials=8, progress=True, sampler=SAMPLER
    )
    print(found)
    assert found.kept is not None
    assert found.wrong == ()


def test_compile_workers_fill_the_cache_of_the_gpu():
    """The GPU's process finds machine code that a process without a GPU has made."""
    config = KernelConfig(64, 32, 4, 3)
    job = ask.job_of(MASK, None, backend="triton", **SIZES)
    device = GpuDevice(job)
    try:
        start = device.start()
        pool = CompilePool(job, start.key.hardware, 1, limit=60.0)
        try:
            pool.submit(config)
            ((_, build),) = pool.take(120.0)
        finally:
            pool.close()
        assert build.status == "ok"
        cold = _seconds(device, KernelConfig(32, 64, 4, 3))
        warm = _seconds(device, config)
    finally:
        device.close()
    print(f"compiled by the GPU's process {cold:.2f} s, found in the cache {warm:.2f} s")
    assert warm < 0.6 * cold


def _seconds(device, config):
    started = time.perf_counter()
    assert device.measure(config, 1e9).measured
    return time.perf_counter() - started


@pytest.fixture
def faulty():
    """A device whose worker breaks the GPU for some configurations."""
    job = ask.job_of(MASK, None, backend="triton", **SIZES)
    program = str(Path(__file__).with_name("faulty_gpu_worker.py"))
    env = {"PYTHONPATH": str(ROOT), "MASKWRIGHT_TUNE": "off"}
    device = GpuDevice(job, spawn=lambda: Child([sys.executable, program], env))
    device.start()
    device.ready()
    yield device
    device.close()


@pytest.mark.parametrize(
    ("config", "status"),
    [(KernelConfig(64, 64, 16, 2), "sticky"), (KernelConfig(64, 64, 4, 5), "timeout")],
)
def test_kernels_that_break_the_gpu_cost_one_candidate(faulty, config, status):
    started = time.perf_counter()
    outcome = faulty.measure(config, 1e9)
    print(f"{status}: {time.perf_counter() - started:.1f} s, {outcome.message[:200]}")
    assert outcome.status == status
    assert faulty.measure(GOOD, 1e9).measured
    assert faulty.race([faulty.facts.default, GOOD], 3).rounds


def test_the_same_configuration_twice_differs_little():
    job = ask.job_of(MASK, None, **(SIZES | {"q_len": 8192, "head_dim": 128}))
    device = GpuDevice(job)
    try:
        default = device.start().default
        ratios = [device.measure(default, 1e9).ratio for _ in range(5)]
    finally:
        device.close()
    print(ratios)
    assert all(0.97 < x < 1.03 for x in ratios)
