"""The shape of a tile, and what is known of its place."""

from __future__ import annotations

from dataclasses import dataclass

from maskwright.dsl import nodes as n

Q_FIRST, Q_LAST = n.Sym("q_first"), n.Sym("q_last")
K_FIRST, K_LAST = n.Sym("k_first"), n.Sym("k_last")
Q_LEN, KV_LEN, Q_OFFSET = n.Sym("q_len"), n.Sym("kv_len"), n.Sym("q_offset")
Q, K = n.Sym("q"), n.Sym("k")


@dataclass(frozen=True)
class TileShape:
    """A tile that stays and tiles it walks over.

    Usually a tile of queries walks over tiles of keys. Transposed, for the gradients of keys and
    values, a tile of keys walks over tiles of queries. The compiler derives both from one
    procedure, by exchanging the two symbols (``exchanged``): within it, ``q`` and ``q_first`` to
    ``q_last`` belong to the tile that stays, and ``k`` is walked over.

    Attributes:
        block_m: positions of the tile that stays.
        block_n: positions of a tile that is walked over.
        inside: all query positions lie in [0, kv_len), as for every call with the default
            q_offset and q_len <= kv_len, and sorted tables are read inside only. Bounds then
            need fewer comparisons.
        transposed: keys stay, queries are walked over, by their row (position - q_offset).
    """

    block_m: int
    block_n: int
    inside: bool = True
    transposed: bool = False

    @property
    def end(self) -> n.Node:
        """How many keys (rows of queries, if transposed) are walked over."""
        return Q_LEN if self.transposed else KV_LEN

    @property
    def stays_inside(self) -> bool:
        """Positions of the tile that stays lie in [0, kv_len): for keys they always do."""
        return self.inside or self.transposed


def anchor(step: int) -> n.Node:
    """Where a query's diagonals are counted from: the first of the ``step`` positions it is among."""
    return Q if step == 1 else n.Arith("*", n.Arith("//", Q, n.Const(step)), n.Const(step))


def exchanged(mask: n.Node) -> n.Node:
    """The mask with the roles of queries and keys exchanged.

    Its ``q`` is a key; its ``k`` is a row of queries, whose position is ``k + q_offset``.
    """
    return n.substitute(mask, {Q: n.Arith("+", K, Q_OFFSET), K: Q})
