"""Runtime lists of columns and diagonals."""

from __future__ import annotations

from maskwright.dsl.expr import Expr
from maskwright.dsl.symbols import b
from maskwright.dsl.symbols import h
from maskwright.dsl.symbols import k
from maskwright.dsl.symbols import q
from maskwright.dsl.symbols import table


def vertical_slash() -> Expr:
    """Each query head attends to listed columns and listed diagonals, token exact.

    Formula: ``k <= q and (k in v_idx[b, h] or q - k in s_idx[b, h])``.

    Runtime tensors, in any order, padded with -1: ``v_idx``, int32 [batch, heads, nV], key
    positions; ``s_idx``, int32 [batch, heads, nS], distances ``q - k`` (0 is the diagonal).

    Source: MInference and Qwen2.5-1M. This is the exact form; their kernels round a diagonal up to
    64-key tiles and so attend to more.

    >>> from maskwright import patterns
    >>> str(patterns.vertical_slash()).count(".isin(")
    2
    """
    columns = table("v_idx", ndim=3)
    diagonals = table("s_idx", ndim=3)
    return (k <= q) & (k.isin(columns[b, h]) | (q - k).isin(diagonals[b, h]))
