"""Try kernel configs on one mask: ``python -m benchmarks.sweep --mask causal --block-m 64,128``.

Every config is checked like any contestant, and the right ones are timed in turn, in one process.
Gluon configs are given as lists of values by name: ``--gluon '{"bulk_store": [true, false]}'``, and
``--gluon-backward`` likewise, which times training steps.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

from benchmarks import cases
from benchmarks import child
from benchmarks import results
from benchmarks import runner
from benchmarks.bench import add_shape
from benchmarks.peers import PEERS
from benchmarks.peers import Peer
from benchmarks.peers import Prepared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from benchmarks.results import Result
    from maskwright.codegen.configs import AnyConfig


@dataclass(frozen=True)
class Configured:
    """maskwright with given configs.

    Attributes:
        name: what the table calls it.
        configs: of the kernels.
        backend: of the call.
        deadline: configs that come up after this moment (``time.monotonic``) are skipped.
    """

    name: str
    configs: tuple[AnyConfig, ...]
    backend: str
    deadline: float

    def available(self) -> str | None:
        """Within the time budget only."""
        return None if time.monotonic() < self.deadline else "time budget spent"

    def supports(self, case: cases.Case) -> str | None:
        """Every mask."""
        return None

    def prepare(self, case: cases.Case, tensors: cases.Tensors) -> Prepared:
        """Compile the mask with these configs."""
        import maskwright as mw

        print(f"  {self.name}", file=sys.stderr, flush=True)
        attend = mw.compile(case.mask)
        for config in self.configs:
            attend = attend.with_config(config)

        def call() -> Tensor:
            return attend(*tensors, backend=self.backend, **case.bindings)

        return Prepared(call)


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep one case, write the result file, print the configs from fast to slow."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser().parse_args(given)
    shape = cases.Shape(args.batch, args.heads, args.kv_heads, args.seq, args.head_dim, args.dtype)
    case = cases.build(args.mask, shape, args.device)
    options = runner.Options(args.rounds, args.target_ms, args.device)
    compile_ahead(args, given)
    result = results.header(given, "sweep")
    result["cases"] = [run_case(args, case, contestants(args), options)]
    path = args.out or results.default_path(result, f"sweep_{args.mask}_{args.seq}")
    results.write(path, result)
    print(f"wrote {path}", file=sys.stderr)

    from benchmarks.report import show

    show(result)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    found.add_argument("--mask", default="causal", choices=tuple(cases.CASES))
    found.add_argument("--seq", type=int, default=8192)
    found.add_argument("--block-m", default="64,128")
    found.add_argument("--block-n", default="32,64,128")
    found.add_argument("--warps", default="4,8")
    found.add_argument("--stages", default="2,3,4")
    found.add_argument("--loads", default="pointer,descriptor")
    found.add_argument("--gluon", type=json.loads, help="values of fields of GluonConfig, as JSON")
    found.add_argument("--gluon-backward", type=json.loads, help="the same of GluonBackwardConfig")
    found.add_argument("--training", action="store_true", help="time forward and backward")
    found.add_argument("--jobs", type=int, default=0, help="processes that compile ahead")
    found.add_argument("--part", default="", help=argparse.SUPPRESS)  # I/N: of such a process
    found.add_argument("--beside", default="", help="peers to time in turn with the configs")
    found.add_argument("--budget", type=float, default=300.0, help="seconds for new configs")
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--target-ms", type=float, default=20.0)
    found.add_argument("--out", type=Path, default=None)
    found.add_argument("--device", default="cuda")
    add_shape(found)
    return found


def run_case(
    args: argparse.Namespace, case: cases.Case, peers: dict[str, Peer], options: runner.Options
) -> Result:
    """Forward passes, or training steps."""
    if not args.training and args.gluon_backward is None:
        return runner.run_case(case, peers, options)
    from benchmarks import train_case

    return train_case.run_case(case, peers, options)


def compile_ahead(args: argparse.Namespace, given: Sequence[str]) -> None:
    """Fill Triton's cache from several processes: one compiles a grid at a config a few seconds."""
    if args.jobs < 2 or args.part:
        return
    command = [sys.executable, "-m", "benchmarks.sweep", *given, "--rounds=1", "--target-ms=1"]
    with tempfile.TemporaryDirectory() as folder:
        children = [
            subprocess.Popen(
                [*command, "--seq=1024", f"--part={i}/{args.jobs}", f"--out={folder}/{i}.json"],
                env=child.environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            for i in range(args.jobs)
        ]
        end = time.monotonic() + args.budget
        for process in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
            child.end_group(process)


def contestants(args: argparse.Namespace) -> dict[str, Peer]:
    """The peers beside, then all configs of the grid."""
    deadline = time.monotonic() + args.budget
    beside = {name: PEERS[name] for name in args.beside.split(",") if name}
    configured = [Configured(*x, deadline) for x in grid(args)]
    if args.part:
        first, step = map(int, args.part.split("/"))
        configured, beside = configured[first::step], {}
    return beside | {peer.name: peer for peer in configured}


Named = tuple[str, "tuple[AnyConfig, ...]", str]


def grid(args: argparse.Namespace) -> list[Named]:
    """Name, configs and backend of all combinations of the lists on the command line."""
    if args.gluon is not None or args.gluon_backward is not None:
        return gluon_grid(args)
    from maskwright.codegen.config import KernelConfig

    columns = [_numbers(x) for x in (args.block_m, args.block_n, args.warps, args.stages)]
    configs = [
        KernelConfig(block_m=m, block_n=n, num_warps=warps, num_stages=stages, loads=loads)
        for m, n, warps, stages in itertools.product(*columns)
        for loads in args.loads.split(",")
    ]
    return [
        (f"{c.block_m}x{c.block_n} w{c.num_warps} s{c.num_stages} {c.loads}", (c,), "auto")
        for c in configs
    ]


def gluon_grid(args: argparse.Namespace) -> list[Named]:
    """Combinations of Gluon configs; fields that are not given stay as the heuristic has them."""
    from maskwright.codegen.gluon import default_gluon
    from maskwright.codegen.gluon_backward import default_gluon_backward

    sizes = args.head_dim, args.head_dim
    columns = [
        [(given, replace(default, **given)) for given in combinations(fields or {})]
        for fields, default in (
            (args.gluon, default_gluon(*sizes)),
            (args.gluon_backward, default_gluon_backward(*sizes)),
        )
    ]
    found: list[Named] = []
    for (of_forward, forward), (of_backward, backward) in itertools.product(*columns):
        given = of_forward | {f"backward {name}": x for name, x in of_backward.items()}
        text = " ".join(f"{name}={x}" for name, x in given.items())
        found.append((f"gluon {text}".strip(), (forward, backward), "gluon"))
    return found


def combinations(fields: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Every choice of one value a field."""
    return [dict(zip(fields, x, strict=True)) for x in itertools.product(*fields.values())]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
