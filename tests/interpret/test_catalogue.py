"""The kernel of every catalogue mask at an odd size, in Triton's interpreter and the reference."""

from __future__ import annotations

import pytest

import maskwright as mw
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.patterns.catalog import entries

BATCH, HEADS, KV_HEADS, Q_LEN, KV_LEN = 2, 4, 2, 75, 130
ENTRIES = entries("small", heads=HEADS, kv_heads=KV_HEADS)

pytestmark = pytest.mark.filterwarnings("ignore::maskwright.MaskwrightWarning")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_kernel_matches_float64(entry, dtype, poisoned):
    report = mw.check(
        entry.mask,
        q_len=Q_LEN,
        kv_len=KV_LEN,
        batch=BATCH,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=16,
        dtype=dtype,
        backend="interpret",
        **entry.bindings(BATCH, HEADS, KV_HEADS, Q_LEN, KV_LEN),
    )
    assert report.ok, str(report)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_reference_matches_float64(entry):
    q_len, kv_len = 140, 333
    report = mw.check(
        entry.mask,
        q_len=q_len,
        kv_len=kv_len,
        batch=BATCH,
        heads=HEADS,
        kv_heads=KV_HEADS,
        dtype="float32",
        backend="reference",
        **entry.bindings(BATCH, HEADS, KV_HEADS, q_len, kv_len),
    )
    assert report.ok, str(report)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_bulk_copies_give_the_same(entry):
    bulk = KernelConfig(16, 16, 4, 1, "descriptor")
    report = mw.check(
        entry.mask,
        q_len=50,
        kv_len=70,
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=16,
        dtype="float32",
        backend="interpret",
        config=bulk,
        backward=BackwardConfig(bulk, bulk),
        **entry.bindings(1, HEADS, KV_HEADS, 50, 70),
    )
    assert report.ok, str(report)
