"""Plans for tiles from runtime lists: lists as bits, and the kernel that lists tiles from the bits."""

from __future__ import annotations

from dataclasses import dataclass

from maskwright.codegen.emit import PROGRAM
from maskwright.codegen.emit import TILE
from maskwright.codegen.emit import Emitter
from maskwright.codegen.emit import safe_name
from maskwright.codegen.gluon import ROWS
from maskwright.codegen.gluon import WINDOW
from maskwright.codegen.plan_listed import Words
from maskwright.codegen.prove import Prover
from maskwright.codegen.schedule import Schedule
from maskwright.codegen.schedule import Segment
from maskwright.codegen.schedule import Source
from maskwright.codegen.tile import Q_OFFSET
from maskwright.codegen.tile import Q
from maskwright.codegen.tile import TileShape
from maskwright.codegen.tile import anchor
from maskwright.dsl import nodes as n
from maskwright.dsl.text import to_text

_INDEX = n.Sym("query_index")
_LOW, _HIGH = n.Sym("query_low"), n.Sym("query_high")


@dataclass(frozen=True)
class Reads:
    """What a kernel reads of the bits.

    Attributes:
        words: as in ``ListedPlan``.
        ends: of each list, which of its rows the first and the last query of a consumer have (empty
            texts if there is one row); none if all consumers compute the same tiles.
    """

    words: Words = ()
    ends: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class SourcePlan:
    """One runtime list and its bits.

    Attributes:
        kind, block, rows, shift, step: as in ``Source``.
        run: blocks, keys or diagonals in a row that an entry stands for.
        name: of the bits.
        table: of the list.
        lines: scalars before its rows are read.
        pointer, inside, size, stride: of a row, and the condition that it lies in the table.
        first, last: text for the host: the rows that a call reads; empty if it reads one.
        low, high: text of the first and the last row that a tile reads.
        words: most words of bits that those rows are in.
        heads: text for the host: how many heads have lists of their own.
    """

    kind: str
    block: int
    rows: int
    shift: int
    step: int
    run: int
    name: str
    table: str
    lines: tuple[str, ...]
    pointer: str
    inside: str
    size: str
    stride: str
    first: str
    last: str
    low: str
    high: str
    words: int
    heads: str


@dataclass(frozen=True)
class ListedSegment:
    """Tiles from which some are listed."""

    lo: str
    hi: str
    met: str
    full: bool


@dataclass(frozen=True)
class TilesPlan:
    """The kernel that lists tiles.

    Attributes:
        setup: scalars of one tile that stays.
        segments: where it looks.
        some, every: conditions on what the lists say of a tile: it is crossed; it is filled.
        bound: text for the host: how many tiles can be listed for one batch entry and head.
        heads: text for the host: how many heads have lists of their own.
        reads: what the kernel that visits the tiles reads itself.
        parts: as in ``ListedPlan``.
    """

    sources: tuple[SourcePlan, ...]
    setup: tuple[str, ...]
    segments: tuple[ListedSegment, ...]
    some: str
    every: str
    bound: str
    heads: str
    reads: Reads = Reads()
    parts: int = 1


