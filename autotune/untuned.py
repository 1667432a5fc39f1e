"""Choices for GPUs that nobody here has: the heuristic and the cost model, checked by the compiler.

``maskwright tune --catalog --untuned --arch sm_89 -o DIR`` writes them; look-ups ask them last. The
cost model sees hardly a difference between masks, so there is one choice for all of them, and one
of its own only for those that would spill with it.

The model was never compared with times of these GPUs. On an H100, of 60 recorded configurations near
the heuristic's choice, it sees four at least 1.6 times too fast beside it, and 16 warps come out
first in each table, where they are slow. So it may replace the heuristic's choice only for a gain beyond
that error, and where that choice spills, the nearest configuration that does not takes its place.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from datetime import timezone
from pathlib import Path
from typing import Any

import torch

from maskwright.autotune import merge
from maskwright.autotune.child import Child
from maskwright.autotune.child import ChildError
from maskwright.autotune.cost import Work
from maskwright.autotune.cost import seconds
from maskwright.autotune.entry import Checks
from maskwright.autotune.entry import Entry
from maskwright.autotune.entry import Provenance
from maskwright.autotune.entry import Result
from maskwright.autotune.filter import Heads
from maskwright.autotune.filter import unfit
from maskwright.autotune.flat import Flat
from maskwright.autotune.job import Job
from maskwright.autotune.key import Bucket
from maskwright.autotune.key import Key
from maskwright.autotune.key import Op
from maskwright.autotune.key import Problem
from maskwright.autotune.key import Software
from maskwright.autotune.lookup import ANY_MASK
from maskwright.autotune.outcome import Build
from maskwright.autotune.rates import GPUS
from maskwright.autotune.rates import Gpu
from maskwright.autotune.record import from_plain
from maskwright.autotune.result import version
from maskwright.autotune.space import BACKWARD
from maskwright.autotune.space import FORWARD
from maskwright.autotune.space import Target
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.config import default_backward
from maskwright.codegen.config import default_config
from maskwright.codegen.configs import AnyConfig
from maskwright.dsl.errors import TuningError
from maskwright.patterns.catalog import CatalogEntry

OPS: tuple[Op, ...] = ("forward", "backward")
HEAD_DIMS = (64, 128)
DTYPE = "bfloat16"
_MARGIN = 1.6  # how much faster than the heuristic's choice the model must see another one
_TRIED = 12  # candidates that are compiled before it is given up
_MOST_WARPS, _LEAST_ROWS = 8, 32
_LIMIT = 120.0  # seconds for one compilation, and for a worker to start
_HEADS, _LENGTH = 16, 8192
Compile = Callable[[Job, AnyConfig, Gpu], Build]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Case:
    """One kernel on one GPU, for all masks.

    Attributes:
        jobs: of the catalogue, by name.
    """

    gpu: Gpu
    op: Op
    head_dim: int
    jobs: dict[str, Job]

    def key(self, job: Job | None = None) -> Key:
        """Of one mask, or of any."""
        template, size = "triton", self.head_dim
        rest: dict[str, Any] = {"op": self.op, "template": template, "dtype": DTYPE, "group": 1}
        rest |= {"head_dim": size, "value_dim": size, "layout": "heads"}
        rest |= {"aligned": True, "inside": True}
        if job is None:
            problem = Problem(ANY_MASK, "any", "", **rest)
        else:
            problem = Problem.of(job.mask_node, None, **rest)
        bucket = Bucket.of(_LENGTH, _LENGTH, _HEADS, "runtime")
        software = Software.of("triton", torch.version.cuda)
        return Key(problem, bucket, self.gpu.hardware, software)

    @property
    def default(self) -> KernelConfig | BackwardConfig:
        """The heuristic's choice."""
        sizes: dict[str, Any] = {"arch": self.gpu.arch, "dtype": DTYPE, "head_dim": self.head_dim}
        return default_config(**sizes) if self.op == "forward" else default_backward(**sizes)


