"""Runtime lists: ``python -m benchmarks.lists [--rows 32768/1000/328/5,...] [--peers ...]``.

A row is seq/columns/diagonals/runs: 30 first columns and 100 nearest diagonals are always listed,
other columns are random, other diagonals come in that many runs (0: one by one). Each row runs in
a child process with a time limit. The result file is written anew after every row.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import child
from benchmarks import list_cases
from benchmarks import results
from benchmarks.bench import add_common
from benchmarks.bench import finish
from benchmarks.guard import attempt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.list_cases import Row
    from benchmarks.results import Result

KIND = "lists"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all rows and write the result file."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser().parse_args(given)
    check_names(args)
    rows = rows_of(args)
    result = results.header(given, KIND)
    path = args.out or results.default_path(result, KIND)
    for row in rows:
        if not args.quiet:
            print(f"{row.name} ...", file=sys.stderr, flush=True)
        result["cases"] += run_child(args, row) if args.child_timeout > 0 else [run_here(args, row)]
        results.write(path, result)
    return finish(args, path, result)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog=f"python -m {results.MODULES[KIND]}", description=__doc__)
    rows = ",".join(row.name for row in list_cases.ROWS)
    found.add_argument(
        "--rows", default=rows, help="comma-separated; default: the ten of the table"
    )
    found.add_argument(
        "--peers", default="", help="of lists_case.CONTESTANTS; default: all but flex"
    )
    found.add_argument("--child-timeout", type=float, default=120.0, help="0: all in this process")
    add_common(found)
    return found


def check_names(args: argparse.Namespace) -> None:
    """Refuse unknown peers before anything runs."""
    from benchmarks.lists_case import CONTESTANTS

    unknown = sorted({name for name in args.peers.split(",") if name} - set(CONTESTANTS))
    if unknown:
        parser().error(f"unknown: {', '.join(unknown)} (known: {', '.join(CONTESTANTS)})")


def rows_of(args: argparse.Namespace) -> list[Row]:
    """The rows asked for."""
    try:
        return [list_cases.parse(text) for text in args.rows.split(",")]
    except ValueError as error:
        parser().error(str(error))


def run_here(args: argparse.Namespace, row: Row) -> Result:
    """Run a row in this process."""
    from benchmarks import cases
    from benchmarks import lists_case
    from benchmarks import runner

    shape = cases.Shape(args.batch, args.heads, args.kv_heads, row.seq, args.head_dim, args.dtype)
    names = args.peers.split(",") if args.peers else lists_case.DEFAULT
    options = runner.Options(args.rounds, args.target_ms, args.device)
    found, error = attempt(lambda: lists_case.run_row(row, shape, names, options))
    return failed(row, error) if found is None else found


def run_child(args: argparse.Namespace, row: Row) -> list[Result]:
    """Run a row in a child process; kill it, and all it started, at the time limit."""
    cases, reason = child.run(lambda out: child_command(args, row, out), args.child_timeout)
    return [failed(row, reason)] if reason else cases


def child_command(args: argparse.Namespace, row: Row, out: Path) -> list[str]:
    """This program for one row, in its own process."""
    values = vars(args) | {"rows": row.name, "out": out, "child_timeout": 0}
    options = [(f"--{key.replace('_', '-')}", value) for key, value in values.items()]
    given = [f"{key}={value}" for key, value in options if key != "--quiet"]
    return [sys.executable, "-m", results.MODULES[KIND], "--quiet", *given]


def failed(row: Row, reason: str) -> Result:
    """A row without numbers."""
    print(f"{row.name}: {reason}", file=sys.stderr, flush=True)
    return {"name": row.name, "shape": {"seq": row.seq}, "failed": reason, "contestants": {}}


if __name__ == "__main__":
    sys.exit(main())