# -- the kernel that visits the tiles -------------------------------------------------------------
def entries(found: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Segments as the kernel sees them: all that are listed are one."""
    static = tuple(x for x in found if x.met is None)
    listed = Segment(n.Const(0), n.Const(0), met="entries")
    return static if len(static) == len(found) else (*static, listed)


def name_sources(schedule: Schedule, emitter: Emitter) -> Reads:
    """Memberships become tests of a bit; call before anything else is emitted."""
    tile, words = schedule.tile, []
    for i, source in enumerate(schedule.sources):
        row = f"bits_{i}_row"
        match source.kind:
            case "columns":
                text = f"{emitter.helper('has_bit')}({row}, k)"
            case "diagonals":
                text = _on_diagonal(row, f"bits_{i}_zero", source.step, tile, emitter)
            case _:
                text = _is_listed(source, i, tile, emitter)
                stays = tile.transposed or source.block % tile.block_n
                if emitter.library == "gl" and not stays:
                    words.append((f"listed_{i}", text))
                    text = words[-1][0]
        emitter.names[source.member] = text
    apart = emitter.library == "gl" and not tile.transposed and _differ_by_part(schedule)
    ends = tuple(_ends(x, emitter) for x in schedule.sources) if apart else ()
    return Reads(tuple(words), ends)


def _is_listed(source: Source, number: int, tile: TileShape, emitter: Emitter) -> str:
    bits, block = f"bits_{number}", _block_of(source, tile)
    place = _place(source, number, tile, emitter)
    found = f"{bits}_row, {block}, {bits}_words, {place}"
    whole = tile.transposed and source.block % tile.block_m == 0
    if (
        emitter.library == "gl"
        and whole
        and source.index is not None
        and source.rows >= tile.block_n
    ):
        # Two lists at most for the queries of a tile: numbers, not a pointer for each query.
        ends = [f"{x} - {bits}_zero" for x in _ends(source, emitter)]
        return f"{emitter.helper('is_listed_of_two')}({found}, {', '.join(ends)})"
    return f"{emitter.helper('is_listed')}({found})"


def _ends(source: Source, emitter: Emitter) -> tuple[str, str]:
    """Rows of the first and of the last query, in the language of the kernel."""
    if source.index is None:
        return "", ""
    return _at(source.index, _LOW, emitter), _at(source.index, _HIGH, emitter)


def _place(source: Source, number: int, tile: TileShape, emitter: Emitter) -> str:
    """Number of a query's row. A block of numbers, at the level of the membership."""
    if source.index is None:
        return "k * 0" if tile.transposed else "q * 0"
    zero = n.Sym(f"bits_{number}_zero")
    return emitter.emit(n.Arith("-", source.index, zero), TILE)


def _block_of(source: Source, tile: TileShape) -> str:
    """Block of a key; of all keys of the tile where they have the same."""
    size = source.block
    stays = tile.transposed
    if size % (tile.block_m if stays else tile.block_n) == 0:
        return f"({'k_first' if stays else 'start_n'} // {size})"
    return f"(k // {size})"


def _on_diagonal(row: str, zero: str, step: int, tile: TileShape, emitter: Emitter) -> str:
    """Entries lose their shift when they are marked."""
    last, start = tile.block_n - 1, emitter.emit(anchor(step), TILE)
    if last >= WINDOW or (tile.transposed and step > 1):  # the bits of its queries are no row
        return f"{emitter.helper('has_bit')}({row}, {start} - k + {zero})"
    helper = emitter.helper("on_diagonal")
    if tile.transposed:
        return f"{helper}({row}, start_m + q_offset - k + {zero}, lane[None, :])"
    return f"{helper}({row}, {start} - start_n + ({zero} - {last}), {last} - lane[None, :])"


# -- the kernels before it ------------------------------------------------------------------------
def plan_sources(
    schedule: Schedule, emitter: Emitter, heads: str, reads: Reads
) -> tuple[TilesPlan, set[str]] | None:
    """The preparation of a schedule's lists, and its helpers.

    Args:
        emitter: of the kernel that lists tiles.
        heads: how many heads have tiles of their own.
        reads: see ``name_sources``.
    """
    if not schedule.sources:
        return None
    segments = []
    for found, full in ((schedule.partial, False), (schedule.full, True)):
        for x in (x for x in found if x.met is not None):
            lo, hi = emitter.emit(x.lo, PROGRAM), emitter.emit(x.hi, PROGRAM)
            segments.append(ListedSegment(lo, hi, str(x.met), full))
    ways = [" & ".join(f"some_{i}" for i in way) for way in schedule.ways]
    every = " & ".join(f"every_{i}" for i in range(len(schedule.sources)))
    made = [_plan_source(source, i, schedule.tile) for i, source in enumerate(schedule.sources)]
    plans = [x[0] for x in made]
    helpers = set(emitter.helpers).union(*(x[1] for x in made))
    plan = TilesPlan(
        tuple(plans),
        tuple(emitter.lines[PROGRAM]),
        tuple(segments),
        " | ".join(f"({x})" if len(ways) > 1 else x for x in ways) or "some_0 & False",
        every,
        _bound(schedule, plans),
        heads,
        reads,
        schedule.tile.block_m // ROWS if reads.ends else 1,
    )
    return plan, helpers


def _differ_by_part(schedule: Schedule) -> bool:
    """The lists of a consumer's queries tell whether it computes a partial tile."""
    tile, found = schedule.tile, schedule.sources
    whole = all(x.kind == "blocks" and x.block % tile.block_n == 0 for x in found)
    powers = all(x.rows & (x.rows - 1) == 0 for x in found)  # a shift tells the list of a query
    finer = any(ROWS <= x.rows < tile.block_m for x in found)
    return whole and powers and finer and all(x.met for x in schedule.partial)


def heads_of(nodes: tuple[n.Node, ...]) -> str:
    """Which heads differ: text for the host of how many there are."""
    found = frozenset[str]().union(*map(n.symbols, nodes))
    return "heads" if "h" in found else "kv_heads" if "kv_head" in found else "1"


def _plan_source(source: Source, number: int, tile: TileShape) -> tuple[SourcePlan, set[str]]:
    emitter = Emitter(Prover(tile))
    row, name = source.member.row, safe_name(source.member.row.table.name)
    index = row.index
    low = high = first = last = ""
    rows = tile.block_n if tile.transposed else tile.block_m
    if source.index is not None:
        index = tuple(_INDEX if x is source.index else x for x in row.index)
        low, high = (_at(source.index, x, emitter) for x in (_LOW, _HIGH))
        end = n.Arith("+", Q_OFFSET, n.Arith("-", n.Sym("q_len"), n.Const(1)))
        first, last = (to_text(n.substitute(source.index, {Q: x})) for x in (Q_OFFSET, end))
    pointer, inside = emitter.address(row.table, index, PROGRAM) if index else (name, "True")
    axis = row.table.ndim - 1
    span = 1 if source.index is None else (rows - 1) // source.rows + 2
    plan = SourcePlan(
        kind=source.kind,
        block=source.block,
        rows=source.rows,
        shift=source.shift,
        step=source.step,
        run=source.member.run,
        name=f"bits_{number}",
        table=name,
        lines=tuple(emitter.lines[PROGRAM]),
        pointer=pointer,
        inside=inside,
        size=f"{name}_size{axis}",
        stride=f"{name}_stride{axis}",
        first=first,
        last=last,
        low=low,
        high=high,
        words=(span + 62) // 32,
        heads=heads_of(row.index),
    )
    return plan, emitter.helpers


def _at(index: n.Node, position: n.Node, emitter: Emitter) -> str:
    return emitter.emit(n.substitute(index, {Q: position}), PROGRAM)


# -- how many tiles there can be ------------------------------------------------------------------
def reach(source: Source, tile: TileShape) -> tuple[int, bool]:
    """Tiles that one entry can be in: so many, and so many for each tile of queries."""
    queries, keys = tile.block_m, tile.block_n
    if tile.transposed:
        queries, keys = keys, queries
    size, run = source.block, source.member.run
    if source.kind == "diagonals":
        # Of so many keys: those of a tile's queries, and those that the entry and a step add.
        return (queries + run + source.step - 3) // keys + 2, True
    if source.kind == "columns":
        return (1 if run == 1 else (run - 2) // keys + 2), True
    aligned = run == 1 and size % keys == 0
    across = size // keys if aligned else (size * run - 1) // keys + 2
    if source.index is None:
        return across, True
    return across * (1 if source.rows == 1 else (source.rows - 1) // queries + 2), False


def _bound(schedule: Schedule, plans: list[SourcePlan]) -> str:
    """Text for the host: how many tiles the lists of one batch entry and head can reach."""
    every = "walked" if schedule.tile.transposed else "tiles"
    of = []
    for source, plan in zip(schedule.sources, plans, strict=True):
        times, all_queries = reach(source, schedule.tile)
        factors = [f"{plan.table}.shape[-1]", f"{plan.name}_count" * bool(plan.first)]
        text = " * ".join(x for x in (*factors, str(times) * (times > 1)) if x)
        of.append(f"{text} * {every}" if all_queries else text)
    ways = []
    for way in schedule.ways:
        least = [of[i] for i in way]
        ways.append(least[0] if len(least) == 1 else f"min({', '.join(least)})")
    return f"min(tiles * walked, {' + '.join(ways) or '0'})"
