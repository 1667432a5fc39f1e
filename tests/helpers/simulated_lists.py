"""The simulated Gluon forward of a mask with runtime lists, against float64.

What is prepared comes from the small Triton kernels, which Triton's own interpreter runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import simulated_gluon
import torch

from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon_plan import gluon_request
from maskwright.codegen.pipeline import Compiled
from maskwright.codegen.pipeline import compile_forward
from maskwright.codegen.plan import WalkPlan
from maskwright.dsl.expr import Expr
from maskwright.runtime.api import Attention
from maskwright.runtime.build import load
from maskwright.runtime.call import Call
from maskwright.runtime.check import Report
from maskwright.runtime.check import _dense
from maskwright.runtime.check import _judge
from maskwright.runtime.check import dense_attention
from maskwright.runtime.interpret import interpreter

BATCH, HEADS, KV_HEADS = 1, 2, 1


def compiled(
    mask: Expr, call: Call | None = None, score: Any = None, config: GluonConfig | None = None
) -> Compiled[WalkPlan]:
    request, reason = gluon_request(
        mask.node,
        score,
        dtype="float16",
        head_dim=64 if call is None else call.shapes.head_dim,
        value_dim=64 if call is None else call.shapes.value_dim,
        inside=call is None or call.inside,
        has_sinks=call is not None and call.sinks is not None,
        config=config,
    )
    assert not reason
    return compile_forward(request)


def run(
    mask: Expr,
    q_len: int,
    kv_len: int,
    *,
    config: GluonConfig | None = None,
    score: Any = None,
    sinks: torch.Tensor | None = None,
    sizes: tuple[int, int] = (64, 64),
    q_offset: int | None = None,
    change: tuple[str, str] | None = None,
    **lists: np.ndarray,
) -> Report:
    """The simulated kernel, or one with a text replaced, against float64."""
    torch.manual_seed(q_len + kv_len)
    query = torch.randn(BATCH, HEADS, q_len, sizes[0]).half()
    key = torch.randn(BATCH, KV_HEADS, kv_len, sizes[0]).half()
    value = torch.randn(BATCH, KV_HEADS, kv_len, sizes[1]).half()
    given = {name: torch.as_tensor(x.copy()) for name, x in lists.items()}
    found = Attention(mask, score=score)
    call = found.call(query, key, value, given, sinks=sinks, q_offset=q_offset, backend="reference")
    made = compiled(mask, call, found.score, config)
    options: dict[str, Any] = {x.text: call.values[x.name] for x in made.plan.bindings}
    options["q_offset"] = call.shapes.q_offset
    counts = (q_len, kv_len, BATCH, HEADS, KV_HEADS, query.device)
    with interpreter():  # what comes before the kernel is Triton's
        options["prepared"] = load(made, interpreted=True).prepare(*counts, **options)
    options |= {} if sinks is None else {"sinks": sinks}
    assert change is None or change[0] in made.source
    source = made.source.replace(*change) if change else made.source
    out, lse = simulated_gluon.simulated(source)["forward"](query, key, value, **options)
    keep = _dense(mask, (BATCH, HEADS, KV_HEADS, q_len, kv_len), q_offset, given)
    truth = dense_attention(query, key, value, keep, None, sinks, found.score, call.values)
    return _judge(str(mask), "simulated", "", out, lse, truth, keep, sinks is not None)
