"""What random masks with runtime lists have in common, whatever the lists are of."""

from __future__ import annotations

import numpy as np

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import kv_head
from maskwright import q
from maskwright.codegen.api import call_of

LENGTHS = ((100, 100), (75, 130), (130, 64), (1, 90), (33, 200))
OFFSETS = (None, None, 0, -20, 50)
HEADS = {"batch": 2, "heads": 4, "kv_heads": 2}
INTERPRETED = HEADS | {"head_dim": 16, "dtype": "float32", "backend": "interpret"}


class Draw:
    """Random numbers of one case."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def pick(self, values):
        return values[self.rng.integers(len(values))]

    def prefix(self):
        """Leading indices of a row, and the leading sizes of its table."""
        return self.pick(
            [((b, h), (2, 4)), ((b, kv_head), (2, 2)), ((h,), (4,)), ((), ()), ((b,), (1,))]
        )

    def limit(self):
        """A static condition beside a list."""
        return self.pick((k >= 0, k <= q, q - k < 40, k > 25, (k <= q) & (q - k > 9), q < 70))

    def static(self):
        """A static part, or none."""
        if self.rng.random() < 0.5:
            return [self.pick(((k < 7) & (k <= q), q - k < 11, (q - k < 30) & (k <= q)))]
        return []

    def joined(self, parts):
        """The parts as one mask: causal or not, of all heads or of some."""
        found = parts[0] if parts else k < 0
        for part in parts[1:]:
            found = found | part
        found = found & (k <= q) if self.rng.random() < 0.6 else found
        if self.rng.random() < 0.2:
            found = mw.by_head([0, 1, 1, 0], [found, (k <= q) & (q - k < 20)])
        return found

    def case(self):
        """(mask, bindings, call, dense mask)."""
        q_len, kv_len = self.pick(LENGTHS)
        mask, values = self.mask(kv_len)
        offset = self.pick(OFFSETS)
        call = call_of(mask.node, q_len, kv_len, *HEADS.values(), offset, values)
        return (
            mask,
            values,
            call,
            mw.to_dense(mask, q_len, kv_len, **HEADS, q_offset=offset, **values),
        )
