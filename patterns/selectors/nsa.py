"""Blocks of keys for every token, from its attention to compressed keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskwright.dsl.errors import ShapeError
from maskwright.patterns.selectors.blocks import SCORES
from maskwright.patterns.selectors.choose import ascending
from maskwright.patterns.selectors.choose import check_inputs
from maskwright.patterns.selectors.choose import grouped
from maskwright.patterns.selectors.choose import top


def nsa_blocks(
    query: Tensor,
    key: Tensor,
    count: int = 16,
    *,
    compressed: Tensor | None = None,
    span: int = 32,
    stride: int = 16,
    block: int = 64,
    first: int = 1,
    recent: int = 2,
    scale: float | None = None,
) -> dict[str, Tensor]:
    """For each token and KV head the blocks of keys to attend to; for ``block_list(1, block)``.

    A compressed key ``j`` stands for keys ``[stride * j, stride * j + span)``; queries see it from
    position ``a = stride * j + span - 1`` on; ``p`` is the softmax over what they see.

        score[a, bk] = sum over the group's query heads, and over j, of
                       p[head, a, j] * (keys that j and bk share) / stride

    (weights 1, 2, 2, 2, 1 for sizes of 32, 16 and 64); +inf for the ``first`` blocks and the
    ``recent`` ones up to the query's own. The ``count`` largest up to the query's own are kept.

    Args:
        query, key: (B, Hq, Sq, D) and (B, Hkv, Sk, D). Scores are in float32.
        count: blocks to keep, forced ones included.
        compressed: (B, Hkv, J, D), J = (Sk - span) // stride + 1; means by default.
        span, stride: of a compressed key.
        block, first, recent: keys of a block; blocks that are always among them.
        scale: D ** -0.5 by default.

    Returns:
        ``block_idx`` int32 (B, Hkv, Sk, count), ascending, padded with -1, for
        ``block_list(1, block, head_axis="kv")``. Positions before the first query: padding.

    Source: NSA; its sum over the group. FSA takes one query head, and rounds scores to bfloat16.

    Raises:
        ShapeError: for tensors or sizes that do not fit.
    """
    check_inputs(query, key)
    kv_len = key.shape[2]
    compressed = means(key, span, stride) if compressed is None else compressed
    _check_length(compressed, max(0, (kv_len - span) // stride + 1))
    query = query[:, :, max(0, query.shape[2] - kv_len) :]
    offset = kv_len - query.shape[2]
    sizes = Sizes(span, stride, block, first, recent)
    share = overlap(compressed, -(-kv_len // block), sizes)
    found = key.new_full((*key.shape[:2], kv_len, count), -1, dtype=torch.int32)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    rows = max(1, SCORES // (query.shape[0] * query.shape[1] * max(1, compressed.shape[2])))
    for start in range(0, query.shape[2], rows):
        part = query[:, :, start : start + rows]
        place = slice(offset + start, offset + start + part.shape[2])
        position = torch.arange(place.start, place.stop, device=key.device)[:, None]
        scores = group_weights(part, compressed, sizes.hidden(position, compressed), scale) @ share
        found[:, :, place] = ascending(top(sizes.forced(position, scores), count))
    return {"block_idx": found}


def _check_length(compressed: Tensor, length: int) -> None:
    if compressed.shape[2] != length:
        raise ShapeError(
            f"these keys make {length} compressed ones", expression=str(tuple(compressed.shape))
        )


@dataclass(frozen=True)
class Sizes:
    """Keys of a compressed key and between two of them, keys of a block, and forced blocks."""

    span: int
    stride: int
    block: int
    first: int
    recent: int

    def hidden(self, position: Tensor, compressed: Tensor) -> Tensor:
        """Which compressed keys end after the positions."""
        number = torch.arange(compressed.shape[2], device=position.device)
        return number * self.stride + self.span - 1 > position

    def forced(self, position: Tensor, scores: Tensor) -> Tensor:
        """The scores with +inf for forced blocks and -inf for later ones."""
        number = torch.arange(scores.shape[-1], device=position.device)
        distance = position // self.block - number
        scores = scores.masked_fill((distance < self.recent) | (number < self.first), torch.inf)
        return scores.masked_fill_(distance < 0, -torch.inf)


def group_weights(query: Tensor, keys: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """Softmax over the keys that are not hidden, summed over the query heads of a group.

    Float32 (B, Hkv, rows, keys). The first queries see no compressed key: their weights are 0.
    """
    logits = grouped(query, keys.shape[1]).float() @ keys.float()[:, :, None].transpose(-1, -2)
    logits = (logits * scale).masked_fill_(hidden, -torch.inf)
    return logits.softmax(-1).nan_to_num_(0.0).sum(2)


def means(key: Tensor, span: int, stride: int) -> Tensor:
    """Means of ``span`` keys every ``stride`` keys, float32 (B, Hkv, J, D)."""
    if key.shape[2] < span:
        return key.new_zeros((*key.shape[:2], 0, key.shape[3]), dtype=torch.float32)
    return key.float().unfold(2, span, stride).mean(-1)


def overlap(compressed: Tensor, blocks: int, sizes: Sizes) -> Tensor:
    """How many strides of keys a compressed key and a block share, float32 (J, blocks)."""
    first = torch.arange(compressed.shape[2], device=compressed.device)[:, None] * sizes.stride
    start = torch.arange(blocks, device=compressed.device) * sizes.block
    shared = torch.minimum(first + sizes.span, start + sizes.block) - torch.maximum(first, start)
    return shared.clamp(min=0).float() / sizes.stride
