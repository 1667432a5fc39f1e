"""The generated Gluon backward in a simulator (simulated_gluon.py): gradients and barriers, no GPU."""

from __future__ import annotations

import pytest
import simulated_gluon
from simulated_gradients import worst

import maskwright as mw
from maskwright import k
from maskwright import q
from maskwright.codegen.gluon_backward import GluonBackwardConfig
from maskwright.codegen.gluon_backward import default_gluon_backward
from maskwright.codegen.gluon_plan import gluon_backward_request
from maskwright.codegen.plan_backward import BackwardRequest
from maskwright.patterns.catalog import entries

HEADS, KV_HEADS = 4, 2
CONFIGS = [
    GluonBackwardConfig(block_m, stages, links, release=release)
    for release in ("barrier", "named")
    for block_m in (64, 128)
    for stages, links in ((1, 1), (2, 1), (2, 2), (3, 1), (1, 2))
    if release == "barrier" or links > 1
]
ENTRIES = entries("small", heads=HEADS, kv_heads=KV_HEADS)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda x: f"{x.block_m}-{x.stages}-{x.links}-{x.release}"
)
def test_every_ring(config: GluonBackwardConfig) -> None:
    """Tiles of queries: none, one, as many as slots, more; the end of keys and queries within."""
    width = 128 if config.block_m == 64 else 64
    for q_len, kv_len in ((1, 129), (64, 128), (150, 200), (330, 300)):
        for mask in (k <= q, (k <= q) & (q - k < 40), k >= 0):
            found = worst(mask, q_len, kv_len, config=config, sizes=(width, width))
            assert found is not None
            assert found < 3e-3, (q_len, kv_len, str(mask), found)


@pytest.mark.parametrize("entry", ENTRIES, ids=[x.name for x in ENTRIES])
def test_catalogue(entry) -> None:
    values = entry.bindings(2, HEADS, KV_HEADS, 200, 270)
    config = default_gluon_backward(64, 64)
    found = worst(entry.mask, 200, 270, sizes=(64, 64), config=config, **values)
    assert found is None or found < 3e-3
    assert found is not None or "is_member" in str(entry.mask) or "isin" in str(entry.mask)


def test_scores_and_head_sizes() -> None:
    score = 20.0 * mw.tanh(mw.s / 20.0)
    assert worst(k <= q, 200, 270, score=score, sizes=(64, 64)) < 3e-3
    assert worst(k <= q, 200, 270, score=mw.s - 0.05 * (q - k), sizes=(128, 128)) < 3e-3
    assert worst(k <= q, 130, 130, sizes=(96, 40)) < 3e-3
    assert worst(k <= q, 130, 130, sizes=(128, 64)) < 3e-3


@pytest.mark.parametrize("section", [1, 2, 4])
def test_sections_of_heads(section: int) -> None:
    for kv_len in (300, 128):
        found = worst(k <= q, 150, kv_len, sizes=(64, 64), heads=(4, 4), section=section)
        assert found < 3e-3


def test_a_key_beyond_the_end_stays_out() -> None:
    """Scores so low that those of keys that are not there, which are 0, would overflow."""
    for mask in (k <= q, k >= 0, (k <= q) & (q - k < 40)):
        assert worst(mask, 100, 100, sizes=(64, 64), apart=5.0) < 1e-2


MISTAKES = [
    ("mbarrier.wait(keys_full.index(0), 0)", "pass"),
    ("mbarrier.wait(query_full.index(slot), phase)", "pass"),
    ("mbarrier.wait(grad_full.index(slot), phase)", "pass"),
    ("mbarrier.wait(link_full.index(link), link_phase)", "pass"),
    ("mbarrier.wait(link_empty.index(link), link_phase ^ 1)", "pass"),
    ("mbarrier.arrive(query_empty.index(slot), count=1)", "pass"),
    ("mbarrier.arrive(grad_empty.index(slot), count=1)", "pass"),
    ("mbarrier.arrive(link_empty.index(link), count=1)", "pass"),
    (
        "mbarrier.init(link_full.index(place), count=CONSUMERS)",
        "mbarrier.init(link_full.index(place), count=1)",
    ),
    ("tma.store_wait(0)", "pass"),
    ("ragged = tile_n * KEY_N + KEY_N > kv_len", "ragged = tile_n < 0"),
]
MISTAKES_OF_NAMES = [
    ("        meet(QUERY_EMPTY + slot, EMPTY_THREADS)", "        pass"),
    ("come(QUERY_EMPTY + slot, EMPTY_THREADS)", "pass"),
    ("come(GRAD_EMPTY + slot, EMPTY_THREADS)", "pass"),
    ("    meet(GRAD_EMPTY + used, EMPTY_THREADS)", "    pass"),
    ("meet(LINKED, CONSUMER_THREADS)", "pass"),
    ("LINKS = gl.constexpr(3)", "LINKS = gl.constexpr(1)"),
]
WITH_BARRIERS = GluonBackwardConfig(block_m=128, stages=2, links=1)
WITH_NAMES = GluonBackwardConfig(block_m=128, stages=2, links=3, release="named")


@pytest.mark.parametrize(
    ("change", "config"),
    [*((x, WITH_BARRIERS) for x in MISTAKES), *((x, WITH_NAMES) for x in MISTAKES_OF_NAMES)],
    ids=lambda x: x[0].strip() if isinstance(x, tuple) else "",
)
def test_mistakes_are_found(change, config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated_gluon, "SECONDS", 0.5)
    options = {"config": config, "sizes": (64, 64), "apart": 5.0 if "ragged" in change[0] else 0.0}
    mask = k >= 0 if "ragged" in change[0] else k <= q  # full tiles at the end of the keys
    assert worst(mask, 500, 450, **options) < 1e-2

    def wrong() -> bool:
        try:
            return not worst(mask, 500, 450, **options, change=change) < 1e-2
        except (AssertionError, TimeoutError):
            return True

    assert any(wrong() for _ in range(3))


def test_what_is_refused() -> None:
    def reason(**changes) -> str:
        given = {"dtype": "float16", "head_dim": 64, "value_dim": 64, "tables": ()} | changes
        mask = given.pop("mask", (k <= q).node)
        request = BackwardRequest(mask, None, inside=True, config=None, **given)
        return gluon_backward_request(request)[1]

    assert reason() == ""
    assert "16-bit" in reason(dtype="float32")
    assert "192" in reason(head_dim=192)
    assert "16 bytes" in reason(head_dim=60)
    assert "float tables" in reason(tables=("bias",))
    strided = mw.patterns.local_stride(block=64, local_blocks=2, stride=4)
    assert "straddle" in reason(mask=strided.node)
    assert "straddle" in reason(mask=mw.patterns.block_list(64, 64).node)
    assert reason(mask=mw.patterns.block_list(64, 128).node) == ""
    for mask in (mw.patterns.block_list(32, 128), mw.patterns.vertical_slash()):
        assert "only blocks for 64 queries" in reason(mask=mask.node)
