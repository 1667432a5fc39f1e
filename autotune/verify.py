"""The winner on inputs that the search never saw: other seeds, odd lengths, rows without keys."""

from __future__ import annotations

from typing import Any

import torch

from maskwright.autotune.bench import Bench
from maskwright.autotune.entry import Checks
from maskwright.autotune.job import Job
from maskwright.codegen.configs import AnyConfig
from maskwright.dsl.expr import Expr
from maskwright.runtime.check import TOLERANCE
from maskwright.runtime.check import check

# (queries, keys): uneven; more queries than keys, so that causal rows go without; a single query.
_SHAPES = ((333, 517), (200, 150), (1, 77))
_SMALL_SHAPES = ((40, 57), (30, 20))  # where a Python program plays the GPU
_SEEDS = (7919, 7920, 7921)


def verify(bench: Bench, config: AnyConfig) -> tuple[bool, Checks, str]:
    """(right, how far off on small shapes, what is wrong)."""
    job = bench.job
    wrong, worst, shapes = "", 0.0, []
    for seed in _SEEDS[: 3 if bench.cuda else 1]:
        wrong = wrong or bench.fresh_error(config, job.seed + seed)
    shapes.append(f"{job.batch}x{job.heads}x{job.q_len}x{job.kv_len}x{job.head_dim}")
    for q_len, kv_len in _edges(bench):
        options = _options(job, config) | {"q_len": q_len, "kv_len": kv_len} | job.params
        report = check(Expr(job.mask_node), **options)
        worst = max(worst, report.out_error)
        shapes.append(report.shape)
        if not report.ok:
            wrong = wrong or str(report)
    tolerance = TOLERANCE[getattr(torch, job.dtype)]
    return not wrong, Checks(worst, tolerance, tuple(shapes)), wrong


def _edges(bench: Bench) -> tuple[tuple[int, int], ...]:
    """Runtime tensors fit one size only."""
    if bench.job.has_tensors:
        return ()
    return _SHAPES if bench.cuda else _SMALL_SHAPES


def _options(job: Job, config: AnyConfig) -> dict[str, Any]:
    which = "backward" if job.op == "backward" else "config"
    return {
        which: config,
        "heads": job.heads,
        "kv_heads": job.kv_heads,
        "head_dim": job.head_dim,
        "value_dim": job.value_dim,
        "dtype": job.dtype,
        "score": job.score_expr,
        "backend": job.backend,
        "gradients": job.op == "backward",
    }
