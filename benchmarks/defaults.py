"""Default configurations beside others: ``python -m benchmarks.defaults [--processes 10] [--change JSON]``.

Masks of the catalogue. Configurations that differ from the default in the fields of a ``--change``
take turns with it as the finals of a search do, in every one of several processes, all of which are
ready before the first measures. A ratio below 1 is faster than the default.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextlib import closing
from dataclasses import dataclass
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any
from typing import TypeVar

from benchmarks import bench
from benchmarks import results
from benchmarks import timing
from maskwright.autotune.ask import job_of
from maskwright.autotune.compile_pool import CompilePool
from maskwright.autotune.compile_pool import workers_of_this_machine
from maskwright.autotune.gpu_device import GpuDevice
from maskwright.autotune.spares import Spares
from maskwright.dsl.errors import TuningError
from maskwright.patterns import catalog

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence

    from benchmarks.results import Result
    from maskwright.autotune.job import Job
    from maskwright.autotune.outcome import Outcome
    from maskwright.autotune.outcome import Start
    from maskwright.codegen.configs import AnyConfig

KIND = "defaults"
DEFAULT = "default"
SHAPE = ("batch", "heads", "kv_heads", "head_dim")
T = TypeVar("T")
Entry = dict[str, Any]
Named = dict[str, "AnyConfig"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all masks and write the result file."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser().parse_args(given)
    known = [x.name for x in entries(args)]
    unknown = [x for x in args.masks.split(",") if x not in known]
    if unknown:
        parser().error(f"unknown: {', '.join(unknown)} (known: {', '.join(known)})")
    # A worker ends with the thread that started it, and spare ones serve mask after mask.
    with ThreadPoolExecutor(args.processes) as threads, closing(Spares()) as spares:
        rows = (
            bench.TableRow(name, args.seq, {}, partial(run_mask, args, name, threads, spares))
            for name in args.masks.split(",")
        )
        return bench.each_row(KIND, given, args, rows)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog=f"python -m {results.MODULES[KIND]}", description=__doc__)
    found.add_argument("--masks", default="causal", help="comma-separated, of the catalogue")
    found.add_argument("--seq", type=int, default=8192)
    found.add_argument("--op", default="forward", choices=("forward", "backward"))
    found.add_argument("--backend", default="gluon", choices=("gluon", "triton", "interpret"))
    found.add_argument("--scale", default="paper", choices=("paper", "small"), help="of the masks")
    found.add_argument("--processes", type=int, default=1)
    told = "JSON of fields that differ from the default; as often as you like"
    found.add_argument("-c", "--change", action="append", type=json.loads, default=[], help=told)
    bench.add_common(found, rounds=9)
    return found


def run_mask(
    args: argparse.Namespace, name: str, threads: ThreadPoolExecutor, spares: Spares
) -> Result:
    """One mask: all processes, one after the other."""
    with ExitStack() as stack:
        job = job_for(args, name, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        devices = [GpuDevice(job, spares=spares) for _ in range(args.processes)]
        processes = Processes(devices, threads)
        stack.callback(processes.close)
        start = processes.start()
        configs = changed(start.default, args.change)
        pool = CompilePool(job, start.key.hardware, workers_of_this_machine(), spares=spares)
        with closing(pool):
            for config in configs.values():
                pool.submit(config)
            processes.ready()
            while pool.busy:
                pool.take(1.0)
        entries = processes.compare(configs, args.rounds)
    shape = {"seq": args.seq} | {x: getattr(args, x) for x in SHAPE}
    return {"name": name, "shape": shape, "contestants": entries}


def entries(args: argparse.Namespace) -> list[catalog.CatalogEntry]:
    """The masks there are."""
    return catalog.entries(args.scale, heads=args.heads, kv_heads=args.kv_heads)


def job_for(args: argparse.Namespace, name: str, folder: Path) -> Job:
    """What the tuner would be asked for."""
    entry = next(x for x in entries(args) if x.name == name)
    values = entry.bindings(args.batch, args.heads, args.kv_heads, args.seq, args.seq)
    sizes = {x: getattr(args, x) for x in (*SHAPE, "dtype", "op", "backend")}
    return job_of(entry.mask, folder, q_len=args.seq, **sizes, **values)


def changed(default: AnyConfig, changes: Sequence[dict[str, Any]]) -> Named:
    """The default and what differs from it, by what the table calls them."""
    found: Named = {DEFAULT: default}
    for change in changes:
        config = replace(default, **change)
        if config not in found.values():
            found[" ".join(f"{name}={value}" for name, value in change.items())] = config
    return found


@dataclass(frozen=True)
class Processes:
    """Processes that hold the same job on one GPU, and a thread for each."""

    devices: Sequence[GpuDevice]
    threads: ThreadPoolExecutor

    def start(self) -> Start:
        """All at once; what the first one says."""
        return self._all(GpuDevice.start)[0]

    def ready(self) -> None:
        """All at once: inputs, reference, and the default's machine code."""
        self._all(GpuDevice.ready)

    def compare(self, configs: Named, rounds: int) -> dict[str, Entry]:
        """The race, in one process after the other, of what all of them found right."""
        outcomes = self._all(partial(_tried, configs=list(configs.values())))
        columns = dict(zip(configs, zip(*outcomes, strict=True), strict=True))
        failed: dict[str, Entry] = {
            name: {"status": x.status, "reason": x.message}
            for name, found in columns.items()
            for x in found
            if not x.measured
        }
        if DEFAULT in failed:
            raise TuningError(f"the default is {failed[DEFAULT]}")
        good = {name: x for name, x in configs.items() if name not in failed}
        races = [x.race(list(good.values()), rounds).rounds for x in self.devices]
        return entries_of(list(good), races) | failed

    def close(self) -> None:
        """Let go of all."""
        for device in self.devices:
            device.close()

    def _all(self, work: Callable[[GpuDevice], T]) -> list[T]:
        return list(self.threads.map(work, self.devices))


def _tried(device: GpuDevice, configs: Sequence[AnyConfig]) -> list[Outcome]:
    return [device.measure(x, float("inf")) for x in configs]


def entries_of(
    names: Sequence[str], races: Sequence[Sequence[Sequence[float]]]
) -> dict[str, Entry]:
    """By configuration: its time, and its ratio to the first one in each process.

    Args:
        races: milliseconds by process, round, configuration.
    """
    found: dict[str, Entry] = {}
    for i, name in enumerate(names):
        times = timing.Timing(tuple(line[i] for rounds in races for line in rounds), 1)
        ratios = [statistics.median(line[i] / line[0] for line in rounds) for rounds in races]
        found[name] = {
            "status": "ok",
            "ms": round(times.median, 5),
            "iqr": round(times.iqr, 5),
            "ratio": round(statistics.median(ratios), 4),
            "ratios": [round(x, 4) for x in ratios],
        }
    return found


if __name__ == "__main__":
    sys.exit(main())
