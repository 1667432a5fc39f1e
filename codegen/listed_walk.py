"""Schedules along runtime lists, evaluated on the host with numpy: what the device would prepare."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace
from functools import cached_property
from typing import Any
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from maskwright.codegen.schedule import Schedule
from maskwright.codegen.schedule import Segment
from maskwright.codegen.sources_walk import SourcesWalk
from maskwright.codegen.tile import K
from maskwright.codegen.tile import anchor
from maskwright.codegen.walk import Call
from maskwright.codegen.walk import Ints
from maskwright.codegen.walk import visits
from maskwright.dsl import nodes as n
from maskwright.dsl.evaluate import evaluate

Bools: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Met:
    """What some tiles of queries do with each tile of keys: (batch, heads, query tiles, key tiles).

    Attributes:
        full, partial: how often the tile is visited.
        gathered: its listed columns are gathered.
    """

    full: Ints
    partial: Ints
    gathered: Bools


@dataclass(frozen=True)
class ListedWalk:
    """A schedule with runtime lists, and the call that brings them."""

    schedule: Schedule
    call: Call

    def meets(self, tiles: Ints) -> Met:
        """What the query tiles of these numbers do."""
        if self.schedule.sources:
            full, partial = SourcesWalk(self.schedule, self.call).visited(tiles)
            return Met(full, partial, np.zeros((1, 1, 1, 1), bool))
        call, schedule = self.call, self.schedule
        env, end = call.env(schedule.tile, tiles), call.kv_tiles(schedule.tile)
        crossed, filled = self._diagonals(env, end)
        chosen: dict[str | None, Bools] = {
            None: np.ones(1, bool),
            "crossed": crossed,
            "filled": filled,
        }

        def total(segments: tuple[Segment, ...]) -> Ints:
            shape = (call.batch, call.heads, len(tiles), end)
            found: Ints = np.zeros(shape, np.int64)
            for segment in segments:
                plain = visits((replace(segment, met=None),), env, end)
                found = found + plain * chosen[segment.met]
            return found

        gather, none = schedule.gather, np.zeros((1, 1, 1, 1), bool)
        gathered = none if gather is None else total(gather.segments) > 0
        if gather is not None:
            gathered = gathered & ~((total(gather.near) > 0) & (crossed | filled))
        return Met(total(schedule.full), total(schedule.partial), gathered)

    @cached_property
    def columns(self) -> Ints:
        """Listed columns of each tile of keys: (batch, heads, 1, key tiles)."""
        size, flags = self.schedule.tile.block_n, self.flags()
        return np.asarray(flags.reshape(*flags.shape[:2], 1, -1, size).sum(-1))

    def flags(self) -> Bools:
        """Listed columns: (batch, heads, keys, up to a whole number of tiles)."""
        call, gather, tile = self.call, self.schedule.gather, self.schedule.tile
        keys = np.arange(call.kv_tiles(tile) * tile.block_n)
        if gather is None:
            return np.zeros((call.batch, call.heads, len(keys)), bool)
        return self._listed(gather.member, keys) & (keys < call.kv_len)

    def _diagonals(self, env: dict[str, Any], end: int) -> tuple[Bools, Bools]:
        """(tiles that listed diagonals cross, tiles that they fill)."""
        found, tile = self.schedule.diagonals, self.schedule.tile
        if found is None:
            none = np.zeros((1, 1, 1, 1), bool)
            return none, none
        least, before = self._before
        start, stop = (evaluate(anchor(found.step), {"q": x}) for x in self._edges(env))
        first = start - np.arange(1, end + 1) * tile.block_n + 1 - least
        span = stop - start + tile.block_n
        first = np.broadcast_to(first, (*before.shape[:2], *first.shape[2:]))
        b = np.arange(before.shape[0])[:, None, None, None]
        h = np.arange(before.shape[1])[:, None, None]
        count = before[b, h, first + span] - before[b, h, first]
        return (count > 0) & (count < span), count == span

    def _edges(self, env: dict[str, Any]) -> tuple[Ints, Ints]:
        """The first and the last query of tiles, also where it lies beyond the end."""
        first = env["q_first"][..., None]
        return first, first + self.schedule.tile.block_m - 1

    @cached_property
    def _before(self) -> tuple[int, Ints]:
        """(the least distance of a pair, how many listed ones lie below each)."""
        call, tile, found = self.call, self.schedule.tile, self.schedule.diagonals
        assert found is not None
        width = call.kv_tiles(tile) * tile.block_n
        least = call.q_offset // found.step * found.step - width + 1
        distances = least + np.arange(call.q_tiles(tile) * tile.block_m + width + found.step - 1)
        flags = self._listed(found.member, distances + found.shift)
        return least, np.concatenate([np.zeros((*flags.shape[:2], 1), int), flags.cumsum(-1)], -1)

    def _listed(self, member: n.Member, values: Ints) -> Bools:
        """Which of the values are in the row of a member: (batch, heads, values)."""
        call = self.call
        env = call.env(self.schedule.tile, np.zeros(1, int)) | {"k": values.reshape(1, 1, -1)}
        found = evaluate(n.Member(K, member.row, member.run), env)
        return np.broadcast_to(found, (call.batch, call.heads, len(values)))


def prepared_bytes(schedule: Schedule, call: Call, heads: int) -> int:
    """Bytes of what the device prepares of the lists, for ``heads`` rows a batch entry."""
    tile, words = schedule.tile, 0
    end, tiles = call.kv_tiles(tile), call.q_tiles(tile)
    if schedule.gather is not None:
        member = schedule.gather.member
        entries = np.shape(call.values[member.row.table.name])[-1]
        listed = max(1, min(entries * member.run, call.kv_len))
        words += -(-end * tile.block_n // 32) + listed + end + 1
    if schedule.diagonals is not None:
        distances = (call.q_offset + (tiles - 1) * tile.block_m) // tile.block_n
        distances += end - call.q_offset // tile.block_n
        bits = tiles * tile.block_m + end * tile.block_n + schedule.step - 1
        words += -(-bits // 32) + 2 + schedule.phases * (5 * distances + 2)
    return 4 * words * call.batch * heads
