"""Blocked attention and gradients in high precision: what candidates are compared with.

Any mask, any length: blocks of rows of one head at a time, the mask evaluated by definition. An
error is that of a row in units of the row, so one wrong tile in a long row shows, and so does one
wrong row among a million.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskwright.dsl import nodes as n
from maskwright.runtime.torch_eval import evaluate

_BLOCK = 1 << 24  # pairs at a time
_MOST = 1 << 34  # pairs of a forward; beyond, blocks of rows are left out
_SMALL_ROW = 0.1  # of the mean row: what a row that cancels to nothing is measured by


@dataclass(frozen=True)
class Setting:
    """A call as the truth sees it.

    Attributes:
        values: runtime values by name.
    """

    mask: n.Node
    score: n.Node | None
    values: Mapping[str, Any]
    q_offset: int


@dataclass(frozen=True)
class Truth:
    """Right results.

    Attributes:
        rows: query rows that were computed.
        out, lse: of these rows.
        gradients: of query, key and value, if asked for; then all rows were computed.
    """

    rows: Tensor
    out: Tensor
    lse: Tensor
    gradients: tuple[Tensor, ...] = ()


def truth_of(
    setting: Setting,
    tensors: Sequence[Tensor],
    grad_out: Tensor | None = None,
    given_out: Tensor | None = None,
) -> Truth:
    """Output and LSE, and gradients if the gradient of the output is given.

    Args:
        given_out: the rounded output that a backward starts from. Where a row of gradients nearly
            cancels, that rounding is most of its error, and no candidate is to blame for it.
    """
    query, key, value = tensors[:3]
    exact = torch.float64 if query.dtype == torch.float32 else torch.float32
    batch, heads, q_len = query.shape[:3]
    size = max(1, _BLOCK // max(1, key.shape[2]))
    spans = [(x, min(q_len, x + size)) for x in range(0, q_len, size)]
    if grad_out is None:
        most = max(2, _MOST // (batch * heads * size * max(1, key.shape[2])))
        spans = _spread(spans, most)
    rows = torch.cat([torch.arange(*span, device=query.device) for span in spans])
    out = torch.zeros((batch, heads, len(rows), value.shape[3]), dtype=exact, device=query.device)
    lse = torch.zeros(out.shape[:3], dtype=exact, device=query.device)
    sums = [torch.zeros_like(x, dtype=exact) for x in (query, key, value) if grad_out is not None]
    group = heads // key.shape[1]
    for b, h, span, at in _blocks(batch, heads, spans):
        parts = [
            x.to(exact)
            for x in (query[b, h, slice(*span)], key[b, h // group], value[b, h // group])
        ]
        kept = slice(at, at + span[1] - span[0])
        if grad_out is None:
            out[b, h, kept], lse[b, h, kept] = _block(setting, tensors, parts, b, h, span)
            continue
        with torch.enable_grad():
            leaves = [x.requires_grad_() for x in parts]
            found, sizes = _block(setting, tensors, leaves, b, h, span)
            given = grad_out[b, h, slice(*span)].to(exact)
            rounding = torch.zeros_like(sizes)
            if given_out is not None:
                rounding = ((given_out[b, h, slice(*span)].to(exact) - found) * given).sum(-1)
            # dS = P (dP - rowsum(dO O)), and P is the gradient of the LSE.
            grads = torch.autograd.grad([found, sizes], leaves, [given, -rounding.detach()])
        out[b, h, kept], lse[b, h, kept] = found.detach(), sizes.detach()
        sums[0][b, h, slice(*span)] = grads[0]
        sums[1][b, h // group] += grads[1]
        sums[2][b, h // group] += grads[2]
    return Truth(rows, out, lse, tuple(sums))


def row_error(found: Tensor, right: Tensor) -> float:
    """The largest error of a row; NaN where something is NaN."""
    if not right.numel():
        return 0.0
    sizes = right.norm(dim=-1)
    mean = float(sizes.square().mean().sqrt())
    errors = (found.to(right.dtype) - right).norm(dim=-1)
    return float((errors / (sizes + _SMALL_ROW * mean + 1e-30)).max())


def lse_error(found: Tensor, right: Tensor) -> float:
    """The largest difference; rows without keys must agree exactly."""
    if not right.numel():
        return 0.0
    same = right.isinf() & (found.to(right.dtype) == right)
    return float(torch.where(same, 0.0, found.to(right.dtype) - right).abs().max())


def _spread(spans: list[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Some of them, the first and the last included."""
    if len(spans) <= most:
        return spans
    return [spans[round(i * (len(spans) - 1) / (most - 1))] for i in range(most)]


def _blocks(
    batch: int, heads: int, spans: list[tuple[int, int]]
) -> Iterator[tuple[int, int, tuple[int, int], int]]:
    """(batch entry, head, rows, place of the first among those computed)."""
    for b in range(batch):
        for h in range(heads):
            at = 0
            for span in spans:
                yield b, h, span, at
                at += span[1] - span[0]


def _block(
    setting: Setting,
    tensors: Sequence[Tensor],
    parts: list[Tensor],
    b: int,
    h: int,
    span: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """(out, lse) of some rows of a head."""
    query, key, value = parts
    env = _positions(setting, tensors, b, h, span) | dict(setting.values)
    shape = (1, 1, query.shape[0], key.shape[0])
    keep = evaluate(setting.mask, env, query.device).expand(shape)[0, 0]
    logits = query @ key.T * query.shape[-1] ** -0.5
    if setting.score is not None:
        scored = evaluate(setting.score, env | {"s": logits[None, None]}, query.device)
        logits = scored.expand(shape)[0, 0].to(query.dtype)
    empty = ~keep.any(-1, keepdim=True)
    # A row without keys attends to all of them here, and is cleared: so its gradient is no NaN.
    logits = logits.masked_fill(~(keep | empty), float("-inf"))
    lse = torch.logsumexp(logits, -1)
    out = torch.exp(logits - lse[:, None]) @ value
    return out.masked_fill(empty, 0.0), lse.masked_fill(empty[:, 0], float("-inf"))


def _positions(
    setting: Setting, tensors: Sequence[Tensor], b: int, h: int, span: tuple[int, int]
) -> dict[str, Any]:
    query, key = tensors[:2]
    where = query.device
    group = query.shape[1] // key.shape[1]
    return {
        "q": torch.arange(*span, device=where).reshape(1, 1, -1, 1) + setting.q_offset,
        "k": torch.arange(key.shape[2], device=where).reshape(1, 1, 1, -1),
        "h": torch.full((1, 1, 1, 1), h, device=where),
        "kv_head": torch.full((1, 1, 1, 1), h // group, device=where),
        "b": torch.full((1, 1, 1, 1), b, device=where),
        "q_len": query.shape[2],
        "kv_len": key.shape[2],
    }
