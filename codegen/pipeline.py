"""The compiler, as one straight function: mask node -> schedule -> plan -> source."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace
from functools import cached_property
from functools import lru_cache
from typing import Generic
from typing import TypeVar

from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.config import arch_number
from maskwright.codegen.config import default_backward
from maskwright.codegen.config import default_config
from maskwright.codegen.describe import SOURCE_FORMAT
from maskwright.codegen.describe import brief
from maskwright.codegen.describe import schedule_lines
from maskwright.codegen.granule import granule
from maskwright.codegen.granule import row_granule
from maskwright.codegen.listed import schedule_of
from maskwright.codegen.plan import Request
from maskwright.codegen.plan import WalkPlan
from maskwright.codegen.plan import plan_forward
from maskwright.codegen.plan_backward import BackwardPlan
from maskwright.codegen.plan_backward import BackwardRequest
from maskwright.codegen.plan_backward import plan_backward
from maskwright.codegen.render import render_backward
from maskwright.codegen.render import render_forward
from maskwright.codegen.schedule import Schedule
from maskwright.codegen.sources import derive_sources
from maskwright.codegen.sources import sources_of
from maskwright.codegen.tile import TileShape
from maskwright.dsl import nodes as n
from maskwright.dsl.text import to_text

Plan = TypeVar("Plan", WalkPlan, BackwardPlan)


@dataclass(frozen=True)
class Compiled(Generic[Plan]):
    """All stages of one compilation."""

    plan: Plan
    source: str

    @cached_property
    def name(self) -> str:
        """Readable, unique name: mask, dtype, head size, op and a hash of the source."""
        request = self.plan.request
        return "_".join(
            [
                slug(request.mask),
                {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}[request.dtype],
                f"d{request.head_dim}",
                "fwd" if isinstance(self.plan, WalkPlan) else "bwd",
                n.digest(f"{SOURCE_FORMAT}\n{self.source}"),
            ]
        )


@lru_cache(maxsize=1024)
def compile_forward(request: Request, debug: frozenset[str] = frozenset()) -> Compiled[WalkPlan]:
    """Mask node to source text. Pure: no GPU, no torch, no files."""
    plan = plan_forward(request)
    source = render_forward(plan)
    _dump(debug, request.mask, (plan.schedule,), plan, source)
    return Compiled(plan, source)


@lru_cache(maxsize=1024)
def compile_backward(
    request: BackwardRequest, debug: frozenset[str] = frozenset()
) -> Compiled[BackwardPlan]:
    """Mask node to the source text of its gradients."""
    plan = plan_backward(request)
    source = render_backward(plan)
    _dump(debug, request.mask, tuple(x.schedule for x in plan.walks), plan, source)
    return Compiled(plan, source)


def _dump(
    debug: frozenset[str], mask: n.Node, schedules: tuple[Schedule, ...], plan: object, source: str
) -> None:
    stages: dict[str, Callable[[], str]] = {
        "mask": lambda: brief(mask),
        "schedule": lambda: "\n".join(line for s in schedules for line in schedule_lines(s)),
        "plan": lambda: repr(plan),
        "source": lambda: source,
    }
    for stage, text in stages.items():
        if stage in debug:
            print(f"--- maskwright {stage} ---\n{text()}", file=sys.stderr)


# Rows of a tile for lists of few queries, see docs/lists-log.md, and most heads in it.
TOGETHER = 64
_MOST_TOGETHER = 16
# Programs for a tile of keys that all tokens list.
_PARTS = 16


def choose_config(
    mask: n.Node,
    *,
    score: n.Node | None = None,
    arch: str,
    dtype: str,
    head_dim: int,
    value_dim: int,
    q_len: int | None = None,
    aligned: bool = True,
    group: int = 1,
) -> KernelConfig:
    """The heuristic's configuration for a mask: tiles that fit the mask's own blocks.

    Args:
        group: query heads of a KV head.
    """
    few = lists_of_few_queries(mask)
    config = default_config(
        arch=arch,
        dtype=dtype,
        head_dim=head_dim,
        value_dim=value_dim,
        q_len=q_len,
        granule=granule(mask),
        aligned=aligned and not few,
    )
    if few:
        return for_few_queries(config, 1 if _differ_by_head(mask, score) else group)
    listed = schedule_of(mask, TileShape(config.block_m, config.block_n)).listed
    # Addresses of gathered keys, and bits, take registers: four warps of 128 queries spill (ptxas 12.8).
    return replace(config, num_warps=8, num_stages=3) if listed and _wide(config) else config


def for_few_queries(config: KernelConfig, group: int) -> KernelConfig:
    """Tiles of few queries of many heads: what each of them lists is read once for all its heads."""
    rows = min(config.block_m, TOGETHER)
    heads = min(group & -group, _MOST_TOGETHER, rows)  # the largest power of two in the group
    # Fewer stages are for float32 and wide heads, which need the registers of all their warps.
    warps = config.num_warps if config.num_stages < 3 else 4
    return replace(config, block_m=rows // heads, heads=heads, num_warps=warps)


def choose_backward(
    mask: n.Node,
    *,
    score: n.Node | None = None,
    arch: str,
    dtype: str,
    head_dim: int,
    value_dim: int,
    aligned: bool = True,
    group: int = 1,
) -> BackwardConfig:
    """The heuristic's configurations of the backward; arguments as for ``choose_config``."""
    heads = heads_together(mask, score, group, gradients=True)
    config = default_backward(
        arch=arch,
        dtype=dtype,
        head_dim=head_dim,
        value_dim=value_dim,
        granule=granule(mask),
        row_granule=row_granule(mask),
        aligned=aligned and heads == 0,
    )
    if heads == 0:
        return config
    queries, keys = _together(config.queries, heads), _together(config.keys, heads)
    if keys.num_stages == 2 and arch_number(arch) == 90:
        keys = replace(keys, num_stages=3)
    # All tokens may list the same block, and one program would walk over all: docs/lists-log.md.
    return BackwardConfig(queries, keys, parts=_PARTS)


