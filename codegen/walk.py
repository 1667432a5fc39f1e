"""Schedules evaluated on the host with numpy: which tiles, how many, for every query tile at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from maskwright.codegen.schedule import Schedule
from maskwright.codegen.schedule import Segment
from maskwright.codegen.tile import TileShape
from maskwright.dsl.evaluate import evaluate

Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Call:
    """The sizes of one call, and its runtime values by name."""

    q_len: int
    kv_len: int
    q_offset: int
    batch: int
    heads: int
    kv_heads: int
    values: Mapping[str, Any]

    def q_tiles(self, tile: TileShape) -> int:
        """Number of tiles that stay: of queries, or of keys if transposed."""
        return -(-(self.kv_len if tile.transposed else self.q_len) // tile.block_m)

    def kv_tiles(self, tile: TileShape) -> int:
        """Number of tiles that are walked over: of keys, or of queries if transposed."""
        return -(-(self.q_len if tile.transposed else self.kv_len) // tile.block_n)

    @property
    def inside(self) -> bool:
        """All query positions lie in [0, kv_len)."""
        return self.q_offset >= 0 and self.q_offset + self.q_len <= self.kv_len

    def env(self, tile: TileShape, q_tiles: Ints) -> dict[str, Any]:
        """Symbols of the tiles that stay, as arrays that broadcast to (batch, heads, tiles)."""
        length, start = (self.kv_len, 0) if tile.transposed else (self.q_len, self.q_offset)
        first = q_tiles * tile.block_m
        last = np.minimum(first + tile.block_m, length) - 1
        head = np.arange(self.heads).reshape(1, -1, 1)
        return {
            **self.values,
            "q_first": (first + start).reshape(1, 1, -1),
            "q_last": (last + start).reshape(1, 1, -1),
            "b": np.arange(self.batch).reshape(-1, 1, 1),
            "h": head,
            "kv_head": head // (self.heads // self.kv_heads),
            "q_len": np.int64(self.q_len),
            "kv_len": np.int64(self.kv_len),
            "q_offset": np.int64(self.q_offset),
        }


def count(segments: tuple[Segment, ...], env: Mapping[str, Any]) -> Ints:
    """Tiles in the segments, for every query tile of ``env``."""
    total: Ints = np.zeros((1, 1, 1), np.int64)
    for segment in segments:
        lo, hi = evaluate(segment.lo, env), evaluate(segment.hi, env)
        if segment.period is None:
            total = total + np.maximum(hi - lo, 0)
            continue
        origin = evaluate(segment.period.origin, env)
        width = evaluate(segment.period.width, env)
        args = (origin, segment.period.period, width)
        total = total + np.maximum(_before(hi, *args) - _before(np.minimum(lo, hi), *args), 0)
    return total


def counted(schedule: Schedule, call: Call, tile: TileShape) -> tuple[Ints, Ints]:
    """(full tiles, partial tiles) that each program visits, both (batch, heads, tiles that stay)."""
    many = call.q_tiles(tile)
    env, shape = call.env(tile, np.arange(many)), (call.batch, call.heads, many)
    full, partial = (
        np.broadcast_to(count(x, env), shape) for x in (schedule.full, schedule.partial)
    )
    return full, partial


def _before(j: Ints, origin: Ints, period: int, width: Ints) -> Ints:
    """Tiles below ``j`` of the periodic set (up to a constant)."""
    whole, part = np.divmod(j - origin, period)
    return np.asarray(whole * width + np.minimum(part, width))


def visits(segments: tuple[Segment, ...], env: Mapping[str, Any], kv_tiles: int) -> Ints:
    """How often each key tile is visited: shape (batch, heads, query tiles, key tiles)."""
    j = np.arange(kv_tiles).reshape(1, 1, 1, -1)
    total: Ints = np.zeros((1, 1, 1, 1), np.int64)
    for segment in segments:
        lo, hi = evaluate(segment.lo, env)[..., None], evaluate(segment.hi, env)[..., None]
        inside = (j >= lo) & (j < hi)
        if segment.period is not None:
            origin = evaluate(segment.period.origin, env)[..., None]
            width = evaluate(segment.period.width, env)[..., None]
            inside = inside & ((j - origin) % segment.period.period < width)
        total = total + inside
    tiles = env["q_first"].shape[-1]
    shape = (env["b"].shape[0], env["h"].shape[1], tiles, kv_tiles)
    return np.broadcast_to(total, shape)
