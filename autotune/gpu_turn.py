"""One search at a time on a GPU: two that measure at once would both measure wrong times.

The lock is a file of the operating system, so a search that crashed holds nothing.
"""

from __future__ import annotations

import re
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from filelock import Timeout

from maskwright.dsl.errors import TuningError
from maskwright.runtime.cache import MaskwrightWarning

_TELL = 10.0  # seconds between lines while it waits
_LOOK = 0.2  # seconds between looks at the lock


class BusyError(TuningError):
    """Another process is at it; later it may be free."""


@dataclass
class GpuTurn:
    """The right to measure on a GPU of this machine.

    Args:
        say: is told what it waits for.
        patience: seconds to wait at most.
        folder: of the lock files. The system's own by default, and not the cache directory: users
            with caches of their own share the GPUs, and machines that share a cache do not.

    Attributes:
        waited: seconds so far; no part of a search's budget.
    """

    say: Callable[[str], None] = lambda text: None
    patience: float = float("inf")
    folder: Path | None = None
    waited: float = 0.0
    lock: FileLock | None = None

    def take(self, gpu: str) -> None:
        """Wait until nobody else has it; at once if it is ours already.

        Raises:
            BusyError: patience ended.
        """
        if self.lock is not None:
            return
        folder = Path(tempfile.gettempdir()) if self.folder is None else self.folder
        name = re.sub(r"[^\w-]", "_", gpu)
        # Every user may wait for every other one. Whoever closes the device ends the turn,
        # whichever thread that is.
        lock = FileLock(folder / f"maskwright-{name}.lock", mode=0o666, thread_local=False)
        started = time.monotonic()
        try:
            self._wait(lock, gpu, started)
        except (OSError, NotImplementedError) as error:
            # A machine where nothing can be locked is still one to tune on.
            text = f"GPU {gpu} is not locked against other searches: {error}"
            warnings.warn(text, MaskwrightWarning, stacklevel=2)
            return
        finally:
            self.waited += time.monotonic() - started
        self.lock = lock

    def release(self) -> None:
        """Let the next one have it."""
        if self.lock is not None:
            self.lock.release()
        self.lock = None

    def _wait(self, lock: FileLock, gpu: str, started: float) -> None:
        wait = 0.0
        while True:
            try:
                lock.acquire(timeout=wait, poll_interval=_LOOK)
                return
            except Timeout:  # an OSError, too
                spent = time.monotonic() - started
            if spent >= self.patience:
                raise BusyError(f"another process tunes on GPU {gpu}", fix="wait for it")
            self.say(f"waiting for GPU {gpu}, another process tunes on it | {spent:.0f} s")
            wait = min(_TELL, self.patience - spent)
