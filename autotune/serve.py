"""The child's side of a worker: requests come in as lines of JSON, answers go out likewise."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import TypeAlias

Say: TypeAlias = Callable[[dict[str, Any]], None]
Handler: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
_PR_SET_PDEATHSIG = 1


def serve(handlers: Callable[[Say], Mapping[str, Handler]]) -> int:
    """Answer requests until there are no more.

    What anything prints goes to stderr: the answers have the old stdout for themselves. A request
    whose handler raises is answered with the text of the exception.
    """
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    known = handlers(say)
    say({"ready": os.getpid()})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = known[request["do"]](request)
        except Exception as error:
            reply = {"raised": f"{type(error).__name__}: {error}"}
        say({"id": request["id"]} | reply)
    return 0


def die_with_parent() -> None:
    """The kernel ends this process when its parent ends, however that happens (Linux only)."""
    parent = os.getppid()
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (AttributeError, OSError):
        return
    if os.getppid() != parent:  # it ended before it could be watched
        os._exit(1)
