"""The simulated Gluon backward of a mask, against PyTorch's gradients of the reference."""

from __future__ import annotations

import simulated_gluon
import torch

from maskwright.codegen.gluon_plan import gluon_backward_request
from maskwright.codegen.pipeline import compile_backward
from maskwright.codegen.plan_backward import BackwardRequest
from maskwright.runtime.api import Attention
from maskwright.runtime.build import load
from maskwright.runtime.interpret import interpreter


def worst(
    mask,
    q_len,
    kv_len,
    *,
    config=None,
    score=None,
    sizes=(128, 128),
    heads=(4, 2),
    apart=0.0,
    section=None,
    change=None,
    **values,
):
    """Largest error of dq, dk and dv, relative; None if the template refuses."""
    torch.manual_seed(q_len + kv_len)
    query = (apart + torch.randn(2, heads[0], q_len, sizes[0])).half()
    key = (torch.randn(2, heads[1], kv_len, sizes[0]) - apart).half()
    value = torch.randn(2, heads[1], kv_len, sizes[1]).half()
    given = {x: torch.as_tensor(y) if hasattr(y, "shape") else y for x, y in values.items()}
    found = Attention(mask, score=score)
    call = found.call(query, key, value, given, backend="reference")
    request, reason = gluon_backward_request(
        BackwardRequest(
            found.mask, found.score, "float16", *sizes, call.inside, config=None, tables=()
        ),
        config,
    )
    if reason:
        return None
    compiled = compile_backward(request)
    leaves = [x.float().requires_grad_() for x in (query, key, value)]
    out, lse = found(*leaves, return_lse=True, backend="reference", **given)
    grad_out, grad_lse = torch.randn_like(out).half(), torch.randn_like(lse)
    grad_lse.masked_fill_(lse == -torch.inf, 0.0)
    finite = lse.masked_fill(lse == -torch.inf, 0.0)
    loss = (out * grad_out.float()).sum() + (finite * grad_lse).sum()
    wanted = torch.autograd.grad(loss, leaves)
    options = {x.text: call.values[x.name] for x in compiled.plan.bindings}
    assert change is None or change[0] in compiled.source
    source = compiled.source.replace(*change) if change else compiled.source
    module = simulated_gluon.simulated(source)
    if section is not None:
        row_bytes = 6 * sizes[0] + 2 * sizes[1]
        module |= {"SECTION_BYTES": section * row_bytes * q_len, "PROGRAMS": 1}
    if compiled.plan.keys.tiles:  # what comes before the kernels is Triton's
        counts = (q_len, kv_len, 2, *heads, query.device)
        with interpreter():
            options["prepared"] = load(compiled, interpreted=True).prepare(*counts, **options)
    tensors = (query, key, value, out.detach().half(), lse.detach(), grad_out)
    made = module["backward"](*tensors, grad_lse=grad_lse, **options)
    assert made[-1] == {}
    pairs = zip(made[:3], wanted, strict=True)
    return max(float((x - y).norm() / y.norm().clamp_min(1e-6)) for x, y in pairs)
