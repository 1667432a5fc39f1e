"""Runtime lists of columns and diagonals in the Gluon forward: in a simulator, no GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import simulated_gluon
import torch
from listed_masks import BESIDE_STATIC
from listed_masks import COLUMN
from listed_masks import DIAGONAL
from listed_masks import FOLLOWED
from listed_masks import VERTICAL_SLASH
from simulated_lists import BATCH
from simulated_lists import HEADS
from simulated_lists import compiled
from simulated_lists import run

import maskwright as mw
from maskwright import k
from maskwright import q
from maskwright.codegen.gluon import GluonConfig
from maskwright.runtime.build import load
from maskwright.runtime.interpret import interpreter

FIRST: dict[str, Any] = {"first": "producer", "registers": 216}
SMALL = GluonConfig(block_n=32, stages=2, **FIRST)
CONFIGS = {
    "default": None,
    "two_stages": SMALL,
    "three_consumers": GluonConfig(
        block_n=64, consumers=3, stages=3, first="producer", registers=152
    ),
    "three_stages": GluonConfig(block_n=64, stages=3, **FIRST),
    "five_stages": GluonConfig(block_n=16, stages=5, **FIRST),
    "several": GluonConfig(block_n=32, stages=2, persistent=True, programs=2, **FIRST),
    "several_stored": GluonConfig(
        block_n=64, stages=3, persistent=True, programs=1, bulk_store=True, **FIRST
    ),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(*entries: int) -> np.ndarray:
    return np.tile(np.asarray(entries, np.int32), (BATCH, HEADS, 1))


def drawn(seed: int, count: int, kv_len: int) -> np.ndarray:
    """Other entries for every head: any order, doubles, padding, out of range."""
    rng = np.random.default_rng(seed)
    found = rng.integers(-4, kv_len + 8, (BATCH, HEADS, count)).astype(np.int32)
    found[:, 1, count - 3 :] = -1
    return found


# Each of a few diagonals meets some tiles in the first half of their queries only, or in the second.
HALVES = {"v_idx": rows(*range(0, 200, 3)), "s_idx": rows(0, 33, 130)}
HALVES["s_idx"][:, ::2] = (100, 170, -1)  # and so the first tile


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("sizes", [(200, 200), (150, 333), (100, 40)], ids=str)
def test_random_lists(sizes, config):
    """From no column to more than the ring has slots for; diagonals that meet few or all tiles."""
    for columns, diagonals in ((90, 1), (200, 4), (40, 30)):
        lists = {"v_idx": drawn(columns, columns + 3, sizes[1])}
        lists["s_idx"] = drawn(diagonals + 50, diagonals + 3, sizes[1])
        report = run(VERTICAL_SLASH, *sizes, config=config, **lists)
        assert report.ok, f"{columns} {diagonals} {report}"


@pytest.mark.parametrize("config", ["default", "two_stages", "three_consumers", "five_stages"])
@pytest.mark.parametrize("name", ["tiled16", "tiled64", "runs"])
def test_entries_that_stand_for_many(name, config):
    """Parts of a tile's queries begin where their diagonals do, or between."""
    for sizes, offset in (((200, 200), None), ((150, 333), 41), ((190, 190), -64)):
        lists = {"v_idx": drawn(9, 40, sizes[1]), "s_idx": drawn(10, 6, sizes[1])}
        lists["s_idx"][:, 1, ::2] = (100, 170, -5)
        chosen = CONFIGS[config]
        report = run(FOLLOWED[name], *sizes, config=chosen, q_offset=offset, **lists)
        assert report.ok, f"{sizes} {report}"


