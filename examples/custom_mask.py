#!/usr/bin/env python
"""A mask of your own: look at it, run it, check its generated kernel. Needs no GPU.

Run: python examples/custom_mask.py
"""

from __future__ import annotations

import torch

import maskwright as mw


@mw.mask
def block_sinks(
    q: mw.Expr, k: mw.Expr, *, block: int = 64, sinks: int = 2, window: int | mw.Expr = 96
) -> mw.Expr:
    """Causal; the first keys of every block stay visible, the rest only within a window."""
    return (k <= q) & ((k % block < sinks) | (q - k < window))


def main() -> None:
    """Draw, explain, attend, check."""
    mask = block_sinks(window=mw.param("window", min=1))
    print(mask)
    print(mw.draw(mask, 512, tile=(32, 32), window=96))
    print(mw.explain(mask, q_len=65536, window=1024))

    torch.manual_seed(0)
    query = torch.randn(1, 4, 300, 64)
    key, value = torch.randn(2, 1, 2, 300, 64)  # two query heads a KV head
    # On CPU tensors backend="auto" is the reference: PyTorch that follows the kernel's schedule.
    # A new window is a new runtime value: nothing is derived or compiled again.
    for window in (1, 32, 300):
        out, lse = mw.attention(query, key, value, mask, window=window, return_lse=True)
        print(f"window {window:3}: out {tuple(out.shape)}, mean lse {lse.mean():.3f}")

    # The generated kernel, in Triton's interpreter, against float64 attention.
    report = mw.check(mask, q_len=300, heads=4, kv_heads=2, window=32, backend="interpret")
    print(report)
    assert report.ok


if __name__ == "__main__":
    main()
