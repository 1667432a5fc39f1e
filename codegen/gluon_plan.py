"""Requests for Gluon kernels: made, or refused with a reason."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from maskwright.codegen.balance import wants_counter
from maskwright.codegen.config import SHARED_KIB
from maskwright.codegen.config import dividing
from maskwright.codegen.gluon import ROWS
from maskwright.codegen.gluon import WIDEST
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon import default_gluon
from maskwright.codegen.gluon import listed_gluon
from maskwright.codegen.gluon import unfit_lists
from maskwright.codegen.gluon_backward import GluonBackwardConfig
from maskwright.codegen.gluon_backward import default_gluon_backward
from maskwright.codegen.gluon_backward import unfit_backward
from maskwright.codegen.granule import granule
from maskwright.codegen.listed import derive_listed
from maskwright.codegen.listed import schedule_of
from maskwright.codegen.normal import TooManyClausesError
from maskwright.codegen.normal import clauses
from maskwright.codegen.normal import implied
from maskwright.codegen.plan import Request
from maskwright.codegen.plan import WalkPlan
from maskwright.codegen.plan import plan_forward
from maskwright.codegen.plan_backward import BackwardRequest
from maskwright.codegen.plan_backward import plan_backward
from maskwright.codegen.schedule import Schedule
from maskwright.codegen.sources import derive_sources
from maskwright.codegen.sources import sources_of
from maskwright.codegen.tile import TileShape
from maskwright.dsl import nodes as n

# Beyond it, docs/hopper-log.md: a search for every pair spills 1 KB, a read 280 bytes.
LARGEST_FOR_PAIRS = 64
_SEARCHES = ("gl_is_member(", "gl_in_run(")
_LARGE = (*_SEARCHES, "gl_floor_divide(", "gl_floor_modulo(")


@lru_cache(maxsize=1024)
def gluon_request(
    mask: n.Node,
    score: n.Node | None,
    *,
    dtype: str,
    head_dim: int,
    value_dim: int,
    inside: bool = True,
    has_sinks: bool = False,
    config: GluonConfig | None = None,
) -> tuple[Request, str]:
    """(request, why the template cannot serve it: empty if it can)."""
    chosen = config or _default(mask, head_dim, value_dim)
    request = Request(mask, score, dtype, head_dim, value_dim, inside, has_sinks, chosen)
    reason = _unfit_sizes(request, chosen)
    if reason:
        return request, reason
    if config is None and chosen.block_n > LARGEST_FOR_PAIRS and works_for_pairs(request):
        chosen = replace(chosen, block_n=LARGEST_FOR_PAIRS, stages=3)
        chosen = _counted(mask, chosen, head_dim, value_dim)
        request = replace(request, config=chosen)
    return request, _unfit_mask(request, chosen)


def _default(mask: n.Node, head_dim: int, value_dim: int) -> GluonConfig:
    if follows_lists(mask):
        return listed_gluon(head_dim, value_dim)
    uneven, lists = mask is not n.Const(value=True), sources_of(mask) is not None
    found = granule(mask)
    made = default_gluon(head_dim, value_dim, granule=found, uneven=uneven, lists=lists)
    return _counted(mask, made, head_dim, value_dim)


def _counted(mask: n.Node, made: GluonConfig, head_dim: int, value_dim: int) -> GluonConfig:
    counter = made.persistent and wants_counter(mask, made, head_dim, value_dim)
    return replace(made, counter=counter)


@lru_cache(maxsize=1024)
def follows_lists(mask: n.Node) -> bool:
    """The mask has runtime lists of columns or diagonals, which kernels follow one by one."""
    found = derive_listed(mask, TileShape(128, 64))
    return found is not None and found.listed


def works_for_pairs(request: Request) -> bool:
    """Mask or score take many registers for every pair: searches, general divisions, biases."""
    score = n.walk(request.score) if request.score is not None else ()
    if any("k" in n.symbols(x) for x in score if isinstance(x, n.Read)):
        return True
    if any({"q", "k"} <= n.symbols(x) for x in n.walk(request.mask) if isinstance(x, n.Read)):
        return True
    return any(word in x for x in _tile_texts(plan_forward(request)) for word in _LARGE)


def _tile_texts(plan: WalkPlan) -> tuple[str, ...]:
    return (*plan.tile_lines, plan.keep, *plan.score_lines, plan.score)


def _unfit_sizes(request: Request, config: GluonConfig) -> str:
    if request.dtype not in ("float16", "bfloat16"):
        return f"asynchronous products take 16-bit numbers, not {request.dtype}"
    for size in (request.head_dim, request.value_dim):
        if size > WIDEST:
            return f"a head of {size} does not fit the accumulators (at most {WIDEST})"
        if size % 8:
            return f"rows of {size} numbers are no multiple of 16 bytes"
    pads = request.pads
    if config.bulk_store and pads[0] != pads[1]:
        return f"results of {pads[1]} columns do not fit where queries of {pads[0]} were"
    found = config.shared_bytes(request.head_dim, request.value_dim)
    limit = SHARED_KIB[90] * 1024
    if found > limit:
        return f"the rings need {found >> 10} of {limit >> 10} KiB of shared memory"
    return ""


def _unfit_mask(request: Request, config: GluonConfig) -> str:
    schedule = schedule_of(request.mask, request.tile)
    if schedule.sources:
        reason = _unfit_sources(schedule)
        if reason:
            return reason
        if len(schedule.sources) > 2 and max(request.pads) > 128:
            return "three lists or more take the registers that wide heads need"
    elif schedule.listed:
        reason = unfit_lists(config, gathers=schedule.gather is not None)
        reason = reason or _unfit_positions(request, config)
        if reason:
            return reason
    plan = plan_forward(request)
    if plan.parts > 1 and config.pingpong:
        return "consumers that leave out tiles of their own cannot take turns"
    if plan.tile_list is not None and config.consumers == 3:
        return "a list of tiles needs a power of two of queries a tile: two consumers"
    return _searches_pairs(plan) if config.block_n > LARGEST_FOR_PAIRS else ""


def _unfit_sources(schedule: Schedule) -> str:
    if any(x.kind != "blocks" or 0 < x.rows < ROWS for x in schedule.sources):
        return f"of runtime lists that select tiles, only blocks for {ROWS} queries or more are followed"
    return ""


def _unfit_positions(request: Request, config: GluonConfig) -> str:
    """The numbers of listed columns lie beside the rings, for each consumer its own."""
    found = config.shared_bytes(request.head_dim, request.value_dim)
    found += 4 * config.stages * config.consumers * config.block_n
    limit = SHARED_KIB[90] * 1024
    return f"rings and positions need {found >> 10} of {limit >> 10} KiB" if found > limit else ""


def _searches_pairs(plan: WalkPlan) -> str:
    if any(word in x for x in _tile_texts(plan) for word in _SEARCHES):
        return f"searching a list for every pair fits tiles of {LARGEST_FOR_PAIRS} keys at most"
    return ""


@lru_cache(maxsize=1024)
def gluon_backward_request(
    request: BackwardRequest, config: GluonBackwardConfig | None = None
) -> tuple[BackwardRequest, str]:
    """(the request for the Gluon kernel, why its template cannot serve it: empty if it can)."""
    sizes = request.head_dim, request.value_dim
    chosen = config or default_gluon_backward(*sizes, triangle=_has_triangle(request.mask))
    made = replace(request, config=chosen)
    if request.tables or (request.tables is None and _float_tables(request)):
        return made, "gradients of float tables are added up by the Triton kernels only"
    schedule = derive_sources(request.mask, made.of(chosen).transposed_tile)
    if schedule is not None and _unfit_sources(schedule):
        return made, _unfit_sources(schedule)
    if config is None and dividing(chosen.block_n, granule(request.mask)) < chosen.block_n:
        # Measured: strided 8192 takes 1.4 times as long as with the Triton kernels.
        return made, f"tiles of {chosen.block_n} keys straddle the blocks of the mask"
    reason = unfit_backward(request.dtype, *sizes, chosen)
    return made, reason or _searches_pairs(plan_backward(made).keys)


@lru_cache(maxsize=1024)
def _has_triangle(mask: n.Node) -> bool:
    """Some part of the mask ends at the diagonal: no query of it attends to a later key."""
    (order,) = clauses(n.Compare("<=", n.Sym("k"), n.Sym("q")))[0]
    try:
        return any(implied(clause, order) for clause in clauses(mask))
    except TooManyClausesError:
        return False


def _float_tables(request: BackwardRequest) -> bool:
    return request.score is not None and any(t.dtype == "float" for t in n.tables(request.score))
