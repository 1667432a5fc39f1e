"""Tables from a result file: ``python -m benchmarks.report FILE [--markdown]``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.table import BASELINE
from benchmarks.table import NONE
from benchmarks.table import OURS
from benchmarks.table import TITLES
from benchmarks.table import Table
from benchmarks.table import cell
from benchmarks.table import origin
from benchmarks.table import spread
from benchmarks.table import times
from benchmarks.table import tried
from benchmarks.table_blocks import block_lists_table
from benchmarks.table_blocks import block_lists_training_table
from benchmarks.table_counts import host_cost_table
from benchmarks.table_counts import recompiles_table
from benchmarks.table_defaults import defaults_table
from benchmarks.table_lists import head_mix_table
from benchmarks.table_lists import lists_table
from benchmarks.table_lists import nsa_table
from benchmarks.table_lists import nsa_training_table
from benchmarks.table_lists import select_table
from benchmarks.table_training import training_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence

    from benchmarks.table import Entry
    from benchmarks.table import Result

WIDE = 160  # columns where there is no terminal: logs should not wrap


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of a result file."""
    found = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    found.add_argument("file", type=Path)
    found.add_argument("--markdown", action="store_true", help="for the README")
    args = found.parse_args(arguments)
    result: Result = json.loads(args.file.read_text())
    if args.markdown:
        print(markdown(table_of(result)))
    else:
        show(result)
    return 0


def table_of(result: Result) -> Table:
    """The table of any kind of result."""
    kinds: dict[str, Callable[[Result], Table]] = {
        "forward": forward_table,
        "sweep": sweep_table,
        "defaults": defaults_table,
        "compile_speed": compile_table,
        "training": training_table,
        "lists": lists_table,
        "head_mix": head_mix_table,
        "block_lists": block_lists_table,
        "block_lists_training": block_lists_training_table,
        "nsa": nsa_table,
        "nsa_training": nsa_training_table,
        "select_cost": select_table,
        "host_cost": host_cost_table,
        "recompiles": recompiles_table,
    }
    return kinds[result["kind"]](result)


def forward_table(result: Result) -> Table:
    """One row a case, one column a contestant."""
    cases: list[Entry] = result["cases"]
    names = tried(cases)
    header = ["mask", "S", *(TITLES.get(name, name) for name in names)]
    header += ["Flex mask", "vs Flex", "vs Flex with mask"]
    rows = [_forward_row(case, names) for case in cases]
    notes = [
        "TFLOP/s on attended pairs (ms of a call, median of rounds in turn); higher is better."
    ]
    notes += ["Flex mask: building its block mask, compiled and warm, ms."]
    return Table("Forward", header, rows, [*notes, *_summary(cases), *origin(result)])


def _forward_row(case: Entry, names: list[str]) -> list[str]:
    found = case["contestants"]
    ours, flex = found.get(OURS, {}), found.get(BASELINE, {})
    return [
        case["name"],
        str(case["shape"]["seq"]),
        *(cell(found.get(name), case.get("failed")) for name in names),
        f"{flex['prepare_ms']:.2f}" if flex.get("prepare_ms") else NONE,
        times(ours.get("speedup")),
        times(ours.get("speedup_with_prepare")),
    ]


def _summary(cases: list[Entry]) -> list[str]:
    """Over how many cases we are faster; the widest spread; the most extra memory."""
    ours = [case["contestants"].get(OURS, {}) for case in cases]
    ratios = [entry["speedup"] for entry in ours if "speedup" in entry]
    memory = [e["extra_memory_percent"] for e in ours if "extra_memory_percent" in e]
    lines: list[str] = []
    if ratios:
        faster = sum(ratio > 1 for ratio in ratios)
        lines.append(f"Faster than FlexAttention in {faster} of {len(cases)} cases (mask apart).")
    lines += spread(cases)
    if memory:
        lines.append(f"Memory beyond inputs, output and LSE: at most {max(memory):.2f} %.")
    return lines


def sweep_table(result: Result) -> Table:
    """One row a config, from fast to slow; then those without a time."""
    case = result["cases"][0]
    entries: list[tuple[str, Entry]] = list(case["contestants"].items())
    entries.sort(key=lambda item: item[1].get("ms", float("inf")))
    parts = ["forward", "backward"] if any("backward" in x for _, x in entries) else []
    rows = [
        [
            name,
            cell(entry),
            *(cell(entry[part] | {"status": "ok"}) if part in entry else NONE for part in parts),
            _percent(entry),
            f"{entry.get('first_call_s', 0):.1f}",
            entry.get("reason", "")[:70],
        ]
        for name, entry in entries
    ]
    header = ["config", "TFLOP/s (ms)", *parts, "IQR %", "first call s", "reason"]
    return Table(f"Sweep {case['name']} S={case['shape']['seq']}", header, rows, origin(result))


def _percent(entry: Entry) -> str:
    return f"{100 * entry['iqr'] / entry['ms']:.1f}" if "iqr" in entry else NONE


def compile_table(result: Result) -> Table:
    """One row a mask of the catalogue."""
    rows = [
        [case["name"], case["failed"][:100], NONE, NONE]
        if "failed" in case
        else [case["name"], f"{case['ms']:.1f}", f"{case['max']:.1f}", str(case["lines"])]
        for case in result["cases"]
    ]
    slowest = max((case.get("ms", 0.0) for case in result["cases"]), default=0.0)
    notes = [f"Slowest median: {slowest:.1f} ms.", *origin(result)]
    return Table("Expression to source", ["mask", "median ms", "max ms", "lines"], rows, notes)


def markdown(table: Table) -> str:
    """The table for a README; numbers are aligned right."""
    lines = ["| " + " | ".join(table.header) + " |"]
    lines += ["|---|" + "---:|" * (len(table.header) - 1)]
    lines += [
        "| " + " | ".join(part.replace("|", "\\|") for part in row) + " |" for row in table.rows
    ]
    return "\n".join([*lines, "", *(f"{note}  " for note in table.notes)]).rstrip()


def show(result: Result) -> None:
    """Print the table on the terminal."""
    from rich.console import Console
    from rich.table import Table as Grid

    table = table_of(result)
    grid = Grid(title=table.title)
    for number, name in enumerate(table.header):
        grid.add_column(name, justify="right" if number else "left")
    for row in table.rows:
        grid.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(grid)
    for note in table.notes:
        console.print(note, markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
