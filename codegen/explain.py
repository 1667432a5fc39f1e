"""What a mask costs: loop bounds, tiles, attended pairs, FLOPs, at any length, without the mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskwright.codegen import sources_walk
from maskwright.codegen.describe import brief
from maskwright.codegen.describe import schedule_dicts
from maskwright.codegen.describe import schedule_lines
from maskwright.codegen.describe import show
from maskwright.codegen.listed import schedule_of
from maskwright.codegen.listed_walk import ListedWalk
from maskwright.codegen.listed_walk import prepared_bytes
from maskwright.codegen.plan import searches_of
from maskwright.codegen.schedule import Schedule
from maskwright.codegen.schedule import derive_row
from maskwright.codegen.tile import TileShape
from maskwright.codegen.walk import Call
from maskwright.codegen.walk import Ints
from maskwright.codegen.walk import count
from maskwright.dsl import nodes as n
from maskwright.dsl.evaluate import evaluate
from maskwright.dsl.evaluate import grid

_CHUNK = 1 << 16  # rows evaluated at a time
_EXACT_LIMIT = 1 << 31  # pairs evaluated one by one where no closed form counts them
_LISTED_CHUNK = 16  # query tiles evaluated at a time against all tiles of keys
_MOST_MARKS = 1 << 25  # pairs of a query and a block of keys, evaluated at a time
_SAMPLES = 64  # query tiles looked at beyond that limit


@dataclass(frozen=True)
class Explanation:
    """A mask at given sizes. ``print`` it, or take ``to_dict()``.

    Attributes:
        data: plain values; see ``to_dict``.
        lines: the schedule in words.
    """

    data: dict[str, Any]
    lines: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """schedule (over names), closed_form, table_bytes, pairs, density, tiles, flops, empty_rows, reasons.

        With runtime lists (``listed``): ``gathered`` columns, counted once a query tile.
        """
        return dict(self.data)

    def __str__(self) -> str:
        d = self.data
        tiles = d["tiles"]
        every = sum(tiles.values()) or 1
        kind = "closed form" if d["closed_form"] else "general path (announced)"
        kind = "runtime lists, prepared on the device" if d["listed"] else kind
        columns = [f"gathered  {d['gathered']:,} columns"] if _gathers(d) else []
        shape = f"B {d['batch']}, H {d['heads']}/{d['kv_heads']}, Sq {d['q_len']}, Sk {d['kv_len']}"
        return "\n".join(
            [
                f"mask      {d['mask']}",
                f"sizes     {shape}; tile {d['tile'][0]} queries x {d['tile'][1]} keys",
                f"schedule  {kind}; tables {d['table_bytes']} bytes",
                *(f"  {line}" for line in self.lines),
                f"pairs     {d['pairs']:,} of {d['pairs_dense']:,} (density {d['density']:.4%})",
                "tiles     " + ", ".join(f"{k} {v:,} ({v / every:.2%})" for k, v in tiles.items()),
                *columns,
                f"flops     {d['flops']:.4g} forward at head_dim {d['head_dim']}",
                f"rows      {d['empty_rows']:,} without any key",
                *(f"note      {r}" for r in d["reasons"]),
            ]
        )


def _gathers(data: dict[str, Any]) -> bool:
    return any(x["kind"] == "gather" for x in data["schedule"])


def explain_call(
    mask: n.Node, call: Call, tile: TileShape, head_dim: int, notes: tuple[str, ...] = ()
) -> Explanation:
    """Explain a mask for checked runtime values; ``notes`` join the reasons."""
    schedule = schedule_of(mask, tile, tail=False)
    shown = schedule_of(mask, tile)  # as the kernel runs it: a ragged last tile counts as partial
    small, repeat = _distinct(mask, call)
    reasons = [*schedule.reasons, *notes]
    pairs, empty, sampled = _pairs(mask, small, tile)
    full, partial, gathered, sampled_tiles = _tiles(mask, schedule, small)
    if sampled or sampled_tiles:
        reasons.append(f"counts are estimated from {_SAMPLES} query tiles: no closed form")
    every = call.q_tiles(tile) * call.kv_tiles(tile) * call.batch * call.heads
    dense = call.q_len * call.kv_len * call.batch * call.heads
    data = {
        "mask": brief(mask),
        "batch": call.batch,
        "heads": call.heads,
        "kv_heads": call.kv_heads,
        "q_len": call.q_len,
        "kv_len": call.kv_len,
        "q_offset": call.q_offset,
        "tile": [tile.block_m, tile.block_n],
        "head_dim": head_dim,
        "schedule": schedule_dicts(shown),
        "names": dict(show(shown).names),
        "closed_form": schedule.closed and not schedule.listed,
        "listed": schedule.listed,
        "gathered": gathered * repeat,
        "table_bytes": _table_bytes(mask, schedule, call, small, full + partial),
        "pairs": pairs * repeat,
        "pairs_dense": dense,
        "density": pairs * repeat / dense if dense else 0.0,
        "tiles": {
            "full": full * repeat,
            "partial": partial * repeat,
            "skipped": every - (full + partial) * repeat,
        },
        "flops": 4 * pairs * repeat * head_dim,
        "empty_rows": empty * repeat,
        "reasons": reasons,
    }
    return Explanation(data, tuple(schedule_lines(shown)))


def _distinct(mask: n.Node, call: Call) -> tuple[Call, int]:
    """The call with one head (batch entry) if all are alike, and how often it repeats."""
    found = n.symbols(mask)
    heads = call.heads if found & {"h", "kv_head"} else min(call.heads, 1)
    kv_heads = call.kv_heads if heads == call.heads else min(call.kv_heads, 1)
    batch = call.batch if "b" in found else min(call.batch, 1)
    repeat = (call.heads // heads if heads else 1) * (call.batch // batch if batch else 1)
    small = Call(call.q_len, call.kv_len, call.q_offset, batch, heads, kv_heads, call.values)
    return small, repeat


def _chunks(count_: int, size: int) -> Iterator[Ints]:
    return (np.arange(i, min(i + size, count_)) for i in range(0, count_, size))


def _pairs(mask: n.Node, call: Call, tile: TileShape) -> tuple[int, int, bool]:
    """(attended pairs, rows without a key, whether they are estimates)."""
    row = derive_row(mask)
    shape = (call.batch, call.heads)
    # A sorted table read outside has no order to count by.
    ordered = tile.inside or not any(t.sorted for t in n.tables(mask))
    if not (row.closed and ordered):
        return _pairs_one_by_one(mask, call)
    pairs = empty = 0
    for rows in _chunks(call.q_len, _CHUNK):
        keys = np.broadcast_to(count(row.visit, call.env(row.tile, rows)), (*shape, len(rows)))
        pairs += int(keys.sum())
        empty += int((keys == 0).sum())
    return pairs, empty, False


def _dense_rows(mask: n.Node, call: Call, rows: Ints) -> Any:
    env = dict(call.values)
    env |= grid(rows + call.q_offset, np.arange(call.kv_len), call.batch, call.heads, call.kv_heads)
    env |= {"q_len": call.q_len, "kv_len": call.kv_len}
    shape = (call.batch, call.heads, len(rows), call.kv_len)
    return np.broadcast_to(evaluate(mask, env), shape)


def _row_chunks(call: Call, size: int) -> tuple[list[Ints], float]:
    """Chunks of ``size`` rows to look at, and by how much to scale what they show."""
    chunks = list(_chunks(call.q_len, size))
    total = call.q_len * call.kv_len * call.batch * call.heads
    if total <= _EXACT_LIMIT or len(chunks) <= _SAMPLES:
        return chunks, 1.0
    chosen = np.linspace(0, len(chunks) - 1, _SAMPLES).round().astype(int)
    return [chunks[i] for i in chosen], len(chunks) / _SAMPLES


def _pairs_one_by_one(mask: n.Node, call: Call) -> tuple[int, int, bool]:
    chunks, scale = _row_chunks(call, 64)
    pairs = empty = 0
    for rows in chunks:
        keys = _dense_rows(mask, call, rows).sum(-1)
        pairs += int(keys.sum())
        empty += int((keys == 0).sum())
    return round(pairs * scale), round(empty * scale), scale != 1.0


def _tiles(mask: n.Node, schedule: Schedule, call: Call) -> tuple[int, int, int, bool]:
    """(full tiles, partial tiles, gathered columns, whether they are estimates)."""
    if schedule.listed:
        return _tiles_of_lists(schedule, call)
    if not schedule.closed:
        full, partial, sampled = _tiles_one_by_one(mask, schedule.tile, call)
        return full, partial, 0, sampled
    shape = (call.batch, call.heads)
    full = partial = 0
    for tiles in _chunks(call.q_tiles(schedule.tile), _CHUNK):
        env = call.env(schedule.tile, tiles)
        full += int(np.broadcast_to(count(schedule.full, env), (*shape, len(tiles))).sum())
        partial += int(np.broadcast_to(count(schedule.partial, env), (*shape, len(tiles))).sum())
    return full, partial, 0, False


def _tiles_of_lists(schedule: Schedule, call: Call) -> tuple[int, int, int, bool]:
    walk = ListedWalk(schedule, call)
    full = partial = gathered = 0
    for tiles in _chunks(call.q_tiles(schedule.tile), _listed_chunk(schedule, call)):
        met = walk.meets(tiles)
        full += int(met.full.sum())
        partial += int(met.partial.sum())
        gathered += int((met.gathered * walk.columns).sum())
    return full, partial, gathered, False


def _listed_chunk(schedule: Schedule, call: Call) -> int:
    """Query tiles evaluated at a time against all tiles (or blocks) of keys."""
    least = min((x.block for x in schedule.sources if x.index is not None), default=0)
    if not least:
        return _LISTED_CHUNK
    each = schedule.tile.block_m * (call.kv_len // least + 1) * call.batch * call.heads
    return max(1, min(_LISTED_CHUNK, _MOST_MARKS // each))


def _tiles_one_by_one(mask: n.Node, tile: TileShape, call: Call) -> tuple[int, int, bool]:
    chunks, scale = _row_chunks(call, tile.block_m)
    edges = np.arange(0, call.kv_len, tile.block_n)
    full = partial = 0
    for rows in chunks:
        dense = _dense_rows(mask, call, rows)
        any_ = np.logical_or.reduceat(dense.any(2), edges, axis=-1)
        all_ = np.logical_and.reduceat(dense.all(2), edges, axis=-1)
        full += int(all_.sum())
        partial += int((any_ & ~all_).sum())
    return round(full * scale), round(partial * scale), scale != 1.0


def _table_bytes(mask: n.Node, schedule: Schedule, every: Call, call: Call, tiles: int) -> int:
    """Bytes of what the device computes before the kernel."""
    rows = call.batch * call.heads * call.q_tiles(schedule.tile)
    searches = 4 * len(searches_of(schedule.walked)) * rows
    if schedule.sources:
        return searches + sources_walk.prepared_bytes(mask, schedule, every)
    if schedule.listed:
        return searches + prepared_bytes(schedule, call, call.heads)
    return searches + (0 if schedule.closed else 4 * tiles + (8 + 4 + 8) * rows)
