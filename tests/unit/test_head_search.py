"""The search of a pattern for each head, and its file."""

from __future__ import annotations

import json

import pytest

torch = pytest.importorskip("torch")

import maskwright as mw  # noqa: E402
from maskwright.patterns import selectors as s  # noqa: E402
from maskwright.patterns.selectors.candidates import _marked  # noqa: E402
from maskwright.patterns.selectors.search import best  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTH, DIM = 384, 64
NEAR, LINES, BLOCKS = s.AShape(4, 24), s.VerticalSlash(40, 110), s.BlockList(2, 32)


def samples():
    """Head 0 looks at its own neighbourhood, head 1 at far columns, head 2 everywhere alike."""
    generator = torch.Generator().manual_seed(0)
    key = torch.nn.functional.normalize(torch.randn(1, 1, LENGTH, DIM, generator=generator), dim=-1)
    query = torch.zeros(1, 3, LENGTH, DIM)
    query[:, 0] = 30 * key[:, 0].roll(3, 1)
    query[:, 1] = 30 * key[:, 0, 50] + 30 * key[:, 0, 61]
    return query, key


def test_each_head_gets_what_keeps_its_attention():
    query, key = samples()
    layer = s.search(query, key, 0.6, candidates=(NEAR, LINES), scale=1.0)
    assert layer[1].pattern == LINES
    assert layer[1].recall > 0.95
    cheap = s.search(query, key, 0.2, candidates=(NEAR, LINES), scale=1.0)
    assert cheap[0].pattern == NEAR
    assert cheap[0].recall > 0.95
    assert cheap[1].recall < 0.5  # nothing within the budget suits it


def test_recall_and_share_are_those_of_the_dense_mask():
    query, key = samples()
    query, key = query[:, :, -200:], key.expand(-1, 3, -1, -1)
    candidates = (s.Causal(), NEAR, LINES, BLOCKS)
    position = torch.arange(184, 384)
    logits = (query @ key.transpose(-1, -2)).masked_fill(
        torch.arange(LENGTH) > position[:, None], -torch.inf
    )
    weights = logits.softmax(-1)
    for candidate in candidates:
        layer = s.search(query, key, 1.0, candidates=[candidate], rows=500, scale=1.0)
        lists = {name: x.numpy() for name, x in s.lists_of(layer, query, key).items()}
        dense = mw.to_dense(s.mask_of(layer), 200, LENGTH, heads=3, kv_heads=3, **lists)
        kept = torch.tensor(dense)
        for head, found in enumerate(layer):
            recall = (weights * kept)[0, head].sum(-1).mean()
            assert found.recall == pytest.approx(float(recall), abs=1e-5)
            assert found.share == pytest.approx(
                int(kept[0, head].sum()) / int((position + 1).sum())
            )


def test_padding_marks_nothing():
    found = _marked(torch.tensor([[2, -1, 0, 2], [-1, -1, -1, -1]]), 4)
    assert found.tolist() == [[True, False, True, False], [False] * 4]
    assert not _marked(torch.tensor([[-1, 3]]), 4)[0, :3].any()


def test_budgets_and_ties():
    def head(recall, share):
        return s.Head(s.Causal(), recall, share)

    tried = [head(0.9, 0.5), head(0.8, 0.2), head(0.8, 0.1), head(0.3, 0.05)]
    assert best(tried, 0.6) == tried[0]
    assert best(tried, 0.4) == tried[2]  # as good and cheaper
    assert best(tried, 0.01) == tried[3]
    query, key = samples()
    for budget in ([0.1], []):
        with pytest.raises(mw.ShapeError, match="budget"):
            s.search(query, key, budget)
    with pytest.raises(mw.ShapeError, match="candidate"):
        s.search(query, key, 0.1, candidates=())


def test_a_budget_a_head():
    query, key = samples()
    layer = s.search(query, key, [0.01, 1.0, 1.0], candidates=(NEAR, s.Causal()))
    assert [x.pattern for x in layer] == [NEAR, s.Causal(), s.Causal()]
    assert layer[1].recall == pytest.approx(1.0)
    assert layer[1].share == 1.0


