"""One line a GPU: they change on a terminal, and begin with the GPU elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import Any

_EVERY = 5.0  # seconds between lines of a GPU where no line can change


class FarmView:
    """Shows what the GPUs do.

    Args:
        gpus: all of them.
        quiet: show nothing.
    """

    def __init__(self, gpus: tuple[str, ...], *, quiet: bool) -> None:
        self.lines = dict.fromkeys(gpus, "starting")
        self.shown = dict.fromkeys(gpus, 0.0)
        self.quiet = quiet
        self.stack = ExitStack()
        self.live: Any = None

    def open(self) -> None:
        """Begin to show."""
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            live = Live(console=Console(stderr=True, highlight=False, markup=False))
            self.live = self.stack.enter_context(live)

    def close(self) -> None:
        """The terminal is as it was."""
        self.stack.close()

    def say(self, gpu: str, text: str, *, always: bool = False) -> None:
        """What a GPU does now; elsewhere than on a terminal only now and then."""
        if self.quiet:
            return
        self.lines[gpu] = text
        if self.live is not None:
            from rich.text import Text

            lines = (f"GPU {name} | {line}" for name, line in self.lines.items())
            self.live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"))
        elif always or time.monotonic() - self.shown[gpu] >= _EVERY:
            self.shown[gpu] = time.monotonic()
            print(f"GPU {gpu} | {text}", file=sys.stderr, flush=True)

    def keep(self, gpu: str, text: str) -> None:
        """A line that stays."""
        if self.quiet:
            return
        if self.live is not None:
            self.live.console.print(f"GPU {gpu} | {text}")
        self.say(gpu, text, always=True)
