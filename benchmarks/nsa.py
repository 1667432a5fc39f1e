"""Blocks chosen anew by every token: ``python -m benchmarks.nsa [--op training] [--groups 1,4,16]``.

The selected branch of NSA (arXiv 2502.11089): each token and KV head attends to COUNT blocks of BLOCK
keys, its own and the first among them, shared by the query heads of the group. Lists are drawn
at random, for each token (nothing in common with its neighbours) or for runs of BLOCK tokens. Dense
causal attention takes turns: FlashAttention-3, or for forward and backward those of torch that have one.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from functools import partial
from typing import TYPE_CHECKING

from benchmarks import bench
from benchmarks import cases
from benchmarks import nsa_case
from benchmarks import results
from benchmarks import runner

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence

    from benchmarks.results import Result

KIND = "nsa"
OPS: dict[str, tuple[str, Callable[[cases.Shape, str, runner.Options], Result]]] = {
    "forward": (KIND, nsa_case.forward),
    "training": ("nsa_training", nsa_case.training),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all rows and write the result file."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser().parse_args(given)
    sizes = (map(int, x.split(",")) for x in (args.seqs, args.groups))
    rows = (
        bench.TableRow(
            *(f"nsa {lists}", seq, {"group": group, "lists": lists}),
            partial(run_row, args, seq, group, lists),
        )
        for seq, group, lists in itertools.product(*sizes, args.lists.split(","))
    )
    return bench.each_row(OPS[args.op][0], given, args, rows)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog=f"python -m {results.MODULES[KIND]}", description=__doc__)
    found.add_argument("--op", default="forward", choices=OPS, help="training: with the backward")
    found.add_argument("--seqs", default="65536", help="comma-separated lengths")
    found.add_argument("--groups", default="1,4,16", help="query heads of a KV head")
    found.add_argument("--lists", default="runs,tokens", help="who shares lists")
    bench.add_common(found)
    found.set_defaults(kv_heads=4)
    return found


def run_row(args: argparse.Namespace, seq: int, group: int, lists: str) -> Result:
    """One length, group and kind of lists."""
    heads = args.kv_heads * group
    shape = cases.Shape(args.batch, heads, args.kv_heads, seq, args.head_dim, args.dtype)
    options = runner.Options(args.rounds, args.target_ms, args.device)
    return OPS[args.op][1](shape, lists, options)


if __name__ == "__main__":
    sys.exit(main())
