"""What the peer of ``peers/minference.py`` attends to, in numpy: its reference, not its code."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def visited(diagonals: Ints, block: int, length: int, size: int = 64) -> Bools:
    """(length,) bool: the keys in tiles of one block of queries of one head.

    A diagonal ``d`` puts a tile before ``max(end - d, size)``, where ``end`` is the end of the
    block. From left to right, a tile that begins within the tiles before it, or where they end, is
    replaced by the tile behind them, unless it ends within them.
    """
    end = (block + 1) * size
    until = np.unique(np.maximum(end - diagonals[diagonals < end], size))
    found = np.zeros(length + 2 * size, np.bool_)
    stop = -2 * size
    for last in until.tolist():
        if last <= stop:
            continue
        start = max(stop, last - size)
        stop = start + size
        found[start:stop] = True
    return found[:length]


def rows(columns: Ints, diagonals: Ints, queries: Ints, length: int, size: int = 64) -> Bools:
    """(queries, length) bool: the keys of some queries of one head.

    Columns to the right of the last tile of a block are lost, unless a diagonal of 0 is listed.
    """
    found = np.zeros((len(queries), length), np.bool_)
    keys = np.arange(length)
    for number, query in enumerate(queries.tolist()):
        tiles = visited(diagonals, query // size, length, size)
        last = int(np.flatnonzero(tiles).max(initial=-1))
        listed = columns[columns <= last]
        found[number] = tiles & (keys <= query)
        found[number, listed[~tiles[listed]]] = True
    return found
