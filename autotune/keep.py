"""The folder of a study: locked while it is searched; journal, log and bug reports lie there."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskwright.autotune import store
from maskwright.autotune.gpu_turn import BusyError
from maskwright.autotune.job import Job
from maskwright.autotune.key import Key
from maskwright.autotune.record import pretty
from maskwright.autotune.search import Found
from maskwright.runtime import settings


@contextlib.contextmanager
def study_folder(key: Key, *, shared: bool = False) -> Iterator[Path | None]:
    """Where a study is kept, with a lock on it; None where nothing can be written.

    Args:
        shared: others work on it, too, maybe in the same directory: a folder for this process alone.

    Raises:
        BusyError: another process tunes the same.
    """
    folder = store.root(settings.current().cache_dir) / "studies" / key.name
    if shared:
        folder /= f"{socket.gethostname()}-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError:
        yield None
        return
    with lock:
        if not _locked(lock):
            raise BusyError(
                f"another process tunes {key.name}", fix="wait for it: its result is found here"
            )
        yield folder


def _locked(file: Any) -> bool:
    """The lock is ours until this process ends; true where there are no locks."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def keep_wrong(job: Job, found: Found, folder: Path | None) -> None:
    """What computed wrong numbers is a bug report: everything that repeats it."""
    if not found.wrong or folder is None:
        return
    data = [
        {"job": job.lasting().to_dict(), "config": config.to_dict(), "what": what}
        for config, what in found.wrong
    ]
    with contextlib.suppress(OSError):
        (folder / "wrong.json").write_text(pretty(data))
