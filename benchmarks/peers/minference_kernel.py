"""Vertical-slash attention as MInference does it, written anew from a description of what it does.

A builder turns the lists of a head into lists for each block of 64 queries: tiles of 64 keys that
follow the diagonals, and the columns between them. A kernel visits the tiles with a causal test,
then gathers the columns without one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 64  # queries of a block
KEYS = 64  # keys of a tile
LANES = 32  # blocks that one program of the builder serves, one a lane


@triton.jit
def build_kernel(
    vertical, slash, tile_count, tile_start, column_count, column_index, blocks, n_vertical, n_slash,
    ROWS: tl.constexpr, KEYS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The lists of LANES blocks of queries of one head; each lane walks both lists once.

    A diagonal s needs the keys [end - s - KEYS, end - s) of a block of queries that ends at `end`.
    Tiles that would overlap or lie closer than KEYS continue the tiles before them.
    """
    block = tl.program_id(0) * LANES + tl.arange(0, LANES)
    head = tl.program_id(1).to(tl.int64)
    live = block < blocks
    end = (block + 1) * ROWS
    row = head * blocks + block
    from_key = tl.zeros([LANES], tl.int32)  # of the tiles in a row that are open now
    to_key = tl.full([LANES], -2 * KEYS, tl.int32)
    at_vertical = tl.zeros([LANES], tl.int32)
    at_slash = tl.zeros([LANES], tl.int32)
    tiles = tl.zeros([LANES], tl.int32)
    columns = tl.zeros([LANES], tl.int32)
    for _ in range(n_vertical + n_slash):
        left = live & (at_vertical < n_vertical)
        column = tl.load(vertical + head * n_vertical + at_vertical, mask=left, other=2**30)
        left = live & (at_slash < n_slash)
        diagonal = tl.load(slash + head * n_slash + at_slash, mask=left, other=-1)
        # A column before the end of the open tiles is settled: they hold it, or it is gathered.
        settled = column < to_key
        gathered = settled & (column < from_key)
        tl.store(column_index + row * n_vertical + columns, column, mask=gathered)
        columns += gathered.to(tl.int32)
        at_vertical += settled.to(tl.int32)
        # Else the next diagonal.
        taken = (diagonal >= 0) & (settled == 0)
        until = tl.maximum(end - diagonal, KEYS)
        used = taken & (diagonal < end)
        fresh = used & (until > to_key + KEYS)
        grown = used & (fresh == 0) & (until > to_key)
        start = tl.where(fresh, until - KEYS, to_key)
        tl.store(tile_start + row * n_slash + tiles, start, mask=fresh | grown)
        tiles += (fresh | grown).to(tl.int32)
        from_key = tl.where(fresh, start, from_key)
        to_key = tl.where(fresh | grown, start + KEYS, to_key)
        at_slash += taken.to(tl.int32)
    tl.store(tile_count + row, tiles, mask=live)
    tl.store(column_count + row, columns, mask=live)


