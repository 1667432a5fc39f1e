"""Segments as one loop each for the partial and the full tiles: flat, so that loads stay pipelined.

Several ranges become one loop over a step number, with the tile found by a few scalar selects:
the pipeline then fills once, not once a range.
"""

from __future__ import annotations

from dataclasses import dataclass

from maskwright.codegen.algebra import add
from maskwright.codegen.algebra import const
from maskwright.codegen.algebra import simplify
from maskwright.codegen.algebra import sub
from maskwright.codegen.emit import PROGRAM
from maskwright.codegen.emit import Emitter
from maskwright.codegen.schedule import Segment
from maskwright.codegen.strides import simplify_mod
from maskwright.dsl import nodes as n


@dataclass(frozen=True)
class Loop:
    """One ``for`` of a kernel.

    Attributes:
        index: the loop variable; the tile (``tile_n``, or ``tile_m`` if keys stay) itself where
            no mapping is needed.
        start, stop, stride: arguments of ``range``.
        body: lines that compute the tile from the index.
    """

    index: str
    start: str
    stop: str
    stride: int = 1
    body: tuple[str, ...] = ()

    @property
    def bounds(self) -> str:
        """Arguments of ``range``, as text."""
        ends = f"{self.start}, {self.stop}"
        return ends if self.stride == 1 else f"{ends}, {self.stride}"

    def tiles(self, library: str) -> str:
        """Text of how often the loop runs."""
        length = self.stop if self.start == "0" else f"{self.stop} - {self.start}"
        if self.stride > 1:
            length = f"({length} + {self.stride - 1}) // {self.stride}"
        return f"{library}.maximum({length}, 0)"

    def at(self, turn: str) -> str:
        """Text of the index at a turn, counted from 0."""
        place = turn if self.stride == 1 else f"{turn} * {self.stride}"
        return place if self.start == "0" else f"{self.start} + {place}"


def roots(segments: tuple[Segment, ...]) -> list[n.Node]:
    """Every expression a loop over the segments needs."""
    found: list[n.Node] = []
    for s in segments:
        found += [s.lo, s.hi]
        if s.period is not None:
            found += [s.period.origin, s.period.width]
    return found


def emit_loop(name: str, segments: tuple[Segment, ...], emitter: Emitter) -> Loop | None:
    """Emit the scalars of a loop over ``segments`` into the emitter; None if there are none."""
    if not segments:
        return None
    if len(segments) == 1 and _simple(segments[0]):
        return _plain(name, segments[0], emitter)
    if len(segments) == 1 and segments[0].met == "entries":
        count, tile = _entries(name, emitter.library, alone=emitter.library == "tl")
        return Loop("step", "0", count, 1, (f"{emitter.tile} = {tile.format(step='step')}",))
    lines = emitter.lines[PROGRAM]
    total, body = "0", []
    for i, segment in enumerate(segments):
        label = f"{name}{i}"
        count, tile = _mapped(label, segment, emitter)
        step = "step" if total == "0" else f"(step - {total})"
        text = tile.format(step=step)
        if i == 0:
            body.append(f"{emitter.tile} = {text}")
        else:
            body.append(
                f"{emitter.tile} = {emitter.library}.where(step >= {total}, {text}, {emitter.tile})"
            )
        last = i == len(segments) - 1
        end = f"{name}_count" if last else f"{label}_end"
        lines.append(f"{end} = {count}" if total == "0" else f"{end} = {total} + {count}")
        total = end
    return Loop("step", "0", total, 1, tuple(body))


def _simple(segment: Segment) -> bool:
    if segment.met is not None:
        return False
    return segment.period is None or segment.period.width is const(1)


def _plain(name: str, segment: Segment, emitter: Emitter) -> Loop:
    if segment.period is None:
        lo = emitter.named(segment.lo, f"{name}_lo")
        return Loop(emitter.tile, lo, emitter.named(segment.hi, f"{name}_hi"))
    first, hi = _strided_start(name, segment, emitter)
    return Loop(emitter.tile, first, hi, segment.period.period)


def _strided_start(name: str, segment: Segment, emitter: Emitter) -> tuple[str, str]:
    """First tile of a stride one tile wide at or after ``lo``, and ``hi``."""
    period = segment.period
    assert period is not None
    to_next = simplify_mod(sub(period.origin, segment.lo), period.period)
    first = emitter.named(simplify(add(segment.lo, to_next)), f"{name}_first")
    return first, emitter.emit(segment.hi, PROGRAM)


def _mapped(name: str, segment: Segment, emitter: Emitter) -> tuple[str, str]:
    """(text of the number of tiles, text of the tile with a placeholder for the step)."""
    period = segment.period
    if segment.met == "entries":
        return _entries(name, emitter.library)
    if segment.met is not None:
        return _met(name, segment, emitter)
    if period is None:
        lo = emitter.emit(segment.lo, PROGRAM)
        count = emitter.emit(sub(segment.hi, segment.lo), PROGRAM)
        return count, "{step}" if segment.lo is const(0) else f"{lo} + {{step}}"
    size = period.period
    if period.width is const(1):
        first, hi = _strided_start(name, segment, emitter)
        return f"({hi} - {first} + {size - 1}) // {size}", f"{first} + {{step}} * {size}"
    before = emitter.helper("tiles_before")
    lo, hi = emitter.emit(segment.lo, PROGRAM), emitter.emit(segment.hi, PROGRAM)
    origin = emitter.emit(period.origin, PROGRAM)
    width = emitter.emit(period.width, PROGRAM)
    lines = emitter.lines[PROGRAM]
    for end, text in (("from", lo), ("to", hi)):
        lines.append(f"{name}_{end} = {before}({text}, {origin}, {size}, {width})")
    place = f"({name}_from + {{step}})"
    # A width of 0 has no tiles; the division must still be defined.
    safe = width if isinstance(period.width, n.Const) else f"{emitter.library}.maximum({width}, 1)"
    tile = f"{origin} - {size} + {place} // {safe} * {size} + {place} % {safe}"
    return f"{name}_to - {name}_from", tile


def _met(name: str, segment: Segment, emitter: Emitter) -> tuple[str, str]:
    """Tiles that listed diagonals meet. They are listed by their distance back from `diag_tile`.

    `diag_ranks` has, for each distance, how many listed ones are shorter.
    """
    second, lib = segment.met == "filled", emitter.library
    ranks = "diag_ranks" + (" + diag_count" if second else "")
    lines = emitter.lines[PROGRAM]
    for end, node in (("from", segment.hi), ("to", segment.lo)):
        back = "" if node is const(0) else f" - {emitter.emit(node, PROGRAM)}"
        lines.append(f"{name}_{end} = {lib}.load({ranks} + {2 if second else 1}{back})")
    tiles = "diag_tiles" + (" + diag_count" if second else "")
    # Other steps of the loop are other segments': their reads must stay inside, too.
    entry = f"{lib}.minimum({lib}.maximum({name}_from + {{step}}, 0), diag_count - 1)"
    return f"{name}_to - {name}_from", f"diag_tile - {lib}.load({tiles} + {entry})"


def _entries(name: str, lib: str, *, alone: bool = False) -> tuple[str, str]:
    """Tiles from a list that the device has prepared: partial ones first, full ones behind them."""
    count = f"listed_{name.rstrip('0123456789')}"
    start = "listed_tiles + listed_from" + (" + listed_partial" if count == "listed_full" else "")
    # Other steps of the loop are other segments', or come ahead: their reads must stay inside, too.
    place = "{step}" if alone else f"{lib}.minimum({lib}.maximum({{step}}, 0), {count})"
    return count, f"{lib}.load({start} + {place})"
