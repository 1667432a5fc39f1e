"""A program in a child process with a time limit: a hang or a crash costs one case."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence

    from benchmarks.results import Result


def run(command_for: Callable[[Path], Sequence[str]], timeout: float) -> tuple[list[Result], str]:
    """Run a command that writes a result file; its cases, or none and why.

    Args:
        command_for: the command that writes its result to the given path.
        timeout: seconds; then the child is killed, and all it started.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "case.json"
        child = subprocess.Popen(command_for(out), env=environment(), start_new_session=True)
        try:
            code = child.wait(timeout)
        except subprocess.TimeoutExpired:
            return [], f"no result within {timeout:.0f} s"
        finally:
            end_group(child)
        if code != 0 or not out.exists():
            return [], f"the child process ended with code {code}"
        cases: list[Result] = json.loads(out.read_text())["cases"]
        return cases, ""


def end_group(child: subprocess.Popen[bytes]) -> None:
    """Kill the child's process group: the child, if it still runs, and its compile workers."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()


def environment() -> dict[str, str]:
    """The children share the compiler's caches, so only the first pays."""
    shared = Path(tempfile.gettempdir()) / "maskwright_bench_inductor"
    return {"TORCHINDUCTOR_CACHE_DIR": str(shared), **os.environ}
