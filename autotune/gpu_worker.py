"""The process that owns the GPU. It may hang or crash: its parent ends it and starts another."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from maskwright.autotune.job import Job
from maskwright.autotune.outcome import Outcome
from maskwright.autotune.outcome import Status
from maskwright.autotune.outcome import config_from
from maskwright.autotune.serve import Handler
from maskwright.autotune.serve import Say
from maskwright.autotune.serve import serve
from maskwright.codegen.configs import AnyConfig

_FIRST_LINES = 600  # characters
# After one of these nothing works any more in the process.
STICKY = (
    "illegal memory access",
    "misaligned address",
    "unspecified launch failure",
    "illegal instruction",
    "device-side assert",
    "hardware exception",
    "launch timed out",
)
_TOO_LARGE = ("OutOfResources", "OutOfMemoryError")


class GpuWorker:
    """Answers ``identify``; ``open`` (a job), ``ready``; then ``measure``, ``race``, ``verify``, ``forget``."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.phase = "compile"

    def identify(self, request: dict[str, Any]) -> dict[str, Any]:
        """Which GPU this process will use, before anything runs on it."""
        import torch

        from maskwright.runtime.tuned import hardware

        found: Any = torch.cuda.get_device_properties(torch.device("cuda"))
        kind = asdict(hardware(torch.device("cuda")))
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]
        gpu = str(getattr(found, "uuid", "") or f"index-{first or 0}")
        return {"gpu": gpu, "hardware": kind}

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Before the rest; again for another job, whose memory the one before leaves."""
        from maskwright.autotune.bench import Bench

        self.forget({})
        self.job = Job.from_dict(request["job"])
        self.bench = Bench(self.job, self._enter)
        return {"start": asdict(self.bench.start())}

    def ready(self, request: dict[str, Any]) -> dict[str, Any]:
        """What takes long: compilers work meanwhile on what ``open`` told."""
        return {"facts": asdict(self.bench.ready())}

    def forget(self, request: dict[str, Any]) -> dict[str, Any]:
        """The job: its memory is free for others."""
        import torch

        vars(self).pop("bench", None)
        gc.collect()
        torch.cuda.empty_cache()  # nothing where there is no GPU
        return {"free": True}

    def measure(self, request: dict[str, Any]) -> dict[str, Any]:
        """One candidate, and whatever becomes of it."""
        self.phase = "compile"
        config = self._config(request["config"])
        try:
            outcome = self.bench.measure(config, float(request["best"]))
            self._synchronize()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"[:_FIRST_LINES]
            outcome = Outcome(classify(error, self.phase), message=text)
        return {"outcome": asdict(outcome)}

    def race(self, request: dict[str, Any]) -> dict[str, Any]:
        """Some candidates in turn."""
        found = self.bench.race([self._config(x) for x in request["configs"]], request["rounds"])
        return {"race": asdict(found)}

    def verify(self, request: dict[str, Any]) -> dict[str, Any]:
        """The winner, on fresh inputs."""
        from maskwright.autotune.verify import verify

        right, checks, wrong = verify(self.bench, self._config(request["config"]))
        return {"right": right, "checks": asdict(checks), "wrong": wrong}

    def _config(self, data: Any) -> AnyConfig:
        return config_from(self.job.op, self.job.template, data)

    def _enter(self, phase: str) -> None:
        """Another phase begins, with another limit of time."""
        self.phase = phase
        self.say({"phase": phase})

    def _synchronize(self) -> None:
        """What a candidate broke shows now and not at the next one."""
        import torch

        if self.job.backend != "interpret":
            torch.cuda.synchronize()


def classify(error: Exception, phase: str) -> Status:
    """What a candidate's exception says about it."""
    text = str(error).lower()
    if type(error).__name__ in _TOO_LARGE or "out of memory" in text:
        return "infeasible"
    if any(x in text for x in STICKY):
        return "sticky"
    return "compile" if phase == "compile" else "harness"


def handlers(say: Say) -> Mapping[str, Handler]:
    """What ``serve`` takes."""
    worker = GpuWorker(say)
    known = (worker.identify, worker.open, worker.ready, worker.forget)
    return {x.__name__: x for x in (*known, worker.measure, worker.race, worker.verify)}


if __name__ == "__main__":
    sys.exit(serve(handlers))
