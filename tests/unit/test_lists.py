"""Which masks follow runtime lists, and how ``explain`` and the source say so."""

from __future__ import annotations

import numpy as np
import pytest

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import q
from maskwright.codegen.api import call_of
from maskwright.codegen.listed import derive_listed
from maskwright.codegen.listed import fold
from maskwright.codegen.listed import schedule_of
from maskwright.codegen.listed_walk import ListedWalk
from maskwright.codegen.sources import derive_sources
from maskwright.codegen.tile import TileShape

COLS, BANDS = mw.table("cols", ndim=3), mw.table("bands", ndim=3)
COLUMN, DIAGONAL = k.isin(COLS[b, h]), (q - k).isin(BANDS[b, h])
TILE = TileShape(128, 64)


@pytest.mark.parametrize(
    ("mask", "gathers", "walks"),
    [
        (mw.patterns.vertical_slash(), True, True),
        (mw.patterns.vertical_slash(tiled=16), True, True),
        (mw.patterns.vertical_slash(tiled=256), True, True),
        ((k <= q) & COLUMN, True, False),
        ((k <= q) & k.isin(COLS[b, h], run=16), True, False),
        ((k <= q) & (q // 8 * 8 - k + 5).isin(BANDS[b, h]), False, True),
        ((k <= q) & DIAGONAL, False, True),
        ((k <= q) & (COLUMN | (q - k < 100) | (k < 4)), True, False),
        ((k <= q) & (DIAGONAL | (k < 4)), False, True),
        (mw.by_head([0, 1], [(k <= q) & COLUMN, (k <= q) & DIAGONAL]), True, True),
    ],
    ids=str,
)
def test_masks_that_follow_lists(mask, gathers, walks):
    schedule = schedule_of(mask.node, TILE)
    assert schedule.closed
    assert (schedule.gather is not None, schedule.diagonals is not None) == (gathers, walks)
    source = mw.source(mask)
    assert "tile_list_kernel" not in source
    assert ("col_entries" in source, "diag_tiles" in source) == (gathers, walks)
    assert "runtime lists" in source
    assert ".sort(" not in source


def test_lists_that_add_nothing():
    for mask in ((k <= q) & (COLUMN | (k <= q)), (k <= q) & (DIAGONAL | (k <= q))):
        schedule = schedule_of(mask.node, TILE)
        assert (schedule.closed, schedule.listed) == (True, False)
    # Columns that lie on a listed diagonal, too: no tile is visited, each pair is searched.
    both = schedule_of(((k <= q) & COLUMN & DIAGONAL).node, TILE)
    assert (both.gather is not None, both.diagonals, both.walked[0].met) == (True, None, None)


@pytest.mark.parametrize(
    "mask",
    [
        (k <= q) & ~COLUMN,
        (k <= q) & (COLUMN ^ DIAGONAL),
        (k <= q) & ((k // 64) * 2).isin(COLS[b, h]),
        (k <= q) & (k - q).isin(COLS[b, h]),
        (k <= q) & ~k.isin(COLS[b, h], run=16),
        (k <= q) & (q // 48 * 48 - k).isin(BANDS[b, h], run=48),
        (k <= q) & (q // 512 * 512 - k).isin(BANDS[b, h]),
        (k <= q) & ((q + 1) // 64 * 64 - k).isin(BANDS[b, h]),
        (k <= q) & (q - k).isin(BANDS[b, h], run=5000),
        (k <= q) & k.isin(COLS[b, q // 64]),
        (k <= q) & (COLUMN | ((k // 64) % 16 == 3)),
        (k <= q) & (COLUMN | (mw.table("doc")[q] == mw.table("doc")[k])),
    ],
    ids=str,
)
def test_masks_that_take_the_general_path(mask):
    assert derive_listed(mask.node, TILE) is None
    schedule = schedule_of(mask.node, TILE)
    assert not schedule.closed
    assert schedule.reasons
    assert "tile_list_kernel" in mw.source(mask)


def test_tiles_that_do_not_divide_each_other_and_tiles_of_keys():
    node = mw.patterns.vertical_slash().node
    assert derive_listed(node, TileShape(96, 64)) is None
    assert derive_listed(mw.patterns.vertical_slash(tiled=64).node, TileShape(96, 32)) is None
    # Runs of columns as long as tiles of keys are visited, not gathered.
    assert derive_listed(((k <= q) & k.isin(COLS[b, h], run=64)).node, TILE) is None
    assert schedule_of(((k <= q) & k.isin(COLS[b, h], run=64)).node, TILE).sources
    assert derive_listed(node, TileShape(64, 64, transposed=True)) is None


def test_runs_of_diagonals_fill_tiles():
    bands = np.arange(1024).reshape(1, 1, -1)
    found = mw.explain((k <= q) & DIAGONAL, 1024, tile=(64, 64), bands=bands).to_dict()
    wanted = mw.explain(k <= q, 1024, tile=(64, 64)).to_dict()
    assert found["pairs"] == wanted["pairs"]
    assert sum(found["tiles"].values()) == sum(wanted["tiles"].values())
    # Tiles whose first query lies less than a tile after the last key touch distances below 0.
    assert found["tiles"]["partial"] == 16
    assert found["tiles"]["full"] == wanted["tiles"]["full"]


@pytest.mark.parametrize("step", [1, 16, 64])
@pytest.mark.parametrize("block", [(16, 64), (32, 16), (64, 32), (128, 64)], ids=str)
def test_the_tiles_are_those_that_hold_a_listed_pair(block, step):
    """No more, whatever the place of the queries; full ones are those where all pairs are listed."""
    rng = np.random.default_rng(step)
    for offset in (0, 64, 37, -80, 200):
        for run in (1, 16, 64, 150):
            bands = rng.integers(-100, 300, (1, 1, 4))
            mask = (q // step * step - k + 3).isin(BANDS[b, h], run=run)
            call = call_of(mask.node, 256, 256, 1, 1, 1, offset, {"bands": bands})
            dense = mw.to_dense(mask, 256, q_offset=offset, bands=bands)[0, 0]
            pairs = dense.reshape(256 // block[0], block[0], 256 // block[1], block[1])
            for derived in (derive_listed, derive_sources):
                schedule = derived(mask.node, TileShape(*block, inside=False))
                met = ListedWalk(schedule, call).meets(np.arange(256 // block[0]))
                visited = (met.full + met.partial)[0, 0] > 0
                # With more queries of a kind than keys in a tile, there may be keys between.
                if step <= block[1] or run >= step:
                    assert (visited == pairs.any((1, 3))).all()
                if step <= block[1]:
                    assert (met.full[0, 0] == pairs.all((1, 3))).all()
                assert (visited >= pairs.any((1, 3))).all()
                assert (met.full[0, 0] <= pairs.all((1, 3))).all()


def test_explain_says_what_is_gathered():
    cols = np.arange(0, 512, 8).reshape(1, 1, -1)
    mask = (k <= q) & (COLUMN | (q - k < 64))
    found = mw.explain(mask, 512, tile=(64, 64), cols=cols)
    data = found.to_dict()
    assert (data["closed_form"], data["listed"]) == (False, True)
    assert {x["kind"] for x in data["schedule"]} == {"partial", "full", "gather"}
    # Query tile i visits its own tile and the one before; 8 columns of each tile below remain.
    assert data["gathered"] == 8 * sum(range(7))
    assert data["tiles"] == {"full": 0, "partial": 15, "skipped": 49}
    assert 0 < data["table_bytes"] < 1024
    text = str(found)
    assert "runtime lists, prepared on the device" in text
    assert "gather    [0, " in text
    assert f"gathered  {data['gathered']:,} columns" in text


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("(k <= q) & (True | (k < 3))", "k <= q"),
        ("(k <= q) & (False | (k < 3))", "(k <= q) & (k < 3)"),
        ("(k <= q) & (False & (k < 3))", "False"),
        ("(k <= q) | ~(True & (k < 3))", "(k <= q) | ~(k < 3)"),
        ("~(True & True)", "False"),
    ],
)
def test_fold(text, folded):
    assert str(mw.Expr(fold(mw.parse(text).node))) == folded
