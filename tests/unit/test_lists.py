"""Which masks follow runtime lists, and how ``explain`` and the source say so."""

from __future__ import annotations

import numpy as np
import pytest

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import q
from maskwright.codegen.listed import derive_listed
from maskwright.codegen.listed import fold
from maskwright.codegen.listed import schedule_of
from maskwright.codegen.tile import TileShape

COLS, BANDS = mw.table("cols", ndim=3), mw.table("bands", ndim=3)
COLUMN, DIAGONAL = k.isin(COLS[b, h]), (q - k).isin(BANDS[b, h])
TILE = TileShape(128, 64)


@pytest.mark.parametrize(
    ("mask", "gathers", "walks"),
    [
        (mw.patterns.vertical_slash(), True, True),
        ((k <= q) & COLUMN, True, False),
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
