"""Full, causal and prefix masks."""

from __future__ import annotations

from maskwright.dsl.expr import Expr
from maskwright.dsl.symbols import as_expr
from maskwright.dsl.symbols import b
from maskwright.dsl.symbols import k
from maskwright.dsl.symbols import q
from maskwright.dsl.symbols import table
from maskwright.patterns.common import Size
from maskwright.patterns.common import check_sizes
from maskwright.patterns.common import same


def full() -> Expr:
    """Every query attends to every key.

    Formula: ``True``. Source: the original Transformer; vision and text encoders.

    >>> from maskwright import patterns
    >>> str(patterns.full())
    'True'
    """
    return as_expr(True)


def causal() -> Expr:
    """A query attends to keys at its own position and before.

    Formula: ``k <= q``. ``q`` is a position, so the last query sees every key whatever the two
    lengths are (bottom-right). Source: GPT and every decoder since.

    >>> from maskwright import patterns
    >>> str(patterns.causal())
    'k <= q'
    """
    return k <= q


def prefix_lm(prefix: Size | None = None) -> Expr:
    """Causal, except that everyone sees the whole prefix.

    Formula: ``k <= q or k < prefix``.

    Args:
        prefix: its length. None reads it at run time from ``prefix_len``, int32 of shape [batch].

    Source: prefix language models (T5, UniLM); LongCA-bench ``prefix_lm_causal``, range form.

    Raises:
        MaskError: if ``prefix`` is negative or not an integer.

    >>> from maskwright import patterns
    >>> str(patterns.prefix_lm())
    '(k <= q) | (k < table("prefix_len")[b])'
    """
    return (k <= q) | (k < _prefix("prefix_lm", prefix))


def prefix_lm_document(prefix: Size | None = None) -> Expr:
    """Packed documents, each a prefix mask of its own.

    Formula: ``doc(q) == doc(k) and (k <= q or k < start(doc(q)) + prefix)``.

    Args:
        prefix: length of each document's prefix; None reads ``prefix_len``, int32 of shape [batch].

    Runtime tensors, int32 of shape [batch, kv_len], both non-decreasing: ``doc_id`` (the document
    of each position) and ``doc_start`` (position of the first token of that document). Documents
    are contiguous here, since a prefix is counted from a document's start.

    Source: LongCA-bench ``prefix_lm_document``.

    Raises:
        MaskError: if ``prefix`` is negative or not an integer.

    >>> from maskwright import patterns
    >>> len(patterns.prefix_lm_document(prefix=32).digest)
    16
    """
    doc = table("doc_id", ndim=2, sorted=True)
    start = table("doc_start", ndim=2, sorted=True)
    visible = (k <= q) | (k < start[b, q] + _prefix("prefix_lm_document", prefix))
    return same(doc[b, q], doc[b, k]) & visible


def _prefix(pattern: str, prefix: Size | None) -> Expr:
    if prefix is None:
        return table("prefix_len")[b]
    check_sizes(pattern, 0, prefix=prefix)
    return as_expr(prefix)
