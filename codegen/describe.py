"""Schedules and plans in words: the header of a kernel, the debug dumps, ``explain``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from maskwright.codegen.config import KernelConfig
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon_backward import GluonBackwardConfig
from maskwright.codegen.plan import Request
from maskwright.codegen.plan import WalkPlan
from maskwright.codegen.plan_backward import BackwardPlan
from maskwright.codegen.schedule import Schedule
from maskwright.codegen.schedule import Segment
from maskwright.codegen.strides import Period
from maskwright.codegen.tile import K_FIRST
from maskwright.codegen.tile import K_LAST
from maskwright.codegen.tile import Q_FIRST
from maskwright.codegen.tile import Q_LAST
from maskwright.dsl import nodes as n
from maskwright.dsl.text import table_text
from maskwright.dsl.text import to_text

SOURCE_FORMAT = 1
_WORTH_A_NAME = 16  # characters
_MET = {"crossed": "a listed diagonal crosses it", "filled": "listed diagonals fill it"}
_LISTED = {"crossed": "runtime lists cross it", "filled": "runtime lists fill it"}


def brief(node: n.Node) -> str:
    """Text of a bound with declarations shortened to their names."""
    text = to_text(node)
    for p in n.params(node):
        text = text.replace(to_text(p), p.name)
    for t in n.tables(node):
        text = text.replace(table_text(t), t.name)
    return text.replace("minimum(", "min(").replace("maximum(", "max(")


@dataclass(frozen=True)
class Shown:
    """A schedule for the eye: parts that occur more than once have names.

    Attributes:
        names: (name, text), each in terms of the names before it.
        segments: (kind, segment over those names).
    """

    names: tuple[tuple[str, str], ...]
    segments: tuple[tuple[str, Segment], ...]


def show(schedule: Schedule) -> Shown:
    """The segments with their repeated parts named ``t0``, ``t1``, ..."""
    if schedule.closed:
        segments = [("partial", s) for s in schedule.partial]
        segments += [("full", s) for s in schedule.full]
        segments += [("gather", s) for s in schedule.gather.segments] if schedule.gather else []
    else:
        segments = [("candidate", s) for s in schedule.visit]
    if schedule.tile.transposed:
        segments = [(kind, _renamed(s, {Q_FIRST: K_FIRST, Q_LAST: K_LAST})) for kind, s in segments]
    nodes = [x for _, s in segments for x in _ends(s)]
    table: dict[n.Node, n.Node] = {}
    names: list[tuple[str, str]] = []
    for node in _repeated(nodes):
        text = brief(n.substitute(node, table))
        if len(text) > _WORTH_A_NAME:
            table[node] = n.Sym(f"t{len(names)}")
            names.append((f"t{len(names)}", text))
    shown = tuple((kind, _renamed(s, table)) for kind, s in segments)
    return Shown(tuple(names), shown)


def _ends(segment: Segment) -> list[n.Node]:
    period = segment.period
    return [segment.lo, segment.hi] + ([period.origin, period.width] if period else [])


def _repeated(nodes: list[n.Node]) -> list[n.Node]:
    """Compound parts with more than one user, operands before users."""
    uses = Counter(nodes)
    parts: dict[n.Node, None] = {}
    for node in nodes:
        parts.update(dict.fromkeys(n.walk(node)))
    for part in parts:
        uses.update(n.children(part))
    return [x for x in parts if uses[x] > 1 and n.children(x)]


def _renamed(segment: Segment, table: dict[n.Node, n.Node]) -> Segment:
    period = segment.period
    if period is not None:
        origin, width = (n.substitute(x, table) for x in (period.origin, period.width))
        period = Period(origin, period.period, width)
    lo, hi = n.substitute(segment.lo, table), n.substitute(segment.hi, table)
    return Segment(lo, hi, period, segment.met)


def segment_text(segment: Segment, met: dict[str, str] = _MET) -> str:
    """One segment: tiles [lo, hi), every so many; ``met`` says what lists have to do with it."""
    text = f"[{brief(segment.lo)}, {brief(segment.hi)})"
    if segment.period is not None:
        p = segment.period
        text += f" where (tile - {brief(p.origin)}) mod {p.period} < {brief(p.width)}"
    return text if segment.met is None else f"{text} where {met[segment.met]}"


def schedule_dicts(schedule: Schedule) -> list[dict[str, object]]:
    """The segments as plain values, in terms of the names of ``show``."""
    found = []
    originals = schedule.partial + schedule.full if schedule.closed else schedule.visit
    originals += schedule.gather.segments if schedule.gather else ()
    for (kind, segment), original in zip(show(schedule).segments, originals, strict=True):
        shape = "columns" if kind == "gather" else _shape(schedule, original)
        found.append(_segment_dict(segment, kind, _met(schedule)) | {"shape": shape})
    return found


def _shape(schedule: Schedule, segment: Segment) -> str:
    if not schedule.closed:
        return "tile list"
    if segment.met is not None:
        return "listed tiles" if schedule.sources else "diagonals"
    if any(isinstance(x, n.Search) for y in (segment.lo, segment.hi) for x in n.walk(y)):
        return "table-bounded"
    return "range" if segment.period is None else "strided"


def _met(schedule: Schedule) -> dict[str, str]:
    return _LISTED if schedule.sources else _MET


def _segment_dict(segment: Segment, kind: str, met: dict[str, str]) -> dict[str, object]:
    found: dict[str, object] = {"kind": kind, "lo": brief(segment.lo), "hi": brief(segment.hi)}
    if segment.period is not None:
        found["period"] = segment.period.period
        found["origin"] = brief(segment.period.origin)
        found["width"] = brief(segment.period.width)
    if segment.met is not None:
        found["where"] = met[segment.met]
    return found


def schedule_lines(schedule: Schedule) -> list[str]:
    """The schedule, one line a segment, then its names. Bounds count key tiles."""
    shown = show(schedule)
    lines = [] if schedule.closed else ["tiles from a compact list, built on the device"]
    if schedule.listed:
        lines.append("runtime lists, put in order on the device")
    listed = f" columns {brief(schedule.gather.member)}, unless visited" if schedule.gather else ""
    lines += [
        f"{kind:9} {segment_text(s, _met(schedule))}{listed if kind == 'gather' else ''}"
        for kind, s in shown.segments
    ]
    lines += [f"  {name} = {text}" for name, text in shown.names]
    if not schedule.closed:
        lines += [f"reason    {r}" for r in dict.fromkeys(schedule.reasons)]
    return lines or ["nothing is attended"]


def header(plan: WalkPlan) -> list[str]:
    """Docstring of a forward module."""
    request, config = plan.request, plan.request.config
    tile = _tile(config)
    return [
        "Attention forward, generated by maskwright.",
        "",
        *_mask_lines(request.mask, request.score),
        f"schedule (key tiles of a query tile, {tile}):",
        *(f"    {line}" for line in schedule_lines(plan.schedule)),
        "",
        f"{_sizes(request)}; {_how(config)}; source format {SOURCE_FORMAT}",
    ]


def backward_header(plan: BackwardPlan) -> list[str]:
    """Docstring of a backward module."""
    return [
        "Attention backward, generated by maskwright.",
        "",
        *_mask_lines(plan.request.mask, plan.request.score),
        *(line for walk in plan.walks for line in _walk_lines(walk)),
        f"{_sizes(plan.keys.request)}; source format {SOURCE_FORMAT}",
    ]


def _walk_lines(walk: WalkPlan) -> list[str]:
    config = walk.request.config
    tile = _tile(config)
    kept = (
        "transposed (query tiles of a key" if walk.transposed else "schedule (key tiles of a query"
    )
    return [
        f"{kept} tile, {tile}):",
        *(f"    {line}" for line in schedule_lines(walk.schedule)),
        f"    {_how(config)}",
        "",
    ]


def _tile(config: KernelConfig | GluonConfig | GluonBackwardConfig) -> str:
    together = config.heads if isinstance(config, KernelConfig) else 1
    heads = f" of {together} heads" if together > 1 else ""
    return f"{config.block_m} queries{heads} x {config.block_n} keys"


def _mask_lines(mask: n.Node, score: n.Node | None) -> list[str]:
    shown = [] if score is None else ["score:", f"    {brief(score)}", ""]
    return ["mask (True: attend):", f"    {brief(mask)}", "", *shown]


def _sizes(request: Request) -> str:
    return f"{request.dtype}, head_dim {request.head_dim}, value_dim {request.value_dim}"


def _how(config: KernelConfig | GluonConfig | GluonBackwardConfig) -> str:
    if isinstance(config, (GluonConfig, GluonBackwardConfig)):
        registers = f"{config.consumer_registers}/{config.producer_registers}"
        return (
            f"Gluon for sm_90: a producer and {config.consumers} consumers, {config.stages} stages, "
            f"{registers} registers"
        )
    return f"{config.num_warps} warps, {config.num_stages} stages, {config.loads} loads"
