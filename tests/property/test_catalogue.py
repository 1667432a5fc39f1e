"""Catalogue masks: schedules are not only sound but exact, and closed where they should be."""

from __future__ import annotations

import numpy as np
import pytest

from maskwright import to_dense
from maskwright.codegen.api import call_of
from maskwright.codegen.api import inside
from maskwright.codegen.granule import granule
from maskwright.codegen.pipeline import choose_config
from maskwright.codegen.schedule import derive
from maskwright.codegen.tile import TileShape
from maskwright.codegen.walk import visits
from maskwright.patterns.catalog import CatalogEntry
from maskwright.patterns.catalog import entries
from maskwright.runtime.fuzz_checks import tiles_of

BATCH, HEADS, KV_HEADS = 2, 4, 2
SIZES = ((512, 512), (333, 1000), (300, 301))
ENTRIES = entries("small", heads=HEADS, kv_heads=KV_HEADS)


def default_tile(entry: CatalogEntry) -> tuple[int, int]:
    config = choose_config(
        entry.mask.node, arch="sm_90", dtype="bfloat16", head_dim=128, value_dim=128
    )
    return config.block_m, config.block_n


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_schedule_is_exact(entry, size):
    values = entry.bindings(BATCH, HEADS, KV_HEADS, *size)
    call = call_of(entry.mask.node, *size, BATCH, HEADS, KV_HEADS, None, values)
    dense = to_dense(entry.mask, *size, batch=BATCH, heads=HEADS, kv_heads=KV_HEADS, **values)
    for block in {default_tile(entry), (64, 16), (32, 16)}:
        tile = TileShape(*block, inside=inside(entry.mask.node, call))
        schedule = derive(entry.mask.node, tile)
        assert schedule.closed == entry.closed_form, f"tile {block}: {schedule.reasons}"
        env = call.env(tile, np.arange(call.q_tiles(tile)))
        some, every = tiles_of(dense, tile, tail=True)
        if not schedule.closed:
            assert not (some & (visits(schedule.visit, env, call.kv_tiles(tile)) == 0)).any()
            continue
        full = visits(schedule.full, env, call.kv_tiles(tile))
        partial = visits(schedule.partial, env, call.kv_tiles(tile))
        assert np.array_equal(full > 0, some & every), f"full tiles of {block}"
        assert np.array_equal(partial > 0, some & ~every), f"partial tiles of {block}"
        assert (full + partial <= 1).all()


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_transposed_schedule_visits_no_tile_too_many(entry, size):
    values = entry.bindings(BATCH, HEADS, KV_HEADS, *size)
    call = call_of(entry.mask.node, *size, BATCH, HEADS, KV_HEADS, None, values)
    dense = to_dense(entry.mask, *size, batch=BATCH, heads=HEADS, kv_heads=KV_HEADS, **values)
    for block in ((64, 64), (128, 64), (32, 16)):
        tile = TileShape(*block, inside=inside(entry.mask.node, call), transposed=True)
        schedule = derive(entry.mask.node, tile)
        assert schedule.closed == entry.closed_form, f"tile {block}: {schedule.reasons}"
        env = call.env(tile, np.arange(call.q_tiles(tile)))
        some, every = tiles_of(dense.swapaxes(2, 3), tile, tail=False)
        _, sure = tiles_of(dense.swapaxes(2, 3), tile, tail=True)
        if not schedule.closed:
            assert not (some & (visits(schedule.visit, env, call.kv_tiles(tile)) == 0)).any()
            continue
        full = visits(schedule.full, env, call.kv_tiles(tile))
        partial = visits(schedule.partial, env, call.kv_tiles(tile))
        assert np.array_equal((full + partial) > 0, some), f"visited tiles of {block}"
        assert (full + partial <= 1).all()
        assert not ((full > 0) & ~every).any(), f"full tiles of {block}"
        if granule(entry.mask.node) is None:  # else tiles longer than the mask's blocks
            assert not (some & sure & (full == 0)).any(), f"full tiles of {block}"


def test_only_three_patterns_need_a_list_of_tiles():
    listed = {e.name for e in ENTRIES if not e.closed_form}
    assert listed == {"vertical_slash", "block_list", "tree", "document_interleaved"}
