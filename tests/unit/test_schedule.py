"""Schedules by hand-written examples: which loops a mask gets, and that counting needs no mask."""

from __future__ import annotations

import functools
import operator
import tracemalloc

import numpy as np
import pytest

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import kv_len
from maskwright import q
from maskwright.codegen.schedule import derive
from maskwright.codegen.schedule import derive_row
from maskwright.codegen.tile import TileShape
from maskwright.codegen.walk import count
from maskwright.codegen.walk import visits
from maskwright.dsl.parser import parse
from maskwright.dsl.text import to_text
from maskwright.runtime.fuzz_case import Case
from maskwright.runtime.fuzz_case import draw_case
from maskwright.runtime.fuzz_checks import SCHEDULE_CHECKS
from maskwright.runtime.fuzz_checks import Problem
from maskwright.runtime.fuzz_checks import first_problem
from maskwright.runtime.shrink import shrink

TILE = TileShape(128, 64)
DOC = mw.table("doc", ndim=2, sorted=True)
LIST = mw.table("cols", ndim=2)


def ranges(segments):
    assert all(s.period is None for s in segments)
    return [(to_text(s.lo), to_text(s.hi)) for s in segments]


# -- loops ----------------------------------------------------------------------------------------
def test_causal_is_one_full_and_one_partial_loop():
    found = derive((k <= q).node, TILE)
    assert ranges(found.full) == [("0", "(q_first + 1) // 64")]
    assert ranges(found.partial) == [("(q_first + 1) // 64", "q_last // 64 + 1")]
    assert found.closed
    assert found.reasons == ()


def test_full_attention_has_only_a_ragged_last_tile():
    found = derive(parse("True").node, TILE)
    assert ranges(found.full) == [("0", "kv_len // 64")]
    assert ranges(found.partial) == [("kv_len // 64", "(kv_len + 63) // 64")]
    assert ranges(derive(parse("True").node, TILE, tail=False).partial) == []


@pytest.mark.parametrize("text", ["False", "(k < 3) & (k > 5)", "(k <= q) & (k > q)", "k % 4 == 4"])
def test_nothing_attended_is_no_loop(text):
    found = derive(parse(text).node, TILE)
    assert (found.partial, found.full, found.visit) == ((), (), ())
    assert found.closed


