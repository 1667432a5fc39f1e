"""One row of the table of block lists: lists, mask, and who computes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import Any

import torch

import maskwright as mw
from benchmarks import against_dense
from benchmarks import cases
from benchmarks.peers import PEERS
from benchmarks.peers.maskwright_peer import Maskwright

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks import runner
    from benchmarks.cases import Case
    from benchmarks.cases import Shape
    from benchmarks.results import Result

SHARE = 0.23  # of the earlier blocks
OURS, KEPT, DENSE = "maskwright", "maskwright_prepared", "sdpa_cudnn"


@dataclass(frozen=True)
class Kind:
    """Blocks of ``size`` queries and keys; ``alike`` neighbours share a list, less what is later."""

    size: int
    alike: int = 1

    @property
    def name(self) -> str:
        """As the command takes it."""
        return f"{self.size}" if self.alike == 1 else f"{self.size}x{self.alike}"

    @staticmethod
    def parse(text: str) -> Kind:
        """The inverse of ``name``."""
        size, _, alike = text.partition("x")
        return Kind(int(size), int(alike or 1))


def draw(kind: Kind, seq: int, heads: int, device: str) -> Tensor:
    """(heads, blocks, blocks) bool: each block's own, and random earlier ones, for every head anew."""
    generator = torch.Generator(device).manual_seed(seq + kind.size + kind.alike)
    blocks = -(-seq // kind.size)
    rows = -(-blocks // kind.alike)
    chance = torch.rand(heads, rows, blocks, generator=generator, device=device)
    kept = (chance < SHARE).repeat_interleave(kind.alike, 1)[:, :blocks]
    return kept.tril() | torch.eye(blocks, dtype=torch.bool, device=device)


def lists_of(kept: Tensor) -> Tensor:
    """(1, heads, blocks, most) int32: ascending, -1 behind the last."""
    blocks = kept.shape[-1]
    numbers = torch.arange(blocks, device=kept.device).expand_as(kept)
    ordered = torch.where(kept, numbers, blocks).sort(-1).values[..., : int(kept.sum(-1).max())]
    return torch.where(ordered < blocks, ordered, -1).to(torch.int32)[None].contiguous()


def listed(shape: Shape, kind: Kind, kept: Tensor) -> Case:
    """Causal, in the listed blocks."""
    mask = mw.patterns.block_list(kind.size, kind.size)

    def mod(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (k <= q) & kept[h, q // kind.size, k // kind.size]

    bindings = {"block_idx": lists_of(kept)}
    return cases.Case("block_list", mask, mod, shape, per_head=True, bindings=bindings)


def pairs_of(kept: Tensor, size: int, seq: int) -> int:
    """Attended pairs: whole blocks before the own one, a triangle of that, and a shorter last row."""
    rows = torch.full((kept.shape[-1],), size, device=kept.device)
    rows[-1] = seq - size * (len(rows) - 1)
    before = (kept.sum((0, -1)) - kept.shape[0]) * rows * size
    return int(before.sum() + kept.shape[0] * (rows * (rows + 1) // 2).sum())


def _part(shape: Shape, kind: Kind, device: str, peers: tuple[Any, ...]) -> against_dense.Part:
    kept = draw(kind, shape.seq, shape.heads, device)
    pairs = pairs_of(kept, kind.size, shape.seq)
    return against_dense.Part(listed(shape, kind, kept), pairs, peers)


def forward(shape: Shape, kind: Kind, options: runner.Options) -> Result:
    """One row, beside FlexAttention on the same lists and dense cuDNN."""
    ours = (Maskwright(OURS), Maskwright(KEPT, prepared=True), PEERS["flex"])
    dense = against_dense.dense(shape, options.device, (PEERS[DENSE],))
    return against_dense.forward((_part(shape, kind, options.device, ours), dense), options)


def training(shape: Shape, kind: Kind, options: runner.Options) -> Result:
    """One row of forward and backward, beside the same."""
    dense = against_dense.dense(shape, options.device, (PEERS[DENSE],))
    part = _part(shape, kind, options.device, (PEERS[OURS], PEERS["flex"]))
    return against_dense.training((part, dense), options)
