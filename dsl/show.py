"""A mask to look at: its tile map as text, and mask and tile map as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from maskwright.dsl.errors import MaskwrightError
from maskwright.dsl.errors import ShapeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array: TypeAlias = npt.NDArray[Any]

SKIPPED, PARTIAL, FULL = 0, 1, 2
CLASS_NAMES = ("skipped", "partial", "full")
_SIGNS = np.array([".", "+", "#"])
_COLORS = ("#e9ecf1", "#f4a340", "#2b6cb0")
_INK = "#1b2a41"
_WIDEST = 96  # tiles a line of text; larger maps are coarsened


def tile_classes(dense: Array, tile: tuple[int, int]) -> npt.NDArray[np.int8]:
    """Class of each tile, by brute force: 0 skipped, 1 partial, 2 full.

    Args:
        dense: bool of shape (q_len, kv_len).
        tile: rows and columns of a tile; tiles at the end may be cut off.

    >>> tile_classes(np.tri(4, 4, dtype=bool), (2, 2)).tolist()
    [[1, 0], [2, 1]]
    """
    dense = np.asarray(dense, dtype=bool)
    if dense.ndim != 2 or min(tile) < 1:
        raise ShapeError(
            "tile_classes() takes a 2-D mask and a tile of at least 1 x 1",
            expression=f"shape {dense.shape}, tile {tile}",
            fix="choose one batch entry and head: dense[0, 0]",
        )
    pairs, area = dense, np.ones((1, 1), np.int64)
    for axis, size in enumerate(tile):
        starts = np.arange(0, dense.shape[axis], size)
        pairs = np.add.reduceat(pairs, starts, axis=axis, dtype=np.int64)
        lengths = np.diff(starts, append=dense.shape[axis])
        area = area * np.expand_dims(lengths, 1 - axis)
    return np.where(pairs == 0, SKIPPED, np.where(pairs == area, FULL, PARTIAL)).astype(np.int8)


def tile_counts(tiles: Array) -> dict[str, int]:
    """Number of tiles of each class, by class name.

    >>> tile_counts(np.array([[1, 0], [2, 1]]))
    {'skipped': 1, 'partial': 2, 'full': 1}
    """
    return {name: int(np.sum(tiles == number)) for number, name in enumerate(CLASS_NAMES)}


def ascii_map(tiles: Array) -> str:
    """The tile map as text, one sign a tile, with a legend.

    Maps wider or higher than 96 tiles are coarsened: a group of tiles is full or skipped only if
    all of it is.

    >>> print(ascii_map(np.array([[1, 0], [2, 1]])))
        k ->
    q | + .
    | | # +
    v
    # full 1   + partial 2   . skipped 1
    """
    tiles = np.asarray(tiles)
    if tiles.ndim != 2:
        raise ShapeError("ascii_map() takes a 2-D tile map", expression=f"shape {tiles.shape}")
    step = max(1, -(-max(tiles.shape, default=0) // _WIDEST))
    rows = [" ".join(_SIGNS[row]) for row in _coarsen(tiles, step)]
    arrow = ["q", *"|" * (len(rows) - 1)]
    body = [f"{left} | {row}" for left, row in zip(arrow, rows, strict=False)]
    note = f"   (one sign: {step} x {step} tiles)" if step > 1 else ""
    return "\n".join(["    k ->", *body, "v", _legend(tiles) + note])


def _legend(tiles: Array) -> str:
    counts = tile_counts(tiles)
    return "   ".join(f"{_SIGNS[i]} {CLASS_NAMES[i]} {counts[CLASS_NAMES[i]]}" for i in (2, 1, 0))


def _coarsen(tiles: Array, step: int) -> Array:
    if step == 1:
        return tiles
    full = tile_classes(tiles == FULL, (step, step))
    some = tile_classes(tiles != SKIPPED, (step, step))
    return np.where(full == FULL, FULL, np.where(some == SKIPPED, SKIPPED, PARTIAL))


def draw_png(
    dense: Array, tiles: Array, tile: tuple[int, int], path: str | Path, title: str = ""
) -> Path:
    """Draw mask (left) and tile map (right) into a file.

    Args:
        dense: bool of shape (q_len, kv_len).
        tiles: tile classes as ``tile_classes`` gives them.
        tile: rows and columns of a tile.
        path: the file; its suffix (.png, .svg, .pdf) chooses the format.
        title: usually the mask's text; long ones are cut.

    Returns:
        The path written.

    Raises:
        MaskwrightError: matplotlib is not installed, or cannot write this format.
    """
    target = Path(path)
    figure = _figure(target)
    left, right = figure.subplots(1, 2)
    if title:
        figure.suptitle(_cut(title), x=0.5, fontsize=11, family="monospace", color=_INK)
    _draw_mask(left, np.asarray(dense, dtype=bool))
    _draw_tiles(right, np.asarray(tiles), tile, np.shape(dense))
    _save(figure, target)
    return target


def _cut(title: str) -> str:
    return title if len(title) <= 100 else f"{title[:97]}..."


def _figure(target: Path) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MaskwrightError(
            "drawing needs matplotlib, which is not installed",
            expression=target,
            fix="pip install matplotlib, or leave path out for text",
        ) from None
    figure = Figure(figsize=(11, 5.8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)  # no window, whatever the user's default backend is
    return figure


def _draw_mask(axes: Axes, dense: Array) -> None:
    from matplotlib.colors import ListedColormap

    colors = ListedColormap(["#ffffff", _INK])
    # Antialiasing shows thin stripes that nearest-neighbour sampling would drop.
    axes.imshow(dense, cmap=colors, vmin=0, vmax=1, aspect="auto", interpolation="antialiased")
    _label(axes, f"mask: {dense.mean() if dense.size else 0.0:.1%} of pairs attended")


def _draw_tiles(axes: Axes, tiles: Array, tile: tuple[int, int], shape: tuple[int, ...]) -> None:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    rows, columns = tiles.shape
    extent = (-0.5, columns * tile[1] - 0.5, rows * tile[0] - 0.5, -0.5)
    colors = ListedColormap(list(_COLORS))
    axes.imshow(
        tiles, cmap=colors, vmin=0, vmax=2, aspect="auto", interpolation="nearest", extent=extent
    )
    axes.set_xlim(-0.5, shape[1] - 0.5)
    axes.set_ylim(shape[0] - 0.5, -0.5)
    _tile_grid(axes, tiles, tile)
    _label(axes, f"tiles of {tile[0]} x {tile[1]}")
    counts = tile_counts(tiles)
    patches = [
        Patch(facecolor=_COLORS[i], edgecolor="#8894a5", label=f"{name}  {counts[name]:,}")
        for i, name in reversed(list(enumerate(CLASS_NAMES)))
    ]
    axes.legend(
        handles=patches, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False
    )


def _tile_grid(axes: Axes, tiles: Array, tile: tuple[int, int]) -> None:
    """White lines between tiles, where there are few enough to see them."""
    if max(tiles.shape) > 64:
        return
    rows, columns = tiles.shape
    axes.hlines(np.arange(1, rows) * tile[0] - 0.5, -0.5, columns * tile[1] - 0.5, "white", lw=0.6)
    axes.vlines(np.arange(1, columns) * tile[1] - 0.5, -0.5, rows * tile[0] - 0.5, "white", lw=0.6)


def _label(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, color=_INK)
    axes.set_xlabel("k (key position)", color=_INK)
    axes.set_ylabel("q (query row)", color=_INK)
    axes.tick_params(colors="#5a6675", labelsize=8)
    for side in axes.spines.values():
        side.set_color("#8894a5")


def _save(figure: Figure, target: Path) -> None:
    import matplotlib as mpl

    # The same mask gives the same bytes: no date, no random element names.
    stable = {"Date": None} if target.suffix == ".svg" else {}
    try:
        with mpl.rc_context({"svg.hashsalt": "maskwright"}):
            figure.savefig(target, metadata=stable)
    except ValueError as error:
        raise MaskwrightError(
            f"cannot draw a {target.suffix or 'file without suffix'}: {error}",
            expression=target,
            fix="use a path that ends in .png or .svg",
        ) from None
