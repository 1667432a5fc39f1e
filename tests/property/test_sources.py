"""Random masks whose tiles come from runtime lists: each attended pair is met once, both ways."""

from __future__ import annotations

import numpy as np
import pytest

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import kv_head
from maskwright import q
from maskwright.codegen.api import call_of
from maskwright.codegen.api import inside
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.sources import derive_sources
from maskwright.codegen.sources_walk import SourcesWalk
from maskwright.codegen.sources_walk import most_tiles
from maskwright.codegen.tile import TileShape
from maskwright.runtime.fuzz_checks import check_lists

SEEDS, KERNEL_SEEDS = 200, 4
TILES = ((32, 16), (16, 32), (64, 64), (16, 64), (96, 32))


class Draw:
    """Random numbers of one case."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def pick(self, values):
        return values[self.rng.integers(len(values))]

    def source(self, name, kv_len):
        """(a list's condition, its entries): any order, doubles, padding, out of range, counts."""
        prefix, sizes = self.pick(
            [((b, h), (2, 4)), ((b, kv_head), (2, 2)), ((h,), (4,)), ((), ()), ((b,), (1,))]
        )
        size = self.pick((8, 16, 24, 32, 64))
        kind = self.pick(("blocks", "blocks", "blocks", "one", "columns", "diagonals"))
        ends, last = (), ()
        if kind == "blocks":
            last = (self.pick((q, q // 16, q // 64, (q + 5) // 32, q // 40 + 1)),)
            ends = (self.pick((0, 3, 7, 200)),)
        row = mw.table(name, ndim=len(prefix) + len(last) + 1)[prefix + last]
        limit = kv_len // size + 2 if kind in ("blocks", "one") else kv_len + 9
        value = {"columns": k, "diagonals": q - k + 3}.get(kind, k // size)
        shape = (*sizes, *ends, self.pick((0, 1, 2, 5)))
        found = self.rng.integers(-3, limit, shape)
        found[self.rng.random(shape) < 0.2] = -1
        if self.rng.random() < 0.1:
            found[...] = self.pick((0, 1, 2**31 - 1, -(2**31)))
        return value.isin(row), found.astype(np.int32)

    def limit(self):
        """A static condition beside a list."""
        return self.pick((k >= 0, k <= q, q - k < 40, k > 25, (k <= q) & (q - k > 9), q < 70))

    def mask(self, kv_len):
        """(mask, bindings)."""
        values, parts = {}, []
        for name in ("one", "two", "three")[: self.pick((1, 1, 1, 2, 3))]:
            member, values[name] = self.source(name, kv_len)
            parts.append(member & self.limit())
        if len(parts) > 1 and self.rng.random() < 0.4:
            parts[:2] = [parts[0] & parts[1]]
        if self.rng.random() < 0.5:
            parts.append(self.pick(((k < 7) & (k <= q), q - k < 11, (q - k < 30) & (k <= q))))
        found = parts[0]
        for part in parts[1:]:
            found = found | part
        found = found & (k <= q) if self.rng.random() < 0.6 else found
        if self.rng.random() < 0.2:
            found = mw.by_head([0, 1, 1, 0], [found, (k <= q) & (q - k < 20)])
        return found, values


@pytest.mark.parametrize("chunk", range(4))
def test_every_pair_is_met_once(chunk):
    followed = 0
    for seed in range(chunk * SEEDS // 4, (chunk + 1) * SEEDS // 4):
        draw = Draw(seed)
        q_len, kv_len = draw.pick(((100, 100), (75, 130), (130, 64), (1, 90), (33, 200)))
        mask, values = draw.mask(kv_len)
        offset = draw.pick((None, None, 0, -20, 50))
        call = call_of(mask.node, q_len, kv_len, 2, 4, 2, offset, values)
        sizes = {"batch": 2, "heads": 4, "kv_heads": 2, "q_offset": offset}
        dense = mw.to_dense(mask, q_len, kv_len, **sizes, **values)
        for transposed in (False, True):
            block = draw.pick(TILES)
            tile = TileShape(
                *block, inside=draw.pick((inside(mask.node, call), False)), transposed=transposed
            )
            schedule = derive_sources(mask.node, tile)
            if schedule is not None:
                followed += 1
                shown = np.swapaxes(dense, 2, 3) if transposed else dense
                check_lists(schedule, call, shown, tail=not transposed)
                # There is room for what is listed.
                some, _ = SourcesWalk(schedule, call).met(np.arange(call.q_tiles(tile)))
                assert some.sum((2, 3)).max(initial=0) <= most_tiles(schedule, call)
    assert followed > 1.8 * SEEDS // 4


@pytest.mark.parametrize("chunk", range(4))
def test_kernels_match_float64(chunk):
    for seed in range(chunk * KERNEL_SEEDS // 4, (chunk + 1) * KERNEL_SEEDS // 4):
        draw = Draw(10_000 + seed)
        q_len, kv_len = draw.pick(((40, 40), (33, 60), (50, 30), (1, 60)))
        mask, values = draw.mask(kv_len)
        small = KernelConfig(*draw.pick(TILES[:2]), 4, 1)
        gradients = seed % 2 == 0
        report = mw.check(
            mask,
            q_len=q_len,
            kv_len=kv_len,
            batch=2,
            heads=4,
            kv_heads=2,
            head_dim=16,
            q_offset=draw.pick((None, None, 0, -20, 50)),
            dtype="float32",
            backend="interpret",
            config=small,
            backward=BackwardConfig(small, KernelConfig(16, 32, 4, 1)),
            gradients=gradients,
            **values,
        )
        assert report.ok, f"seed {seed}: {report}"
