"""Expression to source, for every mask of the catalogue: ``python -m benchmarks.compile_speed``.

Each value is taken in a freshly forked process that has everything imported but has never seen the
mask, so no cache inside the compiler can make it look faster than the first use is.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

import maskwright as mw
from benchmarks import results
from benchmarks.guard import attempt

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence
    from multiprocessing.connection import Connection

WARM_UP = "(k <= q) & (q - k < 5) & (k % 3 == 0)"  # loads templates and sympy; in no catalogue
Entry = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Time all masks, write the result file, print the table."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser().parse_args(given)
    from maskwright.patterns.catalog import entries

    mw.source(mw.parse(WARM_UP), arch=args.arch)
    result = results.header(given, "compile_speed")
    for entry in entries("paper", heads=32, kv_heads=8):
        result["cases"].append(time_mask(entry.name, entry.mask, args.arch, args.repeats))
    path = args.out or results.default_path(result, "compile_speed")
    results.write(path, result)
    print(f"wrote {path}", file=sys.stderr)

    from benchmarks.report import show

    show(result)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m benchmarks.compile_speed", description=__doc__)
    found.add_argument("--arch", default="sm_90")
    found.add_argument("--repeats", type=int, default=20)
    found.add_argument("--out", type=Path, default=None)
    return found


def time_mask(name: str, mask: mw.Expr, arch: str, repeats: int) -> Entry:
    """Median and range of first-use times of one mask."""

    def once() -> tuple[float, int]:
        start = time.perf_counter()
        text = mw.source(mask, arch=arch)
        return (time.perf_counter() - start) * 1e3, text.count("\n")

    entry: Entry = {"name": name, "mask": str(mask)}
    values: list[tuple[float, int]] = []
    for _ in range(repeats):
        value, error = in_fork(once)
        if value is None:
            return entry | {"failed": error}
        values.append(value)
    times = [ms for ms, _ in values]
    entry |= {"ms": round(statistics.median(times), 3), "lines": values[0][1]}
    return entry | {"min": round(min(times), 3), "max": round(max(times), 3)}


def in_fork(work: Callable[[], tuple[float, int]]) -> tuple[tuple[float, int] | None, str]:
    """``guard.attempt`` in a forked process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(work, sender))
    process.start()
    sender.close()
    try:
        answer: tuple[tuple[float, int] | None, str] = receiver.recv()
    except EOFError:
        answer = None, "the process died"
    process.join()
    return answer


def _answer(work: Callable[[], tuple[float, int]], sender: Connection) -> None:
    sender.send(attempt(work))
    sender.close()


if __name__ == "__main__":
    sys.exit(main())
