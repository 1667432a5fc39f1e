"""The block size that is part of a mask's meaning: key tiles should not straddle it."""

from __future__ import annotations

from functools import lru_cache
from math import gcd

from maskwright.codegen.normal import Residue
from maskwright.codegen.normal import TooManyClausesError
from maskwright.codegen.normal import clauses
from maskwright.codegen.sources import sources_of
from maskwright.codegen.tile import exchanged
from maskwright.dsl import nodes as n

_WORTH = 32  # below this a tile of one block would cost more than it saves


@lru_cache(maxsize=512)
def granule(mask: n.Node) -> int | None:
    """Key tiles should divide this many keys; None if the mask does not care.

    It is the block of a strided part if that is large enough to be a tile, else its period, and
    the blocks of keys that a runtime list names.
    """
    try:
        found = clauses(mask)
    except TooManyClausesError:
        return None
    result = gcd(0, *_listed_blocks(mask))
    for residue in (x for clause in found for x in clause if isinstance(x, Residue)):
        with_q, _ = residue.form.split("q")
        with_k, _ = residue.form.split("k")
        if with_q.terms or len(with_k.terms) != 1:
            continue
        match with_k.terms[0][0]:
            case n.Arith("//", _, n.Const(int(block))):
                pass
            case _:
                block = 1
        width = min(residue.width, residue.modulus - residue.width) * block
        result = gcd(result, width if width >= _WORTH else residue.modulus * block)
    return result or None


def _listed_blocks(mask: n.Node) -> list[int]:
    found = sources_of(mask)
    blocks = [x.block for x in found[0] if x.kind == "blocks"] if found else []
    return [x for x in blocks if x >= _WORTH]


def row_granule(mask: n.Node) -> int | None:
    """Likewise, tiles of queries that a key tile walks over."""
    return granule(exchanged(mask))
