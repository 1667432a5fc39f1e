"""Every pattern against its formula in a plain double loop, and the traps where readings differ."""

from __future__ import annotations

import numpy as np
import pytest

from maskwright import patterns as p
from maskwright.dsl.errors import MaskError
from maskwright.dsl.evaluate import to_dense
from maskwright.dsl.symbols import k
from maskwright.dsl.symbols import kv_len
from maskwright.dsl.symbols import param
from maskwright.dsl.symbols import q

B, H, G = 2, 4, 2  # batch, query heads, KV heads
LONGEST = 40
SIZES = [(40, 40), (17, 40), (1, 33), (24, 11)]  # square, chunked prefill, decode, Sq > Sk

DOC = np.array([[0] * 9 + [1] * 4 + [2] * 20 + [3] * 7, [0] + [1] * 15 + [2] * 2 + [3] * 22])
START = np.array([[int(np.flatnonzero(row == x)[0]) for x in row] for row in DOC])
MIXED = np.array([[0, 2, 1, 1, 2, 0, -1, 3] * 5, [1, 1, 0, 4, 0, 4, 2, -1] * 5])
PREFIX = np.array([6, 13])
RNG = np.random.default_rng(7)
V_IDX = np.where(RNG.random((B, H, 5)) < 0.2, -1, RNG.integers(0, LONGEST, (B, H, 5)))
S_IDX = np.where(RNG.random((B, H, 4)) < 0.2, -1, RNG.integers(0, 20, (B, H, 4)))
BLOCKS = RNG.integers(-1, 10, (B, H, 5, 4))
ANCESTOR = RNG.random((B, 12, 12)) < 0.4
CHUNK = np.array([[0] * 10 + [10] * 3 + [13] * 27, [0] * 25 + [25] * 15])


def a_shape(i, j, sink, window):
    return j <= i and (j < sink or i - j < window)


