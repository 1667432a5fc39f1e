"""The parts of a forward kernel that follow runtime lists: their preparation and the gathering."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace
from typing import TypeAlias

from maskwright.codegen.algebra import linear
from maskwright.codegen.algebra import to_node
from maskwright.codegen.emit import PROGRAM
from maskwright.codegen.emit import TILE
from maskwright.codegen.emit import Emitter
from maskwright.codegen.emit import safe_name
from maskwright.codegen.gluon import ROWS
from maskwright.codegen.gluon import WINDOW
from maskwright.codegen.prove import Prover
from maskwright.codegen.schedule import Gather
from maskwright.codegen.schedule import Schedule
from maskwright.codegen.schedule import Segment
from maskwright.codegen.tile import anchor
from maskwright.dsl import nodes as n

Words: TypeAlias = tuple[tuple[str, str], ...]  # names and texts

_CAUSAL = n.Compare("<=", n.Sym("k"), n.Sym("q"))


@dataclass(frozen=True)
class RowPlan:
    """One runtime list: a row of a table.

    Attributes:
        table: the table's name in the kernel.
        pointer, inside: its first entry, and the condition that the row lies in the table.
        size, stride: of the row.
        shift: subtracted from an entry.
        run: places in a row that an entry stands for.
    """

    table: str
    pointer: str
    inside: str
    size: str
    stride: str
    shift: int = 0
    run: int = 1


@dataclass(frozen=True)
class GatherPlan:
    """The loop over listed columns.

    Attributes:
        count: text of how many columns there are.
        entry_lines: lines that turn ``place``, a number below ``count``, into ``entry``.
        near: condition on ``col_tile`` under which a tile may have been visited; empty: any may.
        lines, keep: predicate of a gathered pair; ``keep`` is empty where all are attended.
        ends: the predicate reads nothing, and holds for no key beyond the queries.
    """

    count: str
    entry_lines: tuple[str, ...]
    near: str
    lines: tuple[str, ...]
    keep: str
    ends: bool = False


@dataclass(frozen=True)
class ListedPlan:
    """What is prepared on the device, and how the kernel uses it.

    Attributes:
        lines: scalars before ``columns`` and ``diagonals``.
        per_head: rows depend on the head.
        step: queries that share their diagonals.
        unit, phases: tiles of queries begin at so many places of a unit, of a tile of keys at least.
        words: names and texts of the bits of a tile, where they are read before the scores exist.
        parts: of the queries of a tile, each computed by warps of its own, which leave out tiles
            that no listed diagonal of its queries meets; 1: all queries compute all tiles.
    """

    lines: tuple[str, ...]
    columns: RowPlan | None
    diagonals: RowPlan | None
    gather: GatherPlan | None
    per_head: bool
    step: int
    unit: int
    phases: int
    words: Words = ()
    parts: int = 1


def members_of(schedule: Schedule) -> tuple[n.Member, ...]:
    """Memberships that a bit answers: no search, and no sorted list."""
    parts = (schedule.gather, schedule.diagonals, *schedule.sources)
    return tuple(x.member for x in parts if x is not None)


def name_members(
    schedule: Schedule, emitter: Emitter, mask: n.Node, *, gathered: bool = False
) -> Words:
    """Memberships of the lists become tests of a bit; in Gluon the whole mask, if it has that form.

    Returns the words that hold these bits, where they are read before the scores exist.

    Args:
        mask: of the tiles.
        gathered: the keys are those of a list, not of a tile.
    """
    if emitter.library == "gl" and not gathered:
        words = _words(schedule, emitter, mask)
        for node, name, _ in words:
            emitter.names[node] = f"{emitter.helper('in_word')}({name}, lane[None, :])"
        return tuple(x[1:] for x in words)
    if schedule.gather is not None:
        text = f"{emitter.helper('has_bit')}(bits_row, k)"
        emitter.names[schedule.gather.member] = text
    if schedule.diagonals is None:
        return ()
    last = schedule.tile.block_n - 1
    start = emitter.emit(anchor(schedule.step), TILE)
    if gathered or last >= WINDOW:
        text = f"{emitter.helper('has_bit')}(bits_row, {start} - k + diag_zero)"
    else:
        # The keys of a tile are bits in a row: one window of them for each query.
        place = f"{start} - start_n + (diag_zero - {last})"
        text = f"{emitter.helper('on_diagonal')}(bits_row, {place}, {last} - lane[None, :])"
    emitter.names[schedule.diagonals.member] = text
    return ()


def _words(schedule: Schedule, emitter: Emitter, mask: n.Node) -> list[tuple[n.Node, str, str]]:
    """(condition, name, text) of the words that hold the bits of a whole tile, in Gluon."""
    found: list[tuple[n.Node, str, str]] = []
    if schedule.gather is not None:
        text = f"{emitter.helper('tile_word')}(bits_row, start_n)"
        found.append((schedule.gather.member, "col_word", text))
    if schedule.diagonals is not None:
        start = emitter.emit(anchor(schedule.step), TILE)
        place = f"{start} - start_n + (diag_zero - {schedule.tile.block_n - 1})"
        text = f"{emitter.helper('row_words')}(bits_row, {place})"
        found.append((schedule.diagonals.member, "diag_words", text))
    whole = _whole(mask, {x: name for x, name, _ in found}, emitter) if found else None
    if whole is not None and mask not in dict.fromkeys(x for x, *_ in found):
        found.append((mask, "keep_words", whole))
    return found


def _whole(node: n.Node, words: dict[n.Node, str], emitter: Emitter) -> str | None:
    """A condition as a word of bits for each row, one for each key of the tile; None if it is no
    combination of lists and of ends that a row gives."""
    match node:
        case n.Member() if node in words:
            return words[node]
        case n.Logic("&" | "|" as op, a, b):
            parts = [_whole(x, words, emitter) for x in (a, b)]
            return None if None in parts else f"({parts[0]} {op} {parts[1]})"
        case n.Compare("<=" | "<" | ">=" | ">" as op, a, b):
            reads = any(isinstance(x, n.Read) for x in n.walk(node))
            if reads or {n.dtype_of(a), n.dtype_of(b)} != {"int"}:
                return None  # an entry of a table may be so large that a difference overflows
            less, more = (a, b) if op in ("<=", "<") else (b, a)
            form = linear(n.Arith("-", less, more)) + (op in ("<", ">"))  # at most 0
            mine, rest = form.split("k")
            sign = dict(mine.terms).get(n.Sym("k")) if len(mine.terms) == 1 else None
            if sign not in (1, -1):
                return None
            last = rest.scale(-1) if sign == 1 else rest - 1
            until = emitter.helper("bits_until")
            text = f"{until}({emitter.emit(to_node(last), TILE)} - start_n)"
            return text if sign == 1 else f"~{text}"
    return None


def plan_listed(
    schedule: Schedule,
    emitter: Emitter,
    words: Words,
    gather: GatherPlan | None,
    *,
    per_head: bool,
) -> tuple[ListedPlan, set[str]] | None:
    """The preparation of a schedule's lists, and its helpers."""
    if schedule.gather is None and schedule.diagonals is None:
        return None
    tile, unit, phases = schedule.tile, schedule.unit, schedule.phases
    mine = Emitter(Prover(tile))
    columns = None if schedule.gather is None else _row(schedule.gather.member, 0, mine)
    found = schedule.diagonals
    diagonals = None if found is None else _row(found.member, found.shift, mine)
    lines = tuple(mine.lines[PROGRAM])
    apart = emitter.library == "gl" and found is not None and all(x.met for x in schedule.partial)
    parts = tile.block_m // ROWS if apart else 1
    made = ListedPlan(
        *(lines, columns, diagonals, gather, per_head, schedule.step, unit, phases, words, parts)
    )
    return made, mine.helpers


