"""Tile classes against a loop, the text map, and the picture files."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from maskwright.dsl.errors import MaskwrightError
from maskwright.dsl.errors import ShapeError
from maskwright.dsl.evaluate import to_dense
from maskwright.dsl.show import ascii_map
from maskwright.dsl.show import draw_png
from maskwright.dsl.show import tile_classes
from maskwright.dsl.show import tile_counts
from maskwright.dsl.symbols import k
from maskwright.dsl.symbols import q


def by_loop(dense, tile):
    rows = range(0, dense.shape[0], tile[0])
    columns = range(0, dense.shape[1], tile[1])
    result = []
    for r in rows:
        blocks = [dense[r : r + tile[0], c : c + tile[1]] for c in columns]
        result.append([2 if x.all() else 1 if x.any() else 0 for x in blocks])
    return result


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 48), (33, 100)])
@pytest.mark.parametrize("tile", [(1, 1), (8, 16), (5, 3), (128, 128)])
def test_tile_classes_equal_a_loop(shape, tile):
    rng = np.random.default_rng(sum(shape))
    dense = np.repeat(rng.random((shape[0], -(-shape[1] // 9))) < 0.6, 9, axis=1)[:, : shape[1]]
    dense[: shape[0] // 2, : shape[1] // 2] = True
    dense[: shape[0] // 2, shape[1] // 2 :] = False
    assert tile_classes(dense, tile).tolist() == by_loop(dense, tile)


def test_tile_classes_refuse_a_batch_and_an_empty_tile():
    with pytest.raises(ShapeError, match="2-D"):
        tile_classes(np.ones((1, 1, 4, 4), bool), (2, 2))
    with pytest.raises(ShapeError, match="1 x 1"):
        tile_classes(np.ones((4, 4), bool), (0, 2))
    assert tile_classes(np.ones((0, 4), bool), (2, 2)).shape == (0, 2)


def test_the_map_of_a_window():
    dense = to_dense((k <= q) & (q - k < 8), 16)[0, 0]
    tiles = tile_classes(dense, (4, 4))
    assert ascii_map(tiles).splitlines() == [
        "    k ->",
        "q | + . . .",
        "| | # + . .",
        "| | + # + .",
        "| | . + # +",
        "v",
        "# full 3   + partial 6   . skipped 7",
    ]
    assert tile_counts(tiles) == {"skipped": 7, "partial": 6, "full": 3}


def test_a_large_map_is_coarsened_soundly():
    tiles = np.full((200, 200), 2)
    tiles[0, 0] = 1
    tiles[3:, 3:] = 0
    lines = ascii_map(tiles).splitlines()
    signs = [line[4:].split() for line in lines[1:-2]]
    assert len(signs) == len(signs[0]) == 67
    assert (signs[0][0], signs[0][1], signs[1][0], signs[1][1]) == ("+", "#", "#", ".")
    assert lines[-1].startswith("# full 1190   + partial 1   . skipped 38809   (one sign: 3 x 3")


def test_the_map_needs_two_dimensions():
    with pytest.raises(ShapeError, match="2-D"):
        ascii_map(np.zeros(4))


@pytest.fixture(scope="module")
def example():
    dense = to_dense((k <= q) & (q - k < 20), 50, 70)[0, 0]
    return dense, tile_classes(dense, (16, 16))


def test_png(example, tmp_path):
    image = pytest.importorskip("matplotlib.image")
    path = draw_png(*example, (16, 16), tmp_path / "window.png", "(k <= q) & (q - k < 20)")
    pixels = image.imread(path)
    assert pixels.shape[0] > 400
    assert pixels.shape[1] > pixels.shape[0]
    colors = {tuple(c) for c in (pixels.reshape(-1, 4)[:, :3] * 255).round().astype(int)}
    assert {(233, 236, 241), (244, 163, 64), (27, 42, 65)} <= colors  # skipped, partial, attended


def test_svg_names_everything_and_is_stable(example, tmp_path):
    mpl = pytest.importorskip("matplotlib")
    texts = []
    with mpl.rc_context({"svg.fonttype": "none"}):
        for name in ("a.svg", "b.svg"):
            draw_png(*example, (16, 16), tmp_path / name, "window of 20")
            texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]
    counts = tile_counts(example[1])
    for words in ("window of 20", "k (key position)", "q (query row)", "tiles of 16 x 16"):
        assert words in texts[0]
    for name, count in counts.items():
        assert f"{name}  {count}" in texts[0]
    assert f"{example[0].mean():.1%} of pairs" in texts[0]


def test_an_unknown_suffix_is_a_clear_error(example, tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(MaskwrightError, match=r"ends in \.png or \.svg"):
        draw_png(*example, (16, 16), tmp_path / "window.tile")


def test_matplotlib_is_only_needed_to_draw(example, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MaskwrightError, match="pip install matplotlib"):
        draw_png(*example, (16, 16), tmp_path / "window.png")