@pytest.mark.parametrize("step", [1, 16, 64])
@pytest.mark.parametrize("offset", [0, 41, -30])
def test_each_part_of_the_queries_is_told_the_tiles_it_meets(offset, step):
    mask = (q // step * step - k + 3).isin(mw.table("s_idx", ndim=3)[mw.b, mw.h], run=step)
    made = compiled(mask, config=SMALL)
    block, parts, q_len, kv_len = SMALL.block_n, 2, 128, 256
    entries = torch.tensor([[[5, 100, -40, -1]]], dtype=torch.int32)
    with interpreter():
        found = load(made, interpreted=True).prepare(
            *(q_len, kv_len, 1, 1, 1, entries.device), q_offset=offset, s_idx=entries
        )
    listed, _, _, bits, first, count, _ = found
    met = listed[0, 0, bits + 4 * count + 2 :][:count].tolist()
    queries = (np.arange(q_len) + offset) // step * step
    for at in range(count):
        keys = (offset // block - at - first) * block + np.arange(block)
        values = queries[:, None] - keys + 3
        pairs = np.isin(values[..., None] - np.arange(step), (5, 100, -40)).any((1, 2))
        wanted = sum(2**i for i, x in enumerate(np.split(pairs, parts)) if x.any())
        assert met[at] == wanted


@pytest.mark.parametrize("config", [None, CONFIGS["several"]], ids=["one", "several"])
@pytest.mark.parametrize(
    "entries",
    [(), (5,), (63, 2, 140, 2, 63, 0), (-1, -1), (-5, 300, 2**31 - 1), range(140)],
    ids=["none", "one", "unsorted", "padding", "outside", "run"],
)
def test_lists_of_every_kind(entries, config):
    """Programs without work, with gathered columns alone, and with tiles alone."""
    for other in ((), (3, 20)):
        for columns, diagonals in ((entries, other), (other, entries)):
            lists = {"v_idx": rows(*columns), "s_idx": rows(*diagonals)}
            report = run(VERTICAL_SLASH, 140, 150, config=config, **lists)
            assert report.ok, f"{columns} {diagonals} {report}"


@pytest.mark.parametrize("mask", BESIDE_STATIC, ids=str)
def test_beside_static_masks(mask):
    entries = {"v_idx": drawn(3, 60, 240), "s_idx": drawn(4, 9, 240)}
    named = {x: y for x, y in entries.items() if f'"{x}"' in str(mask)}
    report = run(mask, 190, 240, config=SMALL, **named)
    assert report.ok, str(report)


def test_queries_outside_the_keys():
    lists = {"v_idx": drawn(5, 25, 190), "s_idx": drawn(6, 25, 190)}
    for offset in (-130, 0, 160):
        for mask in (VERTICAL_SLASH | (k < 0), COLUMN | DIAGONAL):
            assert run(mask, 180, 190, q_offset=offset, config=SMALL, **lists).ok


@pytest.mark.parametrize("sizes", [(8, 8), (96, 40), (128, 128), (192, 128), (256, 256)])
def test_head_sizes(sizes):
    lists = {"v_idx": drawn(7, 70, 190), "s_idx": drawn(8, 5, 190)}
    assert run(VERTICAL_SLASH, 150, 190, sizes=sizes, **lists).ok


def test_scores_and_sinks():
    lists = {"v_idx": drawn(7, 70, 190), "s_idx": drawn(8, 5, 190)}
    score = mw.softcap(mw.s, 20.0) + 0.01 * (k - q)
    sinks = torch.linspace(-1, 1, HEADS)
    for mask in (VERTICAL_SLASH, COLUMN | DIAGONAL | (q - k > 100)):
        for config in (None, CONFIGS["several_stored"]):
            assert run(mask, 180, 190, score=score, sinks=sinks, config=config, **lists).ok


# -- the simulator finds what it is there for -----------------------------------------------------
LEFT_OUT = f"{' ' * 16}come(VALUE_EMPTY + value_slot, EMPTY_THREADS)\n"
MISTAKES = [
    ("async_copy.wait_group(2)", "pass"),
    ("async_copy.wait_group(2)", "async_copy.wait_group(3)"),
    ("async_copy.wait_group(1)", "async_copy.wait_group(2)"),
    ("async_copy.wait_group(0)", "async_copy.wait_group(1)"),
    ("behind = gl.where(slot >= 1, slot - 1, slot + (STAGES - 1))", "behind = slot"),
    ("mbarrier.arrive(key_full.index(behind), count=1)", "pass"),
    ("mbarrier.arrive(value_full.index(behind), count=1)", "pass"),
    ("        copied += 1\n    if gathered", "    if gathered"),
    ("        positions.index(slot * CONSUMERS + 1).store(position1)\n", ""),
    (f"{LEFT_OUT}{' ' * 16}weights", f"{' ' * 16}weights"),
    (f"{' ' * 16}come(KEY_EMPTY + slot, EMPTY_THREADS)\n{' ' * 16}acc = ", f"{' ' * 16}acc = "),
]
# Tiles that one consumer leaves out, and their columns.
WRONG = [
    ("weights = packed(nothing)", "pass"),
    ("position1 = gl.where((met & 2) != 0, NOWHERE, position)", "position1 = position"),
    ("position0 = gl.where((met & 1) != 0, NOWHERE, position)", "position0 = column"),
    ("position = gl.where(met == 3, NOWHERE, position)", "position = position0"),
    ('scores = gl.where(mine != 0, scores, float("-inf"))', "pass"),
    (", other=0) >> CONSUMER) & 1", ", other=0)) & 1"),
    ("            coming = tile_n\n", ""),
    ("coming, mask=turn + 1 < partial_tiles", "coming, mask=turn + 1 < 0"),
    ("(gl_bits_until(q - start_n) & (col_word | diag_words))", "(col_word | diag_words)"),
]


@pytest.mark.parametrize(("line", "instead"), MISTAKES)
def test_mistakes_are_found(line, instead, monkeypatch):
    assert line in compiled(VERTICAL_SLASH, config=SMALL).source
    monkeypatch.setattr(simulated_gluon, "SECONDS", 0.5)
    reasons = r"forever|there|changed|runs|arrivals|waited|left"
    with pytest.raises((AssertionError, TimeoutError), match=reasons):
        often((line, instead))


@pytest.mark.parametrize(("line", "instead"), WRONG)
def test_wrong_numbers_are_found(line, instead):
    assert not run(VERTICAL_SLASH, 200, 200, config=SMALL, change=(line, instead), **HALVES).ok


def often(change: tuple[str, str]) -> None:
    """Who comes first differs: not every call shows a mistake."""
    lists = {"v_idx": rows(*range(0, 200, 2)), "s_idx": rows(-1)}
    for _ in range(20):
        run(VERTICAL_SLASH, 128, 200, config=SMALL, change=change, **lists)
        run(VERTICAL_SLASH, 128, 200, config=SMALL, change=change, **HALVES)
