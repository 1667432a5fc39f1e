"""A mask's kernels, compiled for a GPU that need not be here."""

from __future__ import annotations

from maskwright.codegen.api import source
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon_backward import GluonBackwardConfig
from maskwright.codegen.gluon_backward import default_gluon_backward
from maskwright.codegen.gluon_plan import gluon_backward_request
from maskwright.codegen.gluon_plan import gluon_request
from maskwright.codegen.pipeline import choose_backward
from maskwright.codegen.pipeline import choose_config
from maskwright.codegen.pipeline import compile_backward
from maskwright.codegen.pipeline import compile_forward
from maskwright.codegen.plan import Request
from maskwright.codegen.plan_backward import BackwardRequest
from maskwright.dsl import nodes as n
from maskwright.dsl.errors import LoweringError
from maskwright.dsl.evaluate import mask_node
from maskwright.runtime.offline import BuildReport
from maskwright.runtime.offline import build


def cross_compile(
    mask: object,
    arch: str,
    *,
    op: str = "forward",
    dtype: str = "bfloat16",
    head_dim: int = 128,
    backend: str = "triton",
) -> tuple[BuildReport, ...]:
    """Registers, stack and shared memory of the kernels that ``source`` shows for these arguments.

    Raises:
        LoweringError: for an op, dtype, size or architecture that has no kernel.
    """
    # Says what is wrong, if anything.
    source(mask, op=op, arch=arch, dtype=dtype, head_dim=head_dim, backend=backend)
    node = mask_node(mask)
    if backend == "gluon":
        build_one = build_gluon_backward if op == "backward" else build_gluon
        return (build_one(node, dtype=dtype, head_dim=head_dim),)
    if op == "backward":
        both = choose_backward(node, arch=arch, dtype=dtype, head_dim=head_dim, value_dim=head_dim)
        made = compile_backward(BackwardRequest(node, None, dtype, head_dim, head_dim, True, both))
        return tuple(
            build(plan, made.plan.pads, made.source, made.name, arch, kernel)
            for plan, kernel in zip(
                made.plan.walks, ("query_gradient_kernel", "key_gradient_kernel"), strict=True
            )
        )
    config = choose_config(node, arch=arch, dtype=dtype, head_dim=head_dim, value_dim=head_dim)
    first = compile_forward(Request(node, None, dtype, head_dim, head_dim, True, False, config))
    pads = first.plan.request.pads
    return (build(first.plan, pads, first.source, first.name, arch, "forward_kernel"),)


def build_gluon(
    mask: n.Node,
    *,
    dtype: str = "bfloat16",
    head_dim: int = 128,
    value_dim: int | None = None,
    score: n.Node | None = None,
    config: GluonConfig | None = None,
) -> BuildReport:
    """The Gluon forward of a mask, compiled for sm_90.

    Raises:
        LoweringError: if the template cannot serve it.
    """
    request, reason = gluon_request(
        mask,
        score,
        dtype=dtype,
        head_dim=head_dim,
        value_dim=head_dim if value_dim is None else value_dim,
        config=config,
    )
    if reason:
        raise LoweringError(f"no Gluon kernel: {reason}", fix='use backend="triton"')
    made = compile_forward(request)
    return build(made.plan, request.pads, made.source, made.name, "sm_90", "forward_kernel")


def build_gluon_backward(
    mask: n.Node,
    *,
    dtype: str = "bfloat16",
    head_dim: int = 128,
    value_dim: int | None = None,
    score: n.Node | None = None,
    config: GluonBackwardConfig | None = None,
) -> BuildReport:
    """The Gluon backward of a mask, compiled for sm_90.

    Raises:
        LoweringError: if the template cannot serve it, or the compiler refuses.
    """
    sizes = head_dim, value_dim or head_dim
    chosen = config or default_gluon_backward(*sizes)
    request, reason = gluon_backward_request(
        BackwardRequest(mask, score, dtype, *sizes, inside=True, config=chosen, tables=()), config
    )
    if reason:
        raise LoweringError(f"no Gluon kernel: {reason}", fix='use backend="triton"')
    made = compile_backward(request)
    walk, pads = made.plan.keys, made.plan.pads
    return build(walk, pads, made.source, made.name, "sm_90", "gradient_kernel")
