"""``MASKWRIGHT_TUNE=on``: a kernel that is made without an entry is searched first."""

from __future__ import annotations

import warnings
from functools import cache

from maskwright.autotune.job import Job
from maskwright.autotune.key import Key
from maskwright.autotune.search import EFFORTS
from maskwright.autotune.tune import Options
from maskwright.autotune.tune import many_ranks
from maskwright.autotune.tune import tune_job
from maskwright.dsl import nodes as n
from maskwright.dsl.errors import TuningError
from maskwright.dsl.expr import Expr
from maskwright.runtime.bind import Shapes
from maskwright.runtime.cache import MaskwrightWarning

_searched: set[Key] = set()


def search(mask: n.Node, score: n.Node | None, key: Key, shapes: Shapes) -> bool:
    """A quick search for a key that has no entry, once a process; True if there is one now."""
    if key in _searched:
        return False
    _searched.add(key)
    reason = _unfit(mask, score, key)
    if reason:
        _tell(f"{key.name} is not tuned: {reason}")
        return False
    try:
        # Somebody waits for a call: the heuristic serves it while others have the GPU.
        tune_job(_job(mask, score, key, shapes), EFFORTS["quick"], Options(patience=0.0))
    except TuningError as error:
        _tell(f"{key.name} is not tuned: {error.what}")
        return False
    return True


def _unfit(mask: n.Node, score: n.Node | None, key: Key) -> str:
    if many_ranks():
        return "this process is one of many ranks"
    if any(n.params(x) or n.tables(x) for x in (mask, score) if x is not None):
        return "runtime values decide; maskwright tune MASK --bind takes typical ones"
    return "" if key.problem.aligned else "its tensors are not aligned"


def _job(mask: n.Node, score: n.Node | None, key: Key, shapes: Shapes) -> Job:
    p = key.problem
    return Job.of(
        Expr(mask),
        None if score is None else Expr(score),
        {},
        None,
        op=p.op,
        backend="gluon" if p.template == "gluon_sm90" else "triton",
        dtype=p.dtype,
        batch=shapes.batch,
        heads=shapes.heads,
        kv_heads=shapes.kv_heads,
        q_len=shapes.q_len,
        kv_len=shapes.kv_len,
        head_dim=shapes.head_dim,
        value_dim=shapes.value_dim,
        q_offset=shapes.q_offset,
        layout=p.layout,
    )


@cache
def _tell(text: str) -> None:
    warnings.warn(text, MaskwrightWarning, stacklevel=3)
