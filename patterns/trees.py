"""Token trees of speculative decoding."""

from __future__ import annotations

from maskwright.dsl.expr import Expr
from maskwright.dsl.symbols import b
from maskwright.dsl.symbols import k
from maskwright.dsl.symbols import q
from maskwright.dsl.symbols import table


def tree() -> Expr:
    """Tree nodes attend to the whole prefix and to their ancestors.

    Formula: ``k < prefix or ancestor[q - prefix, k - prefix]``.

    Runtime tensors: ``prefix_len``, int32 [batch], the length of the cache before the tree;
    ``ancestor``, bool [batch, nodes, nodes], whether the column's node is an ancestor of the row's
    node. A node sees itself only if the matrix says so. Queries are the nodes: a call has
    ``q_len = nodes`` and ``kv_len = prefix + nodes``; beyond the matrix nothing is attended.

    Source: LongSpec, tree decoding of Medusa and SpecInfer.

    >>> from maskwright import patterns
    >>> str(patterns.tree()).startswith('(k < table("prefix_len")[b]) | table("ancestor", ndim=3')
    True
    """
    prefix = table("prefix_len")[b]
    ancestor = table("ancestor", ndim=3, dtype=bool)
    return (k < prefix) | ancestor[b, q - prefix, k - prefix]
