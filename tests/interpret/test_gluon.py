"""The generated Gluon forward in a simulator (simulated_gluon.py): results and barriers, no GPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import q
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon_plan import gluon_request
from maskwright.codegen.pipeline import compile_forward
from maskwright.patterns.catalog import entries
from maskwright.runtime.api import Attention
from maskwright.runtime.check import _dense
from maskwright.runtime.check import _judge
from maskwright.runtime.check import dense_attention

HEADS, KV_HEADS = 4, 2
SINK, WINDOW = mw.param("sink", min=0), mw.param("window", min=0)
A_SHAPE = (k <= q) & ((k < SINK) | (q - k < WINDOW))
KEPT = mw.table("kept", ndim=3, dtype=bool)[h, q // 64, k // 64]
CONFIGS = [
    GluonConfig(block_n=64, consumers=consumers, stages=stages, first=first)
    for consumers, stages, first in (
        *((2, 1, "consumer"), (2, 2, "consumer"), (2, 3, "consumer"), (2, 4, "producer")),
        *((3, 1, "producer"), (3, 2, "consumer")),
    )
]
ENTRIES = entries("small", heads=HEADS, kv_heads=KV_HEADS)

pytestmark = pytest.mark.usefixtures("one_thread")


def simulator():
    path = Path(__file__).with_name("simulated_gluon.py")
    spec = importlib.util.spec_from_file_location("simulated_gluon", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SIMULATOR = simulator()


def made(found, call, config):
    return gluon_request(
        found.mask,
        found.score,
        dtype="float16",
        head_dim=call.shapes.head_dim,
        value_dim=call.shapes.value_dim,
        inside=call.inside,
        has_sinks=call.sinks is not None,
        config=config,
    )


def run(mask, q_len, kv_len, *, config=None, score=None, sinks=None, sizes=(64, 64), **values):
    """Report of the kernel against float64; None if the template refuses."""
    torch.manual_seed(q_len + kv_len)
    query = torch.randn(1, HEADS, q_len, sizes[0]).half()
    key = torch.randn(1, KV_HEADS, kv_len, sizes[0]).half()
    value = torch.randn(1, KV_HEADS, kv_len, sizes[1]).half()
    given = {x: torch.as_tensor(y) if hasattr(y, "shape") else y for x, y in values.items()}
    found = Attention(mask, score=score)
    call = found.call(query, key, value, given, sinks=sinks, backend="reference")
    request, reason = made(found, call, config)
    if reason:
        return None
    compiled = compile_forward(request)
    options = {x.text: call.values[x.name] for x in compiled.plan.bindings}
    options |= {} if sinks is None else {"sinks": sinks}
    out, lse = SIMULATOR.simulated(compiled.source)["forward"](query, key, value, **options)
    keep = _dense(mask, (1, HEADS, KV_HEADS, q_len, kv_len), None, values)
    truth = dense_attention(query, key, value, keep, None, sinks, found.score, call.values)
    return _judge(str(mask), "simulated", "", out, lse, truth, keep, sinks is not None)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_every_number_of_tiles(config):
    """0, 1, 2, 3 and many tiles; kinds of tiles missing first, in the middle and last."""
    for q_len, kv_len in ((1, 1), (64, 64), (130, 200), (200, 77)):
        for sink, window in ((0, 0), (0, 1), (1, 0), (64, 1), (0, 128), (200, 0), (5, 1000)):
            report = run(A_SHAPE, q_len, kv_len, config=config, sink=sink, window=window)
            assert report.ok, f"{q_len} {kv_len} {sink} {window} {report}"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_catalogue(entry):
    for q_len, kv_len in ((200, 333), (140, 77)):
        bindings = entry.bindings(1, HEADS, KV_HEADS, q_len, kv_len)
        report = run(entry.mask, q_len, kv_len, config=GluonConfig(block_n=64), **bindings)
        if report is None:
            pytest.skip("refused")
        assert report.ok, str(report)


@pytest.mark.parametrize("kept", [torch.zeros, torch.ones, torch.rand])
def test_lists_of_tiles(kept):
    table = kept(HEADS, 8, 8) > 0.6
    report = run(KEPT, 300, 500, config=GluonConfig(block_n=64), kept=table)
    assert report.ok, str(report)


@pytest.mark.parametrize("mask", [k <= q, (k <= q) & (k >= 130), None, k < 0], ids=str)
def test_scores_and_sinks(mask):
    slope = mw.table("slope", dtype=float)
    bias = mw.table("bias", ndim=2, dtype=float)
    sinks = torch.tensor([0.5, -1.0, 3.0, float("-inf")])
    values = {"slope": torch.linspace(0.01, 0.2, HEADS), "bias": torch.randn(1, 333)}
    for score in (
        None,
        mw.s + slope[h] * (k - q),
        mw.softcap(mw.s, 5.0) + bias[b, k],
        mw.sigmoid(mw.s),
    ):
        given = {x: y for x, y in values.items() if score is not None and x in str(score)}
        for given_sinks in (None, sinks):
            report = run(mask, 200, 333, score=score, sinks=given_sinks, **given)
            assert report.ok, f"{score} {report}"


@pytest.mark.parametrize("sizes", [(8, 8), (96, 40), (192, 128), (256, 256)])
def test_head_sizes(sizes):
    assert run(k <= q, 150, 300, sizes=sizes).ok


@pytest.mark.parametrize("sizes", [(64, 64), (40, 24)])
def test_results_through_the_copy_engine(sizes):
    config = GluonConfig(block_n=64, bulk_store=True)
    for mask in (k <= q, k < 0, None):
        assert run(mask, 150, 300, sizes=sizes, config=config).ok
    assert run(k <= q, 300, 120, sizes=sizes, config=config).ok
    assert run(k <= q, 64, 64, sizes=(128, 64), config=config) is None


# -- the simulator finds what it is there for -----------------------------------------------------
@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("mbarrier.arrive(value_empty.index(value_slot), count=1)", "pass"),
        ("mbarrier.wait(value_full.index(value_slot), value_phase)", "pass"),
        ("phase = gl.where(slot == STAGES - 1, phase ^ 1, phase)", "pass"),
        ("key_empty.index(stage), count=CONSUMERS)", "key_empty.index(stage), count=1)"),
        ("mbarrier.wait(value_empty.index(slot), phase ^ 1)", "pass"),
        ("warpgroup_mma_wait(1, deps=[products])", "warpgroup_mma_wait(2, [products])"),
    ],
)
def test_mistakes_are_found(line, instead, monkeypatch):
    request, _ = gluon_request(
        (k <= q).node, None, dtype="float16", head_dim=64, value_dim=64, config=CONFIGS[1]
    )
    source = compile_forward(request).source
    assert line in source
    broken = SIMULATOR.simulated(source.replace(line, instead))
    monkeypatch.setattr(SIMULATOR, "SECONDS", 0.5)
    tensors = [torch.randn(1, 1, 400, 64).half() for _ in range(3)]
    with pytest.raises(
        (AssertionError, TimeoutError), match=r"forever|there|changed|runs|arrivals"
    ):
        often(broken["forward"], *tensors)


def often(function, *tensors):
    """Copies arrive when they like: not every call shows a mistake."""
    for _ in range(20):
        function(*tensors)
