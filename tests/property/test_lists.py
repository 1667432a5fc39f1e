"""Random masks with runtime lists: each attended pair is met once, in a tile or in a column."""

from __future__ import annotations

import numpy as np
import pytest
import random_lists

import maskwright as mw
from maskwright import k
from maskwright import q
from maskwright.codegen.api import inside
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.listed import derive_listed
from maskwright.codegen.tile import TileShape
from maskwright.runtime.fuzz_checks import check_lists

SEEDS, KERNEL_SEEDS = 600, 48
TILES = ((32, 16), (16, 32), (64, 64), (16, 64), (128, 16))


class Draw(random_lists.Draw):
    """Random numbers of one case."""

    def row(self, name):
        """A row of a table, and the leading sizes of the table."""
        prefix, sizes = self.prefix()
        return mw.table(name, ndim=len(prefix) + 1)[prefix], sizes

    def entries(self, sizes, kv_len):
        """Any order, doubles, padding, entries out of range; runs, or nothing."""
        count = self.pick((0, 1, 5, 20, 90))
        found = self.rng.integers(-3, kv_len + 9, (*sizes, count))
        if count > 5 and self.rng.random() < 0.6:
            found[..., 5:] = (found[..., :1] + np.arange(count - 5)) % max(kv_len, 1)
        found[self.rng.random(found.shape) < 0.1] = -1
        return found.astype(np.int32)

    def mask(self, kv_len):
        """(mask, bindings)."""
        values, parts = {}, []
        start = self.pick((q, q, q // 16 * 16, q // 64 * 64))
        bands = (start - k + self.pick((0, 0, 2, -7, 63)), self.pick((1, 1, 16, 64, 100)))
        for name, (value, run) in {"cols": (k, self.pick((1, 1, 4, 15))), "bands": bands}.items():
            row, sizes = self.row(name)
            if self.rng.random() < 0.75:
                parts.append(value.isin(row, run=run) & self.limit())
                values[name] = self.entries(sizes, kv_len)
        parts += self.static()
        if len(parts) > 1 and self.rng.random() < 0.15:
            parts[:2] = [parts[0] & parts[1]]
        return self.joined(parts), values


@pytest.mark.parametrize("chunk", range(6))
def test_every_pair_is_met_once(chunk):
    for seed in range(chunk * SEEDS // 6, (chunk + 1) * SEEDS // 6):
        draw = Draw(seed)
        mask, values, call, dense = draw.case()
        block = draw.pick(TILES)
        for within in {inside(mask.node, call), False}:
            schedule = derive_listed(mask.node, TileShape(*block, inside=within))
            assert (schedule is not None) == bool(values), str(mask)
            if schedule is not None:
                check_lists(schedule, call, dense, tail=True)


@pytest.mark.parametrize("chunk", range(8))
def test_kernels_match_float64(chunk):
    for seed in range(chunk * KERNEL_SEEDS // 8, (chunk + 1) * KERNEL_SEEDS // 8):
        draw = Draw(10_000 + seed)
        q_len, kv_len = draw.pick(((60, 60), (45, 90), (70, 40), (1, 90)))
        mask, values = draw.mask(kv_len)
        report = mw.check(
            mask,
            q_len=q_len,
            kv_len=kv_len,
            q_offset=draw.pick(random_lists.OFFSETS),
            config=KernelConfig(*draw.pick(TILES[:2]), 4, 1),
            gradients=False,
            **random_lists.INTERPRETED,
            **values,
        )
        assert report.ok, f"seed {seed}: {report}"
