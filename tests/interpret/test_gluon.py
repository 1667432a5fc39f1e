"""The generated Gluon forward in a simulator (simulated_gluon.py): results and barriers, no GPU."""

from __future__ import annotations

import contextlib
import itertools
import threading

import pytest
import simulated_gluon
import torch

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import q
from maskwright.codegen import gluon
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
PERSISTENT = [
    GluonConfig(block_n=64, persistent=True, **options)
    for options in (
        {"programs": 1, "stages": 1},
        {"programs": 3, "stages": 2, "bulk_store": True},
        {"programs": 2, "stages": 3, "bulk_store": True, "first": "producer"},
        {"programs": 3, "stages": 1, "bulk_store": True, "pingpong": True},
        {"programs": 5, "stages": 3, "pingpong": True},
        {"programs": 3, "stages": 2, "consumers": 3, "bulk_store": True, "pingpong": True},
        {"programs": 1000, "stages": 2, "bulk_store": True},
        {"programs": 1, "stages": 1, "counter": True},
        {"programs": 3, "stages": 2, "counter": True, "bulk_store": True},
        {"programs": 5, "stages": 3, "counter": True, "bulk_store": True, "first": "producer"},
        {"programs": 3, "stages": 2, "counter": True, "consumers": 3, "pingpong": True},
    )
]
PINGPONG = [
    GluonConfig(block_n=64, stages=1, pingpong=True),
    GluonConfig(block_n=64, stages=3, consumers=3, pingpong=True),
    GluonConfig(block_n=64, stages=2, query_registers=True),
]
ENTRIES = entries("small", heads=HEADS, kv_heads=KV_HEADS)

pytestmark = pytest.mark.usefixtures("one_thread")


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
    out, lse = simulated_gluon.simulated(compiled.source)["forward"](query, key, value, **options)
    keep = _dense(mask, (1, HEADS, KV_HEADS, q_len, kv_len), None, values)
    truth = dense_attention(query, key, value, keep, None, sinks, found.score, call.values)
    return _judge(str(mask), "simulated", "", out, lse, truth, keep, sinks is not None)


@pytest.mark.parametrize("config", [*CONFIGS, *PERSISTENT, *PINGPONG], ids=str)
def test_every_number_of_tiles(config):
    """0, 1, 2, 3 and many tiles; kinds of tiles missing first, in the middle and last."""
    for q_len, kv_len in ((1, 1), (64, 64), (130, 200), (200, 77)):
        for sink, window in ((0, 0), (0, 1), (1, 0), (64, 1), (0, 128), (200, 0), (5, 1000)):
            report = run(A_SHAPE, q_len, kv_len, config=config, sink=sink, window=window)
            assert report.ok, f"{q_len} {kv_len} {sink} {window} {report}"


@pytest.mark.parametrize("config", [GluonConfig(block_n=64), PERSISTENT[1]], ids=["one", "several"])
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_catalogue(entry, config):
    for q_len, kv_len in ((200, 333), (140, 77)):
        bindings = entry.bindings(1, HEADS, KV_HEADS, q_len, kv_len)
        report = run(entry.mask, q_len, kv_len, config=config, **bindings)
        if report is None:
            pytest.skip("refused")
        assert report.ok, str(report)


@pytest.mark.parametrize("kept", [torch.zeros, torch.ones, torch.rand])
def test_lists_of_tiles(kept):
    table = kept(HEADS, 8, 8) > 0.6
    for config in (GluonConfig(block_n=64), *PERSISTENT[:3]):
        report = run(KEPT, 300, 500, config=config, kept=table)
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
            for config in (None, PERSISTENT[1]):
                report = run(mask, 200, 333, config=config, score=score, sinks=given_sinks, **given)
                assert report.ok, f"{score} {config} {report}"


@pytest.mark.parametrize("sizes", [(8, 8), (96, 40), (192, 128), (256, 256)])
def test_head_sizes(sizes):
    assert run(k <= q, 150, 300, sizes=sizes).ok
    # Several items: the largest heads leave room for one tile of queries, not two.
    for bulk_store in (False, True):
        config = GluonConfig(block_n=64, persistent=True, programs=3, bulk_store=bulk_store)
        assert config.query_slots(*sizes) == (1 if sizes == (256, 256) else 2)
        for mask in (k <= q, k < 0, (k <= q) & (q % 128 < 64)):
            report = run(mask, 300, 120, sizes=sizes, config=config)
            assert report is None or report.ok, str(report)


@pytest.mark.parametrize("lengths", [(300, 300), (700, 40), (40, 700), (513, 1)])
@pytest.mark.parametrize("mib", [32, 0])
def test_every_item_is_computed_once(lengths, mib, monkeypatch):
    """Whatever the number of programs and of sections of heads."""
    monkeypatch.setattr(gluon, "_SECTION_MIB", mib)
    for programs in (1, 2, 3, 5, 7, 8, 100):
        config = GluonConfig(block_n=64, persistent=True, programs=programs, bulk_store=True)
        for mask in (k <= q, None):
            report = run(mask, *lengths, config=config)
            assert report.ok, f"{programs} {report}"


