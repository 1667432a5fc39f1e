"""The forward table: ``python -m benchmarks.bench [--masks ...] [--seqs ...] [--peers ...]``.

Each case runs in a child process with a time limit: a hang, a crash or a broken CUDA context costs
one case. The result file is written anew after every case.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any
from typing import NamedTuple

from benchmarks import child
from benchmarks import results
from benchmarks.guard import attempt

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Mapping
    from collections.abc import Sequence

    from benchmarks.cases import Case
    from benchmarks.peers import Peer
    from benchmarks.results import Result
    from benchmarks.runner import Options

MASKS = "full,causal,window,a_shape,strided,document,anchor_document"


@dataclass(frozen=True)
class Program:
    """One table of cases and contestants.

    Attributes:
        kind: of the result; a key of ``results.MODULES``.
        about: first lines of the help.
        masks: what runs by default, of ``cases.CASES``.
        peers: the same of ``peers.PEERS``; empty: ``peers.DEFAULT``.
        measure: runs one case.
    """

    kind: str
    about: str | None
    masks: str
    peers: str
    measure: Callable[[Case, Mapping[str, Peer], Options], Result]


def forward(case: Case, peers: Mapping[str, Peer], options: Options) -> Result:
    """One case of the forward table; torch is imported here, not by the parent process."""
    from benchmarks import runner

    return runner.run_case(case, peers, options)


FORWARD = Program("forward", __doc__, MASKS, "", forward)


def main(arguments: Sequence[str] | None = None, program: Program = FORWARD) -> int:
    """Run all cases and write the result file."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser(program).parse_args(given)
    check_names(args, program)
    result = results.header(given, program.kind)
    path = args.out or results.default_path(result, program.kind)
    for name in args.masks.split(","):
        for seq in map(int, args.seqs.split(",")):
            result["cases"] += one_case(args, name, seq, program)
            results.write(path, result)
    return finish(args, path, result)


def finish(args: argparse.Namespace, path: Path, result: Result) -> int:
    """Show a table that has been written; the exit code."""
    if not args.quiet:
        from benchmarks.report import show

        print(f"wrote {path}", file=sys.stderr)
        show(result)
    return 0


def each_length(
    kind: str,
    name: str,
    given: Sequence[str],
    args: argparse.Namespace,
    measure: Callable[[argparse.Namespace, int], Result],
) -> int:
    """A table with one case a length: each is measured, and the file written after it.

    Args:
        name: of a case that failed.
        given: the command line.
    """
    seqs = map(int, args.seqs.split(","))
    rows = (TableRow(name, seq, {}, partial(measure, args, seq)) for seq in seqs)
    return each_row(kind, given, args, rows)


class TableRow(NamedTuple):
    """A row to be measured.

    Attributes:
        name: of the case, if it fails.
        told: what the result says of the row beside what was measured.
    """

    name: str
    seq: int
    told: dict[str, Any]
    measure: Callable[[], Result]


def each_row(
    kind: str, given: Sequence[str], args: argparse.Namespace, rows: Iterable[TableRow]
) -> int:
    """A table row by row: each is measured, and the file written after it."""
    result = results.header(given, kind)
    path = args.out or results.default_path(result, kind)
    for row in rows:
        found, error = attempt(row.measure)
        case = failed(row.name, row.seq, error) if found is None else found
        result["cases"].append(case | row.told)
        results.write(path, result)
    return finish(args, path, result)


def parser(program: Program = FORWARD) -> argparse.ArgumentParser:
    """The command line."""
    name = f"python -m {results.MODULES[program.kind]}"
    found = argparse.ArgumentParser(prog=name, description=program.about)
    found.add_argument("--masks", default=program.masks, help="comma-separated, of cases.CASES")
    found.add_argument("--seqs", "--lengths", default="8192,32768", help="comma-separated lengths")
    chosen = program.peers or "see benchmarks.peers"
    found.add_argument("--peers", default=program.peers, help=f"comma-separated; default: {chosen}")
    found.add_argument("--child-timeout", type=float, default=240.0, help="0: all in this process")
    add_common(found)
    return found


def add_common(found: argparse.ArgumentParser, *, rounds: int = 7) -> None:
    """Options of every table: how long to measure, where the result goes, and the shape."""
    found.add_argument("--rounds", type=int, default=rounds)
    found.add_argument("--target-ms", type=float, default=40.0, help="length of one turn")
    found.add_argument("--out", type=Path, default=None, help="result file")
    found.add_argument("--quiet", action="store_true", help="write the file only")
    found.add_argument("--device", default="cuda")
    add_shape(found)


def add_shape(found: argparse.ArgumentParser) -> None:
    """Options of the shape, shared with the sweep."""
    for name, default in (("batch", 1), ("heads", 32), ("kv-heads", 8), ("head-dim", 128)):
        found.add_argument(f"--{name}", type=int, default=default)
    found.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))


def check_names(args: argparse.Namespace, program: Program = FORWARD) -> None:
    """Refuse unknown masks and peers before anything runs."""
    from benchmarks.cases import CASES
    from benchmarks.peers import PEERS

    for given, known in ((args.masks, CASES), (args.peers, PEERS)):
        unknown = sorted({name for name in given.split(",") if name} - set(known))
        if unknown:
            parser(program).error(f"unknown: {', '.join(unknown)} (known: {', '.join(known)})")


def one_case(args: argparse.Namespace, name: str, seq: int, program: Program) -> list[Result]:
    """The case's results, from this process or from a child."""
    if not args.quiet:
        print(f"{name} S={seq} ...", file=sys.stderr, flush=True)
    if args.child_timeout > 0:
        return run_child(args, name, seq, program)
    return [run_here(args, name, seq, program)]


def run_here(args: argparse.Namespace, name: str, seq: int, program: Program) -> Result:
    """Run a case in this process."""
    from benchmarks import cases
    from benchmarks import peers
    from benchmarks import runner

    shape = cases.Shape(args.batch, args.heads, args.kv_heads, seq, args.head_dim, args.dtype)
    chosen = args.peers.split(",") if args.peers else peers.DEFAULT
    options = runner.Options(args.rounds, args.target_ms, args.device)
    found, error = attempt(
        lambda: program.measure(
            cases.build(name, shape, args.device), {p: peers.PEERS[p] for p in chosen}, options
        )
    )
    return failed(name, seq, error) if found is None else found


def run_child(
    args: argparse.Namespace, name: str, seq: int, program: Program = FORWARD
) -> list[Result]:
    """Run a case in a child process; kill it, and all it started, at the time limit."""
    cases, reason = child.run(
        lambda out: child_command(args, name, seq, out, program), args.child_timeout
    )
    return [failed(name, seq, reason)] if reason else cases


def child_command(
    args: argparse.Namespace, name: str, seq: int, out: Path, program: Program = FORWARD
) -> list[str]:
    """This program for one case, in its own process."""
    values = vars(args) | {"masks": name, "seqs": seq, "out": out, "child_timeout": 0}
    options = [(f"--{key.replace('_', '-')}", value) for key, value in values.items()]
    given = [f"{key}={value}" for key, value in options if key != "--quiet"]
    return [sys.executable, "-m", results.MODULES[program.kind], "--quiet", *given]


def failed(name: str, seq: int, reason: str) -> Result:
    """A case without numbers."""
    print(f"{name} S={seq}: {reason}", file=sys.stderr, flush=True)
    return {"name": name, "shape": {"seq": seq}, "failed": reason, "contestants": {}}


if __name__ == "__main__":
    sys.exit(main())
