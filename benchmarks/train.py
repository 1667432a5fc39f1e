"""The training table: ``python -m benchmarks.train [--masks ...] [--lengths ...] [--peers ...]``.

Forward and backward together, on the shapes, with the options and by the rules of
``benchmarks.bench``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from benchmarks import bench

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Sequence

    from benchmarks.cases import Case
    from benchmarks.peers import Peer
    from benchmarks.results import Result
    from benchmarks.runner import Options

MASKS = "causal,window,a_shape,strided,document,anchor_document"
PEERS = "maskwright,flex,sdpa_cudnn,sdpa_flash"


def training(case: Case, peers: Mapping[str, Peer], options: Options) -> Result:
    """One case; torch is imported here, not by the parent process."""
    from benchmarks import train_case

    return train_case.run_case(case, peers, options)


PROGRAM = bench.Program("training", __doc__, MASKS, PEERS, training)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all cases and write the result file."""
    return bench.main(arguments, PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
