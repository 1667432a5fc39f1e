"""The catalogue on many GPUs of a machine: one process a GPU, and one queue for all of them.

Keys are shared out, not candidates, so nothing but the queue is common; entries are files of their
own. A GPU that cannot be used is dropped, and the others do its keys.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from typing import Any

from maskwright.autotune.catalog_run import CatalogRun
from maskwright.autotune.catalog_run import Item
from maskwright.autotune.catalog_run import named
from maskwright.autotune.child import Answer
from maskwright.autotune.child import Child
from maskwright.autotune.child import ChildError
from maskwright.autotune.compile_pool import workers_of_this_machine
from maskwright.autotune.farm_view import FarmView
from maskwright.dsl.errors import TuningError

START = 300.0  # seconds: two processes load torch, and many do so at once
GRACE = 10.0  # seconds to end and clean up
_DEATHS = 2  # in a row; then it is not the keys' fault


@dataclass(eq=False)
class Driver:
    """A GPU, the process that tunes on it, and what it is at.

    Attributes:
        ready: it has opened the run.
        deaths: in a row.
    """

    gpu: str
    child: Child
    since: float
    ready: bool = False
    item: Item | None = None
    deaths: int = 0


@dataclass
class Farm:
    """Shares out the keys of a run.

    Args:
        spawn: starts the process of a GPU; tests give others.
    """

    run: CatalogRun
    gpus: tuple[str, ...]
    view: FarmView
    spawn: Callable[[str], Child]
    start_limit: float = START
    queue: deque[Item] = field(default_factory=deque)
    later: list[Item] = field(default_factory=list)
    results: dict[Item, dict[str, Any]] = field(default_factory=dict)
    drivers: list[Driver] = field(default_factory=list)
    hardware: Any = None

    def tune(self) -> list[dict[str, Any]]:
        """All keys, in the order of the run; however this ends, no process is left.

        Raises:
            TuningError: the GPUs are not of one kind.
        """
        items = self.run.items()
        self.queue.extend(items)
        # More GPUs than keys: the rest would only load torch.
        gpus = self.gpus[: len(items)]
        workers = (self.run.workers or workers_of_this_machine()) // max(1, len(gpus))
        self.run = replace(self.run, workers=max(1, workers))
        try:
            now = time.monotonic()
            self.drivers = [Driver(gpu, self.spawn(gpu), now) for gpu in gpus]
            while self.drivers and len(self.results) < len(items):
                self._feed()
                outputs = [x.child.output for x in self.drivers]
                select.select(outputs, [], [], 0.25)
                for driver in list(self.drivers):
                    self._listen(driver)
        finally:
            end([x.child for x in self.drivers])
        return [self.results.get(x) or named(x, failed="no GPU is left") for x in items]

    def _feed(self) -> None:
        for driver in self.drivers:
            if driver.ready and driver.item is None and self.queue:
                driver.item = self.queue.popleft()
                self.view.say(driver.gpu, f"{driver.item} | starting", always=True)
                try:
                    driver.child.send(do="tune", item=asdict(driver.item))
                except ChildError:  # heard of when it is listened to
                    continue

    def _listen(self, driver: Driver) -> None:
        try:
            while driver in self.drivers and (answer := driver.child.receive(0.0)) is not None:
                self._take(driver, answer)
        except ChildError as error:
            self._died(driver, str(error))
            return
        late = not driver.ready and time.monotonic() - driver.since > self.start_limit
        if late and driver in self.drivers:
            self._drop(driver, f"not ready within {self.start_limit:.0f} s")

    def _take(self, driver: Driver, answer: Answer) -> None:
        item = driver.item
        if "line" in answer:
            self.view.say(driver.gpu, f"{item} | {answer['line']}")
        elif "note" in answer:
            self.view.keep(driver.gpu, f"note: {answer['note']}")
        elif "ready" in answer:
            driver.child.send(do="open", run=asdict(self.run))
        elif "hardware" in answer:
            self._same_kind(driver, answer["hardware"])
            driver.ready = True
        elif item is None:
            self._drop(driver, str(answer.get("raised", answer)))
        elif "busy" in answer and any(x.item for x in self.drivers if x is not driver):
            # Sizes that share a key: most likely another GPU is at it. The first to be done lets
            # this one be tried again.
            self.later.append(item)
            driver.item = None
        else:
            failed = answer.get("busy") or answer.get("failed") or str(answer.get("raised", answer))
            self._done(driver, answer.get("result") or named(item, failed=failed))
            driver.deaths = 0

    def _same_kind(self, driver: Driver, hardware: Any) -> None:
        """An entry counts for one kind of GPU, and each key is tuned on one only.

        Raises:
            TuningError: they differ.
        """
        if self.hardware is None:
            self.hardware = hardware
        if self.hardware != hardware:
            raise TuningError(
                f"GPU {driver.gpu} is of another kind than the others",
                fix="one command for each kind",
            )

    def _done(self, driver: Driver, result: dict[str, Any]) -> None:
        assert driver.item is not None
        self.results[driver.item] = result
        what = f"failed: {result['failed']}" if "failed" in result else _short(result)
        self.view.keep(driver.gpu, f"{driver.item} | {what} | {len(self.results)} done")
        driver.item = None
        self.queue.extend(self.later)
        self.later.clear()

    def _died(self, driver: Driver, words: str) -> None:
        """Its key has failed; the next one meets a fresh process, unless that is hopeless."""
        driver.child.kill()
        driver.deaths += 1
        if driver.item is not None:
            self._done(driver, named(driver.item, failed=words))
        if not driver.ready or driver.deaths >= _DEATHS:
            self._drop(driver, words)
            return
        driver.child, driver.since = self.spawn(driver.gpu), time.monotonic()
        driver.ready = False

    def _drop(self, driver: Driver, why: str) -> None:
        driver.child.kill()
        self.drivers.remove(driver)
        self.view.keep(driver.gpu, f"not used: {why}")
        if not any(x.item for x in self.drivers):  # nobody's end would bring them back
            self.queue.extend(self.later)
            self.later.clear()


def tune_on(run: CatalogRun, gpus: Sequence[str], *, quiet: bool) -> list[dict[str, Any]]:
    """Tune a run on some GPUs of this machine, each with a process of its own.

    Args:
        gpus: numbers as this process would see them, or UUIDs.

    Raises:
        TuningError: a GPU that this process does not see, or GPUs of several kinds.
    """
    devices = dict(zip(gpus, visible(gpus), strict=True))

    def spawn(gpu: str) -> Child:
        return Child.python("maskwright.autotune.farm_worker", CUDA_VISIBLE_DEVICES=devices[gpu])

    with contextlib.closing(FarmView(tuple(gpus), quiet=quiet)) as view:
        view.open()
        return Farm(run, tuple(gpus), view, spawn).tune()


def visible(gpus: Sequence[str]) -> list[str]:
    """What ``CUDA_VISIBLE_DEVICES`` must be for each: a number counts among those seen here.

    Raises:
        TuningError: there are not so many.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return list(gpus)
    seen = [x.strip() for x in given.split(",") if x.strip()]
    hidden = [x for x in gpus if x.isdigit() and int(x) >= len(seen)]
    if hidden:
        raise TuningError(f"no GPU {', '.join(hidden)}: CUDA_VISIBLE_DEVICES is {given!r}")
    return [seen[int(x)] if x.isdigit() else x for x in gpus]


def end(children: Sequence[Child]) -> None:
    """Ask all to end, then make them."""
    for child in children:
        child.process.terminate()
    limit = time.monotonic() + GRACE
    while any(x.process.poll() is None for x in children) and time.monotonic() < limit:
        time.sleep(0.02)
    for child in children:
        child.kill()


def _short(result: dict[str, Any]) -> str:
    return f"{result.get('ms', 0.0):.3f} ms, {result.get('ratio', 1.0):.3f} of the default"
