"""The shape of a tile, and what is known of its place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TileShape:
    """Rows of a query tile and keys of a key tile.

    Attributes:
        block_m: queries of a tile.
        block_n: keys of a tile.
        inside: all query positions lie in [0, kv_len), as for every call with the default
            q_offset and q_len <= kv_len, and sorted tables are read inside only. Bounds then
            need fewer comparisons.
    """

    block_m: int
    block_n: int
    inside: bool = True
