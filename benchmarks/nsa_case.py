"""One row of the table of blocks chosen by every token: lists, mask, and what is timed in turn."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING
from typing import Any

import torch

from benchmarks import against_dense
from benchmarks import cases
from benchmarks.peers import PEERS
from benchmarks.peers.fa3 import FlashAttention3
from benchmarks.peers.maskwright_peer import Maskwright

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks import runner
    from benchmarks.cases import Case
    from benchmarks.cases import Shape
    from benchmarks.results import Result

BLOCK, COUNT = 64, 16
RUNS = {"tokens": 1, "runs": BLOCK}  # tokens that share their lists
OURS, KEPT, DENSE = "maskwright", "maskwright_prepared", "fa3"
TRAINED = ("sdpa_cudnn", "sdpa_flash")  # the wheel of FlashAttention-3 has no backward


def draw(seq: int, kv_heads: int, run: int, device: str) -> Tensor:
    """(1, kv_heads, seq, COUNT) int32: the own block, the first one, others before; -1 where none is."""
    generator = torch.Generator(device).manual_seed(seq + run)
    blocks = -(-seq // BLOCK)
    rows = torch.arange(0, seq, run, device=device) // BLOCK
    found = torch.empty(1, kv_heads, len(rows), COUNT, dtype=torch.int32, device=device)
    for head, start in itertools.product(range(kv_heads), range(0, len(rows), 4096)):
        own = rows[start : start + 4096, None]
        chance = torch.rand(len(own), blocks, generator=generator, device=device)
        ahead = torch.arange(blocks, device=device) > own
        chance.masked_fill_(ahead, -1.0).scatter_(1, own, 2.0)[:, 0] = 3.0
        best = chance.topk(min(COUNT, blocks), 1)
        chosen = torch.where(best.values < 0, -1, best.indices)
        found[0, head, start : start + 4096] = -1
        found[0, head, start : start + 4096, : chosen.shape[1]] = chosen
    return found.repeat_interleave(run, 2)[:, :, :seq].contiguous()


def selected(shape: Shape, lists: Tensor) -> Case:
    """Causal, in the listed blocks."""
    import maskwright as mw
    from maskwright import k
    from maskwright import q

    topk = mw.table("topk", ndim=4)
    mask = (k <= q) & (k // BLOCK).isin(topk[mw.b, mw.kv_head, q])
    group = shape.heads // shape.kv_heads

    def mod(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (k <= q) & (lists[b, h // group][q.long()] == (k // BLOCK)[..., None]).any(-1)

    return cases.Case("nsa", mask, mod, shape, bindings={"topk": lists})


def pairs_of(lists: Tensor, group: int) -> int:
    """Attended pairs: whole blocks, but for the own one."""
    whole = int((lists >= 0).sum()) * BLOCK
    at = torch.arange(lists.shape[2], device=lists.device) % BLOCK
    return group * (whole - lists.shape[1] * int((BLOCK - 1 - at).sum()))


def masked(shape: Shape, lists: str, device: str) -> tuple[Case, int]:
    """The selected blocks, with their attended pairs."""
    drawn = draw(shape.seq, shape.kv_heads, RUNS[lists], device)
    return selected(shape, drawn), pairs_of(drawn, shape.heads // shape.kv_heads)


def forward(shape: Shape, lists: str, options: runner.Options) -> Result:
    """One row, beside dense FlashAttention-3."""
    ours = (Maskwright(OURS), Maskwright(KEPT, prepared=True))
    dense = against_dense.dense(shape, options.device, (FlashAttention3(DENSE),))
    part = against_dense.Part(*masked(shape, lists, options.device), ours)
    return against_dense.forward((part, dense), options)


def training(shape: Shape, lists: str, options: runner.Options) -> Result:
    """One row of forward and backward, beside those of torch that have one."""
    dense = against_dense.dense(shape, options.device, tuple(PEERS[x] for x in TRAINED))
    part = against_dense.Part(*masked(shape, lists, options.device), (PEERS[OURS],))
    return against_dense.training((part, dense), options)
