"""Output of the command line: results to stdout, notes and progress to stderr."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any
from typing import Protocol

import numpy as np
from rich.console import Console
from rich.progress import BarColumn
from rich.progress import MofNCompleteColumn
from rich.progress import Progress
from rich.progress import TextColumn
from rich.progress import TimeElapsedColumn
from rich.table import Table


def print_json(result: object) -> None:
    """A result as one JSON document."""
    print(json.dumps(result, indent=2, default=_plain))


def note(text: str) -> None:
    """A remark that is not part of the result."""
    print(f"note: {text}", file=sys.stderr)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Inside: warnings are notes, without file and line."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_args, **_kwargs: note(str(message))
        yield


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """A table on stdout; numbers to the right."""
    table = Table(title=title or None, title_justify="left")
    for i, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[i], (int, float)) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*[_cell(value) for value in row])
    _console().print(table)


def print_pairs(pairs: Mapping[str, object]) -> None:
    """Name and value, one a line."""
    width = max(map(len, pairs), default=0)
    for name, value in pairs.items():
        print(f"{name:<{width}}  {_cell(value)}")


def _console() -> Console:
    # Wide enough in a pipe that rows are not broken there.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def _cell(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.3g}"
        case int():
            return f"{value:,}"
        case None:
            return "-"
    return str(value)


def _plain(value: Any) -> Any:
    """What json does not know, as what it knows."""
    match value:
        case np.ndarray() | np.generic():
            return value.tolist()
        case set() | frozenset():
            return sorted(value)
        case tuple():
            return list(value)
    return str(value)


class Steps(Protocol):
    """Progress of a known number of steps."""

    def step(self, text: str) -> None:
        """Say what starts now."""


@contextmanager
def progress(total: int, *, quiet: bool = False) -> Iterator[Steps]:
    """A bar on a terminal, plain lines elsewhere, nothing if ``quiet``."""
    if quiet:
        yield _Quiet()
    elif sys.stderr.isatty():
        columns = (
            TextColumn("{task.description:<40}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        bar = Progress(
            *columns,
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # else results would leave their pipe
        )
        with bar:
            yield _Bar(bar, total)
    else:
        yield _Lines(total)


class _Quiet:
    def step(self, text: str) -> None:
        pass


class _Lines:
    def __init__(self, total: int) -> None:
        self.total = total
        self.count = 0

    def step(self, text: str) -> None:
        self.count += 1
        print(f"[{self.count:>2}/{self.total}] {text}", file=sys.stderr, flush=True)


class _Bar:
    def __init__(self, bar: Progress, total: int) -> None:
        self.bar = bar
        self.started = False
        self.task = bar.add_task("", total=total)

    def step(self, text: str) -> None:
        self.bar.update(self.task, description=text, advance=int(self.started))
        self.started = True
