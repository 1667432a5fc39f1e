"""Right before fast: outputs against float64 on sampled rows, and the exact count of pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from benchmarks.cases import Case
    from benchmarks.cases import Tensors

SAMPLES = 64
TOLERANCE = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 2e-3}
ROW_SLACK = 5.0  # one row may be this much worse than the whole
CHUNK = 2**26  # mask points evaluated at a time


@dataclass(frozen=True)
class Reference:
    """Float64 output of some query rows, (B, Hq, rows, D)."""

    rows: Tensor
    out: Tensor


@dataclass(frozen=True)
class Verdict:
    """What the check of one output found.

    Attributes:
        reason: None if the output is right.
        error: ||out - ref|| / ||ref|| over all sampled rows; None if it did not come that far.
        worst_row: the same of the worst single row of one head.
    """

    reason: str | None
    error: float | None = None
    worst_row: float | None = None


def sample_rows(seq: int, count: int = SAMPLES, seed: int = 1) -> Tensor:
    """Sorted row numbers: the first and last two, the rest at random."""
    ends = torch.tensor([0, 1, seq - 2, seq - 1]).clamp(0, seq - 1)
    inner = torch.randperm(seq, generator=torch.Generator().manual_seed(seed))[:count]
    rows: Tensor = torch.cat([ends, inner]).unique()
    return rows


def mask_rows(case: Case, head: int, rows: Tensor) -> Tensor:
    """(rows, S) bool: the mask of some rows of one query head, in the first batch entry."""
    keys = torch.arange(case.shape.seq, device=rows.device, dtype=torch.int32)[None]
    if case.flex_mod is None:
        return torch.ones(len(rows), case.shape.seq, dtype=torch.bool, device=rows.device)
    found: Tensor = case.flex_mod(0, head, rows.to(torch.int32)[:, None], keys)
    return found.expand(len(rows), case.shape.seq)


def reference(case: Case, tensors: Tensors) -> Reference:
    """Attention of the sampled rows in float64, one head at a time."""
    device = tensors.query.device
    rows = sample_rows(case.shape.seq).to(device)
    group = case.shape.heads // case.shape.kv_heads
    outs: list[Tensor] = []
    for head in range(case.shape.heads):
        key = tensors.key[:, head // group].double()
        value = tensors.value[:, head // group].double()
        query = tensors.query[:, head, rows].double() / math.sqrt(case.shape.head_dim)
        scores = query @ key.transpose(-1, -2)
        scores.masked_fill_(~mask_rows(case, head, rows), -math.inf)
        # A row without any key gives 0, not NaN.
        outs.append(scores.softmax(-1).nan_to_num_(0.0) @ value)
    return Reference(rows, torch.stack(outs, 1))


def check(out: Tensor, ref: Reference, case: Case) -> Verdict:
    """Shape, dtype, finite everywhere, and close to the reference on the sampled rows."""
    shape = case.shape
    wanted = (shape.batch, shape.heads, shape.seq, shape.head_dim)
    if tuple(out.shape) != wanted or out.dtype != shape.torch_dtype:
        return Verdict(f"output is {out.dtype} {tuple(out.shape)}, not {shape.dtype} {wanted}")
    if not bool(out.isfinite().all()):
        return Verdict("output is not finite everywhere")
    distance = (out[:, :, ref.rows].double() - ref.out).norm(dim=-1)
    length = ref.out.norm(dim=-1)
    error = float(distance.norm() / length.norm().clamp_min(1e-12))
    worst = float((distance / length.clamp_min(1e-6)).max())
    limit = TOLERANCE[shape.dtype]
    wrong = not (error < limit and worst < ROW_SLACK * limit)
    reason = f"relative error {error:.2e}, worst row {worst:.2e}" if wrong else None
    return Verdict(reason, error, worst)


def poison(*likes: Tensor) -> None:
    """Leave NaN in the allocator's next free blocks of these sizes: unwritten outputs show."""
    kept = [torch.full_like(like, math.nan) for like in likes]
    del kept


def count_pairs(case: Case, device: str) -> int:
    """Attended (query, key) pairs over all heads and batch entries, exactly."""
    shape = case.shape
    if case.flex_mod is None:
        return shape.batch * shape.heads * shape.seq**2
    heads = range(shape.heads) if case.per_head else range(1)
    step = max(1, CHUNK // shape.seq)
    total = torch.zeros((), dtype=torch.int64, device=device)
    for head in heads:
        for start in range(0, shape.seq, step):
            rows = torch.arange(start, min(start + step, shape.seq), device=device)
            total += mask_rows(case, head, rows).sum(dtype=torch.int64)
    return int(total.item()) * shape.batch * (shape.heads // len(heads))
