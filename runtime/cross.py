"""A mask's kernels, compiled for a GPU that need not be here."""

from __future__ import annotations

from maskwright.codegen.api import source
from maskwright.codegen.config import default_backward
from maskwright.codegen.granule import granule
from maskwright.codegen.granule import row_granule
from maskwright.codegen.pipeline import choose_config
from maskwright.codegen.pipeline import compile_backward
from maskwright.codegen.pipeline import compile_forward
from maskwright.codegen.plan import Request
from maskwright.codegen.plan_backward import BackwardRequest
from maskwright.dsl.evaluate import mask_node
from maskwright.runtime.offline import BuildReport
from maskwright.runtime.offline import build


def cross_compile(
    mask: object, arch: str, *, op: str = "forward", dtype: str = "bfloat16", head_dim: int = 128
) -> tuple[BuildReport, ...]:
    """Registers, stack and shared memory of the kernels that ``source`` shows for these arguments.

    Raises:
        LoweringError: for an op, dtype, size or architecture that has no kernel.
    """
    source(
        mask, op=op, arch=arch, dtype=dtype, head_dim=head_dim
    )  # says what is wrong, if anything
    node = mask_node(mask)
    if op == "backward":
        both = default_backward(
            arch=arch,
            dtype=dtype,
            head_dim=head_dim,
            granule=granule(node),
            row_granule=row_granule(node),
        )
        made = compile_backward(BackwardRequest(node, None, dtype, head_dim, head_dim, True, both))
        return tuple(
            build(plan, made.plan.pads, made.source, made.name, arch, kernel)
            for plan, kernel in (
                (made.plan.queries, "query_gradient_kernel"),
                (made.plan.keys, "key_gradient_kernel"),
            )
        )
    config = choose_config(node, arch=arch, dtype=dtype, head_dim=head_dim, value_dim=head_dim)
    first = compile_forward(Request(node, None, dtype, head_dim, head_dim, True, False, config))
    pads = first.plan.request.pads
    return (build(first.plan, pads, first.source, first.name, arch, "forward_kernel"),)
