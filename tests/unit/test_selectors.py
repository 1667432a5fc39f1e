"""Selectors on the CPU: against plain loops over the definition, and their traps."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import maskwright as mw  # noqa: E402
from maskwright import patterns  # noqa: E402
from maskwright.patterns import selectors  # noqa: E402
from maskwright.patterns.selectors import nsa  # noqa: E402
from maskwright.patterns.selectors.blocks import block_means  # noqa: E402
from maskwright.patterns.selectors.choose import ascending  # noqa: E402
from maskwright.patterns.selectors.choose import top  # noqa: E402
from maskwright.patterns.selectors.slash import torch_sums  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def inputs(q_len, kv_len, *, batch=2, heads=4, kv_heads=2, dim=8, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(batch, heads, q_len, dim, generator=generator).to(dtype)
    return query, torch.randn(batch, kv_heads, kv_len, dim, generator=generator).to(dtype)


def weights_of(query, key, head, row, position):
    """Softmax of one row of the first batch entry over the keys up to its position; plain loops."""
    group = query.shape[1] // key.shape[1]
    logits = [
        float(query[0, head, row] @ key[0, head // group, k]) / math.sqrt(query.shape[-1])
        for k in range(min(position + 1, key.shape[2]))
    ]
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


# -- the choice -----------------------------------------------------------------------------------
def test_top_takes_the_largest_and_of_equal_ones_the_first():
    scores = torch.tensor([[[1.0, 3.0, -2.0, 3.0, 0.0, -0.0, 3.0]]])
    assert set(top(scores, 2)[0, 0].tolist()) == {1, 3}
    assert set(top(scores, 5)[0, 0].tolist()) == {1, 3, 6, 0, 4}
    assert top(scores, 9).dtype == torch.int32


def test_top_pads_and_never_takes_minus_infinity():
    scores = torch.tensor([[[-torch.inf, -5.0, torch.inf, -torch.inf]]])
    found = top(scores, 6)[0, 0].tolist()
    assert sorted(found) == [-1, -1, -1, -1, 1, 2]
    assert ascending(top(scores, 6))[0, 0].tolist() == [1, 2, -1, -1, -1, -1]


def test_top_with_a_budget_a_head():
    scores = torch.rand(2, 3, 50, generator=torch.Generator().manual_seed(1))
    found = top(scores, [0, 4, 60])
    assert found.shape == (2, 3, 60)
    assert [(x >= 0).sum().item() for x in found[1]] == [0, 4, 50]
    best = scores[1, 1].topk(4).indices.tolist()
    assert set(found[1, 1, :4].tolist()) == set(best)


@pytest.mark.parametrize("budget", [-1, [1, 2], [1, 2, -3]])
def test_top_refuses_other_budgets(budget):
    with pytest.raises(mw.ShapeError, match="budget"):
        top(torch.zeros(1, 3, 5), budget)


# -- columns and diagonals ------------------------------------------------------------------------
@pytest.mark.parametrize(("q_len", "kv_len", "last"), [(20, 20, 64), (9, 30, 5), (12, 7, 12)])
def test_sums_by_column_and_diagonal(q_len, kv_len, last):
    query, key = inputs(q_len, kv_len)
    columns, diagonals = torch_sums(query, key, last, query.shape[-1] ** -0.5)
    wanted = np.zeros((2, 4, kv_len))
    for head in range(4):
        for row in range(max(0, q_len - last), q_len):
            position = kv_len - q_len + row
            for k, weight in enumerate(weights_of(query, key, head, row, position)):
                wanted[0, head, k] += weight
                wanted[1, head, position - k] += weight
    np.testing.assert_allclose(columns[0], wanted[0], atol=1e-5)
    np.testing.assert_allclose(diagonals[0], wanted[1], atol=1e-5)


def test_first_columns_and_recent_diagonals_are_forced():
    query, key = inputs(300, 300)
    found = selectors.vertical_slash(query, key, columns=40, diagonals=120)
    assert found["v_idx"].shape == (2, 4, 40)
    assert found["s_idx"].shape == (2, 4, 120)
    for columns, diagonals in zip(
        found["v_idx"].flatten(0, 1), found["s_idx"].flatten(0, 1), strict=True
    ):
        assert set(range(30)) <= set(columns.tolist())
        assert set(range(100)) <= set(diagonals.tolist())
        assert len(set(columns.tolist())) == 40
    few = selectors.vertical_slash(query, key, columns=4, diagonals=7)
    assert ascending(few["v_idx"])[0, 0].tolist() == [0, 1, 2, 3]
    assert ascending(few["s_idx"])[1, 3].tolist() == list(range(7))


def test_the_heaviest_column_and_diagonal_are_found():
    """All queries look at key 111; those of head 1 also at the key 37 before theirs."""
    length, dim = 256, 64
    key = torch.nn.functional.normalize(
        torch.randn(1, 1, length, dim, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    query = (20 * key[:, :, 111:112]).expand(1, 2, length, dim).clone()
    query[:, 1] = 20 * key[:, 0].roll(37, 1)
    options = {"first": 0, "recent": 0, "scale": 1.0}
    found = selectors.vertical_slash(query, key, columns=1, diagonals=1, **options)
    assert found["v_idx"][0, 0].tolist() == [111]
    assert found["s_idx"][0, 1].tolist() == [37]


def test_equal_sums_give_the_nearest():
    query, key = torch.zeros(1, 1, 64, 8), torch.zeros(1, 1, 200, 8)
    options = {"first": 0, "recent": 0}
    found = selectors.vertical_slash(query, key, columns=5, diagonals=5, **options)
    assert ascending(found["v_idx"])[0, 0].tolist() == [0, 1, 2, 3, 4]


def test_vertical_slash_with_a_budget_a_head_feeds_its_pattern():
    query, key = inputs(150, 200)
    found = selectors.vertical_slash(query, key, [40, 0, 30, 200], [100, 150, 0, 3], first=2)
    assert [(x >= 0).sum().item() for x in found["v_idx"][0]] == [40, 0, 30, 200]
    assert [(x >= 0).sum().item() for x in found["s_idx"][0]] == [100, 150, 0, 3]
    lists = {name: x.numpy() for name, x in found.items()}
    dense = mw.to_dense(patterns.vertical_slash(), 150, 200, batch=2, heads=4, kv_heads=2, **lists)
    assert dense[:, 3].sum(-1).tolist() == [list(range(51, 201))] * 2  # all columns: causal
    out = mw.attention(query, key, key, patterns.vertical_slash(), **found)
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_half_precision_inputs_are_summed_in_float32(backend):
    query, key = inputs(70, 90, dtype=torch.bfloat16)
    found = selectors.vertical_slash(query, key, 40, 60, recent=0, first=0, backend=backend)
    wanted = selectors.vertical_slash(query.float(), key.float(), 40, 60, recent=0, first=0)
    assert torch.equal(ascending(found["v_idx"]), ascending(wanted["v_idx"]))


@pytest.mark.parametrize(
    "shapes",
    [((1, 2, 8, 4), (1, 3, 8, 4)), ((1, 2, 8, 4), (2, 2, 8, 4)), ((2, 8, 4), (1, 2, 8, 4))],
)
def test_shapes_that_do_not_fit(shapes):
    query, key = (torch.zeros(x) for x in shapes)
    for selector in (selectors.vertical_slash, selectors.block_top_k, selectors.nsa_blocks):
        with pytest.raises(mw.ShapeError):
            selector(query, key)
    query = torch.zeros(1, 2, 8, 4)
    for backend, says in (("gpu", "backend"), ("triton", "CUDA")):
        with pytest.raises(mw.ShapeError, match=says):
            selectors.vertical_slash(query, query, backend=backend)


# -- blocks ---------------------------------------------------------------------------------------
def test_block_means_of_positions():
    x = torch.arange(10.0)[None, None, :, None]
    assert block_means(x, 4).flatten().tolist() == [1.5, 5.5, 8.5]
    assert block_means(x, 4, offset=6).flatten().tolist() == [0.5, 3.5, 7.5]
    assert block_means(x, 4, offset=3).flatten().tolist() == [0.0, 2.5, 6.5, 9.0]
    assert block_means(x[:, :, :1], 4, offset=5).flatten().tolist() == [0.0]


@pytest.mark.parametrize(("q_len", "kv_len"), [(70, 70), (30, 75), (80, 50)])
@pytest.mark.parametrize("sizes", [(16, 16), (32, 8), (8, 32)])
def test_block_top_k(q_len, kv_len, sizes):
    block_q, block_k = sizes
    query, key = inputs(q_len, kv_len)
    found = selectors.block_top_k(query, key, 3, block_q=block_q, block_k=block_k)["block_idx"]
    assert found.shape == (2, 4, -(-kv_len // block_q), 3)
    offset = kv_len - q_len
    for head in range(4):
        for number, listed in enumerate(found[0, head].tolist()):
            rows = [
                x for x in range(q_len) if offset + x >= 0 and (offset + x) // block_q == number
            ]
            if not rows:
                assert listed == [-1, -1, -1]
                continue
            mean = query[0, head, rows].mean(0)
            last = offset + rows[-1]
            scores = {
                block: float(mean @ key[0, head // 2, block * block_k :][:block_k].mean(0))
                for block in range(last // block_k + 1)
            }
            best = sorted(sorted(scores, key=scores.get, reverse=True)[:3])
            assert listed == best + [-1] * (3 - len(best))


def test_forced_blocks_and_the_pattern():
    query, key = inputs(128, 128)
    options = {"block_q": 16, "block_k": 16}
    found = selectors.block_top_k(query, key, 4, **options, sink_blocks=1, local_blocks=2)
    for row, listed in enumerate(found["block_idx"][1, 2].tolist()):
        assert {0, row, max(0, row - 1)} <= set(listed)
        assert sum(x >= 0 for x in listed) == min(4, row + 1)
    mask = patterns.block_list(16, 16)
    lists = {name: x.numpy() for name, x in found.items()}
    dense = mw.to_dense(mask, 128, batch=2, heads=4, kv_heads=2, **lists)
    assert dense[..., range(128), range(128)].all()  # own blocks
    other = selectors.block_top_k(query, key, 9, **options, causal=False)["block_idx"]
    assert (other[..., :8] >= 0).all()
    assert (other[..., 8:] == -1).all()


def test_blocks_in_pieces(monkeypatch):
    query, key = inputs(200, 260)
    whole = selectors.block_top_k(query, key, 3, block_q=16, block_k=16)["block_idx"]
    tokens = selectors.nsa_blocks(query, key, 4)["block_idx"]
    monkeypatch.setattr("maskwright.patterns.selectors.blocks.SCORES", 500)
    monkeypatch.setattr("maskwright.patterns.selectors.nsa.SCORES", 500)
    assert torch.equal(
        selectors.block_top_k(query, key, 3, block_q=16, block_k=16)["block_idx"], whole
    )
    assert torch.equal(selectors.nsa_blocks(query, key, 4)["block_idx"], tokens)


# -- NSA ------------------------------------------------------------------------------------------
def test_overlap_weighs_five_keys():
    share = nsa.overlap(
        torch.zeros(1, 1, 16, 1), 4, nsa.Sizes(span=32, stride=16, block=64, first=1, recent=2)
    )
    assert share[:, 1].tolist() == [0.0] * 3 + [1.0, 2.0, 2.0, 2.0, 1.0] + [0.0] * 8
    assert share[:, 0].tolist()[:5] == [2.0, 2.0, 2.0, 1.0, 0.0]


def test_a_compressed_key_is_seen_from_its_last_key_on():
    sizes = nsa.Sizes(span=32, stride=16, block=64, first=1, recent=2)
    position = torch.tensor([[30], [31], [46], [47]])
    hidden = sizes.hidden(position, torch.zeros(1, 1, 3, 1))
    assert (~hidden).sum(-1).tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize(("q_len", "kv_len"), [(160, 160), (40, 170)])
def test_nsa_blocks(q_len, kv_len):
    query, key = inputs(q_len, kv_len)
    sizes = {"span": 8, "stride": 4, "block": 16}
    found = selectors.nsa_blocks(query, key, 4, **sizes)["block_idx"]
    assert found.shape == (2, 2, kv_len, 4)
    offset = kv_len - q_len
    assert (found[:, :, :offset] == -1).all()
    compressed = nsa.means(key, 8, 4)
    for group in range(2):
        for row in range(0, q_len, 7):
            position = offset + row
            score = np.zeros(-(-kv_len // 16))
            for head in (2 * group, 2 * group + 1):
                seen = max(0, (position - 8 + 1) // 4 + 1)
                whole = weights_of(
                    query[:, head : head + 1], compressed[:, group : group + 1], 0, row, seen - 1
                )
                for j, weight in enumerate(whole):
                    for k in range(4 * j, 4 * j + 8):
                        score[k // 16] += weight / 4
            own = position // 16
            score[[0, own, max(0, own - 1)]] = np.inf
            best = sorted(np.argsort(-score[: own + 1], kind="stable")[:4].tolist())
            assert found[0, group, position].tolist() == best + [-1] * (4 - len(best))


def test_the_first_queries_of_nsa_see_their_own_block():
    """They see no compressed key: no NaN, and the forced blocks remain."""
    query, key = inputs(20, 20)
    found = selectors.nsa_blocks(query, key, 3)["block_idx"]
    assert (found == torch.tensor([0, -1, -1])).all()
    mask = patterns.block_list(1, 64, head_axis="kv")
    dense = mw.to_dense(mask, 20, batch=2, heads=4, kv_heads=2, block_idx=found.numpy())
    assert (dense == np.tri(20, dtype=bool)).all()
    with pytest.raises(mw.ShapeError, match="compressed"):
        selectors.nsa_blocks(query, key, compressed=key)


# -- pages ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("parts", [1, 2])
def test_quest_pages(parts):
    query, key = inputs(3, 150)
    found = selectors.quest_pages(query, key, 4, page=16, parts=parts)["pages"]
    assert found.shape == (2, 4, 4)
    size = 16 // parts
    for head in range(4):
        scores = np.full(10, -np.inf)
        for start in range(0, 150, size):
            keys = key[0, head // 2, start : start + min(size, 150 - start)]
            bound = torch.maximum(
                query[0, head, -1] * keys.amax(0), query[0, head, -1] * keys.amin(0)
            )
            scores[start // 16] = max(scores[start // 16], float(bound.sum()))
        scores[9] = np.inf
        assert found[0, head].tolist() == sorted(np.argsort(-scores)[:4].tolist())


def test_delta_pages_take_the_largest_head_of_each_key():
    query, key = inputs(2, 70)
    found = selectors.delta_pages(query, key, 4, page=8, recent=2)["pages"]
    assert found.shape == (2, 1, 4)
    weights = np.array([weights_of(query, key, head, 1, 69) for head in range(4)]).max(0)
    scores = np.add.reduceat(weights, range(0, 70, 8))
    scores[-2:] = np.inf
    assert found[0, 0].tolist() == sorted(np.argsort(-scores)[:4].tolist())


def test_delta_prefers_what_one_head_needs_to_what_all_like_a_little():
    """One head puts half its weight on page 1; each of four puts a fifth on page 3."""
    key = torch.zeros(1, 1, 40, 4)
    key[0, 0, 8, 0] = key[0, 0, 24, 1] = 1.0
    query = torch.zeros(1, 5, 1, 4)
    query[0, 0, 0, 0] = math.log(39)  # weight 39 of 78
    query[0, 1:, 0, 1] = math.log(39 / 4)
    found = selectors.delta_pages(query, key, 2, page=8, recent=1, scale=1.0)["pages"]
    assert found[0, 0].tolist() == [1, 4]


def test_pages_as_columns_are_the_same_mask():
    query, key = inputs(1, 75)
    cases = (
        (selectors.quest_pages(query, key, 3)["pages"], "query"),
        (selectors.delta_pages(query, key, 3, recent=1)["pages"], "one"),
    )
    sizes = {"batch": 2, "heads": 4, "kv_heads": 2}
    for pages, axis in cases:
        mask = selectors.page_mask(16, head_axis=axis)
        dense = mw.to_dense(mask, 1, 75, **sizes, pages=pages.numpy())
        lists = selectors.columns_of_pages(pages, 16, 75, heads=4)
        assert lists["v_idx"].max() == 74
        lists = {name: x.numpy() for name, x in lists.items()}
        same = mw.to_dense(patterns.vertical_slash(), 1, 75, **sizes, **lists)
        assert (dense == same).all()
        assert (dense.sum(-1) == 2 * 16 + 11).all()
        assert dense[..., 64:75].all()
    with pytest.raises(mw.ShapeError):
        selectors.columns_of_pages(pages.expand(-1, 3, -1), 16, 75, heads=4)
    with pytest.raises(mw.ShapeError):
        selectors.quest_pages(query, key, 3, parts=3)
