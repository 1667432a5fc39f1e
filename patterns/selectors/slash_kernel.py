"""Triton kernels of the vertical-slash estimator: two passes over the keys, no atomics.

The weights of the last queries are never stored: the first pass leaves their log-sum-exp, the
second computes them again, a block of keys at a time, and adds them up by column and by diagonal.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from maskwright.dsl.errors import ShapeError

ROWS = 64  # queries that are looked at
BLOCK = 128  # keys of a step; not below ROWS
STEPS = 8  # blocks of a program of the first pass
WARPS = 8  # with 4 the second pass spills


@triton.jit
def head_logits(
    query, key, start, rows, start_n, kv_len, scale, stride_qm, stride_kn,
    HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Logits of the last queries and a block of keys, -inf where a query does not see a key."""
    row = tl.arange(0, ROWS)
    k = start_n + tl.arange(0, BLOCK)
    dims = tl.arange(0, HEAD_PAD)
    query_tile = tl.load(
        query + (start + row).to(tl.int64)[:, None] * stride_qm + dims[None, :],
        mask=(row < rows)[:, None] & (dims < HEAD_DIM)[None, :],
        other=0.0,
    )
    key_tile = tl.load(
        key + k.to(tl.int64)[:, None] * stride_kn + dims[None, :],
        mask=(k < kv_len)[:, None] & (dims < HEAD_DIM)[None, :],
        other=0.0,
    )
    logits = tl.dot(query_tile, tl.trans(key_tile), input_precision="ieee") * scale
    position = kv_len - rows + row
    seen = (k[None, :] <= position[:, None]) & (row < rows)[:, None]
    return tl.where(seen, logits, float("-inf"))


@triton.jit
def lse_kernel(
    query, key, lse, start, rows, kv_len, group, scale, stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp of each row over STEPS blocks of keys, lse (B, Hq, parts, ROWS)."""
    part, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    query += b.to(tl.int64) * stride_qb + h.to(tl.int64) * stride_qh
    key += b.to(tl.int64) * stride_kb + (h // group).to(tl.int64) * stride_kh
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for step in range(STEPS):
        start_n = (part * STEPS + step) * BLOCK
        logits = head_logits(
            query, key, start, rows, start_n, kv_len, scale,
            stride_qm, stride_kn, HEAD_DIM, HEAD_PAD, ROWS, BLOCK,
        )  # fmt: skip
        higher = tl.maximum(peak, tl.max(logits, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(peak - base) + tl.sum(tl.exp(logits - base[:, None]), 1)
        peak = higher
    found = peak + tl.log(tl.where(total == 0.0, 1.0, total))  # -inf of a row without a key
    place = (b.to(tl.int64) * tl.num_programs(1) + h) * tl.num_programs(0) + part
    tl.store(lse + place * ROWS + tl.arange(0, ROWS), found)


@triton.jit
def sums_kernel(
    query, key, lse, columns, diagonals, start, rows, kv_len, group, scale, stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    HEAD_DIM: tl.constexpr, HEAD_PAD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of a block: its columns, and the 2 * BLOCK diagonals that cross it."""
    block, h, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    query += b.to(tl.int64) * stride_qb + h.to(tl.int64) * stride_qh
    key += b.to(tl.int64) * stride_kb + (h // group).to(tl.int64) * stride_kh
    head = b.to(tl.int64) * tl.num_programs(1) + h
    logits = head_logits(
        query, key, start, rows, block * BLOCK, kv_len, scale,
        stride_qm, stride_kn, HEAD_DIM, HEAD_PAD, ROWS, BLOCK,
    )  # fmt: skip
    row = tl.arange(0, ROWS)
    total = tl.load(lse + head * ROWS + row)
    total = tl.where(total == float("-inf"), 0.0, total)  # a row without a key
    weights = tl.exp(logits - total[:, None])
    k = block * BLOCK + tl.arange(0, BLOCK)
    tl.store(columns + head * kv_len + k, tl.sum(weights, 0), mask=k < kv_len)
    # Entry j of the diagonals is where row - column = j - (BLOCK - 1).
    entry = tl.arange(0, 2 * BLOCK)
    column = row[:, None] + (BLOCK - 1) - entry[None, :]
    inside = (column >= 0) & (column < BLOCK)
    sheared = tl.gather(weights, tl.where(inside, column, 0), 1)
    found = tl.sum(tl.where(inside, sheared, 0.0), 0)
    place = (head * tl.num_programs(0) + block) * (2 * BLOCK)
    tl.store(diagonals + place + entry, found)


def triton_sums(query: Tensor, key: Tensor, last: int, scale: float) -> tuple[Tensor, Tensor]:
    """Sums of the last queries' softmax by column and by diagonal, float32 (B, Hq, Sk) each.

    Raises:
        ShapeError: for more than 64 queries.
    """
    if last > ROWS:
        raise ShapeError(f"the kernel looks at up to {ROWS} queries", expression=f"last={last}")
    query, key = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key))
    (batch, heads, q_len, dim), kv_len = query.shape, key.shape[2]
    rows, blocks = min(last, q_len), triton.cdiv(kv_len, BLOCK)
    parts = triton.cdiv(blocks, STEPS)
    made = partial(torch.empty, dtype=torch.float32, device=query.device)
    common = (q_len - rows, rows, kv_len, heads // key.shape[1], scale)
    strides = (*query.stride()[:3], *key.stride()[:3])
    sizes = {"HEAD_DIM": dim, "HEAD_PAD": max(16, triton.next_power_of_2(dim))}
    sizes |= {"ROWS": ROWS, "BLOCK": BLOCK}
    pieces = made((batch, heads, parts, ROWS))
    lse_kernel[parts, heads, batch](
        query, key, pieces, *common, *strides, **sizes, STEPS=STEPS, num_warps=WARPS
    )
    lse = pieces.logsumexp(2)
    columns = made((batch, heads, kv_len))
    halves = made((batch, heads, blocks, 2, BLOCK))
    grid = (blocks, heads, batch)
    sums_kernel[grid](query, key, lse, columns, halves, *common, *strides, **sizes, num_warps=WARPS)
    return columns, _joined(halves, kv_len, rows)


def _joined(halves: Tensor, kv_len: int, rows: int) -> Tensor:
    """Sums by distance from those by block: a diagonal crosses at most two neighbours.

    From the last block to the first, what one block has in its second half lies where the block
    before it has its first.
    """
    batch, heads, blocks = halves.shape[:3]
    backward = halves.flip(2)
    total = halves.new_zeros((batch, heads, blocks + 1, BLOCK))
    total[:, :, :blocks] += backward[:, :, :, 0]
    total[:, :, 1:] += backward[:, :, :, 1]
    # Distance 0 of the first row, whose position is kv_len - rows.
    zero = blocks * BLOCK - 1 - (kv_len - rows)
    return total.flatten(2)[..., zero : zero + kv_len].contiguous()
