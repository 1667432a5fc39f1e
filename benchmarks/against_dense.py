"""A mask and dense causal attention in turn: what is kept of the dense rate, pair by pair."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import cases
from benchmarks import correct
from benchmarks import runner
from benchmarks import train_case

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.cases import Case
    from benchmarks.cases import Shape
    from benchmarks.peers import Peer
    from benchmarks.results import Result
    from benchmarks.runner import Entry


@dataclass(frozen=True)
class Part:
    """A mask, its attended pairs, and who computes it."""

    case: Case
    pairs: int
    peers: tuple[Peer, ...]


def dense(shape: Shape, device: str, peers: tuple[Peer, ...]) -> Part:
    """Causal attention, which every library knows."""
    pairs = shape.heads * shape.seq * (shape.seq + 1) // 2
    return Part(cases.causal(shape, device), pairs, peers)


def forward(parts: Sequence[Part], options: runner.Options) -> Result:
    """One row, the mask first: all are checked, then timed in turn."""
    first, *_ = parts
    tensors = cases.make_tensors(first.case.shape, options.device)
    calls, entries = {}, {}
    for part in parts:
        ready = runner.Bench(part.case, tensors, correct.reference(part.case, tensors))
        for peer in part.peers:
            entry, prepared = runner.admit(peer, ready, partial(runner.first_call, peer, ready))
            entries[peer.name] = entry | {"pairs": part.pairs}
            if prepared is not None:
                calls[peer.name] = prepared.call
                if options.device == "cuda":  # an interpreted one takes seconds
                    entries[peer.name] |= runner.preparation(prepared)
    for name, found in runner.time_calls(calls, options).items():
        entries[name] |= runner.figures(found, entries[name]["pairs"], first.case)
    return _row(parts, entries)


def training(parts: Sequence[Part], options: runner.Options) -> Result:
    """Likewise of forward and backward; gradients of a KV head are checked in whole."""
    entries: dict[str, Entry] = {}
    steps: dict[str, train_case.Step] = {}
    pairs = {peer.name: part.pairs for part in parts for peer in part.peers}
    for part in parts:
        asked = replace(part.case, training=True)
        skipped = {x.name: x.available() or x.supports(asked) or "" for x in part.peers}
        if all(skipped.values()):  # what is right takes float64 products of all pairs
            entries |= {n: {"status": "skipped", "reason": x} for n, x in skipped.items()}
            continue
        bench = train_case.make_bench(asked, options.device, kv_heads=1)
        for peer in part.peers:
            entries[peer.name], step = train_case.admit(peer, bench)
            if step is not None:
                steps[peer.name] = step
    timings = runner.time_calls(train_case.turns(steps), options)
    for name in entries:
        entries[name]["pairs"] = pairs[name]
        if name in steps:
            entries[name] |= train_case.figures(name, timings, pairs[name], parts[0].case)
    return _row(parts, entries)


def _row(parts: Sequence[Part], entries: dict[str, Entry]) -> Result:
    ratio = parts[-1].pairs / parts[0].pairs
    return runner.describe(parts[0].case) | {"contestants": entries, "pairs_ratio": ratio}
