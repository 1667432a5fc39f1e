"""One case of the training table: forward and backward, checked, then timed in turn.

A step is a forward pass and a backward pass from a given gradient of the output, into empty
``grad`` fields. The forward pass alone takes turns with it; the backward pass is the difference.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks import clock
from benchmarks import correct
from benchmarks import gpu
from benchmarks import gradients
from benchmarks import runner
from benchmarks import timing
from benchmarks.cases import Case
from benchmarks.cases import Tensors
from benchmarks.cases import make_tensors
from benchmarks.guard import attempt
from benchmarks.peers import BASELINE
from benchmarks.peers import Peer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.peers import Prepared
    from benchmarks.runner import Entry
    from benchmarks.runner import Options

# Work in forward passes: two products forward, five backward.
STEP, BACKWARD = 3.5, 2.5
STEP_TURN, FORWARD_TURN = "step", "forward"
SLOPE_SEED = 7


@dataclass(frozen=True)
class TrainBench(runner.Bench):
    """A case whose inputs require gradients.

    Attributes:
        slope: gradient of the output, (B, Hq, S, D).
        gradients: what dq, dk and dv should be.
    """

    slope: Tensor
    gradients: Tensors


@dataclass(frozen=True)
class Step:
    """Forward and backward of one contestant; a call returns the output."""

    prepared: Prepared
    tensors: Tensors
    slope: Tensor

    def __call__(self) -> Tensor:
        """One step, into empty ``grad`` fields."""
        self.clear()
        out = self.prepared.call()
        out.backward(self.slope)  # type: ignore[no-untyped-call]
        return out.detach()

    def clear(self) -> None:
        """Drop the gradients of the last step."""
        for x in self.tensors:
            x.grad = None


def run_case(case: Case, peers: Mapping[str, Peer], options: Options) -> Entry:
    """Everything measured of one case, ready for JSON."""
    runner.forget_compiled()
    bench = make_bench(replace(case, training=True), options.device)
    pairs = correct.count_pairs(case, options.device)
    entries: dict[str, Entry] = {}
    steps: dict[str, Step] = {}
    for name, peer in peers.items():
        entries[name], step = admit(peer, bench)
        if step is not None:
            steps[name] = step
    before = gpu.snapshot()
    timings, error = attempt(lambda: runner.time_calls(turns(steps), options))
    after = gpu.snapshot()
    for name, step in steps.items():
        if timings is None:  # which call failed is not known: none has a time
            entries[name] |= {"status": "error", "reason": f"while timing: {error}"}
            continue
        entries[name] |= figures(name, timings, pairs, case)
        entries[name] |= overheads(step, bench, options)
    add_ratios(entries, timings or {})
    return runner.describe(case) | {
        "pairs": pairs,
        "density": pairs / (case.shape.batch * case.shape.heads * case.shape.seq**2),
        "gpu_before": before,
        "gpu_after": after,
        "contestants": entries,
    }


def make_bench(case: Case, device: str, kv_heads: int | None = None) -> TrainBench:
    """Inputs, the output's gradient, and what is right.

    Args:
        kv_heads: whose gradients are checked; None: all. That takes float64 products of all pairs.
    """
    tensors = make_tensors(case.shape, device)
    slope = make_tensors(case.shape, device, SLOPE_SEED).query
    reference = correct.reference(case, tensors)
    wanted = gradients.reference(case, tensors, slope, kv_heads)
    for x in tensors:
        x.requires_grad_()
    return TrainBench(case, tensors, reference, slope, wanted)


def admit(peer: Peer, bench: TrainBench) -> tuple[Entry, Step | None]:
    """Prepare a contestant, check its output and its gradients; only a right one is returned."""
    entry, step = runner.admit(peer, bench, partial(first_step, peer, bench))
    if step is None:
        return entry, None
    found = [x.grad for x in bench.tensors]
    errors, error = attempt(lambda: gradients.check(found, bench.gradients, bench.case))
    step.clear()
    if errors is None:
        return entry | {"status": "error", "reason": error}, None
    reason = errors.pop("reason", None)
    entry["gradient_error"] = errors
    if reason is not None:
        return entry | {"status": "wrong", "reason": reason}, None
    return entry, step


def first_step(peer: Peer, bench: TrainBench) -> tuple[Step, Tensor]:
    """Prepare a contestant; its output, written over NaN, and its gradients left in the inputs."""
    tensors = bench.tensors
    prepared = peer.prepare(bench.case, tensors)
    # The gradient arrives in the layout of the contestant's own output, as in a model.
    slope = torch.empty_like(prepared.call().detach()).copy_(bench.slope)
    step = Step(prepared, tensors, slope)
    step()  # compiles; the second step's results are what the timed steps compute
    step.clear()
    correct.poison(tensors.query.detach(), *(x.detach() for x in tensors))
    out = step()
    clock.synchronize()
    return step, out


def turns(steps: Mapping[str, Step]) -> dict[str, timing.Call]:
    """Two turns a contestant: a step, and the forward pass alone."""
    found: dict[str, timing.Call] = {}
    for name, step in steps.items():
        found[f"{name} {STEP_TURN}"] = step
        found[f"{name} {FORWARD_TURN}"] = step.prepared.call
    return found


def parts(name: str, timings: Mapping[str, timing.Timing]) -> dict[str, timing.Timing]:
    """Times of the step, of its forward pass, and their difference round by round."""
    step, forward = timings[f"{name} {STEP_TURN}"], timings[f"{name} {FORWARD_TURN}"]
    both = zip(step.rounds, forward.rounds, strict=True)
    backward = tuple(max(whole - half, 1e-6) for whole, half in both)
    return {"step": step, "forward": forward, "backward": timing.Timing(backward, step.calls)}


def figures(name: str, timings: Mapping[str, timing.Timing], pairs: int, case: Case) -> Entry:
    """Time and TFLOP/s of the step; the same of its two parts."""
    found = parts(name, timings)
    return runner.figures(found["step"], pairs, case, STEP) | {
        "forward": runner.figures(found["forward"], pairs, case),
        "backward": runner.figures(found["backward"], pairs, case, BACKWARD),
    }


def overheads(step: Step, bench: TrainBench, options: Options) -> Entry:
    """Mask preparation, apart, and memory beyond inputs, output, LSE and gradients."""
    found = runner.preparation(step.prepared)
    if options.device != "cuda":
        return found
    shape, tensors = bench.case.shape, bench.tensors
    gradient_bytes = sum(x.nbytes for x in tensors)
    inputs = sum(x.nbytes for x in (*tensors, step.slope, *bench.case.bindings.values()))
    results = tensors.query.nbytes + 4 * shape.batch * shape.heads * shape.seq + gradient_bytes
    step.clear()
    extra = max(0, clock.peak_bytes(step) - results)
    step.clear()
    found["extra_memory_mib"] = round(extra / 2**20, 3)
    found["extra_memory_percent"] = round(100 * extra / (inputs + results), 4)
    return found


def add_ratios(entries: dict[str, Entry], timings: Mapping[str, timing.Timing]) -> None:
    """How many times faster each is than the baseline: steps, with preparation, and by parts."""
    steps = {n: timings[f"{n} {STEP_TURN}"] for n in entries if f"{n} {STEP_TURN}" in timings}
    runner.add_totals(entries, steps)
    if BASELINE not in steps:
        return
    base = parts(BASELINE, timings)
    for name in steps:
        for part, found in parts(name, timings).items():
            if part != "step":
                entries[name][part]["speedup"] = round(timing.paired_ratio(base[part], found), 4)
