"""What a search shows while it runs: one line that changes, and a line of JSON a trial."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maskwright.autotune.job import Job
from maskwright.autotune.outcome import Build
from maskwright.autotune.outcome import Outcome
from maskwright.autotune.search import State
from maskwright.codegen.configs import AnyConfig

_EVERY = 5.0  # seconds between lines where no line can change
_TOLD = {"twin": "twin", "duplicate": "dup", "spills": "spill"}
_FAILURES = ("infeasible", "compile", "wrong", "timeout", "sticky")


class Progress:
    """Watches a search.

    Args:
        log: file of the trials; None writes none.
        quiet: show nothing.
        tell: takes the lines; they are shown on the terminal if None.
    """

    def __init__(
        self,
        job: Job,
        log: Path | None,
        *,
        quiet: bool,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.tell = tell
        self.job, self.log, self.quiet, self.clock = job, log, quiet, clock
        self.shown = 0.0
        self.stack = ExitStack()
        self.status: Any = None

    def open(self) -> None:
        """Begin to show."""
        if not self.quiet and self.tell is None and sys.stderr.isatty():
            from rich.console import Console

            self.status = self.stack.enter_context(Console(stderr=True).status("starting"))

    def close(self) -> None:
        """The terminal is as it was."""
        self.stack.close()

    def say(self, text: str, *, always: bool = False) -> None:
        """Show a line; elsewhere than on a terminal only now and then."""
        if self.quiet:
            return
        if self.tell is not None:
            self.tell(text)
        elif self.status is not None:
            self.status.update(text)
        elif always or self.clock() - self.shown >= _EVERY:
            self.shown = self.clock()
            print(text, file=sys.stderr, flush=True)

    def insist(self, text: str) -> None:
        """Show a line, wherever that is."""
        self.say(text, always=True)

    def watch(self, state: State, config: AnyConfig, outcome: Outcome) -> None:
        """One more trial."""
        self._write(state, config, outcome)
        self.say(line(self.job, state, self.clock()))

    def step(self, phase: str, done: int, total: int) -> None:
        """Progress of a table."""
        self.say(f"{phase} {done}/{total}", always=done == total)

    def _write(self, state: State, config: AnyConfig, outcome: Outcome) -> None:
        if self.log is None:
            return
        build = state.builds.get(config, Build())
        record = {"trial": state.tried, "config": config.to_dict(), **asdict(outcome)}
        record |= {"build": asdict(build), "seconds": round(self.clock() - state.started, 3)}
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, sort_keys=True) + "\n")
        except OSError:  # a log is not worth a search
            self.log = None


def line(job: Job, state: State, now: float) -> str:
    """Where the search stands, in one line."""
    facts = state.facts
    spent, budget = now - state.started, state.study.budget
    pieces = [f"{job.op[:3]} {job.backend} d{job.head_dim} s{job.q_len}"]
    pieces.append(f"{state.tried}/{budget.trials}")
    if facts is not None:
        best = state.best * facts.ms
        rate = f"{facts.flops / best / 1e9:.0f} TF/s, " if facts.flops else ""
        pieces.append(f"best {best:.3f} ms ({rate}{1 / state.best:.2f}x default)")
    failed = sum(state.events[x] for x in _FAILURES)
    counts = [f"fail {failed}"] if failed else []
    counts += [f"{word} {state.events[x]}" for x, word in _TOLD.items() if state.events[x]]
    pieces += [" ".join(counts)] if counts else []
    share = state.tried / spent if spent > 0 else 0.0
    left = min(budget.seconds - spent, (budget.trials - state.tried) / share if share else 1e9)
    pieces.append(f"{spent:.0f} s, ETA {max(0.0, left):.0f} s")
    return " | ".join(pieces)
