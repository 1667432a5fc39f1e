"""Gradients against float64: all elements, in whole and in blocks of rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from typing import Any

import torch
from torch import Tensor

from benchmarks import correct
from benchmarks.cases import Tensors

if TYPE_CHECKING:
    from benchmarks.cases import Case

NAMES = ("dq", "dk", "dv")
# Looser than the output's: three products are rounded on the way instead of one.
TOLERANCE = {name: 2 * limit for name, limit in correct.TOLERANCE.items()}
BLOCK = 128  # rows that are compared together: a single row may cancel to almost nothing
BLOCK_SLACK = 5.0  # one block may be this much worse than the whole
FLOOR = 1e-6  # blocks with less than this share of the mean square count as having that much
Entry = dict[str, Any]


def reference(case: Case, tensors: Tensors, slope: Tensor, kv_heads: int | None = None) -> Tensors:
    """Gradients of sum(out * slope) in float64, kept in float32; one head at a time.

    Args:
        kv_heads: of so many KV heads, the first ones, and of their query heads; None: of all.
    """
    shape = case.shape
    kept = min(kv_heads or shape.kv_heads, shape.kv_heads)
    group, scale = shape.heads // shape.kv_heads, 1 / math.sqrt(shape.head_dim)
    step = max(1, correct.CHUNK // (shape.seq * shape.batch))
    heads = (kept * group, kept, kept)
    parts = (x[:, :count] for x, count in zip(tensors, heads, strict=True))
    found = Tensors(*(torch.zeros_like(x, dtype=torch.float64) for x in parts))
    for head in range(kept * group):
        kv = head // group
        key, value = tensors.key[:, kv].double(), tensors.value[:, kv].double()
        for start in range(0, shape.seq, step):
            rows = torch.arange(start, min(start + step, shape.seq), device=slope.device)
            query, above = tensors.query[:, head, rows].double(), slope[:, head, rows].double()
            weights = _weights(case, head, rows, query @ key.mT * scale)
            found.value[:, kv] += weights.mT @ above
            inner = above @ value.mT
            inner -= (weights * inner).sum(-1, keepdim=True)
            inner *= weights
            found.query[:, head, rows] = inner @ key * scale
            found.key[:, kv] += inner.mT @ query * scale
    return Tensors(*(x.float() for x in found))


def _weights(case: Case, head: int, rows: Tensor, scores: Tensor) -> Tensor:
    scores.masked_fill_(~correct.mask_rows(case, head, rows), -math.inf)
    return scores.softmax(-1).nan_to_num_(0.0)  # a row without any key gives 0, not NaN


def check(found: list[Tensor | None], wanted: Tensors, case: Case) -> Entry:
    """Relative errors of dq, dk and dv; ``reason`` if one of them is wrong.

    Args:
        wanted: of the first heads at least; those of the others need be finite only.
    """
    limit = TOLERANCE[case.shape.dtype]
    errors: Entry = {}
    for name, ours, right in zip(NAMES, found, wanted, strict=True):
        heads = case.shape.heads if name == "dq" else case.shape.kv_heads
        reason = _unusable(ours, right, heads)
        if ours is None or reason:
            return {"reason": f"{name} {reason}"}
        whole, worst = distance(ours[:, : right.shape[1]], right)
        errors |= {name: whole, f"{name}_worst_block": worst}
        if not (whole < limit and worst < BLOCK_SLACK * limit):
            errors["reason"] = f"{name}: relative error {whole:.2e}, worst block {worst:.2e}"
            break
    return errors


def _unusable(found: Tensor | None, wanted: Tensor, heads: int) -> str:
    if found is None:
        return "is missing"
    shape = (wanted.shape[0], heads, *wanted.shape[2:])
    if found.shape != shape:
        return f"is {tuple(found.shape)}, not {shape}"
    return "" if bool(found.isfinite().all()) else "is not finite everywhere"


def distance(found: Tensor, wanted: Tensor) -> tuple[float, float]:
    """||found - wanted|| / ||wanted||: of everything, and of the worst block of rows of a head."""
    error = _blocks((found.float() - wanted).square().sum(-1))
    size = _blocks(wanted.square().sum(-1))
    tiny = torch.finfo(torch.float32).tiny
    whole = error.sum() / size.sum().clamp_min(tiny)
    worst = (error / size.clamp_min(max(FLOOR * float(size.mean()), tiny))).max()
    return math.sqrt(float(whole)), math.sqrt(float(worst))


def _blocks(rows: Tensor) -> Tensor:
    """Sums over ``BLOCK`` neighbours of the last dimension."""
    padding = -rows.shape[-1] % BLOCK
    padded = torch.nn.functional.pad(rows, (0, padding))
    return padded.reshape(*rows.shape[:-1], -1, BLOCK).sum(-1)