def heads_together(mask: n.Node, score: n.Node | None, group: int, *, gradients: bool) -> int:
    """Most query heads of a KV head in a tile, a power of two; 0 for masks without lists of few queries.

    Several read what each token lists once for all of them; their mask and score must be the same.
    """
    few = _walks_lists_of_few_queries if gradients else lists_of_few_queries
    if not few(mask):
        return 0
    return 1 if _differ_by_head(mask, score) else min(group & -group, _MOST_TOGETHER)


def _together(config: KernelConfig, heads: int) -> KernelConfig:
    """As many rows, of several heads."""
    heads = min(heads, config.block_m)
    return replace(config, block_m=config.block_m // heads, heads=heads)


def _walks_lists_of_few_queries(mask: n.Node) -> bool:
    """Likewise ``lists_of_few_queries``; both kernels of the backward follow them."""
    shapes = TileShape(16, 64), TileShape(64, 16, transposed=True)
    return _has_lists_of_few_queries(mask) and all(derive_sources(mask, x) for x in shapes)


def lists_of_few_queries(mask: n.Node) -> bool:
    """Runtime lists of blocks that every few queries have anew."""
    # Else every pair is evaluated.
    return _has_lists_of_few_queries(mask) and bool(schedule_of(mask, TileShape(16, 64)).sources)


def _has_lists_of_few_queries(mask: n.Node) -> bool:
    found = sources_of(mask)
    return found is not None and any(0 < x.rows < 16 for x in found[0])


def _differ_by_head(mask: n.Node, score: n.Node | None) -> bool:
    return any("h" in n.symbols(x) for x in (mask, score) if x is not None)


def _wide(config: KernelConfig) -> bool:
    return config.block_m >= 128 and config.num_warps == 4


def slug(mask: n.Node) -> str:
    """A few letters of the mask, fit for a file name."""
    if mask is n.Const(value=True):
        return "full"
    words = "".join(c if c.isalnum() else " " for c in brief(mask)).split()
    return "_".join(words)[:32].strip("_") or to_text(mask)[:8]
