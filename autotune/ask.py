"""What ``mw.tune`` was asked for, as a job and a budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from maskwright.autotune.job import Backend
from maskwright.autotune.job import Job
from maskwright.autotune.search import EFFORTS
from maskwright.autotune.search import Budget
from maskwright.codegen.gluon import GLUON_BY_DEFAULT
from maskwright.codegen.gluon_backward import default_gluon_backward
from maskwright.codegen.gluon_plan import gluon_backward_request
from maskwright.codegen.plan_backward import BackwardRequest
from maskwright.dsl.errors import TuningError
from maskwright.runtime.gluon import SMALL

BATCH, HEADS, HEAD_DIM = 1, 16, 128
_LEAST_TRIALS = 30


def job_of(
    mask: Any,
    folder: Path | None,
    *,
    q_len: int,
    kv_len: int | None = None,
    batch: int = BATCH,
    heads: int = HEADS,
    kv_heads: int | None = None,
    head_dim: int = HEAD_DIM,
    value_dim: int | None = None,
    dtype: str = "bfloat16",
    score: Any = None,
    op: str = "forward",
    backend: str = "auto",
    q_offset: int | None = None,
    seed: int = 0,
    layout: str = "heads",
    **bindings: Any,
) -> Job:
    """The job that the arguments of ``mw.tune`` describe.

    Args:
        folder: where tables of runtime values may be kept for the workers.

    Raises:
        TuningError: an op or backend that cannot be tuned, or no GPU.
    """
    kv_len = q_len if kv_len is None else kv_len
    name = str(dtype).removeprefix("torch.")
    if layout not in ("heads", "tokens"):
        raise TuningError(f"no layout {layout!r}", fix='"heads" or "tokens"')
    if op not in ("forward", "backward") or name not in ("bfloat16", "float16", "float32"):
        raise TuningError(f"no kernel for op {op!r}, dtype {name!r}", fix='op="forward"')
    job = Job.of(
        mask,
        score,
        bindings,
        folder,
        op=op,
        backend=_backend(backend, mask),
        dtype=name,
        batch=batch,
        heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        q_len=q_len,
        kv_len=kv_len,
        head_dim=head_dim,
        value_dim=head_dim if value_dim is None else value_dim,
        q_offset=kv_len - q_len if q_offset is None else q_offset,
        seed=seed,
        layout=layout,
    )
    job.call()  # says what is wrong with sizes and values
    return replace(job, backend="gluon") if backend == "auto" and _takes_gluon(job) else job


def budget_of(
    seconds: float | None = None, trials: int | None = None, effort: str | None = None
) -> Budget:
    """Seconds and trials of an effort, or as given; trials follow the seconds if left out.

    Raises:
        TuningError: there is no such effort, or a number is none.
    """
    if effort is not None and effort not in EFFORTS:
        raise TuningError(f"no effort {effort!r}", fix=f"one of {', '.join(EFFORTS)}")
    known = EFFORTS[effort or "standard"]
    time_ = known.seconds if seconds is None else float(seconds)
    many = known.trials if effort else max(_LEAST_TRIALS, round(known.trials * time_ / 60))
    found = Budget(time_, many if trials is None else int(trials))
    if not found.seconds > 0 or found.trials < 1:
        raise TuningError("a budget is a number of seconds above 0, and at least one trial")
    return found


def _takes_gluon(job: Job) -> bool:
    """Calls with ``backend="auto"`` take a Gluon kernel, so that is the one to tune."""
    if not GLUON_BY_DEFAULT or job.q_len <= SMALL:
        return False
    if torch.cuda.get_device_capability() != (9, 0):
        return False
    reason = job.gluon_request()[1]
    if reason or job.op == "forward":
        return not reason
    config = default_gluon_backward(job.head_dim, job.value_dim)
    sizes = job.dtype, job.head_dim, job.value_dim
    what = (job.mask_node, job.score_node, *sizes)
    request = BackwardRequest(*what, inside=True, config=config, tables=())
    return not gluon_backward_request(request)[1]


def _backend(name: str, mask: object) -> Backend:
    if name == "interpret":
        return "interpret"
    if name not in ("auto", "triton", "gluon"):
        raise TuningError(f"backend {name!r} has no configurations", fix='"triton" or "gluon"')
    if not torch.cuda.is_available():
        raise TuningError(
            "tuning measures on a GPU, and torch sees none",
            expression=mask,
            fix="entries that were tuned elsewhere are used from the cache directory",
        )
    return "gluon" if name == "gluon" else "triton"
