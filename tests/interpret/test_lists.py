"""Runtime lists of columns and diagonals in the interpreter: kernels, and what is prepared."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from listed_masks import BESIDE_STATIC
from listed_masks import COLS
from listed_masks import COLUMN
from listed_masks import DIAGONAL
from listed_masks import FOLLOWED
from listed_masks import TILED
from listed_masks import VERTICAL_SLASH

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import q
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.listed import schedule_of
from maskwright.codegen.listed_walk import ListedWalk
from maskwright.codegen.listed_walk import prepared_bytes
from maskwright.codegen.tile import TileShape
from maskwright.codegen.walk import Call

SMALL = KernelConfig(32, 16, 4, 1)


def agrees(mask, q_len, kv_len=None, *, config=SMALL, batch=1, heads=2, kv_heads=None, **options):
    """The forward against float64; the general path would warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", mw.MaskwrightWarning)
        report = mw.check(
            mask,
            q_len=q_len,
            kv_len=q_len if kv_len is None else kv_len,
            batch=batch,
            heads=heads,
            kv_heads=heads if kv_heads is None else kv_heads,
            head_dim=16,
            dtype=options.pop("dtype", "float32"),
            backend="interpret",
            config=config,
            gradients=False,
            **options,
        )
    assert report.ok, str(report)


def rows(*entries, batch=1, heads=2):
    """One list for all heads, as int32 (batch, heads, n)."""
    return np.tile(np.asarray(entries, np.int32), (batch, heads, 1))


def drawn(seed, count, kv_len, batch=1, heads=2):
    """Other entries for every head: any order, doubles, padding, out of range."""
    rng = np.random.default_rng(seed)
    found = rng.integers(-4, kv_len + 8, (batch, heads, count)).astype(np.int32)
    for i in range(batch * heads):  # a count a head: the rest is padding
        found.reshape(-1, count)[i, count - 3 * i :] = -1 if i % 2 else 2**31 - 1
    return found


# -- results --------------------------------------------------------------------------------------
@pytest.mark.parametrize("config", [SMALL, KernelConfig(16, 32, 4, 1), KernelConfig(64, 64, 4, 1)])
@pytest.mark.parametrize("sizes", [(100, 100), (75, 130), (40, 33)])
@pytest.mark.parametrize("mask", FOLLOWED.values(), ids=FOLLOWED)
def test_random_lists(mask, sizes, config):
    q_len, kv_len = sizes
    agrees(
        mask,
        *(q_len, kv_len),
        config=config,
        batch=2,
        heads=4,
        kv_heads=2,
        v_idx=drawn(1, 30, kv_len, 2, 4),
        s_idx=drawn(2, 17, kv_len, 2, 4),
    )


@pytest.mark.parametrize(
    "entries",
    [
        (),
        (5,),
        (7, 7, 7, 7),
        (63, 2, 40, 2, 63, 0),
        (-1, -1),
        (-5, 300, 2**31 - 1, -(2**31)),
        tuple(range(60)),
    ],
    ids=["none", "one", "equal", "unsorted", "padding", "outside", "run"],
)
@pytest.mark.parametrize("other", [(), (3, 20)], ids=["alone", "beside"])
@pytest.mark.parametrize("mask", FOLLOWED.values(), ids=FOLLOWED)
def test_lists_of_every_kind(mask, entries, other):
    agrees(mask, 70, 90, v_idx=rows(*entries), s_idx=rows(*other))
    agrees(mask, 70, 90, v_idx=rows(*other), s_idx=rows(*entries))


@pytest.mark.parametrize("mask", BESIDE_STATIC, ids=str)
def test_beside_static_masks(mask):
    entries = {"v_idx": drawn(3, 25, 140), "s_idx": drawn(4, 9, 140)}
    named = {x: y for x, y in entries.items() if f'"{x}"' in str(mask)}
    agrees(mask, 90, 140, **named)


def test_queries_outside_the_keys():
    lists = {"v_idx": drawn(5, 25, 90), "s_idx": drawn(6, 25, 90)}
    for offset in (-30, 0, 60):
        agrees(VERTICAL_SLASH | (k < 0), 80, 90, q_offset=offset, **lists)
        agrees(COLUMN | DIAGONAL, 80, 90, q_offset=offset, **lists)
    for offset in (-70, -3, 0, 16, 41, 64):
        for config in (SMALL, KernelConfig(64, 16, 4, 1), KernelConfig(16, 128, 4, 1)):
            agrees(TILED[64] | (k < 0), 80, 90, config=config, q_offset=offset, **lists)