@triton.jit
def with_keys(
    query_tile, key, value, keys, here, seen, peak, total, acc, stride_kn, stride_vn, scale,
    DIM: tl.constexpr,
):  # fmt: skip
    """The online softmax, with some more keys."""
    dims = tl.arange(0, DIM)
    key_tile = tl.load(
        key + keys[:, None] * stride_kn + dims[None, :], mask=here[:, None], other=0.0
    )
    scores = tl.dot(query_tile, tl.trans(key_tile), input_precision="ieee") * scale
    scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(peak, tl.max(scores, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores - base[:, None])
    alpha = tl.exp2(peak - base)
    value_tile = tl.load(
        value + keys[:, None] * stride_vn + dims[None, :], mask=here[:, None], other=0.0
    )
    acc = tl.dot(
        weights.to(value_tile.dtype), value_tile, acc * alpha[:, None], input_precision="ieee"
    )
    return higher, total * alpha + tl.sum(weights, 1), acc


@triton.jit
def attend_kernel(
    query, key, value, out, tile_count, tile_start, column_count, column_index,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn, stride_vb, stride_vh, stride_vn,
    stride_ob, stride_oh, stride_om, length, group, scale, n_vertical, n_slash,
    DIM: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head; long blocks start first."""
    h, b = tl.program_id(0), tl.program_id(2)
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    lists = (b.to(tl.int64) * tl.num_programs(0) + h) * tl.num_programs(1) + block
    rows = block * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    lane = tl.arange(0, KEYS)
    query += b.to(tl.int64) * stride_qb + h.to(tl.int64) * stride_qh
    key += b.to(tl.int64) * stride_kb + (h // group).to(tl.int64) * stride_kh
    value += b.to(tl.int64) * stride_vb + (h // group).to(tl.int64) * stride_vh
    row_mask = rows[:, None] < length
    query_tile = tl.load(
        query + rows[:, None] * stride_qm + dims[None, :], mask=row_mask, other=0.0
    )
    peak = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM], tl.float32)
    for step in range(tl.load(tile_count + lists)):
        keys = tl.load(tile_start + lists * n_slash + step) + lane
        seen = keys[None, :] <= rows[:, None]
        peak, total, acc = with_keys(
            query_tile, key, value, keys, keys < length, seen, peak, total, acc,
            stride_kn, stride_vn, scale, DIM,
        )  # fmt: skip
    count = tl.load(column_count + lists)
    for start in range(0, count, KEYS):
        here = start + lane < count
        keys = tl.load(column_index + lists * n_vertical + start + lane, mask=here, other=0)
        peak, total, acc = with_keys(
            query_tile, key, value, keys, here, here[None, :], peak, total, acc,
            stride_kn, stride_vn, scale, DIM,
        )  # fmt: skip
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    out += b.to(tl.int64) * stride_ob + h.to(tl.int64) * stride_oh
    tl.store(
        out + rows[:, None] * stride_om + dims[None, :], acc.to(out.dtype.element_ty), mask=row_mask
    )


Index = tuple[Tensor, Tensor, Tensor, Tensor]


def build(vertical: Tensor, slash: Tensor, length: int) -> Index:
    """(tiles of each block, their first keys, columns of each block, the columns), all int32.

    Args:
        vertical: int32 (B, H, nV), ascending, without padding.
        slash: int32 (B, H, nS), descending, without padding.
        length: of queries and keys.
    """
    batch, heads, n_vertical = vertical.shape
    n_slash, blocks = slash.shape[-1], triton.cdiv(length, ROWS)
    made = {"dtype": torch.int32, "device": vertical.device}
    tile_count = torch.empty((batch, heads, blocks), **made)
    column_count = torch.empty_like(tile_count)
    tile_start = torch.empty((batch, heads, blocks, n_slash), **made)
    column_index = torch.empty((batch, heads, blocks, n_vertical), **made)
    build_kernel[triton.cdiv(blocks, LANES), batch * heads](
        vertical, slash, tile_count, tile_start, column_count, column_index,
        blocks, n_vertical, n_slash, ROWS=ROWS, KEYS=KEYS, LANES=LANES, num_warps=1,
    )  # fmt: skip
    return tile_count, tile_start, column_count, column_index


def attend(query: Tensor, key: Tensor, value: Tensor, index: Index) -> Tensor:
    """Attention over what the index lists; (B, H, S, D), D a power of two."""
    batch, heads, length, dim = query.shape
    out = torch.empty_like(query)
    tile_count, tile_start, column_count, column_index = index
    attend_kernel[heads, triton.cdiv(length, ROWS), batch](
        query, key, value, out, tile_count, tile_start, column_count, column_index,
        *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *out.stride()[:3],
        length, heads // key.shape[1], dim**-0.5 * 1.4426950408889634,
        column_index.shape[-1], tile_start.shape[-1],
        DIM=dim, ROWS=ROWS, KEYS=KEYS, num_warps=4, num_stages=2,
    )  # fmt: skip
    return out
