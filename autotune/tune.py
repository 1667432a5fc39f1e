"""``mw.tune``: from a mask and sizes to a configuration that later calls find."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from maskwright.autotune import lookup
from maskwright.autotune import store
from maskwright.autotune.ask import job_of
from maskwright.autotune.chance import proposer_of
from maskwright.autotune.compile_pool import CompilePool
from maskwright.autotune.compile_pool import workers_of_this_machine
from maskwright.autotune.entry import Entry
from maskwright.autotune.exhaustive import Plan
from maskwright.autotune.exhaustive import record
from maskwright.autotune.filter import Limits
from maskwright.autotune.flat import Flat
from maskwright.autotune.gpu_device import GpuDevice
from maskwright.autotune.gpu_turn import GpuTurn
from maskwright.autotune.job import Job
from maskwright.autotune.keep import keep_wrong
from maskwright.autotune.keep import study_folder
from maskwright.autotune.key import Key
from maskwright.autotune.outcome import Compiler
from maskwright.autotune.outcome import Device
from maskwright.autotune.outcome import NoCompiler
from maskwright.autotune.progress import Progress
from maskwright.autotune.ranks import from_rank_0
from maskwright.autotune.result import Tuned
from maskwright.autotune.result import entry_of
from maskwright.autotune.result import tuned_from
from maskwright.autotune.result import tuned_of
from maskwright.autotune.search import Budget
from maskwright.autotune.search import Study
from maskwright.autotune.search import search
from maskwright.autotune.seeds import by_cost
from maskwright.autotune.seeds import seeds
from maskwright.autotune.shared import Shared
from maskwright.autotune.space import Target
from maskwright.autotune.spares import Spares
from maskwright.autotune.table import Table
from maskwright.codegen.configs import AnyConfig
from maskwright.codegen.gluon import GluonConfig
from maskwright.dsl.errors import TuningError
from maskwright.runtime import settings
from maskwright.runtime import tuned

_AHEAD = 16  # proposals under way: more, and they know too little of each other


@dataclass(frozen=True)
class Options:
    """How a search is run, beside its budget.

    Attributes:
        quiet: show no progress.
        again: search even if there is an entry for exactly this.
        workers: processes that compile; 0 is as many as the machine has room for.
        sampler: ``tpe`` (Optuna), or ``random``.
        patience: seconds to wait for another search on the same GPU.
        tell: takes the lines of the progress; they are shown on the terminal if None.
        spares: keeps the workers for the next search.
    """

    quiet: bool = True
    again: bool = True
    workers: int = 0
    sampler: str = "tpe"
    patience: float = float("inf")
    tell: Callable[[str], None] | None = None
    spares: Spares | None = None


def tune(mask: Any, budget: Budget, options: Options = Options(), **sizes: Any) -> Tuned:
    """Search, verify, publish; see ``maskwright.tune``.

    Raises:
        TuningError: there is nothing that can be tuned, or nothing survived.
    """
    refuse_where_nobody_waits()
    return _tune(mask, budget, options, sizes)


def tune_on_rank_0(mask: Any, budget: Budget, options: Options, **sizes: Any) -> Tuned:
    """``tune`` in a distributed job: rank 0 searches, unless it has an entry, and all get the same.

    Raises:
        TuningError: on every rank alike.
    """
    if not many_ranks():
        return tune(mask, budget, options, **sizes)
    backend = sizes.get("backend", "auto")
    here = tuned.hardware(torch.device("cpu" if backend == "interpret" else "cuda"))
    text = from_rank_0(
        lambda: _tune(mask, budget, replace(options, again=False), sizes).entry.to_text(),
        f"{here} {tuned.software('gluon_sm90' if backend == 'gluon' else 'triton')}",
    )
    entry = Entry.from_text(text)
    path = store.publish(entry, settings.current().cache_dir)
    lookup.forget()
    return tuned_from(entry, entry.config, path)


def _tune(mask: Any, budget: Budget, options: Options, sizes: dict[str, Any]) -> Tuned:
    with tempfile.TemporaryDirectory() as scratch:
        job = job_of(mask, Path(scratch), **sizes)
        return tune_job(job, budget, options)


def tune_job(job: Job, budget: Budget, options: Options, device: Device | None = None) -> Tuned:
    """``tune``, of a job.

    Args:
        device: who measures; a process that owns the GPU if None.
    """
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        progress = _progress(job, options, stack)
        compiler = _compiler(job, options, stack, search=True)
        turn = GpuTurn(progress.insist, options.patience)
        own = GpuDevice(job, turn=turn, spares=options.spares)
        found_device = own if device is None else device
        stack.callback(found_device.close)
        start = found_device.start()
        started += turn.waited
        compiler.gpu = start.key.hardware
        kept = None if options.again else _kept(start.key)
        if kept is not None:
            return tuned_from(kept, start.default)
        url = settings.current().tune_storage
        folder = stack.enter_context(study_folder(start.key, shared=bool(url)))
        progress.log = folder and folder / "trials.jsonl"
        target = Target(start.key, Limits.of(job.mask_node, job.score_node))
        space = Flat.of(job)
        cache_dir = settings.current().cache_dir
        known = [*store.user_entries(cache_dir, start.key.software)]
        known += store.shipped_entries(start.key.hardware.folder)
        accept = partial(_possible, job)
        liked = tuple(by_cost(job, space, target, start.default, accept))
        study = Study(
            *(space, target, start.default),
            seeds=seeds(job, space, target, start.default, known, accept, liked),
            budget=budget,
            accept=accept,
            ranked=liked,
        )
        journal = folder and folder / f"{space.digest}.journal"
        seed = int(start.key.digest[:8], 16)
        shared = Shared(url, f"{start.key.name} {space.digest}") if url else None
        proposer = proposer_of(options.sampler, space.knobs, journal, seed, shared)
        found = search(study, found_device, compiler, proposer, progress.watch, started=started)
        facts = found_device.ready()
        keep_wrong(job, found, folder)
        if found.winner is None:
            first = f": {found.wrong[0][1]}" if found.wrong else ""
            raise TuningError(
                f"no configuration is right, not even the default{first}",
                fix="maskwright check MASK",
            )
        entry = entry_of(study, facts, found)
        path = store.publish(entry, cache_dir)
        lookup.forget()
        return tuned_of(study, facts, found, entry, path, folder)


def record_table(
    mask: Any,
    seconds: float,
    sample: int = 0,
    options: Options = Options(),
    known: Table | None = None,
    **sizes: Any,
) -> Table:
    """Times of every configuration; see ``exhaustive.record``."""
    refuse_where_nobody_waits()
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        job = job_of(mask, Path(scratch), **sizes)
        started = time.monotonic()
        progress = _progress(job, options, stack)
        progress.say("starting", always=True)
        compiler = _compiler(job, options, stack, search=False)
        turn = GpuTurn(progress.insist, options.patience)
        device = GpuDevice(job, turn=turn)
        stack.callback(device.close)
        start = device.start()
        started += turn.waited
        compiler.gpu = start.key.hardware
        target = Target(start.key, Limits.of(job.mask_node, job.score_node))
        points = tuple(Flat.of(job).points(target))
        left = max(1.0, seconds - (time.monotonic() - started))
        accept = partial(_possible, job)
        plan = Plan(points, left, sample, seed=job.seed, known=known, accept=accept)
        return record(job, plan, start, device, compiler, progress.step)


def refuse_where_nobody_waits() -> None:
    """No search inside a CUDA graph's recording, nor behind the back of other ranks.

    Raises:
        TuningError: this is such a place.
    """
    cuda: Any = torch.cuda
    if cuda.is_initialized() and cuda.is_current_stream_capturing():
        raise TuningError("a CUDA graph is being recorded", fix="tune before it is recorded")
    if many_ranks():
        raise TuningError(
            "this process is one of many: each would choose for itself",
            fix="mw.tune(..., distributed=True): rank 0 tunes, and all get the same; or tune ahead",
        )


def _progress(job: Job, options: Options, stack: contextlib.ExitStack) -> Progress:
    made = Progress(job, None, quiet=options.quiet, tell=options.tell)
    made.open()
    stack.callback(made.close)
    return made


def many_ranks() -> bool:
    """This process belongs to a distributed job."""
    group: Any = torch.distributed
    return bool(group.is_available() and group.is_initialized() and group.get_world_size() > 1)


def _compiler(job: Job, options: Options, stack: contextlib.ExitStack, *, search: bool) -> Compiler:
    """Workers that load the compiler while the GPU gets ready."""
    if job.backend == "interpret":
        return NoCompiler()
    workers = options.workers or workers_of_this_machine()
    if search:
        made = CompilePool(job, None, min(workers, _AHEAD), spares=options.spares)
    else:
        made = CompilePool(job, None, workers, ahead=2 * workers)
    stack.callback(made.close)
    made.load()
    return made


def _possible(job: Job, config: AnyConfig) -> bool:
    """The mask itself does not forbid a Gluon configuration."""
    return not (isinstance(config, GluonConfig) and job.gluon_request(config)[1])


def _kept(key: Key) -> Entry | None:
    """The user's entry for exactly this key."""
    entries = store.user_entries(settings.current().cache_dir, key.software)
    return next((x for x in entries if x.key == key), None)
