"""Compile workers: as many as the machine has room for, each with a deadline and a memory limit.

A compiler may hang, eat all memory or crash, and what hangs may be a grandchild (ptxas). So each
worker leads a process group of its own, and the group is killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path

from maskwright.autotune.child import Child
from maskwright.autotune.child import ChildError
from maskwright.autotune.job import Job
from maskwright.autotune.key import Hardware
from maskwright.autotune.outcome import Build
from maskwright.autotune.record import from_plain
from maskwright.autotune.spares import Spares
from maskwright.codegen.configs import AnyConfig

LIMIT = 30.0  # seconds for one configuration
START = 120.0  # for a worker to load the compiler, on a machine that is busy
MEMORY = 4 << 30
_MODULE = "maskwright.autotune.compile_worker"
_OFTEN = 20  # compilations after which the limit follows them
_A_WORKER = 2 << 30  # bytes of memory


def workers_of_this_machine() -> int:
    """One a core but one, if memory allows."""
    free = 0
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        free = 4 * _A_WORKER
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cores - 1, free // _A_WORKER))


@dataclass
class _Slot:
    """One worker and what it does."""

    child: Child | None = None
    config: AnyConfig | None = None
    since: float = 0.0
    ready: bool = False  # it has the job
    spare: bool = False  # it has loaded the compiler for a search before this one


@dataclass
class CompilePool:
    """A ``Compiler`` of processes.

    Args:
        gpu: what is compiled for; must be known before anything is submitted.
        spawn: starts a worker; tests give others.
        limit: seconds a configuration may take.
        spares: workers of the search before, and for the next one.
    """

    job: Job
    gpu: Hardware | None
    workers: int
    limit: float = LIMIT
    memory: int = MEMORY
    ahead: int = 0
    spawn: Callable[[], Child] | None = None
    spares: Spares | None = None
    slots: list[_Slot] = field(default_factory=list)
    waiting: deque[AnyConfig] = field(default_factory=deque)
    seconds: list[float] = field(default_factory=list)
    killed: int = 0

    def __post_init__(self) -> None:
        self.slots = [_Slot() for _ in range(max(1, self.workers))]

    def load(self) -> None:
        """Let the workers load the compiler while nobody needs them yet."""
        with contextlib.suppress(ChildError, OSError):
            for slot in self.slots:
                self._start(slot)

    @property
    def room(self) -> int:
        """See ``Compiler``."""
        busy = sum(x.config is not None for x in self.slots)
        return len(self.slots) + self.ahead - busy - len(self.waiting)

    @property
    def busy(self) -> bool:
        """Something is still to come."""
        return bool(self.waiting) or any(x.config is not None for x in self.slots)

    def submit(self, config: AnyConfig) -> None:
        """See ``Compiler``."""
        self.waiting.append(config)
        self._feed()

    def take(self, timeout: float) -> list[tuple[AnyConfig, Build]]:
        """See ``Compiler``."""
        end = time.monotonic() + timeout
        while True:
            self._feed()
            done = [x for slot in self.slots if (x := self._look(slot)) is not None]
            left = end - time.monotonic()
            if done or left <= 0 or not self.busy:
                return done
            outputs = [x.child.output for x in self.slots if x.child and x.config is not None]
            select.select(outputs, [], [], min(left, 0.25))

    def close(self) -> None:
        """See ``Compiler``."""
        self.waiting.clear()
        for slot in self.slots:
            child, waits = slot.child, slot.ready or (slot.spare and slot.config is None)
            # What a compiler keeps in memory grows from search to search.
            if self.spares is not None and child and waits and child.resident() < self.memory // 2:
                self.spares.keep(_MODULE, child)
                slot.child = None
            self._end(slot)

    def _feed(self) -> None:
        for slot in self.slots:
            if slot.config is None and self.waiting:
                self._begin(slot, self.waiting.popleft())

    def _begin(self, slot: _Slot, config: AnyConfig) -> None:
        slot.config, slot.since = config, time.monotonic()
        try:
            if slot.child is None:
                self._start(slot)
            assert slot.child is not None
            if slot.ready:
                slot.child.send(do="compile", config=config.to_dict())
            elif slot.spare:
                self._open(slot.child)
        except ChildError:
            self._end(slot)
            self.waiting.appendleft(config)

    def _start(self, slot: _Slot) -> None:
        found = self.spares.take(_MODULE) if self.spares is not None else None
        slot.spare, slot.ready = found is not None, False
        slot.child = found or self._spawn()

    def _spawn(self) -> Child:
        if self.spawn is not None:
            return self.spawn()
        return Child.python(_MODULE, CUDA_VISIBLE_DEVICES="")

    def _open(self, child: Child) -> None:
        assert self.gpu is not None
        gpu = {"arch": self.gpu.arch, "processors": self.gpu.processors}
        child.send(do="open", job=self.job.to_dict(), **gpu)

    def _look(self, slot: _Slot) -> tuple[AnyConfig, Build] | None:
        """What a worker has to say; starts it, and ends it, where that is due."""
        child, config = slot.child, slot.config
        if child is None or config is None:
            return None
        try:
            answer = child.receive(0.0)
            if answer is None:
                return self._overdue(slot, child, config)
            if "ready" in answer:
                self._open(child)
            elif "open" in answer:
                slot.ready, slot.since = True, time.monotonic()
                child.send(do="compile", config=config.to_dict())
            else:
                slot.config = None
                return config, self._build(answer)
        except ChildError as error:
            return self._give_up(slot, config, Build("compile", str(error)))
        return None

    def _build(self, answer: dict[str, object]) -> Build:
        if "build" not in answer:
            return Build("compile", str(answer.get("raised", answer)))
        found = from_plain(Build, answer["build"])
        self.seconds.append(found.seconds)
        return found

    def _overdue(
        self, slot: _Slot, child: Child, config: AnyConfig
    ) -> tuple[AnyConfig, Build] | None:
        limit = self._limit() if slot.ready else START
        if time.monotonic() - slot.since > limit:
            text = f"no machine code within {limit:.0f} s"
            return self._give_up(slot, config, Build("timeout", text, seconds=limit))
        if child.resident() > self.memory:
            text = f"the compiler took more than {self.memory >> 20} MiB"
            return self._give_up(slot, config, Build("infeasible", text))
        return None

    def _limit(self) -> float:
        """Once many are done, one that takes three times as long as nearly all will not end."""
        if len(self.seconds) < _OFTEN:
            return self.limit
        return min(self.limit, max(10.0, 3.0 * statistics.quantiles(self.seconds, n=10)[-1]))

    def _give_up(self, slot: _Slot, config: AnyConfig, build: Build) -> tuple[AnyConfig, Build]:
        self._end(slot)
        self.killed += 1
        return config, build

    def _end(self, slot: _Slot) -> None:
        if slot.child is not None:
            slot.child.kill()
        slot.child, slot.config, slot.ready = None, None, False
