"""One row of the table of blocks chosen by every token: lists, mask, and what is timed in turn."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from typing import Any

import torch

from benchmarks import cases
from benchmarks import correct
from benchmarks import runner
from benchmarks import train_case
from benchmarks.peers import PEERS
from benchmarks.peers.fa3 import FlashAttention3
from benchmarks.peers.maskwright_peer import Maskwright

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.cases import Case
    from benchmarks.cases import Shape
    from benchmarks.peers import Peer
    from benchmarks.results import Result
    from benchmarks.runner import Entry

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


def masks_of(shape: Shape, lists: str, device: str) -> tuple[tuple[Case, int], tuple[Case, int]]:
    """The selected blocks and dense causal attention, each with its attended pairs."""
    drawn = draw(shape.seq, shape.kv_heads, RUNS[lists], device)
    pairs = pairs_of(drawn, shape.heads // shape.kv_heads)
    whole = shape.heads * shape.seq * (shape.seq + 1) // 2
    return (selected(shape, drawn), pairs), (cases.causal(shape, device), whole)


def forward(shape: Shape, lists: str, options: runner.Options) -> Result:
    """One row: checked, then timed in turn."""
    (case, ours), (causal, dense) = masks_of(shape, lists, options.device)
    contestants: list[tuple[Peer, Case, int]] = [
        (Maskwright(OURS), case, ours),
        (Maskwright(KEPT, prepared=True), case, ours),
        (FlashAttention3(DENSE), causal, dense),
    ]
    tensors = cases.make_tensors(shape, options.device)
    calls, entries = {}, {}
    for peer, wanted, pairs in contestants:
        ready = runner.Bench(wanted, tensors, correct.reference(wanted, tensors))
        entry, prepared = runner.admit(peer, ready, partial(runner.first_call, peer, ready))
        entries[peer.name] = entry | {"pairs": pairs}
        if prepared is not None:
            calls[peer.name] = prepared.call
    for name, found in runner.time_calls(calls, options).items():
        entries[name] |= runner.figures(found, entries[name]["pairs"], case)
    return runner.describe(case) | {"contestants": entries, "pairs_ratio": dense / ours}


def training(shape: Shape, lists: str, options: runner.Options) -> Result:
    """One row of forward and backward: gradients of a KV head checked in whole, then timed in turn."""
    (case, ours), (causal, dense) = masks_of(shape, lists, options.device)
    entries: dict[str, Entry] = {}
    steps: dict[str, train_case.Step] = {}
    pairs = {OURS: ours} | dict.fromkeys(TRAINED, dense)
    for wanted, names in ((case, (OURS,)), (causal, TRAINED)):
        asked = replace(wanted, training=True)
        skipped = {name: _why_not(PEERS[name], asked) for name in names}
        if all(skipped.values()):  # what is right takes float64 products of all pairs
            entries |= {n: {"status": "skipped", "reason": x} for n, x in skipped.items()}
            continue
        bench = train_case.make_bench(asked, options.device, kv_heads=1)
        for name in names:
            entries[name], step = train_case.admit(PEERS[name], bench)
            if step is not None:
                steps[name] = step
    timings = runner.time_calls(train_case.turns(steps), options)
    for name in entries:
        entries[name]["pairs"] = pairs[name]
        if name in steps:
            entries[name] |= train_case.figures(name, timings, pairs[name], case)
    return runner.describe(case) | {"contestants": entries, "pairs_ratio": dense / ours}


def _why_not(peer: Peer, case: Case) -> str:
    return peer.available() or peer.supports(case) or ""
