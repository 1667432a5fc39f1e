"""A process that compiles configurations for an architecture, with no GPU in sight."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from maskwright.autotune import shadow
from maskwright.autotune.job import Job
from maskwright.autotune.outcome import Build
from maskwright.autotune.outcome import Status
from maskwright.autotune.outcome import config_from
from maskwright.autotune.serve import Handler
from maskwright.autotune.serve import Say
from maskwright.autotune.serve import serve

_FIRST_LINES = 600  # characters


class CompileWorker:
    """Answers ``open`` (a job and a GPU), then ``compile`` (a configuration)."""

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Once, before the rest."""
        self.job, self.arch = Job.from_dict(request["job"]), str(request["arch"])
        shadow.pretend(self.arch, int(request["processors"]))
        return {"open": True}

    def compile(self, request: dict[str, Any]) -> dict[str, Any]:
        """Machine code of a configuration, and what it takes."""
        config = config_from(self.job.op, self.job.template, request["config"])
        try:
            found = shadow.compile_job(self.job, config, self.arch)
        except Exception as error:
            found = Build(_status(error), f"{type(error).__name__}: {error}"[:_FIRST_LINES])
        return {"build": asdict(found)}


def _status(error: Exception) -> Status:
    return "infeasible" if type(error).__name__ == "OutOfResources" else "compile"


def handlers(say: Say) -> Mapping[str, Handler]:
    """What ``serve`` takes."""
    del say
    worker = CompileWorker()
    return {"open": worker.open, "compile": worker.compile}


if __name__ == "__main__":
    sys.exit(serve(handlers))
