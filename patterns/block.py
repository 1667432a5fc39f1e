"""Patterns whose definition is in blocks: the block size is part of the meaning, never tuned."""

from __future__ import annotations

from typing import Literal

from maskwright.dsl.errors import MaskError
from maskwright.dsl.expr import Expr
from maskwright.dsl.symbols import b
from maskwright.dsl.symbols import h
from maskwright.dsl.symbols import k
from maskwright.dsl.symbols import q
from maskwright.dsl.symbols import table
from maskwright.dsl.symbols import where
from maskwright.patterns.common import Size
from maskwright.patterns.common import check_constants
from maskwright.patterns.common import check_sizes
from maskwright.patterns.common import head_index
from maskwright.patterns.common import same
from maskwright.patterns.documents import same_document


def local_stride(
    block: int,
    local_blocks: Size,
    stride: int,
    *,
    step: int | None = None,
    offset: int = 0,
    heads: int | None = None,
    head_axis: Literal["kv", "query"] = "kv",
    dense_heads: int = 0,
    sink_blocks: int = 0,
) -> Expr:
    """Local blocks plus every ``stride``-th block, shifted from head to head.

    Formula: with ``bq = q // block``, ``bk = k // block`` and ``g`` the head:
    ``k <= q and (bk < sink_blocks or bq - bk < local_blocks
    or (bk + g * step + offset) % stride == 0 or g >= heads - dense_heads)``.

    Args:
        block: block size in tokens.
        local_blocks: number of blocks back from and including the query's own.
        stride: distance of the strided blocks; their positions are absolute.
        step: shift between neighbouring heads; 0 gives all heads the same blocks. None means
            ``max(1, stride // heads)``, or 1 without ``heads``.
        offset: shift of head 0.
        heads: number of heads on ``head_axis``; needed by ``dense_heads``.
        head_axis: "kv" (a GQA group shares its blocks) or "query".
        dense_heads: number of last heads that are causal without any sparsity.
        sink_blocks: number of first blocks everyone sees.

    Source: dkernel and LongGen (``head_axis="kv"``, offset 0); Phi-3-small as served by vLLM
    (``head_axis="query"``, offset 1).

    Raises:
        MaskError: for sizes below 1, an unknown axis, or dense_heads without or above heads.

    >>> from maskwright import patterns
    >>> str(patterns.local_stride(block=64, local_blocks=16, stride=8))
    '(k <= q) & ((q // 64 - k // 64 < 16) | ((k // 64 + kv_head) % 8 == 0))'
    """
    _check_stride(block, local_blocks, stride, step, offset, sink_blocks)
    head = head_index("local_stride", head_axis, ("kv", "query"))
    if heads is not None:
        check_constants("local_stride", 1, heads=heads)
    if step is None:
        step = max(1, stride // heads) if heads else 1
    kept = q // block - k // block < local_blocks
    if sink_blocks:
        kept = (k // block < sink_blocks) | kept
    kept = kept | same(_shifted(k // block, head, step, offset) % stride, 0)
    if dense_heads:
        kept = kept | (head >= _first_dense(heads, dense_heads))
    return (k <= q) & kept


def block_causal(block: int, *, document: bool = False, contiguous: bool = True) -> Expr:
    """Causal between blocks, full inside a block.

    Formula: ``k // block <= q // block``, and ``doc(q) == doc(k)`` with documents.

    Args:
        block: block size in tokens; blocks are counted from position 0.
        document: whether documents are packed.
        contiguous: promise that ``doc_id`` does not decrease.

    Runtime tensor, with documents: ``doc_id``, int32 [batch, kv_len]. Source: block diffusion
    language models, FAR; LongCA-bench ``block_causal_document``.

    Raises:
        MaskError: for a block below 1.

    >>> from maskwright import patterns
    >>> str(patterns.block_causal(block=16))
    'k // 16 <= q // 16'
    """
    check_constants("block_causal", 1, block=block)
    blocks = k // block <= q // block
    return blocks & same_document(contiguous=contiguous) if document else blocks


def shifted_group(group: Size, heads: int) -> Expr:
    """Causal groups; the second half of the heads has its groups shifted by half a group.

    Formula: ``(q - sh) // group == (k - sh) // group and k <= q``, ``sh = 0`` for the first half
    of the heads and ``group // 2`` for the second. Floor division: the first half group of the
    shifted heads is a group of its own, and nothing wraps around.

    Args:
        group: group size in tokens; in the paper a quarter of the sequence.
        heads: number of query heads.

    Source: LongLoRA's shifted sparse attention, its FlashAttention form (the other form rolls the
    sequence, so that first tokens see the last ones).

    Raises:
        MaskError: for a group below 2 or heads below 1.

    >>> from maskwright import patterns
    >>> str(patterns.shifted_group(group=8, heads=2)).startswith('((q - where(h < 1, 0, 4)) // 8')
    True
    """
    check_sizes("shifted_group", 2, group=group)
    check_constants("shifted_group", 1, heads=heads)
    shift = where(h < heads // 2, 0, group // 2)
    return same((q - shift) // group, (k - shift) // group) & (k <= q)


def block_list(
    block_q: int,
    block_k: int,
    *,
    causal: bool = True,
    head_axis: Literal["query", "kv", "one"] = "query",
) -> Expr:
    """Each block of queries attends to the key blocks that a runtime list names.

    Formula: ``k // block_k in block_idx[b, head, q // block_q]``, and ``k <= q`` if causal.

    Args:
        block_q: query block size; blocks are counted in positions, from position 0.
        block_k: key block size.
        causal: whether to cut at the diagonal.
        head_axis: "query", "kv" or "one": what the head axis of the list counts.

    Runtime tensor: ``block_idx``, int32 [batch, heads of the axis, query blocks, topk], in any
    order, padded with -1. Source: the block-sparse heads of MInference, HiP, SALE, FSA.

    Raises:
        MaskError: for block sizes below 1 or an unknown axis.

    >>> from maskwright import patterns
    >>> str(patterns.block_list(block_q=64, block_k=32))
    '(k <= q) & (k // 32).isin(table("block_idx", ndim=4)[b, h, q // 64])'
    """
    check_constants("block_list", 1, block_q=block_q, block_k=block_k)
    head = head_index("block_list", head_axis, ("query", "kv", "one"))
    listed = (k // block_k).isin(table("block_idx", ndim=4)[b, head, q // block_q])
    return (k <= q) & listed if causal else listed


def _check_stride(
    block: int, local_blocks: Size, stride: int, step: int | None, offset: int, sink_blocks: int
) -> None:
    check_constants("local_stride", 1, block=block, stride=stride)
    check_sizes("local_stride", 1, local_blocks=local_blocks)
    check_constants("local_stride", 0, sink_blocks=sink_blocks, step=step or 0)
    check_constants("local_stride", -(2**31), offset=offset)


def _shifted(index: Expr, head: Expr, step: int, offset: int) -> Expr:
    """``index + head * step + offset`` without its zero terms."""
    if step:
        index = index + (head if step == 1 else head * step)
    return index + offset if offset else index


def _first_dense(heads: int | None, dense_heads: int) -> int:
    check_constants("local_stride", 0, dense_heads=dense_heads)
    if heads is None or dense_heads > heads:
        raise MaskError(
            "local_stride() needs the number of heads, at least dense_heads of them",
            expression=f"heads={heads}, dense_heads={dense_heads}",
            fix="pass heads=, counted on head_axis",
        )
    return heads - dense_heads
