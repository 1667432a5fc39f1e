"""Which masks list tiles from runtime lists, and how ``explain`` and the source say so."""

from __future__ import annotations

import numpy as np
import pytest

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import kv_head
from maskwright import kv_len
from maskwright import q
from maskwright import q_len
from maskwright.codegen.granule import granule
from maskwright.codegen.listed import schedule_of
from maskwright.codegen.sources import derive_sources
from maskwright.codegen.sources import sources_of
from maskwright.codegen.sources_walk import prepared_bytes
from maskwright.codegen.tile import TileShape
from maskwright.codegen.walk import Call

BLOCKS, TOPK, PAGES = (
    mw.table("blocks", ndim=4),
    mw.table("topk", ndim=4),
    mw.table("pages", ndim=2),
)
COLS, BANDS = mw.table("cols", ndim=3), mw.table("bands", ndim=3)
LISTED = (k // 64).isin(BLOCKS[b, h, q // 128])
TOKEN = (k // 64).isin(TOPK[b, kv_head, q])
PAGE = (k // 16).isin(PAGES[b])
COLUMN, DIAGONAL = k.isin(COLS[b, h]), (q - k).isin(BANDS[b, h])
TILE = TileShape(128, 64)
NEXT = k.isin(COLS[b, h + 1])


@pytest.mark.parametrize(
    ("mask", "kinds", "ways"),
    [
        ((k <= q) & LISTED, ["blocks"], ((0,),)),
        ((k <= q) & TOKEN, ["blocks"], ((0,),)),
        (PAGE, ["blocks"], ((0,),)),
        ((k // 16).isin(PAGES[b], run=3), ["blocks"], ((0,),)),
        (
            (k <= q) & (LISTED | (q // 64 * 64 - k).isin(BANDS[b, h], run=64)),
            ["blocks", "diagonals"],
            None,
        ),
        ((k <= q) & (LISTED | (q - k < 512) | (k < 4)), ["blocks"], ((0,),)),
        ((k <= q) & (TOKEN | PAGE), ["blocks"] * 2, ((0,), (1,))),
        ((k <= q) & TOKEN & PAGE, ["blocks"] * 2, ((0, 1),)),
        ((k <= q) & (LISTED & PAGE | LISTED), ["blocks"] * 2, ((0,),)),
        ((k <= q) & (COLUMN | NEXT), ["columns"] * 2, ((0,), (1,))),
        ((k <= q) & (COLUMN & LISTED | DIAGONAL), ["columns", "blocks", "diagonals"], None),
        (mw.by_head([0, 1], [(k <= q) & LISTED, k <= q]), ["blocks"], ((0,),)),
        (
            (k // 64).isin(BLOCKS[b, h, (q - kv_len + q_len) // 32 + 1]) & (k <= q),
            ["blocks"],
            ((0,),),
        ),
    ],
    ids=str,
)
def test_masks_that_list_tiles(mask, kinds, ways):
    sources, found = sources_of(mask.node)
    assert [x.kind for x in sources] == kinds
    assert ways is None or found == ways
    for tile in (TILE, TileShape(64, 64, transposed=True), TileShape(96, 16, inside=False)):
        schedule = schedule_of(mask.node, tile)
        assert schedule.closed
        assert schedule.sources == sources
    for op in ("forward", "backward"):
        source = mw.source(mask, op=op)
        assert "list_tiles_kernel" in source
        assert "is_member" not in source
        assert ".sort(" not in source
        assert "runtime lists" in source


@pytest.mark.parametrize(
    "mask",
    [
        (k <= q) & ~LISTED,
        (k <= q) & (LISTED ^ PAGE),
        (k <= q) & (k // 64 + 1).isin(PAGES[b]),
        (k <= q) & (k // 64).isin(BLOCKS[b, h, k // 64]),
        (k <= q) & (k // 64).isin(BLOCKS[b, q // 64, q // 64]),
        (k <= q) & (k // 64).isin(BLOCKS[b, h, 2 * q]),
        (k <= q) & (k // 64).isin(BLOCKS[b, h, (q + mw.param("shift")) // 64]),
        (k <= q) & k.isin(PAGES[q]),
        (k <= q) & (LISTED | ((k // 64) % 16 == 3)),
    ],
    ids=str,
)
def test_masks_that_do_not(mask):
    assert derive_sources(mask.node, TILE) is None
    schedule = schedule_of(mask.node, TILE)
    assert not schedule.closed
    assert schedule.reasons


def test_tiles_divide_listed_blocks():
    assert granule(((k <= q) & LISTED).node) == 64
    assert granule(((k <= q) & ((k // 96).isin(PAGES[b]) | LISTED)).node) == 32
    assert granule(PAGE.node) is None  # too small for a tile
    assert "BLOCK_N = tl.constexpr(32)" in mw.source((k // 32).isin(PAGES[b]))


def test_membership_is_a_bit_of_a_row_and_no_search():
    text = mw.source((k <= q) & LISTED)
    assert "is_listed(bits_0_row, (start_n // 64), bits_0_words, row1)" in text
    assert "row1 = (q >> 7) - bits_0_zero" in text
    assert "bits_0_heads = heads" in text
    text = mw.source((k <= q) & TOKEN)
    assert "bits_0_heads = kv_heads" in text
    assert "listed_heads = kv_heads" in text


def test_lists_that_add_nothing():
    schedule = schedule_of(((k <= q) & (LISTED | (k <= q))).node, TILE)
    assert (schedule.closed, schedule.listed) == (True, False)


def test_explain_counts_the_listed_tiles():
    """Query block i of 128 lists blocks 0 and i; tiles are one block wide."""
    blocks = np.stack([np.zeros(8, int), np.arange(8) * 2], -1).reshape(1, 1, 8, 2)
    mask = (k <= q) & LISTED
    found = mw.explain(mask, 1024, tile=(128, 64), blocks=blocks)
    data = found.to_dict()
    assert (data["closed_form"], data["listed"], data["gathered"]) == (False, True, 0)
    # Block 0 is full but for the first tile of queries, where it is also the diagonal.
    assert data["tiles"] == {"full": 7, "partial": 8, "skipped": 113}
    assert {x["shape"] for x in data["schedule"]} == {"listed tiles"}
    dense = mw.to_dense(mask, 1024, blocks=blocks)
    assert data["pairs"] == dense.sum()
    assert 0 < data["table_bytes"] < 1024
    text = str(found)
    assert "runtime lists, prepared on the device" in text
    assert "where runtime lists cross it" in text
    assert "gathered" not in text


def test_index_memory_follows_the_lists():
    """A longer list costs in proportion; tiles that are not listed cost nothing."""
    node = ((k <= q) & LISTED).node

    def taken(length, count):
        values = {"blocks": np.full((1, 2, length // 128, count), -1)}
        call = Call(length, length, 0, 1, 2, 2, values)
        return prepared_bytes(node, schedule_of(node, TILE), call)

    base = taken(32768, 0)  # bits, and three numbers a tile of queries
    assert base == 2 * 4 * (512 + 4) * 9 + 2 * 256 * 12 + 8
    # Two tiles of queries an entry: blocks of queries may begin inside a tile.
    assert taken(32768, 8) - base == 2 * 4 * 256 * 8 * 2
    assert taken(32768, 16) - base == 2 * 4 * 256 * 16 * 2