@pytest.mark.parametrize(
    ("mask", "partial", "full"),
    [
        ((k <= q) & (q - k < 1024), 2, 1),
        ((k <= q) & (q - k < mw.param("w", min=1)), 2, 1),
        ((k <= q) & ((k < 64) | (q - k < 1024)), 3, 2),
        (abs(q - k) < 300, 2, 1),
        (k // 64 <= q // 64, 1, 1),
        ((k <= q) & (DOC[b, q] == DOC[b, k]), 2, 1),
    ],
    ids=str,
)
def test_number_of_loops(mask, partial, full):
    found = derive(mask.node, TILE)
    assert found.closed
    assert len(found.partial) <= partial
    assert len(found.full) <= full


def test_equal_masks_written_differently_have_one_schedule():
    forms = [(k <= q) & (q - k < 9), (q >= k) & (k > q - 9), ~((k > q) | (q >= k + 9))]
    texts = {(*ranges(f.partial), *ranges(f.full)) for f in (derive(m.node, TILE) for m in forms)}
    assert len(texts) == 1


def test_strides_become_periods():
    found = derive(((k <= q) & ((k // 64 + h) % 8 == 0)).node, TILE)
    assert found.closed
    assert {s.period.period for s in (*found.partial, *found.full)} == {8}
    assert {to_text(s.period.width) for s in found.full} == {"1"}


def test_sorted_tables_become_searches_of_one_value_a_tile():
    found = derive(((k <= q) & (DOC[b, q] == DOC[b, k])).node, TILE)
    text = to_text(found.partial[0].lo)
    assert "count_below(doc[b, :], " in text
    assert "[b, q]" not in text


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (k.isin(LIST[b]), "isin"),
        (mw.table("seg")[k] == mw.table("seg")[q], "seg"),
        (q * k % 7 == 0, "%"),
        (k // mw.param("block") == q // 3, "block"),
    ],
    ids=str,
)
def test_what_has_no_closed_form_says_why(mask, reason):
    found = derive(mask.node, TILE)
    assert not found.closed
    assert any(reason in text for text in found.reasons)


def test_too_many_alternatives_take_the_general_path():
    parts = [(k % p != 0) | (q > p * 9) | (k == p) for p in (3, 5, 7, 11, 13)]
    found = derive(functools.reduce(operator.and_, parts).node, TILE)
    assert not found.closed
    assert ranges(found.visit) == [("0", "(kv_len + 63) // 64")]
    assert "alternatives" in found.reasons[0]


# -- evaluation -----------------------------------------------------------------------------------
def test_counts_are_visits():
    case = Case("(k <= q) & ((k < 40) | (q - k < 70) | (k // 16 % 4 == 1))", 300, 420, batch=2)
    call, tile = case.call(), TileShape(32, 16)
    env = call.env(tile, np.arange(call.q_tiles(tile)))
    found = derive(case.node, tile)
    assert np.array_equal(
        np.broadcast_to(count(found.partial, env), (2, 1, 10)),
        visits(found.partial, env, call.kv_tiles(tile)).sum(-1),
    )


def test_a_row_counts_its_keys():
    case = Case("(k <= q) & ((k < 5) | (q - k < 9))", 30, 50)
    call = case.call()
    row = derive_row(case.node)
    assert row.closed
    found = count(row.visit, call.env(row.tile, np.arange(30))).ravel()
    assert np.array_equal(found, mw.to_dense(parse(case.mask), 30, 50).sum(-1).ravel())


@pytest.mark.parametrize(
    ("mask", "pairs"),
    [
        (k <= q, (1 << 20) * ((1 << 20) + 1) // 2),
        ((k <= q) & (q - k < 1024), 1024 * (1 << 20) - 1023 * 1024 // 2),
        (k // 64 == q // 64, 64 << 20),
        (k >= kv_len - 10, 10 << 20),
        ((k // 64) % 16 == 3, 1 << 36),
    ],
    ids=str,
)
def test_a_million_positions_need_no_array_of_that_size(mask, pairs):
    tracemalloc.start()
    found = mw.explain(mask, q_len=1 << 20).to_dict()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found["pairs"] == pairs
    assert found["closed_form"]
    assert found["table_bytes"] == 0
    assert peak < 16 << 20


# -- cases that went wrong once -------------------------------------------------------------------
ZEROS = np.zeros(30, np.int32)


@pytest.mark.parametrize(
    "case",
    [
        # Reads of sorted tables outside of the keys or of the table: -1 breaks the order.
        Case('table("d", sorted=True)[k + 1] < 3', 3, 17, tile=(16, 16), bindings={"d": ZEROS}),
        Case(
            '(k <= q) | (table("d", sorted=True)[q] == table("d", sorted=True)[k] + 1)',
            *(60, 60),
            tile=(32, 16),
            bindings={"d": ZEROS},
        ),
        Case(
            '(k >= 18) | (table("d", sorted=True)[k] > table("d", sorted=True)[30])',
            *(20, 20),
            tile=(16, 16),
            bindings={"d": ZEROS[:20]},
        ),
        Case(
            '(k == 15) ^ (table("d", sorted=True)[q] - table("d", sorted=True)[k + 5] < 3)',
            *(60, 95),
            tile=(32, 16),
            bindings={"d": np.arange(95, dtype=np.int32) // 19},
        ),
        Case(
            '~((table("d", sorted=True)[q] == table("d", sorted=True)[k]) ^ (k < 0))',
            *(1, 1),
            q_offset=1,
            bindings={"d": np.zeros(1, np.int32)},
        ),
        Case(
            'table("d", sorted=True)[k + 2] == table("d", sorted=True)[kv_len - 1]',
            5,
            30,
            bindings={"d": np.arange(30, dtype=np.int32) // 9},
        ),
        # Bounds that share parts so often that their text would fill the memory.
        Case(
            "~((((11 + k // 16) % 8 == 5) | (k < minimum(q + 19, kv_len - 3))) & (k <= q))"
            ' ^ (k >= table("d", sorted=True)[q] * 4)',
            60,
            60,
            bindings={"d": np.arange(60)},
        ),
    ],
    ids=lambda c: c.mask,
)
def test_regressions(case):
    assert first_problem(case, SCHEDULE_CHECKS) is None


def test_an_empty_list_of_tiles_still_has_a_kernel():
    source = mw.source(mw.parse("maximum(q % 3, k) < 0"))
    assert "nothing is attended" in source


# -- the fuzzer itself ----------------------------------------------------------------------------
def test_cases_are_the_same_everywhere():
    assert draw_case(3, 17).snippet() == draw_case(3, 17).snippet()
    assert len({draw_case(3, i).mask for i in range(50)}) > 45


def test_every_kind_of_node_is_drawn():
    text = " ".join(draw_case(0, i).mask for i in range(300))
    words = ["//", "%", "isin", "by_head", "where", "minimum", "maximum", "absolute", "~", "^"]
    words += ["param(", "sorted=True", "dtype=bool", "kv_head", "kv_len", "q_len", "True", "False"]
    assert [word for word in words if word not in text] == []


def test_a_failure_is_shrunk_to_its_cause():
    def examine(case: Case) -> Problem | None:
        wrong = "isin" in case.mask and case.kv_len > 3 and (case.bindings["cols"] == 7).any()
        return Problem("wrong", "on purpose") if wrong else None

    cols = np.array([[3, 7, 9], [1, 2, 4]], np.int32)
    mask = "(k <= q) & ((q - k < param('w')) | ~(k // 4).isin(table('cols', ndim=2)[b]))"
    values = {"cols": cols, "w": 30}
    case = Case(mask.replace("'", '"'), 90, 100, batch=2, heads=6, kv_heads=2, bindings=values)
    small, problem = shrink(case, Problem("wrong", ""), examine)
    assert problem.text == "on purpose"
    assert (small.q_len, small.kv_len, small.batch, small.heads) == (1, 4, 1, 1)
    assert small.bindings["cols"].size == 1
    assert "param" not in small.mask
    assert len(small.mask) < 50
    scope: dict[str, object] = {}
    exec(small.snippet().rsplit("\n", 1)[0], scope)
    assert scope["case"].mask == small.mask
    assert np.array_equal(scope["case"].bindings["cols"], small.bindings["cols"])
    assert small.command("interpret").startswith("maskwright check ")