def in_tile(diagonals, i, j, size):
    end = (i // size + 1) * size
    return any(end - s - size <= j < end - s for s in diagonals if s != -1)


def dilated(i, j, window, step, dense, sink):
    d = i - j
    return d >= 0 and (j < sink or d < dense or (d < window and (d - dense) % step == 0))


def strided(i, j, g, block, local, stride, step, offset=0, sinks=0):
    bi, bj = i // block, j // block
    kept = bj < sinks or bi - bj < local or (bj + g * step + offset) % stride == 0
    return j <= i and kept


def grouped(i, j, h, group):
    shift = 0 if h < H // 2 else group // 2
    return j <= i and (i - shift) // group == (j - shift) // group


def in_tree(b, i, j):
    x, y = i - PREFIX[b], j - PREFIX[b]
    return j < PREFIX[b] or (0 <= x < 12 and 0 <= y < 12 and ANCESTOR[b, x, y])


# name -> (mask, runtime values, predicate of batch, query head, KV head, position, key, kv_len)
CASES = {
    "full": (p.full(), {}, lambda b, h, g, i, j, n: True),
    "causal": (p.causal(), {}, lambda b, h, g, i, j, n: j <= i),
    "both sides": (p.sliding_window(5, 3), {}, lambda b, h, g, i, j, n: -3 <= i - j <= 5),
    "left only": (p.sliding_window(5), {}, lambda b, h, g, i, j, n: i - j <= 5),
    "right only": (p.sliding_window(right=0), {}, lambda b, h, g, i, j, n: j <= i),
    "a_shape": (p.a_shape(3, 8), {}, lambda b, h, g, i, j, n: a_shape(i, j, 3, 8)),
    "no sink": (p.a_shape(0, 8), {}, lambda b, h, g, i, j, n: 0 <= i - j < 8),
    "runtime a_shape": (
        p.a_shape(param("sink"), param("window", min=1)),
        {"sink": 5, "window": 7},
        lambda b, h, g, i, j, n: a_shape(i, j, 5, 7),
    ),
    "tri_shape": (
        p.tri_shape(3, 8, 6),
        {},
        lambda b, h, g, i, j, n: a_shape(i, j, 3, 8) or (j <= i and i >= n - 6),
    ),
    "tri_shape without last": (
        p.tri_shape(3, 8, 0),
        {},
        lambda b, h, g, i, j, n: a_shape(i, j, 3, 8),
    ),
    "chunks": (
        p.chunk_anchored_a_shape(3, 5, 10),
        {},
        lambda b, h, g, i, j, n: j <= i and (j < 3 or j >= i // 10 * 10 - 5),
    ),
    "chunk table": (
        p.chunk_anchored_a_shape(3, 5),
        {"chunk_start": CHUNK},
        lambda b, h, g, i, j, n: (
            j <= i and (j < 3 or j >= (CHUNK[b, i] if 0 <= i < LONGEST else -1) - 5)
        ),
    ),
    "dilated": (p.dilated_window(12, 3), {}, lambda b, h, g, i, j, n: dilated(i, j, 12, 3, 0, 0)),
    "dilated, dense and sink": (
        p.dilated_window(15, 4, dense=5, sink=2),
        {},
        lambda b, h, g, i, j, n: dilated(i, j, 15, 4, 5, 2),
    ),
    "global_window": (
        p.global_window(4, 2, 3),
        {},
        lambda b, h, g, i, j, n: -2 <= i - j <= 4 or j < 3 or i < 3,
    ),
    "prefix_lm": (
        p.prefix_lm(),
        {"prefix_len": PREFIX},
        lambda b, h, g, i, j, n: j <= i or j < PREFIX[b],
    ),
    "prefix of 9": (p.prefix_lm(9), {}, lambda b, h, g, i, j, n: j <= i or j < 9),
    "prefix_lm_document": (
        p.prefix_lm_document(),
        {"doc_id": DOC, "doc_start": START, "prefix_len": PREFIX},
        lambda b, h, g, i, j, n: (
            doc(b, i) == doc(b, j) and (j <= i or j - START[b, max(i, 0)] < PREFIX[b])
        ),
    ),
    "document": (
        p.document(),
        {"doc_id": DOC},
        lambda b, h, g, i, j, n: j <= i and doc(b, i) == doc(b, j),
    ),
    "interleaved documents": (
        p.document(causal=False, contiguous=False),
        {"doc_id": MIXED},
        lambda b, h, g, i, j, n: doc(b, i, MIXED) == doc(b, j, MIXED),
    ),
    "anchor_document": (
        p.anchor_document(),
        {"doc_id": DOC},
        lambda b, h, g, i, j, n: j <= i and (doc(b, i) == doc(b, j) or doc(b, j) == 0),
    ),
    "two anchors, padding": (
        p.anchor_document(2, contiguous=False),
        {"doc_id": MIXED},
        lambda b, h, g, i, j, n: (
            j <= i and (doc(b, i, MIXED) == doc(b, j, MIXED) or doc(b, j, MIXED) in (0, 1))
        ),
    ),
    "share_question": (
        p.share_question(contiguous=False),
        {"doc_id": MIXED},
        lambda b, h, g, i, j, n: (
            j <= i and (doc(b, i, MIXED) == doc(b, j, MIXED) or doc(b, j, MIXED) == 0)
        ),
    ),
    "causal_blockwise": (
        p.causal_blockwise(),
        {"doc_id": DOC},
        lambda b, h, g, i, j, n: j <= i and (doc(b, i) == doc(b, j) or doc(b, i) == doc(b, n - 1)),
    ),
    "frame_causal": (
        p.frame_causal(),
        {"frame_id": DOC},
        lambda b, h, g, i, j, n: doc(b, j) <= doc(b, i),
    ),
    "block_causal": (p.block_causal(6), {}, lambda b, h, g, i, j, n: j // 6 <= i // 6),
    "block_causal with documents": (
        p.block_causal(6, document=True),
        {"doc_id": DOC},
        lambda b, h, g, i, j, n: j // 6 <= i // 6 and doc(b, i) == doc(b, j),
    ),
    "local_stride": (
        p.local_stride(4, 2, 3),
        {},
        lambda b, h, g, i, j, n: strided(i, j, g, 4, 2, 3, 1),
    ),
    "local_stride, step from heads": (
        p.local_stride(2, 2, 6, heads=2),
        {},
        lambda b, h, g, i, j, n: strided(i, j, g, 2, 2, 6, 3),
    ),
    "local_stride, same for all": (
        p.local_stride(4, 1, 3, step=0),
        {},
        lambda b, h, g, i, j, n: strided(i, j, 0, 4, 1, 3, 0),
    ),
    "local_stride, per query head": (
        p.local_stride(
            4, 2, 5, step=2, offset=-1, head_axis="query", heads=H, dense_heads=1, sink_blocks=1
        ),
        {},
        lambda b, h, g, i, j, n: j <= i if h == 3 else strided(i, j, h, 4, 2, 5, 2, -1, 1),
    ),
    "shifted_group": (p.shifted_group(8, H), {}, lambda b, h, g, i, j, n: grouped(i, j, h, 8)),
    "shifted_group of a quarter": (
        p.shifted_group(kv_len // 4, H),
        {},
        lambda b, h, g, i, j, n: grouped(i, j, h, n // 4),
    ),
    "tree": (
        p.tree(),
        {"prefix_len": PREFIX, "ancestor": ANCESTOR},
        lambda b, h, g, i, j, n: in_tree(b, i, j),
    ),
    "vertical_slash": (
        p.vertical_slash(),
        {"v_idx": V_IDX, "s_idx": S_IDX},
        lambda b, h, g, i, j, n: j <= i and (j in V_IDX[b, h] or i - j in S_IDX[b, h]),
    ),
    "vertical_slash in tiles": (
        p.vertical_slash(tiled=16),
        {"v_idx": V_IDX, "s_idx": S_IDX},
        lambda b, h, g, i, j, n: j <= i and (j in V_IDX[b, h] or in_tile(S_IDX[b, h], i, j, 16)),
    ),
    "block_list": (
        p.block_list(8, 4),
        {"block_idx": BLOCKS},
        lambda b, h, g, i, j, n: j <= i and j // 4 in BLOCKS[b, h, i // 8],
    ),
    "block_list per KV head": (
        p.block_list(8, 4, causal=False, head_axis="kv"),
        {"block_idx": BLOCKS[:, :G]},
        lambda b, h, g, i, j, n: i >= 0 and j // 4 in BLOCKS[b, g, i // 8],
    ),
    "block_list for all heads": (
        p.block_list(8, 4, head_axis="one"),
        {"block_idx": BLOCKS[:, :1]},
        lambda b, h, g, i, j, n: j <= i and j // 4 in BLOCKS[b, 0, i // 8],
    ),
}


def doc(b, i, table=DOC):
    """A read outside the tensor gives -1."""
    return table[b, i] if 0 <= i < LONGEST else -1


def by_loop(predicate, rows, keys):
    result = np.zeros((B, H, rows, keys), bool)
    for b, h, row, j in np.ndindex(result.shape):
        result[b, h, row, j] = predicate(b, h, h // (H // G), row + keys - rows, j, keys)
    return result


@pytest.mark.parametrize(("rows", "keys"), SIZES)
@pytest.mark.parametrize("name", CASES)
def test_pattern_equals_its_formula(name, rows, keys):
    mask, values, predicate = CASES[name]
    dense = to_dense(mask, rows, keys, batch=B, heads=H, kv_heads=G, **values)
    assert (dense == by_loop(predicate, rows, keys)).all()


def test_every_pattern_has_a_case():
    first_words = {name.replace(" ", "_") for name in CASES}
    aliases = {"sliding_window": "both sides", "dilated_window": "dilated"}
    aliases["chunk_anchored_a_shape"] = "chunks"
    missing = [n for n in p.__all__ if aliases.get(n, n).replace(" ", "_") not in first_words]
    assert not missing


def pairs(mask, rows, keys=None, **values):
    return int(to_dense(mask, rows, keys, **values).sum())


def test_longlora_uses_floor_division_and_does_not_wrap():
    dense = to_dense(p.shifted_group(8, heads=2), 16, heads=2)[0]
    assert dense[0].sum() == 72
    assert dense[1].sum() == 56  # truncating division gives 88, rolling the sequence 72
    assert not np.triu(dense[1], 1).any()


def test_window_counts_keys_and_left_counts_steps():
    assert to_dense(p.a_shape(0, 5), 20)[0, 0, -1].sum() == 5
    assert to_dense(p.sliding_window(5, 0), 20)[0, 0, -1].sum() == 6
    assert to_dense(p.dilated_window(5, 1), 20)[0, 0, -1].sum() == 5


def test_causal_is_bottom_right():
    assert to_dense(p.causal(), 3, 8)[0, 0].sum(axis=1).tolist() == [6, 7, 8]
    assert to_dense(p.causal(), 8, 3)[0, 0].sum(axis=1).tolist() == [0] * 5 + [1, 2, 3]


def test_counts_of_longca_bench():
    assert pairs(p.prefix_lm(13), 48) == 1254  # `k < P`; with `k <= P` there are 13 more
    assert pairs(p.global_window(6, 6, 6), 48) == 1044


def test_local_blocks_include_the_current_one():
    assert to_dense(p.local_stride(4, 1, 100, step=0, offset=1), 12)[0, 0, 11].sum() == 4


def test_a_node_may_not_see_itself():
    nobody = np.zeros((1, 3, 3), bool)
    dense = to_dense(p.tree(), 3, 5, prefix_len=np.array([2]), ancestor=nobody)[0, 0]
    assert dense.tolist() == [[True, True, False, False, False]] * 3


def test_the_last_document_differs_between_batch_entries():
    ids = np.array([[0, 0, 1, 1], [0, 1, 1, 2]])
    dense = to_dense(p.causal_blockwise(), 4, batch=2, doc_id=ids)[:, 0]
    assert dense.sum(axis=2).tolist() == [[1, 2, 3, 4], [1, 1, 2, 4]]


def test_contiguous_declares_the_table_sorted():
    for build in (p.document, p.anchor_document, p.share_question, p.causal_blockwise):
        assert "sorted=True" in str(build())
        assert "sorted" not in str(build(contiguous=False))
    assert "sorted=True" in str(p.frame_causal())
    assert "sorted" not in str(p.frame_causal(contiguous=False))
    assert "sorted" not in str(p.block_causal(4, document=True, contiguous=False))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: p.a_shape(-1, 8), "sink=-1"),
        (lambda: p.a_shape(4, 0), "window=0"),
        (lambda: p.a_shape(4, 8.0), "window=8.0"),
        (lambda: p.a_shape(True, 8), "sink=True"),
        (lambda: p.a_shape(k <= q, 8), "sink=k <= q"),
        (lambda: p.tri_shape(4, 8, -2), "last=-2"),
        (lambda: p.sliding_window(-1, 0), "left=-1"),
        (lambda: p.chunk_anchored_a_shape(4, 8, 0), "chunk=0"),
        (lambda: p.dilated_window(8, 0), "dilation=0"),
        (lambda: p.dilated_window(8, param("step")), "dilation=param"),
        (lambda: p.dilated_window(8, 2, dense=9), "dense part beyond"),
        (lambda: p.global_window(1, 1, -1), "n_global=-1"),
        (lambda: p.prefix_lm(-1), "prefix=-1"),
        (lambda: p.prefix_lm_document("12"), "prefix=12"),
        (lambda: p.anchor_document(0), "n_anchor=0"),
        (lambda: p.block_causal(0), "block=0"),
        (lambda: p.vertical_slash(tiled=8), "tiled=8"),
        (lambda: p.vertical_slash(tiled=48), "tiled=48"),
        (lambda: p.vertical_slash(tiled=64.0), "tiled=64.0"),
        (lambda: p.local_stride(0, 1, 8), "block=0"),
        (lambda: p.local_stride(4, 0, 8), "local_blocks=0"),
        (lambda: p.local_stride(4, 1, 0), "stride=0"),
        (lambda: p.local_stride(4, 1, 8, step=-1), "step=-1"),
        (lambda: p.local_stride(4, 1, 8, offset=0.5), "offset=0.5"),
        (lambda: p.local_stride(4, 1, 8, head_axis="batch"), "head_axis"),
        (lambda: p.local_stride(4, 1, 8, dense_heads=1), "number of heads"),
        (lambda: p.local_stride(4, 1, 8, heads=2, dense_heads=3), "dense_heads=3"),
        (lambda: p.local_stride(4, 1, 8, heads=0), "heads=0"),
        (lambda: p.local_stride(4, 1, 8, head_axis="one"), "head_axis"),
        (lambda: p.shifted_group(1, 4), "group=1"),
        (lambda: p.shifted_group(8, 0), "heads=0"),
        (lambda: p.block_list(64, 0), "block_k=0"),
        (lambda: p.block_list(64, 64, head_axis="all"), "head_axis"),
    ],
)
def test_nonsense_parameters_are_refused(build, words):
    with pytest.raises(MaskError, match=words):
        build()
