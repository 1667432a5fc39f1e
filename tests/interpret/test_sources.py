"""Tiles from runtime lists in the interpreter: kernels forward and backward, and what is prepared."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import kv_head
from maskwright import q
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.listed import schedule_of
from maskwright.codegen.sources_walk import SourcesWalk
from maskwright.codegen.sources_walk import prepared_bytes
from maskwright.codegen.tile import TileShape
from maskwright.codegen.walk import Call

BLOCKS, TOPK, PAGES = (
    mw.table("blocks", ndim=4),
    mw.table("topk", ndim=4),
    mw.table("pages", ndim=3),
)
LISTED = (k // 16).isin(BLOCKS[b, h, q // 32])
TOKEN = (k // 16).isin(TOPK[b, kv_head, q])
PAGE = (k // 8).isin(PAGES[b, kv_head])
SMALL = KernelConfig(32, 16, 4, 1)


@pytest.fixture(autouse=True)
def _no_general_path(monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_STRICT", "1")


def agrees(mask, q_len, kv_len, *, heads=2, kv_heads=1, batch=1, gradients=True, **options):
    """Output, LSE and gradients against float64."""
    report = mw.check(
        mask,
        q_len=q_len,
        kv_len=kv_len,
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=16,
        dtype=options.pop("dtype", "float32"),
        backend="interpret",
        config=options.pop("config", SMALL),
        backward=BackwardConfig(SMALL, KernelConfig(16, 32, 4, 1)),
        gradients=gradients,
        **options,
    )
    assert report.ok, str(report)


def drawn(seed, *shape, limit):
    """Any order, doubles, padding, out of range; a count of its own for each row."""
    rng = np.random.default_rng(seed)
    found = rng.integers(-2, limit + 2, shape).astype(np.int32)
    counts = rng.integers(0, shape[-1] + 1, shape[:-1])
    return np.where(np.arange(shape[-1]) < counts[..., None], found, -1).astype(np.int32)


# -- results --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "entries",
    [(), (2,), (1, 1, 1), (4, 0, 3, 0), (-1, -1), (-5, 99, 2**31 - 1, -(2**31)), range(6)],
    ids=["none", "one", "equal", "unsorted", "padding", "outside", "all"],
)
def test_lists_of_every_kind(entries):
    row = np.asarray(entries, np.int32)
    agrees((k <= q) & LISTED, 70, 90, blocks=np.tile(row, (1, 2, 3, 1)), gradients=False)
    agrees((k <= q) & TOKEN, 40, 50, topk=np.tile(row, (1, 1, 50, 1)))


@pytest.mark.parametrize(
    "mask",
    [
        TOKEN,
        (k <= q) & (LISTED | (q - k < 20) | (k < 5)),
        (k <= q) & LISTED & PAGE,
        (k <= q) & (LISTED & (q - k < 40) | PAGE & (k > 20)),
        mw.by_head([0, 1], [(k <= q) & (LISTED | PAGE), (k <= q) & (q - k < 30)]),
    ],
    ids=str,
)
def test_random_lists(mask):
    values = {
        "blocks": drawn(1, 2, 2, 2, 3, limit=4),
        "topk": drawn(2, 2, 1, 60, 3, limit=4),
        "pages": drawn(3, 2, 1, 4, limit=8),
    }
    named = {x: y for x, y in values.items() if f'"{x}"' in str(mask)}
    agrees(mask, 45, 60, batch=2, **named)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_groups_share_lists(group):
    """Per-token lists of KV heads: one list of tiles serves the query heads of a group."""
    topk = drawn(4, 1, 2, 64, 3, limit=4)
    agrees((k <= q) & TOKEN, 64, 64, heads=2 * group, kv_heads=2, topk=topk, gradients=group == 2)
    source = mw.source((k <= q) & TOKEN, op="backward")
    assert "bits_0_heads = kv_heads" in source
    assert "listed_heads = kv_heads" in source


def test_offsets_tables_that_end_and_wide_tiles():
    """Queries before and beyond the keys; query blocks without a row; tiles of several blocks."""
    blocks = drawn(5, 1, 2, 2, 4, limit=6)
    for offset in (-30, 5, 60):
        agrees((k <= q) & LISTED, 60, 90, q_offset=offset, blocks=blocks, gradients=offset == 5)
    for config in (KernelConfig(16, 64, 4, 1), KernelConfig(64, 16, 4, 1, "descriptor")):
        agrees((k <= q) & LISTED, 60, 90, config=config, blocks=blocks, gradients=False)


def test_score_and_sinks():
    blocks = drawn(6, 1, 2, 4, 3, limit=6)
    score, sinks = mw.softcap(mw.s, 20.0) + 0.01 * (k - q), torch.linspace(-1, 1, 2)
    agrees((k <= q) & (LISTED | (q - k < 9)), 60, 90, score=score, sinks=sinks, blocks=blocks)
    agrees((k <= q) & LISTED, 60, 90, dtype="float16", value_dim=24, blocks=blocks)


# -- preparation ----------------------------------------------------------------------------------
@pytest.mark.parametrize("mask", [(k <= q) & (LISTED | (q - k < 20)), (k <= q) & TOKEN & PAGE])
@pytest.mark.parametrize("block", [(32, 16), (16, 32)], ids=str)
def test_what_is_prepared(mask, block):
    """The device lists the tiles that numpy finds, each once, and takes the memory that is told."""
    q_len, kv_len, heads, kv_heads = 75, 130, 4, 2
    values = {
        "blocks": drawn(7, 2, 4, 5, 3, limit=9),
        "topk": drawn(8, 2, 2, 130, 2, limit=9),
        "pages": drawn(9, 2, 2, 9, limit=17),
    }
    values = {x: y for x, y in values.items() if f'"{x}"' in str(mask)}
    found = mw.compile(mask).with_config(KernelConfig(*block, 4, 1))
    query, key = torch.zeros(2, heads, q_len, 16), torch.zeros(2, kv_heads, kv_len, 16)
    tensors = {name: torch.tensor(x) for name, x in values.items()}
    ready = found.prepare(query, key, backend="interpret", **tensors)
    tiles, rows, count, share = ready.arguments[-4:]
    schedule = schedule_of(mask.node, TileShape(*block))
    call = Call(q_len, kv_len, kv_len - q_len, 2, heads, kv_heads, values)
    # The counter of the list is not kept.
    assert ready.nbytes == prepared_bytes(mask.node, schedule, call) - 4
    assert (count, share) == ((4, 1) if "blocks" in values else (2, 2))
    numbers = np.arange(call.q_tiles(schedule.tile))
    walk = SourcesWalk(schedule, call)
    some, every = walk.met(numbers)
    full, partial = walk.visited(numbers)
    for entry, head, number in np.ndindex(2, heads, len(numbers)):
        start, partials, fulls = rows[entry, head // share, number].tolist()
        listed = tiles[start : start + partials + fulls].tolist()
        assert len(set(listed)) == len(listed)
        met = (some | every)[entry, head, number]
        wanted_full = full[entry, head, number].astype(bool)
        wanted = (full + partial)[entry, head, number].astype(bool)
        assert set(listed[partials:]) <= set(np.flatnonzero(wanted_full & met))
        assert set(listed) <= set(np.flatnonzero(wanted & met))
        # What is not listed is in the static ranges.
        if "blocks" not in values:
            assert set(listed) == set(np.flatnonzero(wanted))
            assert set(listed[partials:]) == set(np.flatnonzero(wanted_full))


def test_prepared_is_shared_and_bounded_by_the_shapes(attend):
    given = {"topk": torch.tensor(drawn(1, 1, 2, 90, 4, limit=6))}
    tensors = attend.inputs(70, 90)
    ready = mw.prepare((k <= q) & TOKEN, *tensors[:2], backend="interpret", **given)
    attend.matches(tensors, (k <= q) & TOKEN, prepared=ready, **given)
    # Sizes follow from shapes: none has to come back from the device.
    empty = {name: torch.full_like(x, -1) for name, x in given.items()}
    other = mw.prepare((k <= q) & TOKEN, *tensors[:2], backend="interpret", **empty)
    shapes = [getattr(x, "shape", x) for x in ready.arguments]
    assert shapes == [getattr(x, "shape", x) for x in other.arguments]


def test_memory_is_not_read_before_it_is_written(poisoned, attend):
    given = {"topk": torch.tensor(drawn(2, 1, 2, 90, 4, limit=6))}
    mask = (k <= q) & (TOKEN | (q - k < 9))
    attend.matches(attend.inputs(70, 90), mask, **given)


@pytest.mark.parametrize("name", ["min", "max", "next", "list"])
def test_tables_named_like_functions_of_python(name):
    mask = (k <= q) & (k // 16).isin(mw.table(name, ndim=4)[b, kv_head, q])
    lists = drawn(3, 1, 1, 40, 2, limit=3)
    agrees(mask, 30, 40, gradients=False, **{name: lists})