def _row(member: n.Member, shift: int, emitter: Emitter) -> RowPlan:
    row, name = member.row, safe_name(member.row.table.name)
    pointer, inside = (
        emitter.address(row.table, row.index, PROGRAM) if row.index else (name, "True")
    )
    axis = row.table.ndim - 1
    size, stride = f"{name}_size{axis}", f"{name}_stride{axis}"
    return RowPlan(name, pointer, inside, size, stride, shift, member.run)


def plan_gather(schedule: Schedule, emitter: Emitter) -> GatherPlan | None:
    """Emit the loop over columns; the predicate of a pair is emitted later, see ``with_keep``."""
    gather = schedule.gather
    if gather is None:
        return None
    lines, total, lib = emitter.lines[PROGRAM], "0", emitter.library
    body: list[str] = []
    for i, segment in enumerate(gather.segments):
        label, last = f"gather{i}", i == len(gather.segments) - 1
        for end, node in (("from", segment.lo), ("to", segment.hi)):
            place = "" if node is n.Const(0) else f" + {emitter.emit(node, PROGRAM)}"
            lines.append(f"{label}_{end} = {lib}.load(col_ranks{place})")
        step = "place" if i == 0 else f"(place - {total})"
        text = f"{label}_from + {step}"
        body.append(
            f"entry = {text}" if i == 0 else f"entry = {lib}.where(place >= {total}, {text}, entry)"
        )
        end = "gather_count" if last else f"{label}_end"
        size = f"{label}_to - {label}_from"
        lines.append(f"{end} = {size}" if i == 0 else f"{end} = {total} + {size}")
        total = end
    near = "" if _always_near(gather) else _among(gather.near, emitter)
    return GatherPlan(total, tuple(body), near, (), "")


def _always_near(gather: Gather) -> bool:
    """Every tile whose columns are gathered is visited if a listed diagonal meets it."""
    return set(gather.segments) <= set(gather.near)


def _among(segments: tuple[Segment, ...], emitter: Emitter) -> str:
    parts = []
    for i, segment in enumerate(segments):
        lo = emitter.named(segment.lo, f"near{i}_lo")
        hi = emitter.named(segment.hi, f"near{i}_hi")
        parts.append(f"((col_tile >= {lo}) & (col_tile < {hi}))")
    return " | ".join(parts)


def with_keep(plan: GatherPlan, schedule: Schedule, emitter: Emitter) -> GatherPlan:
    """The loop with the predicate of its pairs; call when the partial loop has been emitted."""
    assert schedule.gather is not None
    keep = schedule.gather.keep
    del emitter.lines[TILE][:]
    # Variables of the partial loop do not exist in this one.
    for node in [x for x in emitter.names if emitter.level_of(x) == TILE]:
        del emitter.names[node]
    name_members(schedule, emitter, keep, gathered=True)
    emitter.uses.clear()
    emitter.count_uses([keep])
    text = "" if keep is n.Const(value=True) else emitter.emit(keep, TILE)
    lines = tuple(emitter.lines[TILE])
    return replace(plan, lines=lines, keep=text, ends=_ends(keep))


def _ends(keep: n.Node) -> bool:
    reads = any(isinstance(x, (n.Read, n.Member, n.ByHead)) for x in n.walk(keep))
    return not reads and _CAUSAL in _conjuncts(keep)


def _conjuncts(node: n.Node) -> tuple[n.Node, ...]:
    if isinstance(node, n.Logic) and node.op == "&":
        return _conjuncts(node.a) + _conjuncts(node.b)
    return (node,)
