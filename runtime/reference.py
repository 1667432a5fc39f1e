"""The CPU path: blocked PyTorch that follows the kernel's own schedule. Any device, differentiable.

A query tile gathers the key tiles that its schedule visits and attends to those alone, in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskwright.codegen.schedule import derive
from maskwright.codegen.tile import TileShape
from maskwright.codegen.walk import Call
from maskwright.codegen.walk import visits
from maskwright.dsl import nodes as n
from maskwright.runtime.bind import Shapes
from maskwright.runtime.torch_eval import evaluate

_TILE = TileShape(128, 64)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    shapes: Shapes,
    mask: n.Node,
    score: n.Node | None,
    scale: float,
    sinks: Tensor | None,
    values: Mapping[str, Any],
    *,
    inside: bool,
) -> tuple[Tensor, Tensor]:
    """(out, lse) of attention under a mask; see ``maskwright.attention``."""
    found = n.symbols(mask)
    runs = _Runs(query, key, value, shapes, mask, score, scale, sinks, values, inside)
    batches = [[i] for i in range(shapes.batch)] if "b" in found else [range(shapes.batch)]
    split = found & {"h", "kv_head"}
    heads = [[i] for i in range(shapes.heads)] if split else [range(shapes.heads)]
    rows = [[runs.block(list(b), list(h)) for h in heads] for b in batches]
    out = torch.cat([torch.cat([block[0] for block in row], 1) for row in rows], 0)
    lse = torch.cat([torch.cat([block[1] for block in row], 1) for row in rows], 0)
    return out, lse


class _Runs:
    """One call, computed in blocks of batch entries and heads that share their tiles."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        shapes: Shapes,
        mask: n.Node,
        score: n.Node | None,
        scale: float,
        sinks: Tensor | None,
        values: Mapping[str, Any],
        inside: bool,
    ) -> None:
        self.query, self.key, self.value, self.shapes = query, key, value, shapes
        self.mask, self.score, self.scale, self.sinks = mask, score, scale, sinks
        self.values = dict(values) | {"q_len": shapes.q_len, "kv_len": shapes.kv_len}
        self.tile = replace(_TILE, inside=inside)
        self.schedule = derive(mask, self.tile)
        host = {k: v.cpu().numpy() if isinstance(v, Tensor) else v for k, v in values.items()}
        self.call = Call(
            shapes.q_len,
            shapes.kv_len,
            shapes.q_offset,
            shapes.batch,
            shapes.heads,
            shapes.kv_heads,
            host,
        )

    def block(self, batches: list[int], heads: list[int]) -> tuple[Tensor, Tensor]:
        """(out, lse) of some batch entries and heads."""
        tiles = range(self.call.q_tiles(self.tile))
        done = [self._tile(t, batches, heads) for t in tiles]
        return torch.cat([d[0] for d in done], 2), torch.cat([d[1] for d in done], 2)

    def _tile(self, tile: int, batches: list[int], heads: list[int]) -> tuple[Tensor, Tensor]:
        first = tile * self.tile.block_m
        rows = torch.arange(
            first, min(first + self.tile.block_m, self.shapes.q_len), device=self.query.device
        )
        keys, partial = self._keys(tile, batches[0], heads[0])
        group = self.shapes.heads // self.shapes.kv_heads
        kv_heads = [h // group for h in heads]
        q = self._pick(self.query, batches, heads)[:, :, rows].float()
        k = self._pick(self.key, batches, kv_heads)[:, :, keys].float()
        v = self._pick(self.value, batches, kv_heads)[:, :, keys].float()
        scores = q @ k.transpose(-1, -2) * self.scale
        env = self._env(batches, heads, rows, keys)
        if self.score is not None:
            scores = evaluate(self.score, env | {"s": scores}, scores.device).float()
        if partial:
            keep = evaluate(self.mask, env, scores.device)
            scores = scores.masked_fill(~keep, float("-inf"))
        return self._softmax(scores, v, heads)

    def _pick(self, x: Tensor, batches: list[int], heads: list[int]) -> Tensor:
        """Batch entries and heads of a tensor, without a copy where they are all of them."""
        x = x if len(batches) == x.shape[0] else x[batches]
        return x if heads == list(range(x.shape[1])) else x[:, heads]

    def _keys(self, tile: int, batch: int, head: int) -> tuple[Tensor, bool]:
        """Keys of the visited tiles, and whether any tile is partial."""
        env = self.call.env(self.tile, np.asarray([tile]))
        schedule, end = self.schedule, self.call.kv_tiles(self.tile)
        partial = schedule.partial if schedule.closed else schedule.visit
        mixed = visits(partial, env, end)[batch, head, 0] > 0
        whole = visits(schedule.full if schedule.closed else (), env, end)[batch, head, 0] > 0
        chosen = torch.as_tensor(np.flatnonzero(mixed | whole), device=self.query.device)
        size = self.tile.block_n
        keys = (chosen[:, None] * size + torch.arange(size, device=chosen.device)).flatten()
        return keys[keys < self.shapes.kv_len], bool(mixed.any())

    def _env(
        self, batches: list[int], heads: list[int], rows: Tensor, keys: Tensor
    ) -> dict[str, Any]:
        head = torch.tensor(heads, device=rows.device).reshape(1, -1, 1, 1)
        return self.values | {
            "q": (rows + self.shapes.q_offset).reshape(1, 1, -1, 1),
            "k": keys.reshape(1, 1, 1, -1),
            "h": head,
            "kv_head": head // (self.shapes.heads // self.shapes.kv_heads),
            "b": torch.tensor(batches, device=rows.device).reshape(-1, 1, 1, 1),
        }

    def _softmax(self, scores: Tensor, v: Tensor, heads: list[int]) -> tuple[Tensor, Tensor]:
        if self.sinks is not None:
            sink = self.sinks[heads].float().reshape(1, -1, 1, 1)
            scores = torch.cat([scores, sink.expand(*scores.shape[:3], 1)], -1)
        if scores.shape[-1] == 0:
            nothing = scores.new_full((*scores.shape[:3], 1), float("-inf"))
            scores = torch.cat([scores, nothing], -1)
        lse = scores.logsumexp(-1)
        base = torch.where(lse == float("-inf"), 0.0, lse)
        weights = (scores - base[..., None]).exp()[..., : v.shape[2]]
        return (weights @ v).to(self.query.dtype), lse
