"""What one call costs the host: ``python -m benchmarks.host_cost``.

The shape is so small that the GPU is done before the host has the next call ready. Calls are made
in bursts that are too short to fill the launch queue; the wait after each burst is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from dataclasses import asdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

import maskwright as mw
from benchmarks import cases
from benchmarks import clock
from benchmarks import correct
from benchmarks import gpu
from benchmarks import results
from benchmarks import runner
from benchmarks import timing
from benchmarks.bench import add_shape
from benchmarks.guard import attempt
from benchmarks.peers import PEERS
from benchmarks.peers import Prepared

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Iterator
    from collections.abc import Mapping
    from collections.abc import Sequence

    from torch import Tensor

    from benchmarks.peers import Peer

SHAPE = {"heads": 8, "kv_heads": 8, "head_dim": 64, "seq": 128}
BURST = 200  # calls between two waits: the launch queue holds about a thousand kernels
WARM_UP = 50
MODES = ("grad_mode", "no_grad")
Entry = dict[str, Any]


@dataclass(frozen=True)
class Function:
    """``mw.attention``: the mask is looked up at every call."""

    name: str = "maskwright_attention"

    def available(self) -> str | None:
        """Always."""
        return None

    def supports(self, case: cases.Case) -> str | None:
        """Every mask."""
        return None

    def prepare(self, case: cases.Case, tensors: cases.Tensors) -> Prepared:
        """Nothing to prepare."""
        attend: Callable[..., Tensor] = mw.attention  # type: ignore[assignment]
        return Prepared(partial(attend, *tensors, case.mask, **case.bindings))


@dataclass(frozen=True)
class Sdpa:
    """torch SDPA with the backend of its own choice, as most programs call it."""

    name: str = "sdpa"

    def available(self) -> str | None:
        """Always."""
        return None

    def supports(self, case: cases.Case) -> str | None:
        """Causal only."""
        return None if case.name == "causal" else "no mask but causal"

    def prepare(self, case: cases.Case, tensors: cases.Tensors) -> Prepared:
        """Nothing to prepare."""
        gqa = case.shape.heads != case.shape.kv_heads
        attend = partial(scaled_dot_product_attention, is_causal=True, enable_gqa=gqa)
        return Prepared(partial(attend, *tensors))


CONTESTANTS: dict[str, Peer] = {
    "maskwright": PEERS["maskwright"],
    "maskwright_attention": Function(),
    "sdpa": Sdpa(),
    "flex": PEERS["flex"],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Time both modes, write the result file, print the table."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser().parse_args(given)
    chosen = args.peers.split(",")
    if set(chosen) - set(CONTESTANTS):
        parser().error(f"unknown peers; known: {', '.join(CONTESTANTS)}")
    result = results.header(given, "host_cost")
    path = args.out or results.default_path(result, "host_cost")
    shape = cases.Shape(args.batch, args.heads, args.kv_heads, args.seq, args.head_dim, args.dtype)
    bench = make_bench(shape, args.device)
    for mode in MODES:
        found, error = attempt(partial(run_mode, mode, bench, chosen, args.rounds, args.calls))
        failed = {"name": mode, "shape": asdict(shape), "failed": error, "contestants": {}}
        result["cases"].append(failed if found is None else found)
        results.write(path, result)
    print(f"wrote {path}", file=sys.stderr)

    from benchmarks.report import show

    show(result)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m benchmarks.host_cost", description=__doc__)
    found.add_argument("--peers", default=",".join(CONTESTANTS), help="comma-separated")
    found.add_argument("--rounds", type=int, default=9)
    found.add_argument("--calls", type=int, default=2000, help="calls of one turn")
    found.add_argument("--seq", type=int, default=128)
    found.add_argument("--out", type=Path, default=None, help="result file")
    found.add_argument("--device", default="cuda")
    add_shape(found)
    found.set_defaults(**SHAPE)
    return found


def make_bench(shape: cases.Shape, device: str) -> runner.Bench:
    """A causal case with its inputs and its reference."""
    case = cases.build("causal", shape, device)
    tensors = cases.make_tensors(shape, device)
    return runner.Bench(case, tensors, correct.reference(case, tensors))


def run_mode(
    mode: str, bench: runner.Bench, names: Sequence[str], rounds: int, calls: int
) -> Entry:
    """All contestants in one mode, in turn."""
    entries: dict[str, Entry] = {}
    ready: dict[str, timing.Call] = {}
    with gradient_mode(mode):
        for name in names:
            first = partial(runner.first_call, CONTESTANTS[name], bench)
            entries[name], prepared = runner.admit(CONTESTANTS[name], bench, first)
            if prepared is not None:
                ready[name] = prepared.call
        before = gpu.snapshot()
        timings = time_hosts(ready, rounds, calls)
        after = gpu.snapshot()
    for name, found in timings.items():
        entries[name] |= microseconds(found)
    return {
        "name": mode,
        "mask": str(bench.case.mask),
        "shape": asdict(bench.case.shape),
        "gpu_before": before,
        "gpu_after": after,
        "contestants": entries,
    }


@contextlib.contextmanager
def gradient_mode(mode: str) -> Iterator[None]:
    """``no_grad``: inside ``torch.no_grad``; else as a program starts. No input requires grad."""
    with torch.no_grad() if mode == "no_grad" else contextlib.nullcontext():
        yield


def time_hosts(
    ready: Mapping[str, timing.Call], rounds: int, calls: int, measure: timing.Measure | None = None
) -> dict[str, timing.Timing]:
    """Milliseconds of host time a call; all contestants take turns, in another order each round."""
    measure = host_clock if measure is None else measure
    for call in ready.values():
        measure(call, min(WARM_UP, calls))
    samples: dict[str, list[float]] = {name: [] for name in ready}
    for turn in range(rounds):
        for name in timing.order(list(ready), turn):
            samples[name].append(measure(ready[name], calls) / calls)
    return {name: timing.Timing(tuple(values), calls) for name, values in samples.items()}


def host_clock(call: timing.Call, count: int) -> float:
    """Milliseconds the host spends in ``count`` calls, without the waits between bursts."""
    spent = 0.0
    clock.synchronize()
    for done in range(0, count, BURST):
        burst = range(min(BURST, count - done))
        start = time.perf_counter()
        for _ in burst:
            call()
        spent += time.perf_counter() - start
        clock.synchronize()
    return spent * 1e3


def microseconds(found: timing.Timing) -> Entry:
    """For JSON: median and spread, in microseconds."""
    scaled = timing.Timing(tuple(1e3 * ms for ms in found.rounds), found.calls).to_dict()
    scaled["us"] = scaled.pop("ms")
    return scaled


if __name__ == "__main__":
    sys.exit(main())
