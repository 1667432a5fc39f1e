#!/usr/bin/env python
"""Packed documents: a runtime table says which document each position belongs to. Needs no GPU.

Run: python examples/documents.py
"""

from __future__ import annotations

import torch

import maskwright as mw
from maskwright import b
from maskwright import k
from maskwright import q


def ids_of(lengths: list[int]) -> torch.Tensor:
    """Document ids of one packed sequence: 0 0 0 1 1 2 ..."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


def main() -> None:
    """Two sequences of one batch, cut into documents in different ways."""
    doc_id = mw.table("doc_id", ndim=2, sorted=True)  # sorted: ids do not decrease
    mask = (k <= q) & (doc_id[b, q] == doc_id[b, k])
    ids = torch.stack([ids_of([50, 150, 56]), ids_of([128, 128])])

    torch.manual_seed(0)
    query = torch.randn(2, 2, 256, 64)
    key, value = torch.randn(2, 2, 2, 256, 64)
    out = mw.attention(query, key, value, mask, doc_id=ids)

    # Each document alone gives the same rows.
    alone = mw.attention(query[:1, :, 50:200], key[:1, :, 50:200], value[:1, :, 50:200], k <= q)
    print("largest difference:", float((out[:1, :, 50:200] - alone).abs().max()))
    assert torch.allclose(out[:1, :, 50:200], alone, atol=1e-5)

    # The bounds come from two searches a query tile: O(length / tile) memory, made once for all
    # layers. (Here for the interpreter; on a GPU the same call prepares it on the device.)
    ready = mw.prepare(mask, query, key, doc_id=ids, backend="interpret")
    again = mw.attention(query, key, value, mask, doc_id=ids, prepared=ready, backend="interpret")
    print(f"prepared: {ready.nbytes} bytes")
    assert torch.allclose(out, again, atol=1e-5)
    print(mw.explain(mask, q_len=256, batch=2, doc_id=ids))


if __name__ == "__main__":
    main()
