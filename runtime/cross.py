"""A mask's kernel, compiled for a GPU that need not be here."""

from __future__ import annotations

from maskwright.codegen.api import source
from maskwright.codegen.pipeline import choose_config
from maskwright.codegen.pipeline import compile_forward
from maskwright.codegen.plan import Request
from maskwright.dsl.evaluate import mask_node
from maskwright.runtime.offline import BuildReport
from maskwright.runtime.offline import build


def cross_compile(
    mask: object, arch: str, *, op: str = "forward", dtype: str = "bfloat16", head_dim: int = 128
) -> BuildReport:
    """Registers, stack and shared memory of the kernel that ``source`` shows for these arguments.

    Raises:
        LoweringError: for an op, dtype, size or architecture that has no kernel.
    """
    source(
        mask, op=op, arch=arch, dtype=dtype, head_dim=head_dim
    )  # says what is wrong, if anything
    node = mask_node(mask)
    config = choose_config(node, arch=arch, dtype=dtype, head_dim=head_dim, value_dim=head_dim)
    made = compile_forward(Request(node, None, dtype, head_dim, head_dim, True, False, config))
    return build(made.plan, made.source, made.name, arch)
