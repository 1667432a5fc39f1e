"""Every catalogue mask on the GPU: generated kernels against float64, bf16 and fp16, odd sizes."""

from __future__ import annotations

import pytest
import torch

import maskwright as mw
from maskwright.patterns.catalog import CatalogEntry
from maskwright.patterns.catalog import entries

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

HEADS, KV_HEADS, BATCH = 4, 2, 2
SIZES = [(512, 512), (333, 1000), (1, 257), (300, 77)]


@pytest.mark.filterwarnings("ignore::maskwright.MaskwrightWarning")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(
    "entry", entries("small", heads=HEADS, kv_heads=KV_HEADS), ids=lambda e: e.name
)
def test_matches_float64(entry: CatalogEntry, dtype: str) -> None:
    for seed, (q_len, kv_len) in enumerate(SIZES):
        bindings = entry.bindings(BATCH, HEADS, KV_HEADS, q_len, kv_len, seed)
        # Freed memory is handed out again: what the kernel does not write would show as NaN.
        del_me = torch.full((BATCH * HEADS * q_len * 128 * 4,), float("nan"), device="cuda")
        del del_me
        report = mw.check(
            entry.mask,
            q_len=q_len,
            kv_len=kv_len,
            batch=BATCH,
            heads=HEADS,
            kv_heads=KV_HEADS,
            head_dim=64 if seed % 2 else 128,
            dtype=dtype,
            seed=seed,
            **bindings,
        )
        assert report.ok, str(report)