def test_score_sinks_and_bulk_copies():
    lists = {"v_idx": drawn(7, 25, 90), "s_idx": drawn(8, 12, 90)}
    sinks = torch.linspace(-1, 1, 2)
    score = mw.softcap(mw.s, 20.0) + 0.01 * (k - q)
    agrees(VERTICAL_SLASH, 80, 90, score=score, sinks=sinks, **lists)
    bulk = KernelConfig(32, 16, 4, 1, "descriptor")
    agrees(VERTICAL_SLASH, 80, 90, config=bulk, **lists)
    agrees(VERTICAL_SLASH, 80, 90, dtype="float16", value_dim=24, **lists)


@pytest.mark.parametrize("mask", FOLLOWED.values(), ids=FOLLOWED)
def test_gradients_are_not_the_general_path(mask, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_STRICT", "1")
    lists = {"v_idx": drawn(9, 12, 150), "s_idx": drawn(10, 8, 150)}
    small = BackwardConfig(SMALL, KernelConfig(16, 32, 4, 1))
    for sizes, offset, backward in (((50, 70), None, None), ((130, 150), 37, small)):
        report = mw.check(
            mask,
            q_len=sizes[0],
            kv_len=sizes[1],
            q_offset=offset,
            head_dim=16,
            backend="interpret",
            backward=backward,
            **lists,
        )
        assert report.ok, str(report)
        assert set(report.gradients) == {"query", "key", "value"}


def test_the_forward_is_not_the_general_path(attend, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_STRICT", "1")
    lists = {"v_idx": torch.tensor(drawn(9, 12, 70)), "s_idx": torch.tensor(drawn(10, 8, 70))}
    attend.matches(attend.inputs(50, 70), VERTICAL_SLASH, **lists)
    searched = (k <= q) & ~k.isin(COLS[b, h])
    with pytest.raises(mw.StrictError, match="isin"):
        mw.attention(*attend.inputs(50, 70), searched, backend="interpret", v_idx=lists["v_idx"])


# -- preparation ----------------------------------------------------------------------------------
def prepared(mask, q_len, kv_len, config, phases, **lists):
    """What the kernel gets of columns and diagonals, by name: the pieces of a row."""
    found = mw.compile(mask).with_config(config)
    query, key = torch.zeros(2, 2, q_len, 16), torch.zeros(2, 2, kv_len, 16)
    tensors = {name: torch.tensor(x.copy()) for name, x in lists.items()}
    result = found.prepare(query, key, backend="interpret", **tensors)
    listed, heads, words, bits, _, count, _ = result.arguments
    assert listed.shape == (2, heads, words)
    ranks = -(-kv_len // config.block_n) + 1
    sizes = [phases * (5 * count + 2), ranks, words - bits - phases * (5 * count + 2) - ranks]
    _, diagonals, col_rank, col_list = listed.split([bits, *sizes], -1)
    diagonals = diagonals.unflatten(-1, (phases, -1))
    diag_list, diag_rank, diag_met = diagonals.split([2 * count, 2 * count + 2, count], -1)
    pieces = {
        "col_list": col_list,
        "col_rank": col_rank,
        "diag_list": diag_list.unflatten(-1, (2, count)),
        "diag_rank": diag_rank.unflatten(-1, (2, count + 1)),
        "diag_met": diag_met,
    }
    return pieces, result.nbytes


@pytest.mark.parametrize(
    ("block", "lengths", "counts"),
    [
        ((32, 16), (75, 130), (30, 17)),
        ((16, 32), (75, 130), (30, 17)),
        ((16, 64), (150, 70_000), (2500, 2100)),  # several turns of each loop
        ((128, 64), (300, 70_000), (5000, 2100)),
    ],
    ids=str,
)
@pytest.mark.parametrize("mask", FOLLOWED.values(), ids=FOLLOWED)
def test_what_is_prepared(mask, block, lengths, counts):
    """Columns once each in ascending order, and the tiles that a brute force finds."""
    q_len, kv_len = lengths
    lists = {"v_idx": drawn(1, counts[0], kv_len, 2, 2), "s_idx": drawn(2, counts[1], kv_len, 2, 2)}
    lists["s_idx"][1, 1, :] = np.arange(40, 40 + counts[1])
    lists["s_idx"][0, 0, :8] = 3
    tile = TileShape(*block)
    schedule = schedule_of(mask.node, tile)
    config = KernelConfig(*block, 4, 1)
    got, nbytes = prepared(mask, q_len, kv_len, config, schedule.phases, **lists)
    call = Call(q_len, kv_len, kv_len - q_len, 2, 2, 2, lists)
    assert nbytes == prepared_bytes(schedule, call, 2)
    edges = np.arange(0, kv_len + block[1], block[1])
    walk = ListedWalk(schedule, call)
    env = call.env(tile, np.arange(call.q_tiles(tile)))
    crossed, filled = walk._diagonals(env, call.kv_tiles(tile))  # noqa: SLF001
    for entry, head in np.ndindex(2, 2):
        columns = lists["v_idx"][entry, head].astype(np.int64)
        columns = columns[columns != -1, None] + np.arange(schedule.gather.member.run)
        columns = np.unique(columns[(columns >= 0) & (columns < kv_len)])
        np.testing.assert_array_equal(got["col_list"][entry, head, : len(columns)], columns)
        ranks = np.searchsorted(columns, edges)
        np.testing.assert_array_equal(got["col_rank"][entry, head], ranks)
        for number in range(call.q_tiles(tile)):
            base = int(env["q_first"][0, 0, number]) // block[1]
            phase = number % got["diag_met"].shape[2]
            for kind, wanted in enumerate((crossed, filled)):
                count = got["diag_rank"][entry, head, phase, kind, -1]
                listed = got["diag_list"][entry, head, phase, kind, :count]
                assert (listed[1:] > listed[:-1]).all()
                tiles = base - listed.numpy()
                tiles = sorted(tiles[(tiles >= 0) & (tiles < call.kv_tiles(tile))])
                assert tiles == list(np.flatnonzero(wanted[entry, head, number]))


def test_prepared_is_shared_and_bounded_by_the_shapes(attend):
    lists = {"v_idx": drawn(1, 30, 90), "s_idx": drawn(2, 17, 90)}
    tensors = attend.inputs(70, 90)
    given = {name: torch.tensor(x) for name, x in lists.items()}
    ready = mw.prepare(VERTICAL_SLASH, *tensors[:2], backend="interpret", **given)
    attend.matches(tensors, VERTICAL_SLASH, prepared=ready, **given)
    # Sizes follow from shapes: none has to come back from the device.
    empty = {name: torch.full_like(x, -1) for name, x in given.items()}
    other = mw.prepare(VERTICAL_SLASH, *tensors[:2], backend="interpret", **empty)
    shapes = [getattr(x, "shape", x) for x in ready.arguments]
    assert shapes == [getattr(x, "shape", x) for x in other.arguments]


def test_columns_of_visited_tiles_are_not_gathered():
    """Two listed columns in each tile; the tiles of the window and of the diagonal are visited."""
    columns = rows(*range(0, 256, 16), *range(1, 256, 16))
    mask = (k <= q) & (COLUMN | DIAGONAL | (q - k < 16))
    call = Call(256, 256, 0, 1, 2, 2, {"v_idx": columns, "s_idx": rows(100)})
    schedule = schedule_of(mask.node, TileShape(16, 16))
    walk = ListedWalk(schedule, call)
    met = walk.meets(np.arange(16))
    for number in range(16):
        visited = set(np.flatnonzero(met.partial[0, 0, number] + met.full[0, 0, number]))
        near = {number, number - 1, number - 6, number - 7}
        assert visited == {x for x in near if x >= 0}
        gathered = set(np.flatnonzero(met.gathered[0, 0, number]))
        assert gathered == set(range(number + 1)) - visited


def test_values_of_another_width_are_prepared_for():
    """Their width may decide on the tiles, so ``prepare`` looks at them."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 2, 70, 16, generator=generator)
    value = torch.randn(1, 2, 70, 48, generator=generator)
    given = {"v_idx": torch.tensor([[[3, 40], [5, 6]]]), "s_idx": torch.tensor([[[0, 7], [0, 1]]])}
    given = {name: x.int() for name, x in given.items()}
    options = {"backend": "interpret", **given}
    ready = mw.prepare(VERTICAL_SLASH, query, key, value, **options)
    found = mw.attention(query, key, value, VERTICAL_SLASH, prepared=ready, **options)
    assert torch.equal(found, mw.attention(query, key, value, VERTICAL_SLASH, **options))
    with pytest.raises(mw.MaskwrightError, match="value"):
        mw.prepare(VERTICAL_SLASH, query, key, value[:, :, :60], **options)
