"""Windows over the distance ``q - k``, with and without sinks and globals.

``window=w`` counts keys including the current one (``q - k < w``); ``left`` and ``right`` are
inclusive distances, so ``left=w`` keeps w + 1 keys. Both conventions are in use; they differ by one.
"""

from __future__ import annotations

from maskwright.dsl.errors import MaskError
from maskwright.dsl.expr import Expr
from maskwright.dsl.symbols import b
from maskwright.dsl.symbols import k
from maskwright.dsl.symbols import kv_len
from maskwright.dsl.symbols import q
from maskwright.dsl.symbols import table
from maskwright.patterns.basic import full
from maskwright.patterns.common import Size
from maskwright.patterns.common import check_constants
from maskwright.patterns.common import check_sizes
from maskwright.patterns.common import is_zero
from maskwright.patterns.common import same


def sliding_window(left: Size | None = None, right: Size | None = None) -> Expr:
    """A band around the diagonal, both ends inclusive.

    Formula: ``q - k <= left and k - q <= right``; ``right=0`` is a causal window of left + 1 keys.

    Args:
        left: how far back a query sees; None means without limit.
        right: how far ahead; None means without limit.

    Source: the inclusive convention of FlashAttention's ``window_size``; LongCA-bench, NSA, LongSpec.

    Raises:
        MaskError: for a negative side (there -1 means "no limit", here None does).

    >>> from maskwright import patterns
    >>> str(patterns.sliding_window(left=64, right=0))
    '(q - k <= 64) & (k - q <= 0)'
    """
    given = {name: side for name, side in (("left", left), ("right", right)) if side is not None}
    check_sizes("sliding_window", 0, **given)
    if left is None and right is None:
        return full()
    if left is None:
        return k - q <= given["right"]
    return q - k <= left if right is None else (q - k <= left) & (k - q <= right)


def a_shape(sink: Size, window: Size) -> Expr:
    """Attention sinks and a causal window.

    Formula: ``k <= q and (k < sink or q - k < window)``.

    Args:
        sink: number of first keys everyone sees; 0 leaves a plain window.
        window: number of keys back from and including the query's own.

    Source: StreamingLLM; the A-shape heads of MInference, the streaming heads of DuoAttention.

    Raises:
        MaskError: for a negative sink or a window below 1.

    >>> from maskwright import patterns
    >>> str(patterns.a_shape(sink=4, window=8))
    '(k <= q) & ((k < 4) | (q - k < 8))'
    """
    check_sizes("a_shape", 0, sink=sink)
    check_sizes("a_shape", 1, window=window)
    return (k <= q) & _sink_or(sink, q - k < window)


def tri_shape(sink: Size, window: Size, last: Size) -> Expr:
    """A-shape, and the last queries see everything before them.

    Formula: ``k <= q and (k < sink or q - k < window or q >= kv_len - last)``.

    Args:
        sink: number of first keys everyone sees.
        window: number of keys back from and including the query's own.
        last: number of final positions whose rows are dense.

    Source: SCBench's tri-shape; TriangleMix.

    Raises:
        MaskError: for a negative sink or last, or a window below 1.

    >>> from maskwright import patterns
    >>> str(patterns.tri_shape(sink=4, window=8, last=2))
    '(k <= q) & ((k < 4) | (q - k < 8) | (q >= kv_len - 2))'
    """
    check_sizes("tri_shape", 0, sink=sink, last=last)
    check_sizes("tri_shape", 1, window=window)
    near = _sink_or(sink, q - k < window)
    return (k <= q) & (near if is_zero(last) else near | (q >= kv_len - last))


def chunk_anchored_a_shape(sink: Size, window: Size, chunk: Size | None = None) -> Expr:
    """A-shape whose window hangs on the start of the query's chunk, not on the query.

    Formula: ``k <= q and (k < sink or k >= c0(q) - window)``, ``c0(q)`` the start of q's chunk.

    Args:
        sink: number of first keys everyone sees.
        window: number of keys kept from before the chunk; the chunk itself is always seen.
        chunk: chunk size. None reads the start of each position's chunk at run time from
            ``chunk_start``, int32 of shape [batch, kv_len], non-decreasing.

    Source: chunked prefill of DuoAttention and Locret, whose caches are cut after each chunk.

    Raises:
        MaskError: for a negative sink or window, or a chunk below 1.

    >>> from maskwright import patterns
    >>> str(patterns.chunk_anchored_a_shape(sink=4, window=8, chunk=16))
    '(k <= q) & ((k < 4) | (k >= q // 16 * 16 - 8))'
    """
    check_sizes("chunk_anchored_a_shape", 0, sink=sink, window=window)
    if chunk is None:
        start = table("chunk_start", ndim=2, sorted=True)[b, q]
    else:
        check_sizes("chunk_anchored_a_shape", 1, chunk=chunk)
        start = q // chunk * chunk
    return (k <= q) & _sink_or(sink, k >= start - window)


def dilated_window(window: Size, dilation: int, dense: Size = 0, sink: Size = 0) -> Expr:
    """A causal window of which only every ``dilation``-th diagonal is kept beyond a dense part.

    Formula: with ``d = q - k``:
    ``k <= q and (k < sink or d < dense or (d < window and (d - dense) % dilation == 0))``.

    Args:
        window: reach of the diagonals, counted like the window of ``a_shape``.
        dilation: distance between kept diagonals.
        dense: number of most recent keys that are all kept.
        sink: number of first keys everyone sees.

    Source: the dilated baselines of MInference, as written there (its kernel runs a dense window).

    Raises:
        MaskError: for a window or dilation below 1, or dense above window.

    >>> from maskwright import patterns
    >>> str(patterns.dilated_window(window=8, dilation=2))
    '(k <= q) & ((q - k < 8) & ((q - k) % 2 == 0))'
    """
    check_sizes("dilated_window", 1, window=window)
    check_constants("dilated_window", 1, dilation=dilation)
    check_sizes("dilated_window", 0, dense=dense, sink=sink)
    if isinstance(window, int) and isinstance(dense, int) and dense > window:
        raise MaskError(
            "dilated_window() has a dense part beyond its window",
            expression=f"dense={dense}, window={window}",
            fix="dense is the recent part of the window",
        )
    behind = q - k if is_zero(dense) else q - k - dense
    far = (q - k < window) & same(behind % dilation, 0)
    return (k <= q) & _sink_or(sink, far if is_zero(dense) else (q - k < dense) | far)


def global_window(left: Size, right: Size, n_global: Size) -> Expr:
    """A two-sided window, plus first positions that see and are seen by all.

    Formula: ``(q - k <= left and k - q <= right) or k < n_global or q < n_global``. Not causal.

    Args:
        left: how far back a query sees, inclusive.
        right: how far ahead, inclusive.
        n_global: number of global positions.

    Source: Longformer; LongCA-bench ``global_sliding_window`` in its plain reading.

    Raises:
        MaskError: for a negative argument.

    >>> from maskwright import patterns
    >>> str(patterns.global_window(left=2, right=2, n_global=1))
    '(q - k <= 2) & (k - q <= 2) | (k < 1) | (q < 1)'
    """
    check_sizes("global_window", 0, left=left, right=right, n_global=n_global)
    near = sliding_window(left, right)
    return near if is_zero(n_global) else near | (k < n_global) | (q < n_global)


def _sink_or(sink: Size, rest: Expr) -> Expr:
    return rest if is_zero(sink) else (k < sink) | rest
