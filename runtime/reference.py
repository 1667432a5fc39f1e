"""The CPU path: blocked PyTorch that follows the kernel's own schedule. Any device.

A query tile gathers the key tiles that its schedule visits and attends to those alone, in float32.
The backward computes each query tile once more, so no more than the probabilities of one tile
exist at any time.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
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
from maskwright.dsl.derivative import derivative
from maskwright.runtime.bind import Shapes
from maskwright.runtime.call import Call as CheckedCall
from maskwright.runtime.torch_eval import add_to_read
from maskwright.runtime.torch_eval import evaluate

_TILE = TileShape(128, 64)


@dataclass(frozen=True)
class Problem:
    """What both directions take: tensors, sizes, expressions, and bound values by name."""

    query: Tensor
    key: Tensor
    value: Tensor
    sinks: Tensor | None
    shapes: Shapes
    mask: n.Node
    score: n.Node | None
    scale: float
    values: Mapping[str, Any]
    inside: bool

    @staticmethod
    def of(
        mask: n.Node, score: n.Node | None, call: CheckedCall, values: Mapping[str, Any]
    ) -> Problem:
        """The problem of a checked call."""
        tensors = (call.query, call.key, call.value, call.sinks)
        return Problem(*tensors, call.shapes, mask, score, call.scale, values, call.inside)


@torch.no_grad()
def attention(mask: n.Node, score: n.Node | None, call: CheckedCall) -> tuple[Tensor, Tensor]:
    """(out, lse) of attention under a mask; see ``maskwright.attention``."""
    problem, s = Problem.of(mask, score, call, call.values), call.shapes
    out = call.query.new_empty((s.batch, s.heads, s.q_len, s.value_dim))
    lse = out.new_empty(out.shape[:3], dtype=torch.float32)
    with torch.autocast(out.device.type, enabled=False):
        for tile in _Tiles(problem):
            scores = tile.scores()
            part = _lse(scores, tile.sinks())
            out[tile.block][:, :, tile.rows] = tile.weights(scores, part) @ tile.value()
            lse[tile.block][:, :, tile.rows] = part
    return out, lse


@torch.no_grad()
def backward(
    problem: Problem, lse: Tensor, grad_out: Tensor, grad_lse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, dict[str, Tensor]]:
    """(dq, dk, dv, dsinks, gradients of float tables by name), in float32.

    Tables get a gradient if they require one. Tiles are added up in one order, always.
    """
    p = problem
    dq, dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (p.query, p.key, p.value))
    dsinks = None if p.sinks is None else torch.zeros_like(p.sinks, dtype=torch.float32)
    tables = {t: torch.zeros_like(x) for t, x in p.values.items() if _wants_gradient(x)}
    with torch.autocast(lse.device.type, enabled=False):
        for tile in _Tiles(problem):
            rows = None if grad_lse is None else tile.of_rows(grad_lse)
            grads = tile.gradients(tile.of_rows(lse), tile.of_rows(grad_out), rows, tables)
            dq[tile.block][:, :, tile.rows] = grads[0]
            dk[tile.kv_block].index_add_(2, tile.keys, grads[1])
            dv[tile.kv_block].index_add_(2, tile.keys, grads[2])
            if dsinks is not None and grads[3] is not None:
                dsinks[tile.block[1]] += grads[3]
    return dq, dk, dv, dsinks, tables


def _wants_gradient(x: object) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


@dataclass(frozen=True)
class _Tile:
    """One query tile of some batch entries and heads that share its key tiles."""

    problem: Problem
    block: tuple[slice, slice]  # batch entries and heads
    kv_block: tuple[slice, slice]
    rows: slice
    keys: Tensor
    partial: bool

    # -- its part of the tensors, in float32 ----------------------------------------------------
    def of_rows(self, x: Tensor) -> Tensor:
        """Rows of a tensor of query heads."""
        return x[self.block][:, :, self.rows].float()

    def of_keys(self, x: Tensor) -> Tensor:
        """Visited keys of a tensor of KV heads, once for each query head."""
        s = self.problem.shapes
        rows = x[self.kv_block][:, :, self.keys].float()
        return rows.repeat_interleave(min(s.heads // s.kv_heads, self._heads), 1)

    def value(self) -> Tensor:
        """Values of the visited keys."""
        return self.of_keys(self.problem.value)

    def sinks(self) -> Tensor | None:
        """One logit a row, or None."""
        given = self.problem.sinks
        return None if given is None else given[self.block[1]].float().reshape(1, -1, 1)

    # -- forward --------------------------------------------------------------------------------
    def scores(self) -> Tensor:
        """Logits; -inf where the mask is False."""
        p, plain = self.problem, self._logits()
        scores = plain if p.score is None else self._evaluate(p.score, plain).float()
        if self.partial:
            scores = scores.masked_fill(~self._evaluate(p.mask, plain), float("-inf"))
        return scores

    def weights(self, scores: Tensor, lse: Tensor) -> Tensor:
        """Probabilities of the keys; all 0 in a row without keys."""
        return (scores - torch.where(lse == float("-inf"), 0.0, lse)[..., None]).exp()

    # -- backward -------------------------------------------------------------------------------
    def gradients(
        self,
        lse: Tensor,
        grad_out: Tensor,
        grad_lse: Tensor | None,
        tables: Mapping[str, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """(dq, dk, dv, dsinks) of the tile; those of tables are added to ``tables``."""
        p = self.problem
        weights = self.weights(self.scores(), lse)
        inner = grad_out @ self.value().transpose(-1, -2)
        # Of each row: how much its logits matter together, through the output and the LSE.
        common = -(weights * inner).sum(-1)
        if grad_lse is not None:
            common = common + grad_lse.masked_fill(lse == float("-inf"), 0.0)
        slopes = weights * (inner + common[..., None])
        self._add_to_tables(slopes, tables)
        if p.score is not None:
            by_logit = self._evaluate(derivative(p.score, n.Sym(n.SCORE)), self._logits())
            slopes = torch.where(slopes == 0, 0.0, slopes * by_logit)
        dq = slopes @ self.of_keys(p.key) * p.scale
        dk = slopes.transpose(-1, -2) @ self.of_rows(p.query) * p.scale
        dv = weights.transpose(-1, -2) @ grad_out
        sinks = self.sinks()
        dsinks = None if sinks is None else (_sink_weights(sinks, lse) * common).sum((0, 2))
        return dq, self._by_kv_head(dk), self._by_kv_head(dv), dsinks

    def _add_to_tables(self, slopes: Tensor, tables: Mapping[str, Tensor]) -> None:
        if not tables or self.problem.score is None:
            return
        score, plain = self.problem.score, self._logits()
        for read in n.walk(score):
            if isinstance(read, n.Read) and read.table.name in tables:
                part = self._evaluate(derivative(score, read), plain)
                amount = torch.where(slopes == 0, 0.0, slopes * part)
                add_to_read(tables[read.table.name], read, self._env(plain), amount)

    def _by_kv_head(self, x: Tensor) -> Tensor:
        """Sums over the query heads of each KV head."""
        kv_heads = len(range(self.kv_block[1].start, self.kv_block[1].stop))
        group = self._heads // kv_heads
        return x.reshape(x.shape[0], kv_heads, group, *x.shape[2:]).sum(2)

    # -- expressions ----------------------------------------------------------------------------
    @property
    def _heads(self) -> int:
        return len(range(self.block[1].start, self.block[1].stop))

    def _logits(self) -> Tensor:
        p = self.problem
        return self.of_rows(p.query) @ self.of_keys(p.key).transpose(-1, -2) * p.scale

    def _evaluate(self, node: n.Node, plain: Tensor) -> Tensor:
        return evaluate(node, self._env(plain), plain.device)

    def _env(self, plain: Tensor) -> dict[str, Any]:
        s, (batches, heads) = self.problem.shapes, self.block
        at = plain.device
        head = torch.arange(heads.start, heads.stop, device=at).reshape(1, -1, 1, 1)
        rows = torch.arange(self.rows.start, self.rows.stop, device=at)
        return dict(self.problem.values) | {
            "s": plain,
            "q_len": s.q_len,
            "kv_len": s.kv_len,
            "q": (rows + s.q_offset).reshape(1, 1, -1, 1),
            "k": self.keys.reshape(1, 1, 1, -1),
            "h": head,
            "kv_head": head // (s.heads // s.kv_heads),
            "b": torch.arange(batches.start, batches.stop, device=at).reshape(-1, 1, 1, 1),
        }


def _lse(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Log-sum-exp of each row; of no logits it is -inf."""
    if sinks is None and scores.shape[-1]:
        return scores.logsumexp(-1)
    last = scores.new_tensor(float("-inf")) if sinks is None else sinks
    last = last.expand(scores.shape[:3])[..., None]
    return torch.cat([scores, last], -1).logsumexp(-1)


