"""Options of ``maskwright tune`` and its relatives."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from maskwright.runtime import cli_options as options
from maskwright.runtime import commands

if TYPE_CHECKING:
    from maskwright.runtime.cli_options import Group

SAMPLERS = ("tpe", "random")
HEADS = 16  # where none are given: enough programs to fill a GPU


def add(group: Group) -> None:
    """The commands."""
    tune = options.command(
        group, "tune", "search the fastest configuration", commands.tune, mask=True
    )
    options.shape(tune, q_len=8192, heads=HEADS)
    _search(tune)
    tune.add_argument(
        "--table",
        metavar="PATH",
        help="time every configuration instead; goes on with a .json.gz that is there",
    )
    tune.add_argument("--sample", type=options.positive, default=0, help="with --table: so many")
    catalog = options.command(
        group, "tune --catalog", "tune every pattern that has no entry yet", commands.tune_catalog
    )
    catalog.add_argument("--only", default="", metavar="NAMES", help="e.g. causal,document")
    catalog.add_argument("--again", action="store_true", help="also those that have an entry")
    catalog.add_argument("--q-len", type=options.length, action="append", help="default 8192")
    catalog.add_argument("--heads", type=options.positive, default=HEADS)
    catalog.add_argument("--kv-heads", type=options.positive)
    catalog.add_argument("--batch", type=options.positive, default=1)
    catalog.add_argument("--seed", type=int, default=0, help="of inputs and example data")
    catalog.add_argument(
        "--gpus", type=gpus, metavar="LIST", help="e.g. 0,1,2,3: share the patterns out"
    )
    catalog.add_argument(
        "--untuned", action="store_true", help="without a GPU: heuristic, cost model and compiler"
    )
    catalog.add_argument("--arch", action="append", metavar="ARCH", help="with --untuned: sm_89")
    catalog.add_argument("-o", "--output", metavar="DIR", help="with --untuned: where to")
    _search(catalog)
    replay = options.command(
        group, "tune replay", "search recorded tables on this CPU", commands.tune_replay
    )
    replay.add_argument("inputs", nargs="+", metavar="TABLE", help=".json.gz files, directories")
    replay.add_argument("--searches", type=options.positive, default=50)
    replay.add_argument("--trials", type=options.positive, default=80)
    replay.add_argument("--sampler", choices=SAMPLERS, default="tpe")
    replay.add_argument(
        "--transfer", action="store_true", help="instead: what one length's best loses at another"
    )
    merge = options.command(group, "tune merge", "join tuned configurations", commands.tune_merge)
    merge.add_argument("inputs", nargs="+", metavar="PATH", help="entry files, or directories")
    merge.add_argument(
        "-o", "--output", required=True, help="a .json file, or a directory: one file a kind there"
    )
    kept = options.command(group, "tune show", "list tuned configurations", commands.tune_show)
    kept.add_argument("inputs", nargs="*", metavar="PATH", help="default: the user's cache")


def gpus(text: str) -> tuple[str, ...]:
    """GPUs of this machine: 0,1,2."""
    found = tuple(x.strip() for x in text.split(","))
    numbers = all(x.isdigit() or x.startswith(("GPU-", "MIG-")) for x in found)
    if not numbers or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of different GPUs such as 0,1,2")
    return found


def _search(found: argparse.ArgumentParser) -> None:
    found.add_argument("--budget", type=float, help="seconds; default 60")
    found.add_argument("--trials", type=options.positive, help="candidates at most")
    found.add_argument("--effort", choices=("quick", "standard", "full"), help="15, 60, 600 s")
    found.add_argument("--op", default="forward", choices=("forward", "backward"))
    found.add_argument(
        "--backend", default="auto", choices=("auto", "triton", "gluon", "interpret")
    )
    found.add_argument("--dtype", default="bfloat16", choices=options.DTYPES)
    found.add_argument("--head-dim", type=options.positive, default=128)
    found.add_argument("--value-dim", type=options.positive, help="default: head_dim")
    found.add_argument("--layout", default="heads", choices=("heads", "tokens"))
    found.add_argument("--workers", type=options.positive, default=0, help="compiling processes")
    found.add_argument("--sampler", choices=SAMPLERS, default="tpe", help="who proposes")
    found.add_argument("--dashboard", action="store_true", help="say how to look at the trials")
