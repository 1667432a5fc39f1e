"""How much of a mask's tile grid a call visits, by class and by count."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from maskwright.autotune.key import Density
from maskwright.codegen.schedule import Schedule
from maskwright.codegen.schedule import derive
from maskwright.codegen.tile import TileShape
from maskwright.codegen.walk import Call
from maskwright.codegen.walk import Ints
from maskwright.codegen.walk import counted
from maskwright.dsl import nodes as n

_TILE = TileShape(128, 64)  # the class must not depend on the configuration that is looked for
# Shares of visited tiles: between the catalogue's full, causal, windowed and strided masks.
_DENSE, _HALF, _SPARSE = 0.9, 0.3, 0.05
_RAGGED = 0.5  # partial share of visited tiles from which the mask's own cost decides


@dataclass(frozen=True)
class Tiles:
    """Tiles that each program visits, by (batch, heads, tiles that stay).

    Attributes:
        full, partial: numpy arrays of that shape, or broadcast to it.
        every: tiles of the whole grid for one program.
    """

    full: Ints
    partial: Ints
    every: int

    @property
    def share(self) -> float:
        """Of the grid that is visited."""
        return float(np.mean(self.full + self.partial)) / max(1, self.every)

    @property
    def ragged(self) -> float:
        """Partial tiles among those visited."""
        return float(self.partial.sum()) / max(1.0, float((self.full + self.partial).sum()))


def tiles(mask: n.Node, call: Call, tile: TileShape) -> Tiles | None:
    """Exact counts of a call; None if the mask has no closed form."""
    schedule = _derived(mask, tile)
    if not schedule.closed:
        return None
    return Tiles(*counted(schedule, call, tile), call.kv_tiles(tile))


@lru_cache(maxsize=512)
def density_class(mask: n.Node, q_len: int, kv_len: int, heads: int = 1) -> Density:
    """The class of a mask at the upper ends of its buckets (logarithms), so that a bucket has one.

    ``runtime`` where runtime values decide, or where only looking at pairs would tell: a new value
    must not change kernels, and a look-up must stay cheap.
    """
    if n.params(mask) or n.tables(mask):
        return "runtime"
    call = _typical(mask, 1 << q_len, 1 << kv_len, heads)
    found = tiles(mask, call, TileShape(_TILE.block_m, _TILE.block_n, call.inside))
    if found is None:
        return "runtime"
    if found.share >= _DENSE:
        return "dense"
    if found.ragged >= _RAGGED:
        return "ragged"
    return "half" if found.share >= _HALF else "sparse" if found.share >= _SPARSE else "thin"


def _typical(mask: n.Node, q_len: int, kv_len: int, heads: int) -> Call:
    by_head = bool(n.symbols(mask) & {"h", "kv_head"})
    return Call(q_len, kv_len, kv_len - q_len, 1, heads if by_head else 1, 1, {})


@lru_cache(maxsize=256)
def _derived(mask: n.Node, tile: TileShape) -> Schedule:
    return derive(mask, tile)
