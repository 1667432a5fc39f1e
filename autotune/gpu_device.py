"""The parent's side of the GPU worker: time limits, and what happens when it hangs or crashes.

A candidate is guilty only if it also fails alone in a fresh process. The process is then replaced
again, so that the next candidate meets no ruins.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import NoReturn

from maskwright.autotune.child import Answer
from maskwright.autotune.child import Child
from maskwright.autotune.child import ChildError
from maskwright.autotune.entry import Checks
from maskwright.autotune.gpu_turn import BusyError
from maskwright.autotune.gpu_turn import GpuTurn
from maskwright.autotune.job import Job
from maskwright.autotune.key import Key
from maskwright.autotune.outcome import Facts
from maskwright.autotune.outcome import Outcome
from maskwright.autotune.outcome import Race
from maskwright.autotune.outcome import Start
from maskwright.autotune.outcome import config_from
from maskwright.autotune.record import from_plain
from maskwright.autotune.spares import Spares
from maskwright.codegen.configs import AnyConfig
from maskwright.dsl.errors import TuningError

START = 300.0  # seconds: imports, inputs, reference of a long call
COMPILE = 60.0  # of a candidate whose machine code is not in the cache
_LEAST, _TIMES = 4.0, 20.0  # limit of a candidate's run: seconds, or times what is expected
_CALLS = 100.0  # about how many calls a candidate's checks and times make
_MODULE = "maskwright.autotune.gpu_worker"
_FORGET = 20.0
_GUILTY = ("sticky", "timeout")


class LateError(Exception):
    """No answer within the limit."""


@dataclass
class GpuDevice:
    """A ``Device`` of a process.

    Args:
        spawn: starts a worker; tests give others.
        least: seconds that every candidate has.
        turn: to measure on the GPU; it is waited for before there are inputs, and given back at the end.
        spares: the worker of the search before, and for the next one.
    """

    job: Job
    spawn: Callable[[], Child] | None = None
    least: float = _LEAST
    start_limit: float = START
    turn: GpuTurn | None = None
    spares: Spares | None = None
    started: bool = False
    facts: Facts | None = None
    child: Child | None = None
    respawned: int = 0
    failed: bool = False

    def start(self) -> Start:
        """See ``Device``.

        Raises:
            TuningError: there is no worker to be had, or it cannot serve the job.
            BusyError: another search keeps the GPU, for longer than the turn waits.
        """
        self.started, self.facts = False, None
        try:
            self._spawn()
            self._take_turn()
        except (ChildError, LateError) as error:
            self._refuse("the process for the GPU did not start", error)
        data = self._told("start", do="open", job=self.job.to_dict())
        self.started = True
        return Start(Key.from_dict(data["key"]), self._config(data["default"]))

    def ready(self) -> Facts:
        """See ``Device``.

        Raises:
            TuningError: the worker ended, or its default is wrong.
        """
        if self.facts is None:
            if self.child is None:
                self.start()
            data = self._told("facts", do="ready")
            key, default = Key.from_dict(data.pop("key")), self._config(data.pop("default"))
            self.facts = Facts(key, default, **data)
        return self.facts

    def measure(self, config: AnyConfig, best: float) -> Outcome:
        """See ``Device``.

        Raises:
            TuningError: our own mistake, not the candidate's.
        """
        self.ready()
        outcome = self._try(config, best)
        if outcome.status in _GUILTY:
            self._renew()
            outcome = self._try(config, best)  # alone, in a fresh process
            if outcome.status in _GUILTY:
                self._renew()
        if outcome.status == "harness":
            self.failed = True
            raise TuningError(f"a candidate cannot be measured: {outcome.message}")
        return outcome

    def race(self, configs: Sequence[AnyConfig], rounds: int) -> Race:
        """See ``Device``.

        Raises:
            TuningError: the worker ended twice in it.
        """
        self.ready()
        request = {"configs": [x.to_dict() for x in configs], "rounds": rounds}
        for _ in range(2):
            try:
                answer = self._ask(COMPILE + rounds * len(configs), do="race", **request)
                if "race" in answer:
                    return _race(answer["race"])
                what = str(answer.get("raised", answer))
            except (ChildError, LateError) as error:
                what = str(error)
            self._renew()
            for config in configs:  # a fresh worker has not met them
                self._try(config, float("inf"))
        raise TuningError(f"configurations cannot be compared: {what}")

    def verify(self, config: AnyConfig) -> tuple[bool, Checks, str]:
        """See ``Device``."""
        self.ready()
        try:
            answer = self._ask(self.start_limit, do="verify", config=config.to_dict())
        except (ChildError, LateError) as error:
            self._renew()
            return False, Checks(0.0, 0.0, ()), str(error)
        if "checks" not in answer:
            self._renew()
            return False, Checks(0.0, 0.0, ()), str(answer.get("raised", answer))
        checks = from_plain(Checks, answer["checks"])
        return bool(answer["right"]), checks, str(answer["wrong"])

    def close(self) -> None:
        """See ``Device``."""
        if self.spares is not None and self.child is not None and self._sound():
            self.spares.keep(_MODULE, self.child)
            self.child = None
        self._end()
        if self.turn is not None:
            self.turn.release()

    # -- the process ----------------------------------------------------------------------------
    def _spawn(self) -> None:
        """A process that has loaded everything but the job."""
        self.child = self.spares.take(_MODULE) if self.spares is not None else None
        if self.child is None:
            self.child = self.spawn() if self.spawn else _spawn()
            self._answer(self.start_limit)

    def _sound(self) -> bool:
        """Nothing went wrong in the process, which the GPU might remember, and its memory is free for
        the next search, which may be another process's."""
        at_work = self.child is None or not self.child.idle  # an interrupt came in between
        if at_work or not self.started or self.respawned or self.failed:
            return False
        try:
            return "free" in self._ask(_FORGET, do="forget")
        except (ChildError, LateError):
            return False

    def _take_turn(self) -> None:
        """Only the process itself knows for sure which GPU it will measure on."""
        if self.turn is None or self.job.backend == "interpret":
            return
        gpu = self._told("gpu", do="identify")
        try:
            self.turn.take(str(gpu))
        except BusyError:
            self.close()
            raise

    def _try(self, config: AnyConfig, best: float) -> Outcome:
        """What a candidate does to the worker as it is."""
        try:
            request = {"config": config.to_dict(), "best": min(best, 1e9)}
            answer = self._ask(COMPILE, do="measure", **request)
        except LateError as error:
            return Outcome("timeout", message=str(error))
        except ChildError as error:
            return Outcome("sticky", message=str(error))
        if "outcome" not in answer:
            return Outcome("harness", message=str(answer.get("raised", answer)))
        return from_plain(Outcome, answer["outcome"])

    def _told(self, what: str, **request: Any) -> Any:
        """The answer of a process that gets ready; without it there is no use for the process."""
        try:
            answer = self._ask(self.start_limit, **request)
        except (ChildError, LateError) as error:
            self._refuse("the process for the GPU did not start", error)
        if what not in answer:
            self._refuse("the GPU is not ready", answer.get("raised", answer))
        return answer[what]

    def _refuse(self, text: str, why: object) -> NoReturn:
        self.close()
        raise TuningError(f"{text}: {why}") from (why if isinstance(why, Exception) else None)

    def _ask(self, limit: float, **request: Any) -> Answer:
        assert self.child is not None
        self.child.send(**request)
        return self._answer(limit)

    def _answer(self, limit: float) -> Answer:
        """The answer to what was asked; a phase that is announced has its own limit."""
        assert self.child is not None
        end = time.monotonic() + limit
        while True:
            answer = self.child.receive(end - time.monotonic())
            if answer is None:
                raise LateError(f"no answer within {limit:.0f} s")
            if "phase" not in answer:
                self.failed |= "raised" in answer
                return answer
            limit = self._run_limit()
            end = time.monotonic() + limit

    def _run_limit(self) -> float:
        if self.facts is None:
            return self.start_limit
        return max(self.least, _TIMES * _CALLS * self.facts.ms / 1e3)

    def _end(self) -> None:
        if self.child is not None:
            self.child.kill()
        self.child = None

    def _renew(self) -> None:
        self._end()  # the turn is kept: nobody measures in between
        self.respawned += 1
        self.start()
        self.ready()

    def _config(self, data: Any) -> AnyConfig:
        return config_from(self.job.op, self.job.template, data)


def identify(limit: float = START) -> Answer:
    """Which GPU a process would measure on: its UUID, and its kind.

    Raises:
        TuningError: there is none.
    """
    child = _spawn()
    try:
        child.receive(limit)
        child.send(do="identify")
        answer = child.receive(limit) or {}
    except ChildError as error:
        raise TuningError(f"the process for the GPU did not start: {error}") from error
    finally:
        child.kill()
    if "gpu" not in answer:
        raise TuningError(f"the GPU is not ready: {answer.get('raised', 'no answer')}")
    return answer


def _spawn() -> Child:
    # It must not be tuned what is tuned.
    return Child.python(_MODULE, MASKWRIGHT_TUNE="off")


def _race(data: Any) -> Race:
    rounds = tuple(tuple(float(x) for x in line) for line in data["rounds"])
    return Race(rounds, tuple(int(x) for x in data["clocks"]))