def entries(
    arch: str, masks: Sequence[CatalogEntry], compile_: Compile, tell: Tell, folder: Path
) -> list[Entry]:
    """All choices for an architecture.

    Args:
        folder: where runtime tensors may be kept for the compiler.

    Raises:
        TuningError: nothing is known of the architecture, or nothing compiles without spills.
    """
    if arch not in GPUS:
        raise TuningError(f"no figures for {arch}", fix=f"one of {', '.join(sorted(GPUS))}")
    found = []
    for head_dim, op in itertools.product(HEAD_DIMS, OPS):
        case = Case(GPUS[arch], op, head_dim, _jobs(masks, op, head_dim, folder))
        found += chosen(case, compile_, tell)
    return found


def chosen(case: Case, compile_: Compile, tell: Tell) -> list[Entry]:
    """The choice of most masks, for all that have none of their own; and those of the others.

    A mask's choice is the first candidate that compiles without spills.

    Raises:
        TuningError: there is none for any mask.
    """
    order, left = candidates(case)[:_TRIED], dict(case.jobs)
    choices: dict[str, KernelConfig | BackwardConfig] = {}
    for config in order:
        tell(f"{case.gpu.arch} {case.op} d{case.head_dim}: {len(left)} masks, {config}")
        choices |= {
            name: config for name, job in left.items() if _clean(compile_(job, config, case.gpu))
        }
        left = {name: job for name, job in left.items() if name not in choices}
        if not left:
            break
    if not choices:
        raise TuningError(f"{case.gpu.arch}: no {case.op} compiles without spills")
    times = relative(case)
    model = sorted(times, key=lambda x: times[x])
    usual, masks = Counter(choices.values()).most_common(1)[0]
    own = [(name, x) for name, x in choices.items() if x != usual]
    return [
        _entry(case, None, usual, model, masks),
        *(_entry(case, case.jobs[name], x, model, 1) for name, x in own),
    ]


def candidates(case: Case) -> list[KernelConfig | BackwardConfig]:
    """What the model sees far ahead of the heuristic's choice, that, and what is next to it.

    Those next to it differ in the fewest steps; the model decides among those that differ in as many.
    """
    times, default = relative(case), case.default
    order = sorted(times, key=lambda x: times[x])
    ahead = [x for x in order if times[x] * _MARGIN < 1.0]
    near = sorted(order, key=lambda x: _steps(x, default))
    return list(dict.fromkeys([*ahead, default, *near]))


def _steps(config: KernelConfig | BackwardConfig, default: KernelConfig | BackwardConfig) -> float:
    """By how many factors of 2 and stages two configurations differ."""
    if isinstance(config, BackwardConfig):
        assert isinstance(default, BackwardConfig)
        return _steps(config.queries, default.queries) + _steps(config.keys, default.keys)
    assert isinstance(default, KernelConfig)
    names = ("block_m", "block_n", "num_warps")
    factors = (abs(math.log2(getattr(config, x) / getattr(default, x))) for x in names)
    return sum(factors) + abs(config.num_stages - default.num_stages)


def relative(case: Case) -> dict[KernelConfig | BackwardConfig, float]:
    """Estimated times as ratios to that of the heuristic's choice, mean over the masks."""
    near, heads = list(_near(case)), Heads(case.head_dim, case.head_dim, DTYPE)
    total = dict.fromkeys(near, 0.0)
    counted = 0
    for job in case.jobs.values():
        time = seconds(Work(job.mask_node, job.call(), heads), case.gpu)
        unit = time(case.default)
        if not unit:
            continue
        counted += 1
        for config in near:
            total[config] += time(config) / unit
    return {config: x / counted for config, x in total.items()} if counted else {}


def _near(case: Case) -> Iterator[KernelConfig | BackwardConfig]:
    """Points of the space, a step away from the heuristic's at most."""
    default, target = case.default, Target(case.key())
    if isinstance(default, KernelConfig):
        yield from (x for x in _alike(FORWARD.points(target), default))
        return
    spaces = (BACKWARD["queries"], BACKWARD["keys"])
    parts = (default.queries, default.keys)
    both = [_alike(x.points(target), part) for x, part in zip(spaces, parts, strict=True)]
    for queries, keys in itertools.product(*both):
        config = BackwardConfig(queries, keys)
        if not unfit(config, target.key):
            yield config


