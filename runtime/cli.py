"""The command line: options only; ``commands`` does the work."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import TypeAlias

from maskwright import __version__
from maskwright.dsl.errors import MaskwrightError
from maskwright.runtime import cli_options as options
from maskwright.runtime import cli_render as render
from maskwright.runtime import cli_tune
from maskwright.runtime import commands

if TYPE_CHECKING:
    Group: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

EPILOG = """\
MASK is one of
  a text mask      "(k <= q) & ((k < 64) | (q - k < 1024))"
  a pattern call   "a_shape(sink=64, window=1024)"
  a Python name    masks.py:my_mask

Exit codes: 0 done, 1 a check failed, 2 wrong input.
"""
TUNE_COMMANDS = ("tune merge", "tune show", "tune replay", "tune --catalog")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    found = parser()
    args, extra = found.parse_known_args(_joined(sys.argv[1:] if arguments is None else arguments))
    if extra and args.command != "bench":  # the harness has options of its own
        found.error(f"unrecognized arguments: {' '.join(extra)}")
    args.extra = extra
    try:
        with render.plain_warnings():
            code: int = args.run(args)
        sys.stdout.flush()
    except MaskwrightError as error:
        print(f"maskwright: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `maskwright emit ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def _joined(arguments: Sequence[str]) -> Sequence[str]:
    """``tune merge`` and the like are commands of their own; ``tune MASK`` takes a mask."""
    pair = " ".join(arguments[:2])
    return [pair, *arguments[2:]] if pair in TUNE_COMMANDS else arguments


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    found = argparse.ArgumentParser(
        prog="maskwright",
        description="Write an attention mask as a formula, get the kernel.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("--version", action="version", version=f"maskwright {__version__}")
    group = found.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _demo(group)
    _mask_commands(group)
    cli_tune.add(group)
    _check(group)
    _others(group)
    return found


def _demo(group: Group) -> None:
    demo = options.command(
        group, "demo", "four masks from expression to checked kernels", commands.demo
    )
    demo.add_argument("--output", default="demo_out", help="directory of sources and pictures")
    demo.add_argument("--arch", default="sm_90", help="architecture to cross-compile for")


def _mask_commands(group: Group) -> None:
    show = options.command(group, "show", "draw a mask and its tile map", commands.show, mask=True)
    options.shape(show, q_len=256)
    options.tile(show, "default: 32 tiles a side")
    show.add_argument(
        "--at", type=options.pair, metavar="B,H", default=(0, 0), help="which batch and head"
    )
    show.add_argument("--output", help="a .png or .svg file; text on the terminal without it")
    explain = options.command(
        group, "explain", "the derived schedule, tiles, density, FLOPs", commands.explain, mask=True
    )
    options.shape(explain, q_len=8192)
    options.tile(explain, "default: the kernel's own")
    explain.add_argument("--head-dim", type=options.positive, default=128)
    explain.add_argument("--arch", default="sm_90", help="whose tile sizes to take; default sm_90")
    emit = options.command(group, "emit", "print the generated kernel", commands.emit, mask=True)
    emit.add_argument("--output", help="write to this file instead")
    emit.add_argument("--arch", help="architecture, e.g. sm_80; default: sm_90")
    options.kernel(emit)
    build = options.command(
        group,
        "build",
        "compile without a GPU; registers, spills, memory",
        commands.build,
        mask=True,
    )
    build.add_argument(
        "--arch", action="append", help="e.g. sm_90; may be repeated (default: sm_80 sm_90 sm_100)"
    )
    options.kernel(build)


def _check(group: Group) -> None:
    check = options.command(
        group,
        "check",
        "compare the generated kernels with float64",
        commands.check,
        mask="?",
    )
    options.shape(check, q_len=160)
    check.add_argument("--head-dim", type=options.positive, default=64)
    check.add_argument(
        "--dtype", choices=options.DTYPES, help="default: what the backend does best"
    )
    check.add_argument("--backend", default="auto", help="auto, triton, interpret, reference")
    check.add_argument(
        "--random", type=options.positive, metavar="N", help="check N random masks instead"
    )
    check.add_argument("--seconds", type=float, help="with --random: stop after this time")


def _others(group: Group) -> None:
    bench = group.add_parser(
        "bench",
        help="the benchmark harness of a checkout",
        description="Runs python -m benchmarks.bench; all options are passed on.",
        add_help=False,
    )
    bench.set_defaults(run=commands.bench)
    cache = options.command(group, "cache", "generated sources on disk", commands.cache_command)
    cache.add_argument("action", choices=("ls", "clear"), nargs="?", default="ls")
    options.command(group, "doctor", "versions, GPU, cache, backends and why not", commands.doctor)
