"""Files and functions stay small. Run with -s to see the table."""

from __future__ import annotations

import ast
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHIPPED = ("dsl", "codegen", "patterns", "runtime", "autotune", "maskwright")
FOLDERS = (*SHIPPED, "tests", "benchmarks", "tools")
FILE_LINES = 500
FUNCTION_LINES = 60


def sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    return [p for p in found if not p.is_relative_to(ROOT / "tests" / "golden")]


def functions(path: Path) -> list[tuple[str, int]]:
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        (f"{path.relative_to(ROOT)}:{n.lineno} {n.name}", (n.end_lineno or n.lineno) - n.lineno + 1)
        for n in ast.walk(tree)
        if isinstance(n, kinds)
    ]


def test_no_file_and_no_function_is_too_long():
    too_long = []
    rows = [
        f"{'folder':<12}{'files':>6}{'lines':>8}{'median':>8}{'longest':>9}{'fn med':>8}{'fn max':>8}"
    ]
    for folder in FOLDERS:
        lengths = {p: len(p.read_text().splitlines()) for p in sources(folder)}
        found = [f for p in lengths for f in functions(p)]
        too_long += [f"{p}: {n} lines" for p, n in lengths.items() if n > FILE_LINES]
        too_long += [f"{name}: {n} lines" for name, n in found if n > FUNCTION_LINES]
        rows.append(_row(folder, list(lengths.values()), [n for _, n in found]))
    print("\n" + "\n".join(rows))
    assert not too_long, "\n".join(too_long)


def _row(folder: str, lengths: list[int], found: list[int]) -> str:
    lengths, found = lengths or [0], found or [0]
    numbers = (sum(lengths), statistics.median(lengths), max(lengths))
    return (
        f"{folder:<12}{len(lengths):>6}{numbers[0]:>8}{numbers[1]:>8.0f}{numbers[2]:>9}"
        f"{statistics.median(found):>8.0f}{max(found):>8}"
    )
