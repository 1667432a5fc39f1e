"""Offline search: which pattern suits which head, by the attention that it keeps.

``search`` compares candidates on samples of queries and keys; ``mask_of`` and ``lists_of`` turn its
choice into a ``by_head`` mask and the runtime lists of a call. Files of choices: ``layers.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from maskwright.dsl.errors import ShapeError
from maskwright.dsl.expr import Expr
from maskwright.dsl.symbols import by_head
from maskwright.patterns.selectors.blocks import block_top_k
from maskwright.patterns.selectors.candidates import CANDIDATES
from maskwright.patterns.selectors.candidates import BlockList
from maskwright.patterns.selectors.candidates import Candidate
from maskwright.patterns.selectors.candidates import VerticalSlash
from maskwright.patterns.selectors.choose import check_inputs
from maskwright.patterns.selectors.slash import vertical_slash


@dataclass(frozen=True)
class Head:
    """The choice for one query head.

    Attributes:
        pattern: what it was given.
        recall: share of the attention that the pattern keeps, on the samples.
        share: its FLOPs as a share of those of causal attention, on the samples.
    """

    pattern: Candidate
    recall: float
    share: float


Layer: TypeAlias = tuple[Head, ...]


def search(
    query: Tensor,
    key: Tensor,
    budget: float | Sequence[float],
    *,
    candidates: Sequence[Candidate] = CANDIDATES,
    rows: int = 256,
    scale: float | None = None,
) -> Layer:
    """For each query head the candidate that keeps most attention within a budget of FLOPs.

    With ``p`` the causal softmax of ``scale * q . k``, over ``rows`` queries at equal distances:

        recall = mean over queries of  sum over attended keys of p
        share  = attended pairs / causal pairs

    The largest recall among the shares up to the budget wins, and of equal ones the smaller share;
    if no candidate is that cheap, the cheapest. Pairs are those of the exact masks, which is what
    the kernels here compute with, up to the edges of tiles.

    Args:
        query, key: (B, Hq, Sq, D) and (B, Hkv, Sk, D) of a layer, after rotation; samples are
            batch entries.
        budget: share of the FLOPs of causal attention, for all heads or one number a head.
        candidates: in order of preference where all else is equal.
        rows: queries that are compared.
        scale: of the logits; D ** -0.5 by default.

    Source: MInference's offline search (its kernels compute more than the mask; there the budget is
    in their time).

    Raises:
        ShapeError: for tensors or budgets that do not fit.
    """
    check_inputs(query, key)
    heads = query.shape[1]
    budgets = [budget] * heads if isinstance(budget, (int, float)) else list(budget)
    if len(budgets) != heads or not candidates:
        raise ShapeError(
            f"one budget, or one for each of the {heads} heads; at least one candidate",
            expression=f"{len(budgets)} budgets, {len(candidates)} candidates",
        )
    picked = _sampled_rows(query, key, rows)
    lists = [candidate.lists(query, key) for candidate in candidates]
    found: list[Head] = []
    for head in range(heads):
        weights = _weights(query, key, head, picked, scale)
        position = picked + key.shape[2] - query.shape[2]
        tried = [
            _measured(
                candidate, weights, candidate.keep(given, head, position, key.shape[2]), position
            )
            for candidate, given in zip(candidates, lists, strict=True)
        ]
        found.append(best(tried, budgets[head]))
    return tuple(found)


def best(tried: Sequence[Head], budget: float) -> Head:
    """The largest recall within the budget, or the cheapest where nothing is."""
    within = [x for x in tried if x.share <= budget]
    if within:
        return max(within, key=lambda x: (x.recall, -x.share))
    return min(tried, key=lambda x: (x.share, -x.recall))


def mask_of(layer: Layer) -> Expr:
    """The heads' patterns as one mask, head ``h`` that of ``layer[h]``; equal ones once.

    Raises:
        MaskError: for a layer without heads.
    """
    masks: dict[str, Expr] = {}
    for head in layer:
        masks.setdefault(str(head.pattern.mask()), head.pattern.mask())
    numbers = {text: number for number, text in enumerate(masks)}
    if len(masks) == 1:
        return next(iter(masks.values()))
    return by_head([numbers[str(x.pattern.mask())] for x in layer], list(masks.values()))


def lists_of(layer: Layer, query: Tensor, key: Tensor) -> dict[str, Tensor]:
    """The runtime lists of ``mask_of(layer)`` for a call: each head as many entries as it was given.

    Raises:
        ShapeError: if the tensors have another number of heads.
    """
    if query.shape[1] != len(layer):
        raise ShapeError(f"the layer has {len(layer)} heads", expression=str(tuple(query.shape)))
    found: dict[str, Tensor] = {}
    slashes = [x.pattern if isinstance(x.pattern, VerticalSlash) else None for x in layer]
    if any(slashes):
        columns = [x.columns if x else 0 for x in slashes]
        diagonals = [x.diagonals if x else 0 for x in slashes]
        found |= vertical_slash(query, key, columns, diagonals)
    blocks = [x.pattern if isinstance(x.pattern, BlockList) else None for x in layer]
    sizes = {x.block for x in blocks if x}
    if len(sizes) > 1:
        raise ShapeError("block lists of one layer have blocks of one size", expression=str(sizes))
    for size in sizes:
        counts = [x.count if x else 0 for x in blocks]
        found |= block_top_k(query, key, counts, block_q=size, block_k=size)
    return found


def _sampled_rows(query: Tensor, key: Tensor, rows: int) -> Tensor:
    """Rows at equal distances, the last among them; rows that see no key are left out."""
    first, count = max(0, query.shape[2] - key.shape[2]), query.shape[2]
    number = min(rows, count - first)
    step = torch.arange(number, device=query.device)
    return count - 1 - step.flip(0) * (count - first) // number


def _weights(query: Tensor, key: Tensor, head: int, rows: Tensor, scale: float | None) -> Tensor:
    """Causal softmax of some rows of a head, float32 (B, rows, Sk)."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    keys = key[:, head // (query.shape[1] // key.shape[1])].float()
    logits = query[:, head, rows].float() @ keys.transpose(-1, -2) * scale
    position = rows + key.shape[2] - query.shape[2]
    later = torch.arange(key.shape[2], device=key.device) > position[:, None]
    return logits.masked_fill_(later, -torch.inf).softmax(-1)


def _measured(candidate: Candidate, weights: Tensor, keep: Tensor, position: Tensor) -> Head:
    keep = keep.expand_as(weights)
    recall = (weights * keep).sum(-1).mean()
    share = keep.sum() / ((position + 1).sum() * len(weights))
    return Head(candidate, float(recall), float(share))
