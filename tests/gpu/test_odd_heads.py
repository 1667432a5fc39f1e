"""Head sizes, strides and tiles that neither the copy engine nor asynchronous copies take."""

from __future__ import annotations

import pytest
import torch

import maskwright as mw
from maskwright import k
from maskwright import q
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.runtime.check import dense_attention

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("head_dim", "value_dim"), [(40, 8), (40, 24), (20, 20), (96, 72), (7, 5)])
def test_matches_float64(dtype: torch.dtype, head_dim: int, value_dim: int) -> None:
    report = mw.check(
        (k <= q) & (q - k < 90),
        q_len=300,
        heads=4,
        kv_heads=2,
        head_dim=head_dim,
        value_dim=value_dim,
        dtype=dtype,
    )
    assert report.ok, str(report)


def test_unaligned_views() -> None:
    wide = torch.randn(1, 2, 200, 65, device="cuda", dtype=torch.float16)
    query, key, value = (wide[..., 1:] * x for x in (1.0, 0.5, 2.0))
    views = [torch.empty_like(wide)[..., 1:].copy_(x) for x in (query, key, value)]
    out = mw.attention(*views, k <= q)
    keep = torch.ones(200, 200, device="cuda", dtype=torch.bool).tril()
    truth, _ = dense_attention(*views, keep)
    assert float((out.double() - truth).norm() / truth.norm()) < 3e-3


@pytest.mark.parametrize("value_dim", [8, 16, 24, 32, 64])
@pytest.mark.parametrize("head_dim", [16, 32, 40, 64])
def test_every_configuration(head_dim: int, value_dim: int) -> None:
    """One pipeline stage and rows that cannot be copied asynchronously, with wgmma."""
    for config in (
        KernelConfig(64, 64, 4, 1),
        KernelConfig(128, 64, 4, 2),
        KernelConfig(64, 128, 4, 3),
        KernelConfig(128, 64, 4, 2, "descriptor"),
    ):
        for mask in (k <= q, (q - k) % 3 != 0):
            report = mw.check(
                mask,
                q_len=200,
                head_dim=head_dim,
                value_dim=value_dim,
                dtype="float16",
                config=config,
                backward=BackwardConfig(config, config),
            )
            assert report.ok, f"{config} {report}"


@pytest.mark.parametrize("stages", [2, 3, 4])
@pytest.mark.parametrize("block_m", [16, 32])
def test_gradients_of_short_tiles_of_queries(block_m: int, stages: int) -> None:
    """16 numbers a row of statistics are less than the copy engine's step."""
    keys = KernelConfig(block_m, 64, 4, stages, "descriptor")
    report = mw.check(
        k <= q,
        q_len=1100,
        heads=4,
        kv_heads=2,
        head_dim=128,
        dtype="bfloat16",
        backward=BackwardConfig(KernelConfig(16, 32, 4, stages, "descriptor"), keys),
    )
    assert report.ok, f"{keys} {report}"