def _sink_weights(sinks: Tensor, lse: Tensor) -> Tensor:
    """Probability of the sink in each row."""
    return (sinks - torch.where(lse == float("-inf"), 0.0, lse)).exp()


class _Tiles:
    """The query tiles of a call, in blocks of batch entries and heads that share their key tiles."""

    def __init__(self, problem: Problem) -> None:
        self.problem, s = problem, problem.shapes
        self.tile = replace(_TILE, inside=problem.inside)
        self.schedule = derive(problem.mask, self.tile)
        values = problem.values.items()
        host = {k: v.detach().cpu().numpy() if isinstance(v, Tensor) else v for k, v in values}
        self.call = Call(s.q_len, s.kv_len, s.q_offset, s.batch, s.heads, s.kv_heads, host)

    def __iter__(self) -> Iterator[_Tile]:
        s, found = self.problem.shapes, n.symbols(self.problem.mask)
        group = s.heads // s.kv_heads
        for batches in _slices(s.batch, "b" in found):
            for heads in _slices(s.heads, bool(found & {"h", "kv_head"})):
                kv_heads = slice(heads.start // group, -(-heads.stop // group))
                for tile in range(self.call.q_tiles(self.tile)):
                    first = tile * self.tile.block_m
                    rows = slice(first, min(first + self.tile.block_m, s.q_len))
                    keys, partial = self._keys(tile, batches.start, heads.start)
                    blocks = (batches, heads), (batches, kv_heads)
                    yield _Tile(self.problem, *blocks, rows, keys, partial)

    def _keys(self, tile: int, batch: int, head: int) -> tuple[Tensor, bool]:
        """Keys of the visited tiles, and whether any tile is partial."""
        env = self.call.env(self.tile, np.asarray([tile]))
        schedule, end = self.schedule, self.call.kv_tiles(self.tile)
        partial = schedule.partial if schedule.closed else schedule.visit
        mixed = visits(partial, env, end)[batch, head, 0] > 0
        whole = visits(schedule.full if schedule.closed else (), env, end)[batch, head, 0] > 0
        chosen = torch.as_tensor(np.flatnonzero(mixed | whole), device=self.problem.query.device)
        size = self.tile.block_n
        keys = (chosen[:, None] * size + torch.arange(size, device=chosen.device)).flatten()
        return keys[keys < self.problem.shapes.kv_len], bool(mixed.any())


def _slices(count: int, split: bool) -> list[slice]:
    """Each index by itself, or all at once."""
    return [slice(i, i + 1) for i in range(count)] if split else [slice(0, count)]
