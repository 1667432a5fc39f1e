"""Random masks against the oracle, for as long as you like; failures are shrunk and repeatable.

``maskwright check --random N --seconds T`` runs this. Each case checks the schedule against every
pair, then the kernel and the reference backend against float64.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from maskwright.runtime import settings
from maskwright.runtime.fuzz_case import Case
from maskwright.runtime.fuzz_case import draw_case
from maskwright.runtime.fuzz_checks import SCHEDULE_CHECKS
from maskwright.runtime.fuzz_checks import Check
from maskwright.runtime.fuzz_checks import Problem
from maskwright.runtime.fuzz_checks import check_kernel
from maskwright.runtime.fuzz_checks import first_problem
from maskwright.runtime.shrink import shrink

__all__ = ["Case", "Failure", "FuzzReport", "draw_case", "examine", "failure_of", "run"]

_MAX_FAILURES = 5  # each is shrunk, which takes a while
_FORGET_AFTER = 256  # cases; what the compiler remembers of them would fill the memory
OnResult = Callable[[int, "Failure | None"], None]


@dataclass(frozen=True, eq=False)
class Failure:
    """A case that failed, and the smallest one found that fails in the same way.

    Attributes:
        number: number of the case in its sequence.
        case: as drawn.
        small: as shrunk.
        problem: what is wrong with ``small``.
        backend: the backend of the run.
    """

    number: int
    case: Case
    small: Case
    problem: Problem
    backend: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "case": self.number,
            "mask": self.small.mask,
            "problem": str(self.problem),
            "repeat": self.repeat(),
        }

    def repeat(self) -> str:
        """The command that repeats it, or the Python where no command can."""
        command = self.small.command(self.backend)
        if self.problem.of_kernel and command is not None:
            return command
        return self.small.snippet(self.backend)

    def __str__(self) -> str:
        return (
            f"case {self.number}: {self.problem}\n  mask: {self.small.mask}\n  repeat:\n"
            + "\n".join(f"    {line}" for line in self.repeat().splitlines())
        )


@dataclass(frozen=True, eq=False)
class FuzzReport:
    """Outcome of a run. ``ok`` if no case failed.

    Attributes:
        cases: how many were checked.
        seconds: how long it took.
        seed: of the sequence of cases.
        backend: that ran the kernels, besides the reference.
        failures: the first few, shrunk.
    """

    cases: int
    seconds: float
    seed: int
    backend: str
    failures: tuple[Failure, ...]

    @property
    def ok(self) -> bool:
        """No case failed."""
        return not self.failures

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "ok": self.ok,
            "cases": self.cases,
            "seconds": round(self.seconds, 3),
            "seed": self.seed,
            "backend": self.backend,
            "failures": [failure.to_dict() for failure in self.failures],
        }

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "WRONG"
        head = (
            f"{verdict:5} {self.cases} random masks, seed {self.seed}, {self.backend} and reference"
            f": {len(self.failures)} failed, {self.seconds:.1f} s"
        )
        return "\n".join([head, *map(str, self.failures)])


def checks_for(backend: str) -> tuple[Check, ...]:
    """All checks, with kernels on one backend."""
    return (
        *SCHEDULE_CHECKS,
        partial(check_kernel, backend=backend),
        *(() if backend == "reference" else (partial(check_kernel, backend="reference"),)),
    )


def examine(case: Case, backend: str = "auto") -> Problem | None:
    """What is wrong with one case; None if nothing is."""
    with _private_cache():
        return first_problem(case, checks_for(_chosen(backend)))


def run(
    count: int,
    seconds: float | None = None,
    seed: int = 0,
    backend: str = "auto",
    on_result: OnResult | None = None,
) -> FuzzReport:
    """Check random masks until ``count`` are done, the time is over, or five have failed.

    Args:
        count: number of cases.
        seconds: time limit; the case at work is finished (and, if it fails, shrunk).
        seed: another seed, another sequence of cases.
        backend: of the kernels: ``auto`` is the GPU if there is one, else Triton's interpreter.
        on_result: called with the number of each case done, and its failure if any.
    """
    chosen = _chosen(backend)
    checks = checks_for(chosen)
    start = time.monotonic()
    failures: list[Failure] = []
    done = 0
    with _private_cache():
        for number in range(count):
            case = draw_case(seed, number, gpu=chosen == "triton")
            failure = failure_of(case, checks, number, chosen)
            done += 1
            failures += [] if failure is None else [failure]
            if on_result is not None:
                on_result(number, failure)
            if done % _FORGET_AFTER == 0:
                _forget()
            late = seconds is not None and time.monotonic() - start > seconds
            if late or len(failures) == _MAX_FAILURES or _device_lost():
                break
    return FuzzReport(done, time.monotonic() - start, seed, chosen, tuple(failures))


def failure_of(
    case: Case, checks: tuple[Check, ...], number: int = 0, backend: str = "auto"
) -> Failure | None:
    """The shrunk failure of a case; None if every check holds."""
    problem = first_problem(case, checks)
    if problem is None:
        return None
    small = case
    if not _device_lost():
        small, problem = shrink(case, problem, partial(first_problem, checks=checks))
    return Failure(number, case, small, problem, backend)


def _device_lost() -> bool:
    """After an illegal access every further call of this process fails: nothing to learn."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _chosen(backend: str) -> str:
    if backend != "auto":
        return backend
    return "triton" if torch.cuda.is_available() else "interpret"


def _forget() -> None:
    """Empty the memo tables of the language and the compiler."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("maskwright.codegen.", "maskwright.dsl.")):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


@contextlib.contextmanager
def _private_cache() -> Iterator[None]:
    """Thousands of kernels that nobody needs again stay out of the user's cache."""
    with (
        tempfile.TemporaryDirectory(prefix="maskwright-fuzz-") as folder,
        settings.override(cache_dir=folder, strict=False),
    ):
        yield
