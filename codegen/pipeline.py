"""The compiler, as one straight function: mask node -> schedule -> plan -> source."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from functools import lru_cache

from maskwright.codegen.config import KernelConfig
from maskwright.codegen.config import default_config
from maskwright.codegen.describe import SOURCE_FORMAT
from maskwright.codegen.describe import brief
from maskwright.codegen.describe import schedule_lines
from maskwright.codegen.granule import granule
from maskwright.codegen.plan import ForwardPlan
from maskwright.codegen.plan import Request
from maskwright.codegen.plan import plan_forward
from maskwright.codegen.render import render_forward
from maskwright.dsl import nodes as n
from maskwright.dsl.text import to_text


@dataclass(frozen=True)
class Compiled:
    """All stages of one compilation."""

    request: Request
    plan: ForwardPlan
    source: str

    @cached_property
    def name(self) -> str:
        """Readable, unique name: mask, dtype, head size, op and a hash of the source."""
        return "_".join(
            [
                slug(self.request.mask),
                {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}[self.request.dtype],
                f"d{self.request.head_dim}",
                "fwd",
                n.digest(f"{SOURCE_FORMAT}\n{self.source}"),
            ]
        )


@lru_cache(maxsize=1024)
def compile_forward(request: Request, debug: frozenset[str] = frozenset()) -> Compiled:
    """Mask node to source text. Pure: no GPU, no torch, no files."""
    plan = plan_forward(request)
    source = render_forward(plan)
    _dump(debug, request, plan, source)
    return Compiled(request, plan, source)


def _dump(debug: frozenset[str], request: Request, plan: ForwardPlan, source: str) -> None:
    stages: dict[str, Callable[[], str]] = {
        "mask": lambda: brief(request.mask),
        "schedule": lambda: "\n".join(schedule_lines(plan.schedule)),
        "plan": lambda: repr(plan),
        "source": lambda: source,
    }
    for stage, text in stages.items():
        if stage in debug:
            print(f"--- maskwright {stage} ---\n{text()}", file=sys.stderr)


def choose_config(
    mask: n.Node,
    *,
    arch: str,
    dtype: str,
    head_dim: int,
    value_dim: int,
    q_len: int | None = None,
    aligned: bool = True,
) -> KernelConfig:
    """The heuristic's configuration for a mask: tiles that fit the mask's own blocks."""
    return default_config(
        arch=arch,
        dtype=dtype,
        head_dim=head_dim,
        value_dim=value_dim,
        q_len=q_len,
        granule=granule(mask),
        aligned=aligned,
    )


def slug(mask: n.Node) -> str:
    """A few letters of the mask, fit for a file name."""
    if mask is n.Const(value=True):
        return "full"
    words = "".join(c if c.isalnum() else " " for c in brief(mask)).split()
    return "_".join(words)[:32].strip("_") or to_text(mask)[:8]