def _alike(points: Iterator[Any], default: KernelConfig) -> list[KernelConfig]:
    return [
        x
        for x in points
        if isinstance(x, KernelConfig)
        and x.loads == default.loads
        and min(x.block_m, x.block_n) >= _LEAST_ROWS
        and x.num_warps <= _MOST_WARPS
        and all(
            0.5 <= getattr(x, name) / getattr(default, name) <= 2
            for name in ("block_m", "block_n", "num_warps")
        )
        and abs(x.num_stages - default.num_stages) <= 1
    ]


def _clean(build: Build) -> bool:
    return build.status == "ok" and build.stack == 0


def _jobs(masks: Sequence[CatalogEntry], op: Op, head_dim: int, folder: Path) -> dict[str, Job]:
    sizes: dict[str, Any] = {"op": op, "backend": "triton", "dtype": DTYPE, "batch": 1}
    sizes |= {"heads": _HEADS, "kv_heads": _HEADS, "q_len": _LENGTH, "kv_len": _LENGTH}
    sizes |= {"head_dim": head_dim, "value_dim": head_dim, "q_offset": 0}
    found = {}
    for mask in masks:
        own = folder / f"{mask.name}_{op}_{head_dim}"
        own.mkdir(exist_ok=True)
        bindings = mask.bindings(1, _HEADS, _HEADS, _LENGTH, _LENGTH)
        found[mask.name] = Job.of(mask.mask, None, bindings, own, **sizes)
    return found


def _entry(case: Case, job: Job | None, config: AnyConfig, model: list[Any], masks: int) -> Entry:
    """Marked as not measured: no time, and the kind of a cost model's choice."""
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    space = Flat(case.op, "triton").digest
    source = Provenance("model", date, "", "", torch.__version__, version(), 0.0, masks, space)
    checks = Checks(0.0, 0.0, (f"no spills on {case.gpu.arch}, masks compiled: {masks}",))
    rank = model.index(config) + 1 if config in model else 0
    nothing = Result(0.0, 1.0, 0.0, 0, 0, 0.0)
    return Entry(case.key(job), config, nothing, source, checks, cost_rank=rank)


class Compiler:
    """Compiles with a worker, which is replaced when it fails."""

    def __init__(self) -> None:
        self.child: Child | None = None
        self.job: tuple[Job, Gpu] | None = None

    def __call__(self, job: Job, config: AnyConfig, gpu: Gpu) -> Build:
        """What the compiler says, or ``timeout``."""
        try:
            if self.child is None:
                module = "maskwright.autotune.compile_worker"
                self.child = Child.python(module, CUDA_VISIBLE_DEVICES="")
                self.child.receive(_LIMIT)
            if self.job != (job, gpu):
                where = {"arch": gpu.arch, "processors": gpu.processors}
                self._ask(do="open", job=job.to_dict(), **where)
                self.job = job, gpu
            answer = self._ask(do="compile", config=config.to_dict())
        except ChildError as error:
            self.close()
            return Build("compile", str(error))
        if "build" not in answer:
            return Build("compile", str(answer.get("raised", answer)))
        return from_plain(Build, answer["build"])

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self.child is not None
        self.child.send(**request)
        answer = self.child.receive(_LIMIT)
        if answer is None:
            raise ChildError(f"no answer within {_LIMIT:.0f} s")
        return answer

    def close(self) -> None:
        """Ends the worker."""
        if self.child is not None:
            self.child.kill()
        self.child = self.job = None


def write(
    archs: Sequence[str], masks: Sequence[CatalogEntry], output: Path, tell: Tell
) -> list[Entry]:
    """Choices for some architectures, a file each."""
    found = []
    with (
        contextlib.closing(Compiler()) as compile_,
        tempfile.TemporaryDirectory() as folder,
    ):
        for arch in archs:
            # Two patterns may be one mask.
            made = merge.merge(entries(arch, masks, compile_, tell, Path(folder)))
            merge.write(made, output / f"{arch}.json")
            found += made
    return found
