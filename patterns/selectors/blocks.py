"""Blocks of keys by the mean of their keys."""

from __future__ import annotations

import torch
from torch import Tensor

from maskwright.dsl.errors import ShapeError
from maskwright.patterns.selectors.choose import Budget
from maskwright.patterns.selectors.choose import ascending
from maskwright.patterns.selectors.choose import check_inputs
from maskwright.patterns.selectors.choose import grouped
from maskwright.patterns.selectors.choose import split
from maskwright.patterns.selectors.choose import top
from maskwright.patterns.selectors.choose import widest

SCORES = 2**26  # scores that are held at a time


def block_top_k(
    query: Tensor,
    key: Tensor,
    count: Budget = 100,
    *,
    block_q: int = 64,
    block_k: int = 64,
    causal: bool = True,
    sink_blocks: int = 0,
    local_blocks: int = 0,
) -> dict[str, Tensor]:
    """For each block of queries the blocks of keys whose means are closest; for ``block_list()``.

    With ``bq``, ``bk`` blocks of positions: ``score[bq, bk] = mean(q of bq) . mean(k of bk)``, means
    of the tokens that a block has. The ``count`` largest are kept, of those that begin at or before
    the last query of the block if ``causal``; forced blocks count towards them.

    Args:
        query, key: (B, Hq, Sq, D) and (B, Hkv, Sk, D); means and scores are in float32.
        count: blocks to keep, of all heads or of each.
        block_q, block_k: sizes of the blocks, as in ``block_list(block_q, block_k)``.
        causal: whether the pattern is.
        sink_blocks, local_blocks: first blocks, and last blocks up to the query's own, that are
            always among them.

    Returns:
        ``block_idx`` int32 (B, Hq, ceil(Sk / block_q), count), ascending, padded with -1. Rows of
        positions before the first query are padding.

    Source: MInference's block-sparse heads (64, 64, 100). Its list keeps blocks right of the
    diagonal and relies on their order; here they are padding.

    Raises:
        ShapeError: for tensors or sizes that do not fit.
    """
    check_inputs(query, key)
    if min(block_q, block_k) < 1:
        raise ShapeError("blocks have at least 1 token", expression=f"{block_q}, {block_k}")
    kv_len = key.shape[2]
    query = query[:, :, max(0, query.shape[2] - kv_len) :]  # rows at positions below 0 see no key
    offset = kv_len - query.shape[2]
    means = block_means(query, block_q, offset)
    key_means = block_means(key, block_k)[:, :, None].transpose(-1, -2)
    shape = (*query.shape[:2], -(-kv_len // block_q), widest(count))
    found = torch.full(shape, -1, dtype=torch.int32, device=key.device)
    rows = max(1, SCORES // (shape[0] * shape[1] * key_means.shape[-1]))
    block = torch.arange(key_means.shape[-1], device=key.device)
    for start in range(0, means.shape[2], rows):
        scores = (grouped(means[:, :, start : start + rows], key.shape[1]) @ key_means).flatten(
            1, 2
        )
        place = slice(offset // block_q + start, offset // block_q + start + scores.shape[2])
        row = torch.arange(place.start, place.stop, device=key.device)[:, None]
        distance = (torch.clamp((row + 1) * block_q, max=kv_len) - 1) // block_k - block
        near = (distance >= 0) & (distance < local_blocks)
        scores.masked_fill_(near | (block < sink_blocks), torch.inf)
        if causal:
            scores.masked_fill_(distance < 0, -torch.inf)
        found[:, :, place] = ascending(top(scores, count))
    return {"block_idx": found}


def block_means(x: Tensor, block: int, offset: int = 0) -> Tensor:
    """Means of blocks of positions, float32 (B, H, blocks, D); row 0 has position ``offset``."""
    before = offset % block
    behind = -(before + x.shape[2]) % block
    padded = torch.nn.functional.pad(x.float(), (0, 0, before, behind))
    sums = split(padded, 2, block).sum(3)
    counts = torch.full((sums.shape[2],), float(block), device=x.device)
    counts[:1] -= before
    counts[-1:] -= behind
    return sums / counts[:, None]
