"""Heads of two kinds in one launch: ``python -m benchmarks.head_mix [--seqs 8192,32768]``.

Every other KV head streams (the first 64 keys and a window of 256), the rest are causal. Its time
is set against that of causal attention in the same rounds, times the ratio of attended pairs: what
it would take if all pairs cost the same.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING
from typing import Any

from benchmarks import bench
from benchmarks import results

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.cases import Case
    from benchmarks.cases import Shape
    from benchmarks.results import Result
    from benchmarks.runner import Options

KIND = "head_mix"
SINK, WINDOW = 64, 256


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all lengths and write the result file."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return bench.each_length(KIND, "head_mix", given, parser().parse_args(given), run_length)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog=f"python -m {results.MODULES[KIND]}", description=__doc__)
    found.add_argument("--seqs", default="8192,32768", help="comma-separated lengths")
    bench.add_common(found)
    return found


def head_mix(shape: Shape) -> Case:
    """Causal heads and streaming heads, in turn over the KV heads."""
    import maskwright as mw
    from benchmarks.cases import Case

    group = shape.heads // shape.kv_heads
    kinds = [head // group % 2 for head in range(shape.heads)]
    mask = mw.by_head(kinds, [mw.patterns.causal(), mw.patterns.a_shape(SINK, WINDOW)])

    def mod(b: Any, h: Any, q: Any, k: Any) -> Any:
        near = (q - k < WINDOW) | (k < SINK)
        return (k <= q) & (near | (h // group % 2 == 0))

    return Case("head_mix", mask, mod, shape, per_head=True)


def run_length(args: argparse.Namespace, seq: int) -> Result:
    """Causal attention and the mix at one length, in turn."""
    from benchmarks import cases
    from benchmarks import launch_order as order
    from benchmarks import runner

    shape = cases.Shape(args.batch, args.heads, args.kv_heads, seq, args.head_dim, args.dtype)
    options = runner.Options(args.rounds, args.target_ms, args.device)
    causal, mix = cases.causal(shape, args.device), head_mix(shape)
    entries = measured({"causal": causal, "head_mix": mix}, options)
    costs = order.program_costs(mix.mask, seq, shape.heads, shape.kv_heads)
    found = runner.describe(mix) | {
        "contestants": entries,
        "loss": order.loss(order.launched(costs)),
    }
    if all("ms" in entry for entry in entries.values()):
        ratio = entries["head_mix"]["pairs"] / entries["causal"]["pairs"]
        found["predicted_ms"] = round(entries["causal"]["ms"] * ratio, 5)
    return found


def measured(masks: dict[str, Case], options: Options) -> dict[str, dict[str, Any]]:
    """Each mask by maskwright: checked, then timed in turn."""
    from benchmarks import cases
    from benchmarks import correct
    from benchmarks import runner
    from benchmarks.peers.maskwright_peer import Maskwright

    peer, calls, entries = Maskwright("maskwright"), {}, {}
    for name, case in masks.items():
        tensors = cases.make_tensors(case.shape, options.device)
        ready = runner.Bench(case, tensors, correct.reference(case, tensors))
        entries[name], prepared = runner.admit(peer, ready, partial(runner.first_call, peer, ready))
        entries[name]["pairs"] = correct.count_pairs(case, options.device)
        if prepared is not None:
            calls[name] = prepared.call
    for name, found in runner.time_calls(calls, options).items():
        entries[name] |= runner.figures(found, entries[name]["pairs"], masks[name])
    return entries


if __name__ == "__main__":
    sys.exit(main())
