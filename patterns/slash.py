"""Runtime lists of columns and diagonals."""

from __future__ import annotations

from maskwright.dsl.errors import MaskError
from maskwright.dsl.expr import Expr
from maskwright.dsl.symbols import b
from maskwright.dsl.symbols import h
from maskwright.dsl.symbols import k
from maskwright.dsl.symbols import q
from maskwright.dsl.symbols import table

_TILES = (16, 32, 64, 128, 256)  # more queries with the same diagonals take the general path


def vertical_slash(*, tiled: int | None = None) -> Expr:
    """Each query head attends to listed columns and listed diagonals: token exact, or tiles of them.

    Formula: ``k <= q and (k in v_idx[b, h] or q - k in s_idx[b, h])``. With ``tiled=T`` and
    ``e = q // T * T + T``, the end of the query's block of T, a diagonal s gives the whole tile of
    keys that its pairs of the block lie in:
    ``k <= q and (k in v_idx[b, h] or e - s - T <= k < e - s for an s in s_idx[b, h])``.

    Runtime tensors, in any order, padded with -1: ``v_idx``, int32 [batch, heads, nV], key
    positions; ``s_idx``, int32 [batch, heads, nS], distances ``q - k`` (0 is the diagonal).

    Args:
        tiled: queries of a block and keys of a tile, 16, 32, 64, 128 or 256; None: token exact.

    Source: MInference and Qwen2.5-1M, whose kernels have tiles of 64 (``tiled=64``). Theirs differ
    from these in three ways, in which a pair's distance or what else is listed decides. A tile that
    would begin before key 0 is moved to begin there. Of two tiles that overlap or touch, the
    second is moved behind the first. Columns right of the last tile are lost, unless diagonal 0 is
    listed. Here tiles are what the formula says, and no column is lost: with diagonal 0 listed, all
    pairs are theirs too, and of theirs 1.5 % to 15 % are left out (lists of ``benchmarks.lists``,
    counted with ``benchmarks/tiled.py``).

    Raises:
        MaskError: for another ``tiled``.

    >>> from maskwright import patterns
    >>> str(patterns.vertical_slash()).count(".isin(")
    2
    >>> str(patterns.vertical_slash(tiled=64)).split(" | ")[1]
    '(q // 64 * 64 + 63 - k).isin(table("s_idx", ndim=3)[b, h], run=64))'
    """
    columns = table("v_idx", ndim=3)
    diagonals = table("s_idx", ndim=3)
    if tiled is None:
        return (k <= q) & (k.isin(columns[b, h]) | (q - k).isin(diagonals[b, h]))
    if type(tiled) is not int or tiled not in _TILES:
        raise MaskError(
            "vertical_slash() has tiles of 16, 32, 64, 128 or 256",
            expression=f"tiled={tiled!r}",
            fix="tiled=64 for MInference's, None for exact diagonals",
        )
    last = q // tiled * tiled + (tiled - 1)
    return (k <= q) & (k.isin(columns[b, h]) | (last - k).isin(diagonals[b, h], run=tiled))
