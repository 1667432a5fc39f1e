"""Packed documents, frames and in-context examples: masks over a runtime id of each position.

``doc_id`` is int32 of shape [batch, kv_len]: the document of each position, in key coordinates.
``contiguous=True`` promises that ids do not decrease along a sequence, which gives closed-form loop
bounds; ``contiguous=False`` allows any order (interleaved documents) and takes the general path.
"""

from __future__ import annotations

from maskwright.dsl.expr import Expr
from maskwright.dsl.expr import TableHandle
from maskwright.dsl.symbols import b
from maskwright.dsl.symbols import k
from maskwright.dsl.symbols import kv_len
from maskwright.dsl.symbols import q
from maskwright.dsl.symbols import table
from maskwright.patterns.common import check_constants
from maskwright.patterns.common import same


def document(*, causal: bool = True, contiguous: bool = True) -> Expr:
    """A query attends to its own document only.

    Formula: ``doc(q) == doc(k)``, and ``k <= q`` if causal.

    Args:
        causal: whether documents are causal inside.
        contiguous: promise that ``doc_id`` does not decrease.

    Runtime tensor: ``doc_id``, int32 [batch, kv_len]. Source: sequence packing (ProLong);
    LongCA-bench ``causal_document`` and ``full_document``.

    >>> from maskwright import patterns
    >>> str(patterns.document(causal=False, contiguous=False))
    'table("doc_id", ndim=2)[b, q] == table("doc_id", ndim=2)[b, k]'
    """
    own = same_document(contiguous=contiguous)
    return (k <= q) & own if causal else own


def anchor_document(n_anchor: int = 1, *, contiguous: bool = True) -> Expr:
    """Causal documents, and everyone sees the anchor documents at the start.

    Formula: ``k <= q and (doc(q) == doc(k) or 0 <= doc(k) < n_anchor)``.

    Args:
        n_anchor: number of anchor documents, ids 0 to n_anchor - 1. In AnchorAttention there is
            one, and it holds the leading BOS token alone.
        contiguous: promise that ``doc_id`` does not decrease.

    Runtime tensor: ``doc_id``, int32 [batch, kv_len]. Source: AnchorAttention.

    Raises:
        MaskError: for ``n_anchor`` below 1.

    >>> from maskwright import patterns
    >>> str(patterns.anchor_document(contiguous=False)).endswith('table("doc_id", ndim=2)[b, k] == 0))')
    True
    """
    check_constants("anchor_document", 1, n_anchor=n_anchor)
    of_key = doc_id(contiguous=contiguous)[b, k]
    # Padding has id -1 and is no anchor.
    anchor = same(of_key, 0) if n_anchor == 1 else (of_key >= 0) & (of_key < n_anchor)
    return (k <= q) & (same_document(contiguous=contiguous) | anchor)


def share_question(*, contiguous: bool = True) -> Expr:
    """Answers attend to themselves and to one shared question, document 0 of any length.

    Formula: ``k <= q and (doc(q) == doc(k) or doc(k) == 0)``.

    Args:
        contiguous: promise that ``doc_id`` does not decrease.

    Runtime tensor: ``doc_id``, int32 [batch, kv_len]. Source: reward models and preference
    training with a shared prompt; LongCA-bench ``share_question``.

    >>> from maskwright import patterns
    >>> patterns.share_question().equals(patterns.anchor_document())
    True
    """
    return anchor_document(contiguous=contiguous)


def causal_blockwise(*, contiguous: bool = True) -> Expr:
    """Causal documents of which the last sees everything before it.

    Formula: ``k <= q and (doc(q) == doc(k) or doc(q) == doc(kv_len - 1))``.

    Args:
        contiguous: promise that ``doc_id`` does not decrease.

    Runtime tensor: ``doc_id``, int32 [batch, kv_len]. Source: in-context learning with
    independent demonstrations and one query; LongCA-bench ``causal_blockwise``.

    >>> from maskwright import patterns
    >>> str(patterns.causal_blockwise(contiguous=False)).endswith('[b, kv_len - 1]))')
    True
    """
    doc = doc_id(contiguous=contiguous)
    last = same(doc[b, q], doc[b, kv_len - 1])
    return (k <= q) & (same_document(contiguous=contiguous) | last)


def frame_causal(*, contiguous: bool = True) -> Expr:
    """Tokens of a frame see the whole frame and all frames before it.

    Formula: ``frame(k) <= frame(q)``.

    Args:
        contiguous: promise that ``frame_id`` does not decrease, as in a video stream.

    Runtime tensor: ``frame_id``, int32 [batch, kv_len]; frames may differ in length.
    Source: FAR (frame-wise autoregressive video), without its optional distance bias.

    >>> from maskwright import patterns
    >>> str(patterns.frame_causal(contiguous=False))
    'table("frame_id", ndim=2)[b, k] <= table("frame_id", ndim=2)[b, q]'
    """
    frame = table("frame_id", ndim=2, sorted=contiguous)
    return frame[b, k] <= frame[b, q]


def doc_id(*, contiguous: bool) -> TableHandle:
    """The declaration of ``doc_id`` that all document patterns share."""
    return table("doc_id", ndim=2, sorted=contiguous)


def same_document(*, contiguous: bool) -> Expr:
    """``doc(q) == doc(k)``."""
    doc = doc_id(contiguous=contiguous)
    return same(doc[b, q], doc[b, k])