@pytest.mark.parametrize("sizes", [(64, 64), (40, 24)])
def test_results_through_the_copy_engine(sizes):
    config = GluonConfig(block_n=64, bulk_store=True)
    for mask in (k <= q, k < 0, None):
        assert run(mask, 150, 300, sizes=sizes, config=config).ok
    assert run(k <= q, 300, 120, sizes=sizes, config=config).ok
    assert run(k <= q, 64, 64, sizes=(128, 64), config=config) is None


def alternate(source):
    """Consumers of a simulated call issue the products of queries and keys one after the other."""
    names = simulated_gluon.simulated(source)
    issue, seen = names["warpgroup_mma"], []

    def noted(*operands, use_acc=True, **options):
        if not use_acc:
            seen.append(threading.get_ident())
        return issue(*operands, use_acc=use_acc, **options)

    names["warpgroup_mma"] = noted
    with contextlib.suppress(AssertionError):  # of barriers at which nobody waits
        names["forward"](*(torch.randn(1, 3, 700, 64).half() for _ in range(3)))
    return all(x != y for x, y in itertools.pairwise(seen))


def test_consumers_take_turns():
    one = GluonConfig(block_n=64, persistent=True, programs=1, pingpong=True)
    sizes = {"dtype": "float16", "head_dim": 64, "value_dim": 64}
    request, _ = gluon_request((k <= q).node, None, **sizes, config=one)
    source = compile_forward(request).source
    assert alternate(source)
    # One of them is late, in case that both happen to be as fast as the other.
    late = '__import__("time").sleep(0.1 * (CONSUMER == 0))'
    free = source.replace("meet(TURNS + CONSUMER, TURN_THREADS)", late)
    assert not all(alternate(free) for _ in range(5))


# -- the simulator finds what it is there for -----------------------------------------------------
MISTAKES = [
    ("come(VALUE_EMPTY + value_slot, EMPTY_THREADS)", "pass"),
    ("come(KEY_EMPTY + slot, EMPTY_THREADS)", "pass"),
    ("mbarrier.wait(value_full.index(value_slot), value_phase)", "pass"),
    ("phase = gl.where(slot == STAGES - 1, phase ^ 1, phase)", "pass"),
    ("EMPTY_THREADS = gl.constexpr(288)", "EMPTY_THREADS = gl.constexpr(160)"),
    ("EMPTY_THREADS = gl.constexpr(288)", "EMPTY_THREADS = gl.constexpr(416)"),
    ("        meet(VALUE_EMPTY + slot, EMPTY_THREADS)", "        pass"),
    ("    meet(KEY_EMPTY + used, EMPTY_THREADS)", "    pass"),
    ("if copied >= STAGES:", "if copied > STAGES:"),
    ("warpgroup_mma_wait(1, deps=[products])", "warpgroup_mma_wait(2, [products])"),
]
# Of several items, with few tiles each: the producer is then far ahead.
MISTAKES_OF_ITEMS = [
    ("mbarrier.wait(query_empty.index(consumer_id), (lap & 1) ^ 1)", "pass"),
    ("mbarrier.wait(query_full.index(CONSUMER), lap & 1)", "pass"),
    ("mbarrier.arrive(query_empty.index(CONSUMER), count=1)", "pass"),
    ("come(VALUE_EMPTY + slot, EMPTY_THREADS)", "pass"),
    ("    tma.store_wait(0)", "    pass"),
    ("        tma.store_wait(0)", "        pass"),
    ("index((lap & 1) * CONSUMERS + CONSUMER)", "index(CONSUMER)"),
]
MISTAKES_OF_TURNS = [
    ("come(TURNS + (CONSUMER + 1) % CONSUMERS, TURN_THREADS)", "pass"),
    ("if CONSUMER == CONSUMERS - 1:", "if CONSUMER == CONSUMERS:"),
    ("meet(TURNS, TURN_THREADS)", "pass"),
]
BROKEN = [
    *((k <= q, CONFIGS[1], *x) for x in MISTAKES),
    *(((k <= q) & (k < 64), PERSISTENT[1], *x) for x in MISTAKES_OF_ITEMS),
    *((k <= q, PERSISTENT[1], *x) for x in MISTAKES),
    *((k <= q, PERSISTENT[3], *x) for x in MISTAKES_OF_TURNS),
]


@pytest.mark.parametrize(("mask", "config", "line", "instead"), BROKEN)
def test_mistakes_are_found(mask, config, line, instead, monkeypatch):
    request, _ = gluon_request(
        mask.node, None, dtype="float16", head_dim=64, value_dim=64, config=config
    )
    source = compile_forward(request).source
    assert line in source
    broken = simulated_gluon.simulated(source.replace(line, instead))
    monkeypatch.setattr(simulated_gluon, "SECONDS", 0.5)
    tensors = [torch.randn(1, 3, 400, 64).half() for _ in range(3)]
    with pytest.raises(
        (AssertionError, TimeoutError), match=r"forever|there|changed|runs|arrivals|waited|left"
    ):
        often(broken["forward"], *tensors)


def often(function, *tensors):
    """Copies arrive when they like: not every call shows a mistake."""
    for _ in range(20):
        function(*tensors)