def test_mixed_heads_run():
    """One launch: a window, dense, and two sizes of lists; heads without lists have padding."""
    layer = tuple(
        s.Head(x, 1.0, 1.0)
        for x in (NEAR, s.VerticalSlash(5, 9), s.Causal(), s.VerticalSlash(50, 3))
    )
    mask = s.mask_of(layer)
    assert str(mask).startswith("by_head([0, 1, 2, 1], [")
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, 4, 70, 16, generator=generator)
    key = torch.randn(1, 2, 90, 16, generator=generator)
    lists = s.lists_of(layer, query, key)
    assert [(x >= 0).sum().item() for x in lists["v_idx"][0]] == [0, 5, 0, 50]
    assert [(x >= 0).sum().item() for x in lists["s_idx"][0]] == [0, 9, 0, 3]
    out = mw.attention(query, key, key, mask, **lists)
    dense = torch.tensor(
        mw.to_dense(mask, 70, 90, heads=4, kv_heads=2, **{x: y.numpy() for x, y in lists.items()})
    )
    logits = (query @ key.repeat_interleave(2, 1).transpose(-1, -2)) / 4
    weights = logits.masked_fill(~dense, -torch.inf).softmax(-1)
    torch.testing.assert_close(out, weights @ key.repeat_interleave(2, 1), atol=1e-5, rtol=1e-4)


def test_block_lists_of_one_layer_have_one_size():
    layer = tuple(s.Head(x, 1.0, 1.0) for x in (s.BlockList(2, 32), s.BlockList(3, 64)))
    query = torch.zeros(1, 2, 70, 16)
    with pytest.raises(mw.ShapeError, match="one size"):
        s.lists_of(layer, query, query)
    with pytest.raises(mw.ShapeError, match="2 heads"):
        s.lists_of(layer, query[:, :1], query)


# -- the file -------------------------------------------------------------------------------------
def test_a_file_is_read_as_it_was_written(tmp_path):
    query, key = samples()
    layers = [s.search(query, key, 0.5, candidates=(NEAR, LINES, BLOCKS, s.Causal()))] * 2
    s.write(tmp_path / "heads.json", layers)
    found = s.read(tmp_path / "heads.json")
    assert [[x.pattern for x in layer] for layer in found] == [[x.pattern for x in layers[0]]] * 2
    assert found[0][0].recall == pytest.approx(layers[0][0].recall, abs=1e-6)
    assert str(s.mask_of(found[0])) == str(s.mask_of(layers[0]))
    assert [x.name for x in tmp_path.iterdir()] == ["heads.json"]


GOOD = {"pattern": "a_shape", "sink": 4, "window": 24, "recall": 0.5, "share": 0.1}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pattern": "b_shape"}, "names a pattern"),
        ({"pattern": ["a_shape"]}, "names a pattern"),
        ({"window": -1}, "sizes"),
        ({"window": True}, "sizes"),
        ({"window": 2.5}, "sizes"),
        ({"windows": 3}, "sizes"),
        ({"recall": "high"}, "recall"),
        ({"share": float("nan")}, "share"),
    ],
)
def test_heads_that_do_not_exist_are_refused(tmp_path, change, says):
    path = tmp_path / "heads.json"
    whole = {"format": "maskwright heads", "version": 1, "layers": [[GOOD]]}
    path.write_text(json.dumps(whole))
    assert s.read(path)[0][0].pattern == s.AShape(4, 24)
    path.write_text(json.dumps(whole | {"layers": [[GOOD | change]]}))
    with pytest.raises(mw.MaskError, match=says):
        s.read(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no JSON"),
        ("[]", "no file"),
        ('{"format": "maskwright heads", "version": 2}', "version"),
        ('{"format": "maskwright heads", "version": 1, "layers": 3}', "layers"),
        ('{"format": "maskwright heads", "version": 1, "layers": [[]]}', "layers"),
    ],
)
def test_other_files_are_refused(tmp_path, text, says):
    path = tmp_path / "heads.json"
    path.write_text(text)
    with pytest.raises(mw.MaskError, match=says):
        s.read(path)
