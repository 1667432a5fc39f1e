"""The parent's side of a worker: a process in a session of its own that can always be ended."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import maskwright

_TAIL = 2000  # characters of what a dead child said
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
Answer = dict[str, Any]


class ChildError(Exception):
    """A child ended, or said something that is no answer. Its text says what."""


class Child:
    """A worker: ``python -m <module>``, one request at a time.

    Args:
        command: to be run.
        env: changes of the environment.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env={**os.environ, **env},
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout.fileno()
        os.set_blocking(self.output, False)
        self.buffer = b""
        self.count = 0
        self.answered = 0

    @staticmethod
    def python(module: str, **env: str) -> Child:
        """A module of this package, with this interpreter and what it can import."""
        root = str(Path(maskwright.__file__).absolute().parents[1])
        paths = [x for x in (root, *sys.path) if x]
        env |= {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
        return Child([sys.executable, "-m", module], env)

    @property
    def idle(self) -> bool:
        """It has answered everything that it was asked."""
        return self.answered == self.count

    @property
    def alive(self) -> bool:
        """It has not ended."""
        return self.process.poll() is None

    def send(self, **request: Any) -> None:
        """Ask for something.

        Raises:
            ChildError: nobody is there.
        """
        self.count += 1
        line = json.dumps({"id": self.count} | request) + "\n"
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line.encode())
            self.process.stdin.flush()
        except OSError as error:
            raise ChildError(self.last_words()) from error

    def receive(self, timeout: float) -> Answer | None:
        """The next answer; None if none comes in time.

        Raises:
            ChildError: the child ended, or its answer is none.
        """
        end = time.monotonic() + timeout
        while b"\n" not in self.buffer:
            left = end - time.monotonic()
            if not select.select([self.output], [], [], max(0.0, left))[0]:
                return None
            data = os.read(self.output, 1 << 16)
            if not data:
                raise ChildError(self.last_words())
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return self._answer(line)

    def _answer(self, line: bytes) -> Answer:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict) or found.get("id", self.count) != self.count:
            raise ChildError(f"a worker answered {line[:80]!r}")
        self.answered = found.get("id", self.answered)
        return found

    def last_words(self) -> str:
        """How it ended, and what it said before."""
        try:
            code: object = self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            code = "none yet"
        if isinstance(code, int) and code < 0:
            code = signal.Signals(-code).name
        self.errors.seek(0, os.SEEK_END)
        self.errors.seek(max(0, self.errors.tell() - _TAIL))
        tail = self.errors.read().decode(errors="replace").strip()
        return f"a worker ended with code {code}" + (f": {tail}" if tail else "")

    def resident(self) -> int:
        """Bytes of memory of the child and of what it started."""
        pid = self.process.pid
        return sum(_resident(x) for x in (pid, *_children(pid)))

    def kill(self) -> None:
        """End it, and all it started; waits for nothing but the end itself."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what could not be written any more
                    pass
        self.errors.close()


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


def _children(pid: int) -> list[int]:
    try:
        return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (OSError, ValueError):
        return []
