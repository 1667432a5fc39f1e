"""Lists of blocks: ``python -m benchmarks.block_lists [--op training] [--blocks 64,64x8,128]``.

Each block of queries attends to its own block and to random earlier ones, about a quarter of the causal
triangle, chosen for every query head; 64x8: eight neighbours share a list. FlexAttention on the
same lists, and dense causal attention by cuDNN, take turns.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import bench
from benchmarks import block_list_case
from benchmarks import cases
from benchmarks import results
from benchmarks import runner
from benchmarks.block_list_case import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.results import Result

KIND = "block_lists"
OPS = {
    "forward": (KIND, block_list_case.forward),
    "training": ("block_lists_training", block_list_case.training),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all rows and write the result file."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser().parse_args(given)
    kinds = [Kind.parse(x) for x in args.blocks.split(",")]
    rows = (
        bench.TableRow(
            f"blocks of {x.name}", seq, {"blocks": x.name}, partial(run_row, args, seq, x)
        )
        for seq, x in itertools.product(map(int, args.seqs.split(",")), kinds)
    )
    return bench.each_row(OPS[args.op][0], given, args, rows)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog=f"python -m {results.MODULES[KIND]}", description=__doc__)
    found.add_argument("--op", default="forward", choices=OPS, help="training: with the backward")
    found.add_argument("--seqs", default="32768", help="comma-separated lengths")
    found.add_argument("--blocks", default="64,64x8,128", help="sizes; x8: eight share a list")
    bench.add_common(found)
    return found


def run_row(args: argparse.Namespace, seq: int, kind: Kind) -> Result:
    """One length and kind of lists."""
    shape = cases.Shape(args.batch, args.heads, args.kv_heads, seq, args.head_dim, args.dtype)
    options = runner.Options(args.rounds, args.target_ms, args.device)
    return OPS[args.op][1](shape, kind, options)


if __name__ == "__main__":
    sys.exit(main())
