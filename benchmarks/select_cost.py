"""What selection costs: ``python -m benchmarks.select_cost [--seqs 8192,32768,131072]``.

The selectors on random queries and keys, in turn; the vertical-slash estimator by its kernels and by
torch, with the share of entries in which both agree. No attention is computed.
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
    from collections.abc import Callable
    from collections.abc import Sequence

    from torch import Tensor

    from benchmarks.results import Result

KIND = "select_cost"
KERNELS, TORCH = "vertical_slash", "vertical_slash_torch"
NSA_LONGEST = 32768  # its scores of every token are in torch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all lengths and write the result file."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return bench.each_length(KIND, "selectors", given, parser().parse_args(given), run_length)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog=f"python -m {results.MODULES[KIND]}", description=__doc__)
    found.add_argument("--seqs", default="8192,32768,131072", help="comma-separated lengths")
    bench.add_common(found, rounds=5)
    return found


def calls_of(query: Tensor, key: Tensor) -> dict[str, Callable[[], dict[str, Tensor]]]:
    """The selectors with their published sizes."""
    from maskwright.patterns import selectors as s

    last = query[:, :, -1:]
    found: dict[str, Callable[[], dict[str, Tensor]]] = {
        KERNELS: partial(s.vertical_slash, query, key, 1000, 6096),
        TORCH: partial(s.vertical_slash, query, key, 1000, 6096, backend="torch"),
        "block_top_k": partial(s.block_top_k, query, key, 100),
        "quest_pages": partial(s.quest_pages, last, key, 256),
        "delta_pages": partial(s.delta_pages, last, key, 64),
    }
    if key.shape[2] <= NSA_LONGEST:
        found["nsa_blocks"] = partial(s.nsa_blocks, query, key)
    return found


def run_length(args: argparse.Namespace, seq: int) -> Result:
    """All selectors at one length."""
    from benchmarks import cases
    from benchmarks import clock
    from benchmarks import runner

    shape = cases.Shape(args.batch, args.heads, args.kv_heads, seq, args.head_dim, args.dtype)
    query, key, _ = cases.make_tensors(shape, args.device)
    calls = calls_of(query, key)
    timings = runner.time_calls(calls, runner.Options(args.rounds, args.target_ms, args.device))
    entries: dict[str, dict[str, Any]] = {
        name: {"status": "ok", **found.to_dict(), "mib": clock.peak_bytes(calls[name]) / 2**20}
        for name, found in timings.items()
    }
    entries[KERNELS]["agrees"] = agreement(calls[KERNELS](), calls[TORCH]())
    return {"name": "selectors", "shape": {"seq": seq}, "contestants": entries}


def agreement(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Share of the entries of one that the other has, too; the sums differ by rounding."""
    equal = total = 0
    for name, lists in one.items():
        for ours, theirs in zip(lists.flatten(0, 1), other[name].flatten(0, 1), strict=True):
            listed = set(ours.tolist()) - {-1}
            equal += len(listed & set(theirs.tolist()))
            total += len(listed)
    return equal / max(1, total)


if __name__ == "__main__":
    sys.exit(main())
