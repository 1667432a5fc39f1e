"""The catalogue is complete and sane, and MASK text of the command line finds the patterns."""

from __future__ import annotations

import numpy as np
import pytest

from maskwright import patterns
from maskwright.dsl import nodes as n
from maskwright.dsl.errors import MaskError
from maskwright.dsl.errors import MaskSyntaxError
from maskwright.dsl.evaluate import to_dense
from maskwright.dsl.symbols import k
from maskwright.dsl.symbols import q
from maskwright.patterns.catalog import entries
from maskwright.patterns.catalog import entry
from maskwright.patterns.lookup import parse_call
from maskwright.patterns.lookup import resolve

CALL = {"batch": 2, "heads": 4, "kv_heads": 2, "q_len": 200, "kv_len": 260}
SMALL = entries(heads=4, kv_heads=2)
IDS = [e.name for e in SMALL]


def dense(e, **call):
    call = {**CALL, **call}
    values = e.bindings(**call)
    sizes = {key: call[key] for key in ("batch", "heads", "kv_heads")}
    return to_dense(e.mask, call["q_len"], call["kv_len"], **sizes, **values)


def test_every_pattern_is_there_once():
    assert len(set(IDS)) == len(IDS)
    assert not set(patterns.__all__) - set(IDS)
    paper = [e.name for e in entries("paper", heads=4, kv_heads=2)]
    assert paper == IDS
    assert all(e.note for e in SMALL)


@pytest.mark.parametrize("e", SMALL, ids=IDS)
def test_masks_are_neither_empty_nor_full(e):
    mask = dense(e)
    assert mask.any(axis=(2, 3)).all()
    assert mask.all() == (e.name == "full")
    square = dense(e, q_len=256, kv_len=256)
    assert square.any(axis=3).all()  # no empty row: every kernel has something to do


@pytest.mark.parametrize("e", SMALL, ids=IDS)
def test_a_sparse_pattern_is_not_plain_causal(e):
    causal = dense(entry("causal"))
    assert (dense(e) == causal).all() == (e.name == "causal")


@pytest.mark.parametrize("e", SMALL, ids=IDS)
def test_runtime_values_fit_their_declarations(e):
    values = e.bindings(**CALL, seed=3)
    again = e.bindings(*CALL.values(), 3)
    assert set(values) == {x.name for x in (*n.tables(e.mask.node), *n.params(e.mask.node))}
    for table in n.tables(e.mask.node):
        array = values[table.name]
        assert array.dtype == (bool if table.dtype == "bool" else np.int32)
        assert array.ndim == table.ndim
        assert (array == again[table.name]).all()
        assert not table.sorted or (np.diff(array) >= 0).all()


def test_seeds_differ():
    values = [entry("document").bindings(*CALL.values(), seed)["doc_id"] for seed in (0, 1)]
    assert (values[0] != values[1]).any()


def test_document_ids_are_consecutive_from_zero():
    for name in ("document", "document_interleaved", "anchor_document"):
        for row in entry(name).bindings(*CALL.values())["doc_id"]:
            assert np.unique(row).tolist() == list(range(row.max() + 1))
    anchor = entry("anchor_document").bindings(*CALL.values())["doc_id"]
    assert ((anchor == 0).sum(axis=1) == 1).all()
    mixed = entry("document_interleaved").bindings(*CALL.values())["doc_id"]
    assert (np.diff(mixed) < 0).any()


def test_closed_forms_read_only_sorted_tables_at_positions():
    for e in SMALL:
        unsorted = [
            x
            for x in n.walk(e.mask.node)
            if isinstance(x, n.Member)
            or (isinstance(x, n.Read) and x.table.ndim > 1 and not x.table.sorted)
        ]
        assert e.closed_form == (not unsorted), e.name


def test_paper_scale_is_quick_and_in_range():
    for e in entries("paper", heads=8, kv_heads=2):
        values = e.bindings(1, 8, 2, 65536, 65536)
        arrays = [v for v in values.values() if not isinstance(v, int)]
        assert all(a.min() >= -1 and a.max() < 65536 for a in arrays if a.dtype != bool)
        used = [a for a in arrays if a.dtype != bool]
        assert all((a >= 0).mean() > 0.5 for a in used)


def test_unknown_entries_and_scales():
    with pytest.raises(MaskError, match="one of full, causal"):
        entry("nothing")
    with pytest.raises(MaskError, match="small"):
        entries("large")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("causal", patterns.causal()),
        (" causal() ", patterns.causal()),
        ("a_shape(sink=64, window=1024)", patterns.a_shape(64, 1024)),
        ("a_shape(64, window=1024)", patterns.a_shape(64, 1024)),
        ("sliding_window(left=None, right=0)", patterns.sliding_window(None, 0)),
        ("document(causal=False)", patterns.document(causal=False)),
        (
            "local_stride(64, 16, 8, offset=-1, head_axis='query')",
            patterns.local_stride(64, 16, 8, offset=-1, head_axis="query"),
        ),
        ("k <= q", k <= q),
        ("(k <= q) & (q - k < 3)", (k <= q) & (q - k < 3)),
        ("abs(q - k) < 3", abs(q - k) < 3),
        ("where(k < 3, k <= q, q < 2)", (k < 3) & (k <= q) | ~(k < 3) & (q < 2)),
        ("True", patterns.full()),
    ],
)
def test_resolve(text, expected):
    assert resolve(text).node is expected.node


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a_shap(4, 8)", "did you mean a_shape"),
        ("zzz", "the patterns are a_shape"),
        ("a_shape(4)", r"a_shape\(sink, window\)"),
        ("a_shape(4, 8, 9)", "too many positional"),
        ("a_shape(4, wind=8)", "wind"),
        ("a_shape(4, 0)", "window=0"),
        ("a_shape(4, q)", "literals"),
        ("a_shape(4, 2**9)", "literals"),
        ("a_shape(4, [1, 'x'])", "literals"),
        ("a_shape(*[1, 2])", "literals"),
        ("a_shape(4, window=8, window=9)", "repeated"),
        ("a_shape(4, **{})", "repeated"),
        ("a_shape(4, 8) & (k > 3)", "not a name of the mask language"),
        ("a_shape(4, 8", "not a Python expression"),
        ("print(1)", "no pattern `print`"),
    ],
)
def test_resolve_refuses(text, words):
    with pytest.raises(MaskError, match=words):
        resolve(text)


def test_parse_call_reads_all_literals():
    with pytest.raises(MaskSyntaxError, match="no pattern call"):
        parse_call("k <= q")
    assert parse_call("document()") == ("document", {})
    name, arguments = parse_call("a_shape([1, -2, 3], -0.5)")
    assert (name, arguments) == ("a_shape", {"sink": [1, -2, 3], "window": -0.5})
