#!/usr/bin/env python
"""Every head its own mask: retrieval heads see all, streaming heads an A-shape. Needs no GPU.

Run: python examples/per_head.py
"""

from __future__ import annotations

import torch

import maskwright as mw
from maskwright import patterns

HEADS, KV_HEADS, LENGTH = 8, 4, 512


def main() -> None:
    """One kernel for all heads; which head is which can be a runtime value."""
    masks = [patterns.causal(), patterns.a_shape(sink=4, window=48)]

    # Known when the mask is written: one number a query head.
    fixed = mw.by_head([0, 0, 1, 1, 1, 1, 0, 0], masks)
    # Given at the call: a new choice of heads compiles nothing.
    chosen = mw.by_head(mw.table("kinds"), masks)
    kinds = torch.tensor([0, 0, 1, 1, 1, 1, 0, 0])

    torch.manual_seed(0)
    query = torch.randn(1, HEADS, LENGTH, 32)
    key, value = torch.randn(2, 1, KV_HEADS, LENGTH, 32)
    out = mw.attention(query, key, value, fixed)
    same = mw.attention(query, key, value, chosen, kinds=kinds)
    assert torch.allclose(out, same)

    # A head of kind 0 is plain causal attention.
    dense = mw.attention(query, key, value, masks[0])
    assert torch.allclose(out[:, 0], dense[:, 0])

    for name, mask in (("all causal", masks[0]), ("mixed", fixed)):
        found = mw.explain(mask, q_len=LENGTH, heads=HEADS, kv_heads=KV_HEADS).to_dict()
        print(f"{name:10}  density {found['density']:.1%}  tiles {found['tiles']}")

    report = mw.check(chosen, q_len=96, heads=HEADS, kv_heads=KV_HEADS, head_dim=32, kinds=kinds)
    print(report)
    assert report.ok


if __name__ == "__main__":
    main()
