"""Listed tiles, evaluated on the host with numpy: what the device would prepare and visit."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace
from typing import Any
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from maskwright.codegen.plan_sources import heads_of
from maskwright.codegen.plan_sources import reach
from maskwright.codegen.schedule import Schedule
from maskwright.codegen.schedule import Segment
from maskwright.codegen.schedule import Source
from maskwright.codegen.tile import Q
from maskwright.codegen.tile import anchor
from maskwright.codegen.walk import Call
from maskwright.codegen.walk import Ints
from maskwright.codegen.walk import visits
from maskwright.dsl import nodes as n
from maskwright.dsl.evaluate import evaluate

Bools: TypeAlias = npt.NDArray[np.bool_]
Pair: TypeAlias = tuple[Bools, Bools]
_INDEX = n.Sym("query_index")


@dataclass(frozen=True)
class Edges:
    """Positions of the first and the last query of some tiles, and keys of some tiles."""

    query_low: Ints
    query_high: Ints
    key_low: Ints
    key_high: Ints


@dataclass(frozen=True)
class SourcesWalk:
    """A schedule with listed tiles, and the call that brings the lists."""

    schedule: Schedule
    call: Call

    def visited(self, tiles: Ints) -> tuple[Ints, Ints]:
        """How often (full, partial) tiles are visited: (batch, heads, tiles that stay, others)."""
        call, schedule = self.call, self.schedule
        env, end = call.env(schedule.tile, tiles), call.kv_tiles(schedule.tile)
        some, every = self.met(tiles)
        chosen = {"crossed": some & ~every, "filled": every}

        def total(segments: tuple[Segment, ...]) -> Ints:
            found: Ints = np.zeros((call.batch, call.heads, len(tiles), end), np.int64)
            for segment in segments:
                plain = visits((replace(segment, met=None),), env, end)
                found = found + (plain * chosen[segment.met] if segment.met else plain)
            return found

        return total(schedule.full), total(schedule.partial)

    def met(self, tiles: Ints) -> Pair:
        """(tiles that the lists cross or fill, tiles that they fill)."""
        edges, transposed = self._edges(tiles), self.schedule.tile.transposed
        found = [self._of(source, edges) for source in self.schedule.sources]
        every = np.logical_and.reduce([x[1] for x in found])
        ways = [
            np.logical_and.reduce([found[i][0] for i in way]) for way in self.schedule.ways
        ] or [every & False]
        some = np.logical_or.reduce(ways) | every
        return (np.swapaxes(some, 2, 3), np.swapaxes(every, 2, 3)) if transposed else (some, every)

    def _edges(self, tiles: Ints) -> Edges:
        call, tile = self.call, self.schedule.tile
        others = np.arange(call.kv_tiles(tile))
        queries, keys = (tiles, others) if not tile.transposed else (others, tiles)
        m, k = (tile.block_m, tile.block_n) if not tile.transposed else (tile.block_n, tile.block_m)
        return Edges(
            queries * m + call.q_offset,
            np.minimum(queries * m + m, call.q_len) - 1 + call.q_offset,
            keys * k,
            np.minimum(keys * k + k, call.kv_len) - 1,
        )

    def _of(self, source: Source, edges: Edges) -> Pair:
        if source.kind == "diagonals":
            return self._diagonals(source, edges)
        low, high = self._indices(source, edges)
        rows = np.arange(low.min(initial=0), high.max(initial=0) + 1)
        first, last = edges.key_low // source.block, edges.key_high // source.block
        blocks = -(-self.call.kv_len // source.block)
        marks = self._marks(source, rows, np.arange(blocks))
        before = np.pad(marks.cumsum(2, dtype=np.int32).cumsum(3, dtype=np.int32), _BEFORE)
        down, up = low[:, None] - rows[0], high[:, None] - rows[0] + 1
        count = before[:, :, up, last + 1] - before[:, :, down, last + 1]
        count = count - before[:, :, up, first] + before[:, :, down, first]
        area = (up - down) * (last - first + 1)
        return count > 0, count == area

    def _indices(self, source: Source, edges: Edges) -> tuple[Ints, Ints]:
        """Rows of the list that the first and the last query of each tile have."""
        if source.index is None:
            return np.zeros_like(edges.query_low), np.zeros_like(edges.query_low)
        env = self._env()
        ends = (edges.query_low, edges.query_high)
        low, high = (evaluate(source.index, env | {"q": x}) for x in ends)
        return np.asarray(low), np.asarray(high)

    def _diagonals(self, source: Source, edges: Edges) -> Pair:
        tile = self.schedule.tile
        queries, keys = tile.block_m, tile.block_n
        if tile.transposed:
            queries, keys = keys, queries
        last = edges.query_low + queries - 1  # also where it lies beyond the end
        start, stop = (evaluate(anchor(source.step), {"q": x}) for x in (edges.query_low, last))
        first = start[:, None] - edges.key_low - (keys - 1)
        span = (stop - start + keys)[:, None]
        least = int(first.min(initial=0))
        values = np.arange(least, int((first + span).max(initial=0))) + source.shift
        marks = self._marks(source, np.zeros(1, int), values)
        before = np.pad(marks.cumsum(3, dtype=np.int32), _BEFORE)[:, :, 1]
        count = before[:, :, first - least + span] - before[:, :, first - least]
        return count > 0, count == span

    def _env(self) -> dict[str, Any]:
        return self.call.env(self.schedule.tile, np.zeros(1, int))

    def _marks(self, source: Source, rows: Ints, values: Ints) -> Bools:
        """Which of the values, a run, are in each row: (batch, heads, rows, values)."""
        call, row = self.call, source.member.row
        env = self._env() | {"query_index": rows.reshape(1, 1, -1)}
        index = [evaluate(_INDEX if x is source.index else x, env) for x in row.index]
        table = np.asarray(call.values[row.table.name])
        shape = (call.batch, call.heads, len(rows))
        inside: Any = np.ones(shape, bool)
        places = []
        for size, x in zip(table.shape, index, strict=False):
            inside = inside & (x >= 0) & (x < size)
            places.append(np.broadcast_to(np.clip(x, 0, max(size - 1, 0)), shape).astype(np.int64))
        run = source.member.run
        first, last = values[0] - run + 1, values[-1]  # entries that stand for some of the values
        none = last - first + 1
        found = np.zeros((*shape, none + 1), bool)
        if table.size:
            entries = np.broadcast_to(table[tuple(places)], (*shape, table.shape[-1]))
            entries = entries.astype(np.int64)
            wanted = inside[..., None] & (entries != -1)
            wanted = wanted & (entries >= first) & (entries <= last)
            np.put_along_axis(found, np.where(wanted, entries - first, none), True, -1)
        if run == 1:
            return found[..., :-1]
        before = found.cumsum(-1, dtype=np.int32)
        before = np.concatenate([np.zeros_like(before[..., :1]), before[..., :-1]], -1)
        return before[..., run:] > before[..., :-run]


_BEFORE = ((0, 0), (0, 0), (1, 0), (1, 0))


def prepared_bytes(mask: n.Node, schedule: Schedule, call: Call) -> int:
    """Bytes of bits and listed tiles, as the host of the kernel makes them."""
    counts = {"heads": call.heads, "kv_heads": call.kv_heads, "1": 1}
    words = 0
    for source in schedule.sources:
        words += _bits(source, call)[0] * counts[heads_of(source.member.row.index)]
    heads, tiles = counts[heads_of((mask,))], call.q_tiles(schedule.tile)
    listed = call.batch * heads * (most_tiles(schedule, call) + 3 * tiles) + 2
    return 4 * (words * call.batch + listed)


def most_tiles(schedule: Schedule, call: Call) -> int:
    """How many tiles the lists of one batch entry and head can reach, whatever they hold."""
    tile, of = schedule.tile, []
    tiles, walked = call.q_tiles(tile), call.kv_tiles(tile)
    for source in schedule.sources:
        times, all_queries = reach(source, tile)
        queries = walked if tile.transposed else tiles
        length = int(np.shape(call.values[source.member.row.table.name])[-1])
        entries = length * _bits(source, call)[1]
        of.append(entries * times * (queries if all_queries else 1))
    return min(tiles * walked, sum(min(of[i] for i in way) for way in schedule.ways))


def _bits(source: Source, call: Call) -> tuple[int, int]:
    """(words of bits of one batch entry and head, rows of the list that are read)."""
    if source.kind == "columns":
        return -(-(call.kv_len + 320) // 32), 1
    if source.kind == "diagonals":
        return -(-(call.kv_len + call.q_len + 639 + source.step) // 32), 1
    blocks = -(-(call.kv_len + 256) // source.block)
    if source.index is None:
        return blocks, 1
    env: dict[str, Any] = {"q_len": np.int64(call.q_len), "kv_len": np.int64(call.kv_len)}
    ends = (call.q_offset, call.q_offset + call.q_len - 1)
    first, last = (int(evaluate(source.index, env | {Q.name: np.int64(x)})) for x in ends)
    count = last - first + 1
    return blocks * -(-(count + 255 // source.rows + 1) // 32), count
