"""One case, from inputs to numbers: check every contestant, then time the right ones in turn."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from typing import Any
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks import clock
from benchmarks import correct
from benchmarks import gpu
from benchmarks import timing
from benchmarks.cases import Case
from benchmarks.cases import Tensors
from benchmarks.cases import make_tensors
from benchmarks.guard import attempt
from benchmarks.peers import BASELINE
from benchmarks.peers import Peer
from benchmarks.peers import Prepared

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Mapping

Entry = dict[str, Any]
Ready = TypeVar("Ready")


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        rounds: values a contestant gets.
        target_ms: length of its turn in each round.
        device: ``cuda``; ``cpu`` only tries the harness out.
    """

    rounds: int = 7
    target_ms: float = timing.TARGET_MS
    device: str = "cuda"


@dataclass(frozen=True)
class Bench:
    """A case with its inputs and its reference."""

    case: Case
    tensors: Tensors
    reference: correct.Reference


def run_case(case: Case, peers: Mapping[str, Peer], options: Options) -> Entry:
    """Everything measured of one case, ready for JSON."""
    forget_compiled()
    tensors = make_tensors(case.shape, options.device)
    bench = Bench(case, tensors, correct.reference(case, tensors))
    pairs = correct.count_pairs(case, options.device)
    ready: dict[str, Prepared] = {}
    entries: dict[str, Entry] = {}
    for name, peer in peers.items():
        entries[name], prepared = admit(peer, bench, partial(first_call, peer, bench))
        if prepared is not None:
            ready[name] = prepared
    before = gpu.snapshot()
    calls = {name: prepared.call for name, prepared in ready.items()}
    timings, error = attempt(lambda: time_calls(calls, options))
    after = gpu.snapshot()
    for name, prepared in ready.items():
        if timings is None:  # which call failed is not known: none has a time
            entries[name] |= {"status": "error", "reason": f"while timing: {error}"}
            continue
        entries[name] |= figures(timings[name], pairs, case)
        entries[name] |= overheads(prepared, bench, options)
    add_totals(entries, timings or {})
    return describe(case) | {
        "pairs": pairs,
        "density": pairs / (case.shape.batch * case.shape.heads * case.shape.seq**2),
        "gpu_before": before,
        "gpu_after": after,
        "contestants": entries,
    }


def forget_compiled() -> None:
    """A case must not feel how many variants the last one compiled (torch's recompile limit)."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def describe(case: Case) -> Entry:
    """What the case is."""
    return {"name": case.name, "mask": str(case.mask), "shape": asdict(case.shape)}


def admit(
    peer: Peer, bench: Bench, first: Callable[[], tuple[Ready, Tensor]]
) -> tuple[Entry, Ready | None]:
    """Prepare a contestant and check its output; only a right one is returned to be timed."""
    reason, error = attempt(lambda: peer.available() or peer.supports(bench.case) or "")
    if reason is None:
        return {"status": "error", "reason": error}, None
    if reason:
        return {"status": "skipped", "reason": reason}, None
    start = time.perf_counter()
    ready, error = attempt(first)
    if ready is None:
        return {"status": "error", "reason": error}, None
    prepared, out = ready
    seconds = time.perf_counter() - start
    verdict, error = attempt(lambda: correct.check(out, bench.reference, bench.case))
    if verdict is None:
        return {"status": "error", "reason": error}, None
    entry: Entry = {"status": "ok" if verdict.reason is None else "wrong"}
    entry |= {"error": verdict.error, "worst_row": verdict.worst_row, "first_call_s": seconds}
    if verdict.reason is not None:
        return entry | {"reason": verdict.reason}, None
    return entry, prepared


def first_call(peer: Peer, bench: Bench) -> tuple[Prepared, Tensor]:
    """Prepare a contestant; its output, written over NaN."""
    prepared = peer.prepare(bench.case, bench.tensors)
    prepared.call()  # compiles; the second call's output is what the timed calls compute
    correct.poison(bench.tensors.query)
    out = prepared.call()
    clock.synchronize()
    return prepared, out


def time_calls(calls: Mapping[str, timing.Call], options: Options) -> dict[str, timing.Timing]:
    """Times of all calls, in turn."""
    return timing.interleaved(
        calls,
        options.rounds,
        options.target_ms,
        measure=clock.clock_of(options.device),
        clear=clock.cache_clearer(options.device),
    )


def figures(found: timing.Timing, pairs: int, case: Case, passes: float = 1.0) -> Entry:
    """Milliseconds with their spread, and TFLOP/s on attended pairs.

    A forward pass is two products, of 2 D a pair each; ``passes`` is the work in forward passes.
    """
    tflops = passes * 4 * pairs * case.shape.head_dim / found.median / 1e9
    return found.to_dict() | {"tflops": round(tflops, 2)}


def overheads(prepared: Prepared, bench: Bench, options: Options) -> Entry:
    """Mask preparation, apart, and memory beyond output and LSE."""
    found = preparation(prepared)
    if options.device == "cuda":
        found["extra_memory_percent"] = round(extra_memory(prepared, bench), 4)
    return found


def preparation(prepared: Prepared) -> Entry:
    """Time and memory of what is computed anew when the mask changes."""
    if prepared.setup is None:
        return {"prepare_ms": 0.0, "prepare_mib": 0.0}
    return {
        "prepare_ms": round(timing.median_ms(prepared.setup, clock.wall_clock), 5),
        "prepare_mib": round(clock.peak_bytes(prepared.setup) / 2**20, 3),
    }


def extra_memory(prepared: Prepared, bench: Bench) -> float:
    """Peak of a call beyond output and LSE, in percent of inputs, output and LSE together."""
    shape, tensors = bench.case.shape, bench.tensors
    inputs = sum(x.nbytes for x in (*tensors, *bench.case.bindings.values()))
    results = tensors.query.nbytes + 4 * shape.batch * shape.heads * shape.seq
    extra = max(0, clock.peak_bytes(prepared.call) - results)
    return 100 * extra / (inputs + results)


def add_totals(entries: dict[str, Entry], timings: Mapping[str, timing.Timing]) -> None:
    """Time with preparation, and how many times faster each is than the baseline, both ways."""
    for name in timings:
        entries[name]["total_ms"] = round(entries[name]["ms"] + entries[name]["prepare_ms"], 5)
    if BASELINE not in timings:
        return
    for name in timings:
        entry = entries[name]
        entry["speedup"] = round(timing.paired_ratio(timings[BASELINE], timings[name]), 4)
        total = entries[BASELINE]["total_ms"] / entry["total_ms"]
        entry["speedup_with_prepare"] = round(total, 4)
