"""The definition of the language: what every expression means, by hand-written examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import kv_head
from maskwright import kv_len
from maskwright import q
from maskwright import q_len
from maskwright import to_dense
from maskwright.dsl import nodes as n
from maskwright.dsl.evaluate import evaluate
from maskwright.runtime import torch_eval


def rows(mask, q_len, kv_len=None, **options):
    """The mask of batch entry 0 and head 0, a string a row."""
    dense = to_dense(mask, q_len, kv_len, **options)[0, 0]
    return ["".join("x" if seen else "." for seen in row) for row in dense]


def value(expression, **env):
    return evaluate(expression.node, env).tolist()


# -- positions ------------------------------------------------------------------------------------
def test_shape_and_dtype():
    dense = to_dense(k <= q, 3, 5, batch=2, heads=4, kv_heads=2)
    assert dense.shape == (2, 4, 3, 5)
    assert dense.dtype == bool


def test_no_mask_is_full():
    assert to_dense(None, 2, 3).all()


@pytest.mark.parametrize(
    ("q_len", "kv_len", "q_offset", "expected"),
    [
        (3, 3, None, ["x..", "xx.", "xxx"]),
        (2, 4, None, ["xxx.", "xxxx"]),  # bottom-right: a chunk of a prefill
        (1, 4, None, ["xxxx"]),  # decode
        (4, 2, None, ["..", "..", "x.", "xx"]),  # negative positions: empty rows
        (2, 4, 0, ["x...", "xx.."]),  # rows count from 0, as in FlexAttention
        (2, 3, -1, ["...", "x.."]),
        (2, 3, 7, ["xxx", "xxx"]),
    ],
)
def test_q_is_a_position_in_key_coordinates(q_len, kv_len, q_offset, expected):
    assert rows(k <= q, q_len, kv_len, q_offset=q_offset) == expected


def test_empty_lengths():
    assert to_dense(k <= q, 0, 3).shape == (1, 1, 0, 3)
    assert to_dense(k <= q, 3, 0).shape == (1, 1, 3, 0)


def test_lengths_are_symbols():
    assert rows(k >= kv_len - q_len, 2, 4) == ["..xx", "..xx"]


def test_heads_and_batch():
    dense = to_dense((k == h) & (q == b), 2, 4, batch=2, heads=4, q_offset=0)
    assert np.argwhere(dense).tolist() == [[x, y, x, y] for x in range(2) for y in range(4)]
    groups = to_dense(k == kv_head, 1, 2, heads=6, kv_heads=2)
    assert groups[0, :, 0, 1].tolist() == [False] * 3 + [True] * 3


# -- arithmetic -----------------------------------------------------------------------------------
@pytest.mark.parametrize("divisor", [1, 2, 3, 7, 8, -1, -2, -3, -8])
def test_division_floors_as_in_python(divisor):
    numbers = list(range(-20, 21))
    found = value(q // divisor, q=np.array(numbers)), value(q % divisor, q=np.array(numbers))
    assert found == ([x // divisor for x in numbers], [x % divisor for x in numbers])


def test_a_runtime_divisor_of_zero_gives_zero():
    w = mw.param("w")
    assert value(q // w, q=np.array([-3, 0, 3]), w=0) == [0, 0, 0]
    assert value(q % w, q=np.array([-3, 0, 3]), w=0) == [0, 0, 0]


def test_functions():
    x = np.array([-2, 0, 5])
    assert value(mw.minimum(q, 1), q=x) == [-2, 0, 1]
    assert value(mw.maximum(q, 1), q=x) == [1, 1, 5]
    assert value(mw.absolute(q), q=x) == value(abs(q), q=x) == [2, 0, 5]
    assert value(-q * 3 + 1, q=x) == [7, 1, -14]
    assert value(mw.where(q < 1, q, 9), q=x) == [-2, 0, 9]


def test_scores_are_floats():
    x = np.array([-1.0, 0.0, 2.0])
    assert value(mw.softcap(mw.s, 2.0), s=x) == pytest.approx(2 * np.tanh(x / 2))
    assert value(mw.exp(mw.s), s=x) == pytest.approx(np.exp(x))
    assert value(mw.sigmoid(mw.s), s=x) == pytest.approx(1 / (1 + np.exp(-x)))
    assert value(mw.s / 4, s=x) == pytest.approx(x / 4)


# -- boolean algebra ------------------------------------------------------------------------------
def test_boolean_operators():
    even, low = k % 2 == 0, k < 3
    assert rows(even & low, 1, 6) == ["x.x..."]
    assert rows(even | low, 1, 6) == ["xxx.x."]
    assert rows(even ^ low, 1, 6) == [".x..x."]
    assert rows(~even, 1, 6) == [".x.x.x"]
    assert rows(mw.where(even, low, k >= 5), 1, 6) == ["x.x..x"]
    assert rows(even & True, 1, 6) == ["x.x.x."]
    assert rows(low & False, 1, 6) == ["......"]


@pytest.mark.parametrize("op", ["<", "<=", ">", ">=", "==", "!="])
def test_comparisons(op):
    found = rows(mw.parse(f"k {op} 2"), 1, 5)
    assert found == ["".join(".x"[eval(f"{i} {op} 2")] for i in range(5))]


# -- runtime values -------------------------------------------------------------------------------
def test_params():
    w = mw.param("w", min=0)
    assert rows((k <= q) & (q - k < w), 3, w=2) == ["x..", "xx.", ".xx"]
    assert rows((k <= q) & (q - k < w), 3, w=np.int64(1)) == ["x..", ".x.", "..x"]


def test_tables():
    doc = mw.table("doc", ndim=2)
    ids = np.array([[0, 0, 1, 1], [0, 1, 1, 1]])
    dense = to_dense(doc[b, q] == doc[b, k], 4, batch=2, doc=ids)
    assert np.array_equal(dense[:, 0], ids[:, :, None] == ids[:, None, :])


def test_a_read_outside_gives_minus_one_or_false():
    t = mw.table("t")
    assert rows(t[k] == -1, 1, 4, t=[5, -1]) == [".xxx"]
    assert rows(t[k - 2] == -1, 1, 4, t=[5, 6]) == ["xx.."]
    assert rows(t[k] == -1, 1, 3, t=np.zeros(0, np.int32)) == ["xxx"]
    flag = mw.table("f", ndim=2, dtype=bool)
    assert rows(flag[b + 1, k], 1, 3, f=np.ones((1, 3), bool)) == ["..."]
    assert rows(flag[q, k - 1], 2, 3, q_offset=0, f=np.ones((1, 1), bool)) == [".x.", "..."]


def test_lists():
    cols = mw.table("cols", ndim=3)
    entries = np.array([[[4, 1, 1, -1], [-1, -1, -1, -1]]])
    dense = to_dense(k.isin(cols[b, h]), 1, 6, heads=2, cols=entries)
    assert dense[0, :, 0].tolist() == [[i in (1, 4) for i in range(6)], [False] * 6]


def test_padding_is_no_member():
    cols = mw.table("cols", ndim=2)
    assert rows((k - 2).isin(cols[b]), 1, 4, cols=[[-1, 0]]) == ["..x."]
    assert rows((k - 3).isin(cols[b]), 1, 4, cols=[[-2, -1]]) == [".x.."]


@pytest.mark.parametrize("seed", range(40))
def test_runs(seed):
    """numpy and torch against the definition: any order, doubles, padding, entries below 0."""
    rng = np.random.default_rng(seed)
    row = rng.integers(-9, 20, rng.integers(0, 8))
    row[rng.random(row.shape) < 0.2] = -1
    run, values = int(rng.integers(1, 9)), np.arange(-12, 30)
    member = (k - 12).isin(mw.table("row")[()], run=run)
    found = [any(e != -1 and e <= x < e + run for e in row.tolist()) for x in values.tolist()]
    assert to_dense(member, 1, 42, row=row)[0, 0, 0].tolist() == found
    short = {"k": np.arange(42), "row": row.astype(np.int32)}
    assert evaluate(member.node, short).tolist() == found
    env = {"k": torch.arange(42), "row": torch.tensor(row)}
    assert torch_eval.evaluate(member.node, env, torch.device("cpu")).tolist() == found


def test_lists_that_are_empty_or_outside():
    cols = mw.table("cols", ndim=2)
    assert rows(k.isin(cols[b]), 1, 3, cols=np.zeros((1, 0), int)) == ["..."]
    assert rows(k.isin(cols[b + 1]), 1, 3, cols=[[0, 1, 2]]) == ["..."]
    blocks = mw.table("blocks", ndim=2)
    assert rows((k // 2).isin(blocks[q // 2]), 4, blocks=[[0], [1]]) == [
        "xx..",
        "xx..",
        "..xx",
        "..xx",
    ]


def test_by_head():
    mask = mw.by_head([1, 0, 1], [k <= q, k == 0])
    dense = to_dense(mask, 2, 2, heads=3)
    assert dense[0, 0].tolist() == dense[0, 2].tolist() == [[True, False], [True, False]]
    assert dense[0, 1].tolist() == [[True, False], [True, True]]


def test_by_head_with_a_table_of_kinds():
    mask = mw.by_head(mw.table("kind"), [k >= 0, k == 0])
    dense = to_dense(mask, 1, 2, heads=5, kind=[0, 1, 2, -1])  # 2, -1 and a missing entry: nothing
    assert dense[0, :, 0].tolist() == [[True, True], [True, False]] + [[False, False]] * 3


# -- the compiler's own nodes ---------------------------------------------------------------------
def test_search_counts_entries_below():
    table = n.Table("t", 2, sorted=True)
    search = n.Search(table, (n.Sym("b"),), n.Sym("q"))
    env = {"t": np.array([[0, 0, 2, 5]]), "b": np.array(0), "kv_len": 3}
    assert evaluate(search, env | {"q": np.array([-1, 0, 1, 2, 3, 9])}).tolist() == [
        0,
        0,
        2,
        2,
        3,
        3,
    ]
    assert evaluate(search, env | {"q": np.array([-1, 0]), "b": np.array(4)}).tolist() == [0, 3]
    assert evaluate(n.Extent(table, 1), env).tolist() == 4
