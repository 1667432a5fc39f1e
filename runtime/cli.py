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
from maskwright.runtime import cli_render as render
from maskwright.runtime import commands

if TYPE_CHECKING:
    Group: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

MASK_HELP = (
    'a text mask "(k <= q) & (q - k < 1024)", a pattern call "a_shape(sink=64, window=1024)", '
    "or file.py:name"
)
EPILOG = """\
MASK is one of
  a text mask      "(k <= q) & ((k < 64) | (q - k < 1024))"
  a pattern call   "a_shape(sink=64, window=1024)"
  a Python name    masks.py:my_mask

Exit codes: 0 done, 1 a check failed, 2 wrong input.
"""
TUNE_COMMANDS = ("tune merge", "tune show")
DTYPES = ("float16", "bfloat16", "float32")


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
    """``tune merge`` and ``tune show`` are commands of their own; ``tune MASK`` takes a mask."""
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
    _check(group)
    _others(group)
    return found


def _demo(group: Group) -> None:
    demo = _command(group, "demo", "four masks from expression to checked kernels", commands.demo)
    demo.add_argument("--output", default="demo_out", help="directory of sources and pictures")
    demo.add_argument("--arch", default="sm_90", help="architecture to cross-compile for")


def _mask_commands(group: Group) -> None:
    show = _command(group, "show", "draw a mask and its tile map", commands.show, mask=True)
    _shape(show, q_len=256)
    _tile(show, "default: 32 tiles a side")
    show.add_argument(
        "--at", type=_pair, metavar="B,H", default=(0, 0), help="which batch and head"
    )
    show.add_argument("--output", help="a .png or .svg file; text on the terminal without it")
    explain = _command(
        group, "explain", "the derived schedule, tiles, density, FLOPs", commands.explain, mask=True
    )
    _shape(explain, q_len=8192)
    _tile(explain, "default: the kernel's own")
    explain.add_argument("--head-dim", type=_positive, default=128)
    explain.add_argument("--arch", default="sm_90", help="whose tile sizes to take; default sm_90")
    emit = _command(group, "emit", "print the generated kernel", commands.emit, mask=True)
    emit.add_argument("--output", help="write to this file instead")
    emit.add_argument("--arch", help="architecture, e.g. sm_80; default: sm_90")
    _kernel(emit)
    build = _command(
        group,
        "build",
        "compile without a GPU; registers, spills, memory",
        commands.build,
        mask=True,
    )
    build.add_argument(
        "--arch", action="append", help="e.g. sm_90; may be repeated (default: sm_80 sm_90 sm_100)"
    )
    _kernel(build)
    tune = _command(group, "tune", "search the fastest configuration", commands.tune, mask=True)
    _shape(tune, q_len=8192)
    tune.add_argument("--budget", type=float, default=60.0, help="seconds")
    merge = _command(group, "tune merge", "join tuned configurations", commands.tune_merge)
    merge.add_argument("inputs", nargs="+", metavar="PATH", help="entry files, or directories")
    merge.add_argument(
        "-o", "--output", required=True, help="a .json file, or a directory: one file a kind there"
    )
    kept = _command(group, "tune show", "list tuned configurations", commands.tune_show)
    kept.add_argument("inputs", nargs="*", metavar="PATH", help="default: the user's cache")


def _check(group: Group) -> None:
    check = _command(
        group,
        "check",
        "compare the generated kernels with float64",
        commands.check,
        mask="?",
    )
    _shape(check, q_len=160)
    check.add_argument("--head-dim", type=_positive, default=64)
    check.add_argument("--dtype", choices=DTYPES, help="default: what the backend does best")
    check.add_argument("--backend", default="auto", help="auto, triton, interpret, reference")
    check.add_argument("--random", type=_positive, metavar="N", help="check N random masks instead")
    check.add_argument("--seconds", type=float, help="with --random: stop after this time")


def _others(group: Group) -> None:
    bench = group.add_parser(
        "bench",
        help="the benchmark harness of a checkout",
        description="Runs python -m benchmarks.bench; all options are passed on.",
        add_help=False,
    )
    bench.set_defaults(run=commands.bench)
    cache = _command(group, "cache", "generated sources on disk", commands.cache_command)
    cache.add_argument("action", choices=("ls", "clear"), nargs="?", default="ls")
    _command(group, "doctor", "versions, GPU, cache, backends and why not", commands.doctor)


def _command(
    group: Group,
    name: str,
    text: str,
    run: commands.Command,
    *,
    mask: bool | str = False,
) -> argparse.ArgumentParser:
    found = group.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    found.set_defaults(run=run)
    found.add_argument("--json", action="store_true", help="print the result as JSON")
    if mask:
        found.add_argument(
            "mask", metavar="MASK", nargs=mask if mask == "?" else None, help=MASK_HELP
        )
    return found


def _shape(found: argparse.ArgumentParser, *, q_len: int) -> None:
    found.add_argument("--q-len", type=_length, default=q_len, help=f"default {q_len}")
    found.add_argument("--kv-len", type=_length, help="default: q_len")
    found.add_argument("--batch", type=_positive, default=1)
    found.add_argument("--heads", type=_positive, help="query heads; default 1")
    found.add_argument("--kv-heads", type=_positive, help="default: heads")
    found.add_argument("--q-offset", type=int, help="position of row 0; default kv_len - q_len")
    found.add_argument("--seed", type=int, default=0, help="of example data")
    found.add_argument(
        "--bind",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="runtime value: an int, a list literal or a .npy file; may be repeated",
    )


def _tile(found: argparse.ArgumentParser, text: str) -> None:
    found.add_argument("--tile", type=_pair, metavar="M,N", help=f"queries, keys of a tile; {text}")


def _kernel(found: argparse.ArgumentParser) -> None:
    found.add_argument("--op", default="forward", choices=("forward", "backward", "decode"))
    found.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    found.add_argument("--head-dim", type=_positive, default=128)


def _pair(text: str) -> tuple[int, int]:
    first, comma, second = text.partition(",")
    if not comma:
        raise argparse.ArgumentTypeError(f"{text!r} is not two numbers such as 128,64")
    return _length(first), _length(second)


def _positive(text: str) -> int:
    value = _length(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _length(text: str) -> int:
    """A count; 4096, 4_096, 4K and 1M are fine."""
    units = {"k": 1024, "m": 1024**2}
    factor = units.get(text[-1:].lower(), 1)
    try:
        value = int(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no count") from None
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value
