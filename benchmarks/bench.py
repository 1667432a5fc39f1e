"""The forward table: ``python -m benchmarks.bench [--masks ...] [--seqs ...] [--peers ...]``.

Each case runs in a child process with a time limit: a hang, a crash or a broken CUDA context costs
one case. The result file is written anew after every case.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import results
from benchmarks.guard import attempt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.results import Result

MASKS = "full,causal,window,a_shape,strided,document,anchor_document"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all cases and write the result file."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser().parse_args(given)
    check_names(args)
    result = results.header(given, "forward")
    path = args.out or results.default_path(result, "forward")
    for name in args.masks.split(","):
        for seq in map(int, args.seqs.split(",")):
            result["cases"] += one_case(args, name, seq)
            results.write(path, result)
    if not args.quiet:
        from benchmarks.report import show

        print(f"wrote {path}", file=sys.stderr)
        show(result)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    found.add_argument("--masks", default=MASKS, help="comma-separated, of cases.CASES")
    found.add_argument("--seqs", default="8192,32768", help="comma-separated lengths")
    found.add_argument("--peers", default="", help="comma-separated; default: see benchmarks.peers")
    found.add_argument("--rounds", type=int, default=7)
    found.add_argument("--target-ms", type=float, default=40.0, help="length of one turn")
    found.add_argument("--child-timeout", type=float, default=240.0, help="0: all in this process")
    found.add_argument("--out", type=Path, default=None, help="result file")
    found.add_argument("--quiet", action="store_true", help="write the file only")
    found.add_argument("--device", default="cuda")
    add_shape(found)
    return found


def add_shape(found: argparse.ArgumentParser) -> None:
    """Options of the shape, shared with the sweep."""
    for name, default in (("batch", 1), ("heads", 32), ("kv-heads", 8), ("head-dim", 128)):
        found.add_argument(f"--{name}", type=int, default=default)
    found.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))


def check_names(args: argparse.Namespace) -> None:
    """Refuse unknown masks and peers before anything runs."""
    from benchmarks.cases import CASES
    from benchmarks.peers import PEERS

    for given, known in ((args.masks, CASES), (args.peers, PEERS)):
        unknown = sorted({name for name in given.split(",") if name} - set(known))
        if unknown:
            parser().error(f"unknown: {', '.join(unknown)} (known: {', '.join(known)})")


def one_case(args: argparse.Namespace, name: str, seq: int) -> list[Result]:
    """The case's results, from this process or from a child."""
    if not args.quiet:
        print(f"{name} S={seq} ...", file=sys.stderr, flush=True)
    if args.child_timeout > 0:
        return run_child(args, name, seq)
    return [run_here(args, name, seq)]


def run_here(args: argparse.Namespace, name: str, seq: int) -> Result:
    """Run a case in this process."""
    from benchmarks import cases
    from benchmarks import peers
    from benchmarks import runner

    shape = cases.Shape(args.batch, args.heads, args.kv_heads, seq, args.head_dim, args.dtype)
    chosen = args.peers.split(",") if args.peers else peers.DEFAULT
    options = runner.Options(args.rounds, args.target_ms, args.device)
    found, error = attempt(
        lambda: runner.run_case(
            cases.build(name, shape, args.device), {p: peers.PEERS[p] for p in chosen}, options
        )
    )
    return failed(name, seq, error) if found is None else found


def run_child(args: argparse.Namespace, name: str, seq: int) -> list[Result]:
    """Run a case in a child process; kill it, and all it started, at the time limit."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "case.json"
        command = child_command(args, name, seq, out)
        child = subprocess.Popen(command, env=child_environment(), start_new_session=True)
        try:
            code = child.wait(args.child_timeout)
        except subprocess.TimeoutExpired:
            return [failed(name, seq, f"no result within {args.child_timeout:.0f} s")]
        finally:
            end_group(child)
        if code != 0 or not out.exists():
            return [failed(name, seq, f"the child process ended with code {code}")]
        cases: list[Result] = json.loads(out.read_text())["cases"]
        return cases


def end_group(child: subprocess.Popen[bytes]) -> None:
    """Kill the child's process group: the child, if it still runs, and its compile workers."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def child_command(args: argparse.Namespace, name: str, seq: int, out: Path) -> list[str]:
    """This program for one case, in its own process."""
    values = vars(args) | {"masks": name, "seqs": seq, "out": out, "child_timeout": 0}
    options = [(f"--{key.replace('_', '-')}", value) for key, value in values.items()]
    given = [f"{key}={value}" for key, value in options if key != "--quiet"]
    return [sys.executable, "-m", "benchmarks.bench", "--quiet", *given]


def child_environment() -> dict[str, str]:
    """The children share the compiler's caches, so only the first pays."""
    shared = Path(tempfile.gettempdir()) / "maskwright_bench_inductor"
    return {"TORCHINDUCTOR_CACHE_DIR": str(shared), **os.environ}


def failed(name: str, seq: int, reason: str) -> Result:
    """A case without numbers."""
    print(f"{name} S={seq}: {reason}", file=sys.stderr, flush=True)
    return {"name": name, "shape": {"seq": seq}, "failed": reason, "contestants": {}}


if __name__ == "__main__":
    sys.exit(main())
