"""Random masks whose tiles come from runtime lists: each attended pair is met once, both ways."""

from __future__ import annotations

import numpy as np
import pytest
import random_lists

import maskwright as mw
from maskwright import k
from maskwright import q
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


class Draw(random_lists.Draw):
    """Random numbers of one case."""

    def source(self, name, kv_len):
        """(a list's condition, its entries): any order, doubles, padding, out of range, counts."""
        prefix, sizes = self.prefix()
        size = self.pick((8, 16, 24, 32, 64))
        kind = self.pick(("blocks", "blocks", "blocks", "one", "columns", "diagonals"))
        ends, last = (), ()
        if kind == "blocks":
            last = (self.pick((q, q // 16, q // 64, (q + 5) // 32, q // 40 + 1)),)
            ends = (self.pick((0, 3, 7, 200)),)
        row = mw.table(name, ndim=len(prefix) + len(last) + 1)[prefix + last]
        limit = kv_len // size + 2 if kind in ("blocks", "one") else kv_len + 9
        start = self.pick((q, q // 16 * 16, q // 128 * 128))
        value = {"columns": k, "diagonals": start - k + 3}.get(kind, k // size)
        shape = (*sizes, *ends, self.pick((0, 1, 2, 5)))
        found = self.rng.integers(-3, limit, shape)
        found[self.rng.random(shape) < 0.2] = -1
        if self.rng.random() < 0.1:
            found[...] = self.pick((0, 1, 2**31 - 1, -(2**31)))
        return value.isin(row, run=self.pick((1, 1, 2, 16, 70))), found.astype(np.int32)

    def mask(self, kv_len):
        """(mask, bindings)."""
        values, parts = {}, []
        for name in ("one", "two", "three")[: self.pick((1, 1, 1, 2, 3))]:
            member, values[name] = self.source(name, kv_len)
            parts.append(member & self.limit())
        if len(parts) > 1 and self.rng.random() < 0.4:
            parts[:2] = [parts[0] & parts[1]]
        parts += self.static()
        return self.joined(parts), values


@pytest.mark.parametrize("chunk", range(4))
def test_every_pair_is_met_once(chunk):
    followed = 0
    for seed in range(chunk * SEEDS // 4, (chunk + 1) * SEEDS // 4):
        draw = Draw(seed)
        mask, _, call, dense = draw.case()
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
            q_offset=draw.pick(random_lists.OFFSETS),
            config=small,
            backward=BackwardConfig(small, KernelConfig(16, 32, 4, 1)),
            gradients=gradients,
            **random_lists.INTERPRETED,
            **values,
        )
        assert report.ok, f"seed {seed}: {report}"
