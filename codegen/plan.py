"""The plan of a kernel: everything a template needs, decided and spelled out.

Templates loop over plan items and branch on plan flags; they compute nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from maskwright.codegen.algebra import linear
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.config import padded_heads
from maskwright.codegen.emit import PROGRAM
from maskwright.codegen.emit import ROW
from maskwright.codegen.emit import TILE
from maskwright.codegen.emit import Emitter
from maskwright.codegen.emit import safe_name
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon import GluonTemplate
from maskwright.codegen.gluon_backward import GluonBackwardConfig
from maskwright.codegen.listed import schedule_of
from maskwright.codegen.loops import Loop
from maskwright.codegen.loops import emit_loop
from maskwright.codegen.loops import roots
from maskwright.codegen.normal import AtLeast
from maskwright.codegen.normal import TooManyClausesError
from maskwright.codegen.normal import clauses
from maskwright.codegen.normal import implied
from maskwright.codegen.plan_listed import ListedPlan
from maskwright.codegen.plan_listed import Words
from maskwright.codegen.plan_listed import members_of
from maskwright.codegen.plan_listed import name_members
from maskwright.codegen.plan_listed import plan_gather
from maskwright.codegen.plan_listed import plan_listed
from maskwright.codegen.plan_listed import with_keep
from maskwright.codegen.plan_sources import Reads
from maskwright.codegen.plan_sources import TilesPlan
from maskwright.codegen.plan_sources import entries
from maskwright.codegen.plan_sources import heads_of
from maskwright.codegen.plan_sources import name_sources
from maskwright.codegen.plan_sources import plan_sources
from maskwright.codegen.prove import Prover
from maskwright.codegen.schedule import Schedule
from maskwright.codegen.schedule import Segment
from maskwright.codegen.schedule import derive
from maskwright.codegen.score import TableGradient
from maskwright.codegen.score import plan_score
from maskwright.codegen.sources import derive_sources
from maskwright.codegen.tile import Q_FIRST
from maskwright.codegen.tile import Q_LAST
from maskwright.codegen.tile import TileShape
from maskwright.dsl import nodes as n
from maskwright.dsl.errors import LoweringError
from maskwright.dsl.text import to_text


@dataclass(frozen=True)
class Request:
    """What a kernel is generated for. Equal requests give byte-identical source.

    Attributes:
        mask: mask node.
        score: score node over ``s``, or None.
        dtype: ``float16``, ``bfloat16`` or ``float32``.
        head_dim, value_dim: sizes of query/key and of value heads.
        inside: positions lie in [0, kv_len) and sorted tables are read inside (see TileShape).
        has_sinks: one extra logit per head in the denominator.
        config: tunable choices.
    """

    mask: n.Node
    score: n.Node | None
    dtype: str
    head_dim: int
    value_dim: int
    inside: bool
    has_sinks: bool
    config: KernelConfig | GluonConfig | GluonBackwardConfig

    @property
    def tile(self) -> TileShape:
        """Tile shape of the schedule: queries stay."""
        return TileShape(self.config.block_m, self.config.block_n, self.inside)

    @property
    def transposed_tile(self) -> TileShape:
        """Tile shape of the transposed schedule: keys stay."""
        return TileShape(self.config.block_n, self.config.block_m, self.inside, transposed=True)

    @property
    def pads(self) -> tuple[int, int]:
        """Columns of a query or key tile, and of a value tile."""
        if isinstance(self.config, GluonTemplate):
            return self.config.pads(self.head_dim, self.value_dim)
        return padded_heads(self.head_dim, self.value_dim, self.dtype, self.config.rows)


@dataclass(frozen=True)
class Binding:
    """A runtime value of the kernel: ``name`` is the user's, ``text`` the kernel's.

    Attributes:
        sorted_list: the kernel searches it; ``runs``: for what entries stand for, too.
    """

    name: str
    text: str
    ndim: int = 0
    dtype: str = "int"
    sorted_list: bool = False
    runs: bool = False


@dataclass(frozen=True)
class BoundsPlan:
    """The small kernel that searches sorted tables, one value a query tile."""

    lines: tuple[str, ...]
    values: tuple[str, ...]
    per_head: bool


@dataclass(frozen=True)
class ListPlan:
    """The general path: a kernel that classifies tiles and writes a compact list."""

    setup: tuple[str, ...]
    loop: Loop | None
    rows: tuple[str, ...]
    tile_lines: tuple[str, ...]
    keep: str
    per_head: bool


@dataclass(frozen=True)
class WalkPlan:
    """A kernel that walks the tiles of a schedule: forward, or one of the two of the backward.

    Attributes:
        setup: scalar lines before the loops (bounds of the segments, per-head parts).
        rows: lines per query row before the loops.
        partial, full: the loops; None where the schedule has no such tiles.
        tile_lines: lines inside the partial loop before ``keep``, the predicate.
        score_lines, score: likewise for the score expression, in both loops.
        slope: derivative of the score expression by ``s``; empty where it is 1.
        table_gradients: derivatives by the reads of float tables.
        bounds, tile_list, listed, tiles: what is computed on the device before the kernel.
        helpers, prepare_helpers: device functions of this kernel, and of those before it.
        backward: the kernel computes gradients.
    """

    request: Request
    schedule: Schedule
    bindings: tuple[Binding, ...]
    setup: tuple[str, ...]
    rows: tuple[str, ...]
    partial: Loop | None
    full: Loop | None
    tile_lines: tuple[str, ...]
    keep: str
    score_lines: tuple[str, ...]
    score: str
    slope: str
    table_gradients: tuple[TableGradient, ...]
    bounds: BoundsPlan | None
    tile_list: ListPlan | None
    listed: ListedPlan | None
    tiles: TilesPlan | None
    helpers: frozenset[str]
    prepare_helpers: frozenset[str]
    backward: bool

    @property
    def transposed(self) -> bool:
        """Keys stay, queries are walked over."""
        return self.schedule.tile.transposed

    @property
    def prepares(self) -> bool:
        """Work on the device precedes the kernel."""
        return any(x is not None for x in self.preparations)

    @property
    def words(self) -> Words:
        """Bits of runtime lists that a Gluon kernel reads before the scores exist: names and texts."""
        found = self.listed or (self.tiles and self.tiles.reads)
        return found.words if found else ()

    @property
    def parts(self) -> int:
        """Consumers that leave out tiles of their own; 1: all compute the same tiles."""
        found = self.listed or self.tiles
        return found.parts if found else 1

    @property
    def preparations(self) -> tuple[object | None, ...]:
        """What is computed on the device before the kernel."""
        return self.bounds, self.tile_list, self.listed, self.tiles


def plan_forward(request: Request) -> WalkPlan:
    """Decide the forward kernel for a request.

    Raises:
        LoweringError: several heads in a tile, and the mask or the score differs between them.
    """
    plan = plan_walk(request, request.tile)
    check_heads(plan)
    return plan


def check_heads(plan: WalkPlan) -> None:
    """Several heads in a tile have one mask and one score.

    Raises:
        LoweringError: they differ, or columns are gathered.
    """
    request = plan.request
    if not isinstance(request.config, KernelConfig) or request.config.heads == 1:
        return
    nodes = (request.mask,) if request.score is None else (request.mask, request.score)
    if any("h" in n.symbols(x) for x in nodes) or plan.listed is not None:
        raise LoweringError(
            "the heads of a tile need the same mask and score, and no columns to gather",
            expression=request.config,
            fix="heads=1, or lists by kv_head instead of h",
        )


def plan_walk(
    request: Request, tile: TileShape, *, gradients: bool = False, lists: bool = True
) -> WalkPlan:
    """Decide a kernel whose programs each keep one tile and walk over others.

    Args:
        tile: shape of the tiles; transposed if keys stay.
        gradients: derivatives of the score are needed, too.
        lists: follow runtime lists where the mask has that form.
    """
    schedule = _schedule(request, tile, gradients=gradients, lists=lists)
    emitter = _emitter(tile)
    emitter.library = "gl" if isinstance(request.config, GluonTemplate) else "tl"
    searches = searches_of(schedule.walked)
    _name_searches(emitter, searches)
    words = name_members(schedule, emitter, request.mask)
    reads = name_sources(schedule, emitter)
    partial, full = _loops(schedule, request.mask, emitter)
    gather = plan_gather(schedule, emitter)
    keep = "" if partial is None else _keep(emitter, request.mask)
    tile_lines = tuple(emitter.lines[TILE])
    gather = gather and with_keep(gather, schedule, emitter)
    score = plan_score(emitter, request.score, gradients=gradients)
    bounds = _plan_bounds(request, tile, searches)
    tile_list = None if schedule.closed else _plan_list(request, schedule, searches)
    per_head = _per_head(members_of(schedule))
    listed = plan_listed(schedule, emitter, words, gather, per_head=per_head)
    tiles = _plan_tiles(request, schedule, searches, reads)
    prepares = (part[1] for part in (bounds, tile_list, listed, tiles) if part)
    return WalkPlan(
        request=request,
        schedule=schedule,
        bindings=bindings_of(request, members_of(schedule)),
        setup=tuple(emitter.lines[PROGRAM]),
        rows=tuple(emitter.lines[ROW]),
        partial=partial,
        full=full,
        tile_lines=tile_lines,
        keep=keep,
        score_lines=score.lines,
        score=score.text,
        slope=score.slope,
        table_gradients=score.table_gradients,
        bounds=bounds[0] if bounds else None,
        tile_list=tile_list[0] if tile_list else None,
        listed=listed[0] if listed else None,
        tiles=tiles[0] if tiles else None,
        helpers=frozenset(emitter.helpers),
        prepare_helpers=frozenset().union(*prepares),
        backward=gradients,
    )


def _loops(schedule: Schedule, mask: n.Node, emitter: Emitter) -> tuple[Loop | None, Loop | None]:
    """The loops over partial and over full tiles."""
    walked = schedule.walked if schedule.closed else ()
    if schedule.sources:
        walked = tuple(x for x in walked if x.met is None)
    emitter.count_uses([*roots(walked), mask])
    if not schedule.closed:
        return _listed(emitter)
    partial, full = schedule.partial, schedule.full
    if schedule.sources:
        partial, full = entries(partial), entries(full)
    return emit_loop("partial", partial, emitter), emit_loop("full", full, emitter)


def _schedule(request: Request, tile: TileShape, *, gradients: bool, lists: bool) -> Schedule:
    mask = request.mask
    if not lists:
        return derive(mask, tile)
    # Backward kernels gather no columns: they visit the tiles that hold one.
    if gradients:
        return derive_sources(mask, tile) or derive(mask, tile)
    return schedule_of(mask, tile)


def _emitter(tile: TileShape, *, search_steps: bool = False) -> Emitter:
    """An emitter for a kernel in which queries stay, or keys."""
    emitter = Emitter(Prover(tile), search_steps=search_steps)
    if tile.transposed:
        emitter.walked = "q"
        emitter.names |= {Q_FIRST: "k_first", Q_LAST: "k_last"}
    return emitter


def bindings_of(request: Request, bits: tuple[n.Member, ...] = ()) -> tuple[Binding, ...]:
    """Runtime values of mask and score: params first, then tables, by name.

    Args:
        bits: memberships that need no sorted list.
    """
    nodes = [request.mask] + ([request.score] if request.score is not None else [])
    params = {p.name for node in nodes for p in n.params(node)}
    tables = {t.name: t for node in nodes for t in n.tables(node)}
    members = {x for node in nodes for x in n.walk(node) if isinstance(x, n.Member)}
    searched = members.difference(bits)
    lists = {x.row.table.name for x in searched}
    runs = {x.row.table.name for x in searched if x.run > 1}
    return (
        *(Binding(name, safe_name(name)) for name in sorted(params)),
        *(
            Binding(t.name, safe_name(t.name), t.ndim, t.dtype, t.name in lists, t.name in runs)
            for _, t in sorted(tables.items())
        ),
    )


def _keep(emitter: Emitter, mask: n.Node) -> str:
    """Predicate of a partial tile, with the end of the keys where the mask does not imply it."""
    if mask is n.Const(value=True):
        return "k < kv_len"
    text = emitter.emit(mask, TILE)
    # Transposed, rows of queries beyond the end have no weight, and keys there are not stored.
    if emitter.prover.tile.transposed or _ends_with_queries(mask, emitter.prover):
        return text
    return f"{text} & (k < kv_len)"


def _ends_with_queries(mask: n.Node, prover: Prover) -> bool:
    """Every attended key has k <= q, and queries lie below kv_len."""
    causal = AtLeast(linear(n.Arith("-", n.Sym("q"), n.Sym("k"))))
    try:
        found = clauses(mask)
    except TooManyClausesError:
        return False
    return prover.tile.inside and all(implied(clause, causal) for clause in found)


def searches_of(segments: tuple[Segment, ...]) -> tuple[n.Search, ...]:
    """Searches of sorted tables that the segments need, in a fixed order."""
    found = {x: None for node in roots(segments) for x in n.walk(node) if isinstance(x, n.Search)}
    return tuple(sorted(found, key=to_text))


def _name_searches(emitter: Emitter, searches: tuple[n.Search, ...]) -> None:
    for i, search in enumerate(searches):
        emitter.names[search] = f"bound{i}"


def _per_head(nodes: tuple[n.Node, ...]) -> bool:
    return any(n.symbols(node) & {"h", "kv_head"} for node in nodes)


def _plan_bounds(
    request: Request, tile: TileShape, searches: tuple[n.Search, ...]
) -> tuple[BoundsPlan, set[str]] | None:
    if not searches:
        return None
    emitter = _emitter(tile, search_steps=True)
    emitter.count_uses(searches)
    values = tuple(emitter.emit(s, PROGRAM) for s in searches)
    plan = BoundsPlan(tuple(emitter.lines[PROGRAM]), values, _per_head(searches))
    return plan, emitter.helpers


def _plan_list(
    request: Request, schedule: Schedule, searches: tuple[n.Search, ...]
) -> tuple[ListPlan, set[str]]:
    emitter = _emitter(schedule.tile)
    _name_searches(emitter, searches)
    emitter.count_uses([*roots(schedule.visit), request.mask])
    loop = emit_loop("visit", schedule.visit, emitter)
    keep = _keep(emitter, request.mask)
    plan = ListPlan(
        tuple(emitter.lines[PROGRAM]),
        loop,
        tuple(emitter.lines[ROW]),
        tuple(emitter.lines[TILE]),
        keep,
        _per_head((request.mask,)),
    )
    return plan, emitter.helpers


def _plan_tiles(
    request: Request, schedule: Schedule, searches: tuple[n.Search, ...], reads: Reads
) -> tuple[TilesPlan, set[str]] | None:
    emitter = _emitter(schedule.tile)
    _name_searches(emitter, searches)
    emitter.count_uses(roots(tuple(x for x in schedule.walked if x.met is not None)))
    return plan_sources(schedule, emitter, heads_of((request.mask,)), reads)


def _listed(emitter: Emitter) -> tuple[Loop, Loop]:
    """Loops over the compact list: partial tiles first, full tiles after them."""
    load = f"{emitter.library}.load"
    emitter.lines[PROGRAM].extend(
        [
            f"list_start = {load}(list_starts + list_row)",
            f"list_end = {load}(list_starts + list_row + 1)",
            f"list_full = list_start + {load}(list_partial + list_row)",
        ]
    )
    body = (f"{emitter.tile} = {load}(tile_list + step)",)
    return (
        Loop("step", "list_start", "list_full", 1, body),
        Loop("step", "list_full", "list_end", 1, body),
    )
