"""Try kernel configs on one mask: ``python -m benchmarks.sweep --mask causal --block-m 64,128``.

Every config is checked like any contestant, and the right ones are timed in turn, in one process.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import cases
from benchmarks import results
from benchmarks import runner
from benchmarks.bench import add_shape
from benchmarks.peers import PEERS
from benchmarks.peers import Peer
from benchmarks.peers import Prepared

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from maskwright.codegen.config import KernelConfig


@dataclass(frozen=True)
class Configured:
    """maskwright with a given config.

    Attributes:
        config: the kernel's config.
        deadline: configs that come up after this moment (``time.monotonic``) are skipped.
    """

    config: KernelConfig
    deadline: float

    @property
    def name(self) -> str:
        """Such as ``128x64 w4 s2 descriptor``."""
        c = self.config
        return f"{c.block_m}x{c.block_n} w{c.num_warps} s{c.num_stages} {c.loads}"

    def available(self) -> str | None:
        """Within the time budget only."""
        return None if time.monotonic() < self.deadline else "time budget spent"

    def supports(self, case: cases.Case) -> str | None:
        """Every mask."""
        return None

    def prepare(self, case: cases.Case, tensors: cases.Tensors) -> Prepared:
        """Compile the mask with this config."""
        import maskwright as mw

        print(f"  {self.name}", file=sys.stderr, flush=True)
        attend = mw.compile(case.mask).with_config(self.config)

        def call() -> Tensor:
            return attend(*tensors, **case.bindings)

        return Prepared(call)


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep one case, write the result file, print the configs from fast to slow."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser().parse_args(given)
    shape = cases.Shape(args.batch, args.heads, args.kv_heads, args.seq, args.head_dim, args.dtype)
    case = cases.build(args.mask, shape, args.device)
    options = runner.Options(args.rounds, args.target_ms, args.device)
    result = results.header(given, "sweep")
    result["cases"] = [runner.run_case(case, contestants(args), options)]
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
    found.add_argument("--beside", default="", help="peers to time in turn with the configs")
    found.add_argument("--budget", type=float, default=300.0, help="seconds for new configs")
    found.add_argument("--rounds", type=int, default=5)
    found.add_argument("--target-ms", type=float, default=20.0)
    found.add_argument("--out", type=Path, default=None)
    found.add_argument("--device", default="cuda")
    add_shape(found)
    return found


def contestants(args: argparse.Namespace) -> dict[str, Peer]:
    """The peers beside, then all configs of the grid."""
    deadline = time.monotonic() + args.budget
    beside = {name: PEERS[name] for name in args.beside.split(",") if name}
    configured = [Configured(config, deadline) for config in grid(args)]
    return beside | {peer.name: peer for peer in configured}


def grid(args: argparse.Namespace) -> list[KernelConfig]:
    """All combinations of the lists on the command line."""
    from maskwright.codegen.config import KernelConfig

    columns = [_numbers(x) for x in (args.block_m, args.block_n, args.warps, args.stages)]
    return [
        KernelConfig(block_m=m, block_n=n, num_warps=warps, num_stages=stages, loads=loads)
        for m, n, warps, stages in itertools.product(*columns)
        for loads in args.loads.split(",")
    ]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
