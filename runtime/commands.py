"""One function a command: arguments in, text or JSON out, exit code back.

torch, triton and the compiler are loaded by the commands that need them.
"""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any
from typing import TypeAlias

import maskwright
from maskwright.dsl.errors import MaskwrightError
from maskwright.runtime import cache
from maskwright.runtime import cli_render as render
from maskwright.runtime.cli_mask import MaskArgument
from maskwright.runtime.cli_mask import Shape
from maskwright.runtime.cli_mask import read_bindings
from maskwright.runtime.cli_mask import read_mask

Command: TypeAlias = Callable[[Namespace], int]

ARCHES = ("sm_80", "sm_90", "sm_100")
FAILED = 1
BUILD_COLUMNS = (
    *("arch", "kernel", "registers", "stack_bytes", "spills", "shared_bytes", "shared_limit"),
    *("num_warps", "cubin_bytes", "seconds"),
)


def demo(args: Namespace) -> int:
    """``maskwright demo``."""
    from maskwright.runtime import demo as program

    return program.run(Path(args.output), arch=args.arch, as_json=args.json)


def show(args: Namespace) -> int:
    """``maskwright show MASK``."""
    argument, shape, bindings = _inputs(args)
    if not (args.at[0] < shape.batch and args.at[1] < shape.heads):
        raise MaskwrightError(
            f"there is no batch entry and head {args.at[0]},{args.at[1]}",
            fix=f"--at up to {shape.batch - 1},{shape.heads - 1}, or larger --batch and --heads",
        )
    side = max(1, -(-max(shape.q_len, shape.kv_len) // 32))
    options = {"path": args.output, "tile": args.tile or (side, side), "at": args.at}
    made = maskwright.draw(argument.mask, **options, **_sizes(args, shape), **bindings)
    if args.json:
        key = "path" if args.output else "text"
        render.print_json({"mask": str(argument.mask), key: str(made)})
    elif args.output:
        print(f"wrote {args.output}")
    else:
        print(made)
    return 0


def explain(args: Namespace) -> int:
    """``maskwright explain MASK``."""
    argument, shape, bindings = _inputs(args)
    options = {"tile": args.tile, "head_dim": args.head_dim, "arch": args.arch}
    found = maskwright.explain(argument.mask, **options, **_sizes(args, shape), **bindings)
    if args.json:
        render.print_json({"mask": str(argument.mask), **found.to_dict()})
    else:
        print(found)
    return 0


def emit(args: Namespace) -> int:
    """``maskwright emit MASK``."""
    argument = read_mask(args.mask)
    text = _source(args, argument, args.arch)
    if args.output:
        _write(Path(args.output), text)
    if args.json:
        where = {"path": args.output} if args.output else {"source": text}
        render.print_json({"mask": str(argument.mask), "op": args.op, **where})
    elif args.output:
        print(f"wrote {args.output}")
    else:
        print(text, end="" if text.endswith("\n") else "\n")
    return 0


def build(args: Namespace) -> int:
    """``maskwright build MASK --arch sm_90``."""
    from maskwright.runtime.cross import cross_compile

    argument = read_mask(args.mask)
    arches = args.arch or ARCHES
    results: list[dict[str, Any]] = []
    with render.progress(len(arches), quiet=args.json) as steps:
        for arch in arches:
            steps.step(f"compiling for {arch}")
            options = {"op": args.op, "dtype": args.dtype, "head_dim": args.head_dim}
            results += [x.to_dict() for x in cross_compile(argument.mask, arch, **options)]
    if args.json:
        render.print_json({"mask": str(argument.mask), "builds": results})
    else:
        render.print_table(
            [name.replace("_", " ") for name in BUILD_COLUMNS],
            [[result[name] for name in BUILD_COLUMNS] for result in results],
        )
    return 0


def check(args: Namespace) -> int:
    """``maskwright check MASK`` and ``maskwright check --random N``."""
    if args.random:
        return _check_random(args)
    if args.mask is None:
        raise MaskwrightError("check needs a MASK, or --random N", fix="maskwright check --help")
    argument, shape, bindings = _inputs(args)
    options = {"head_dim": args.head_dim, "backend": args.backend, "seed": args.seed}
    options |= {} if args.dtype is None else {"dtype": args.dtype}
    report = maskwright.check(argument.mask, **_sizes(args, shape), **options, **bindings)
    if args.json:
        render.print_json({"mask": str(argument.mask), **report.to_dict()})
    else:
        print(report)
    return 0 if report.ok else FAILED


def _check_random(args: Namespace) -> int:
    from maskwright.runtime import fuzz

    found = fuzz.run(args.random, args.seconds, args.seed, args.backend)
    if args.json:
        render.print_json(found.to_dict())
    else:
        print(found)
    return 0 if found.ok else FAILED


def tune(args: Namespace) -> int:
    """``maskwright tune MASK``."""
    from maskwright.autotune import commands

    argument, shape, bindings = _inputs(args)
    return commands.tune(args, argument.mask, {**_sizes(args, shape), **bindings})


def tune_catalog(args: Namespace) -> int:
    """``maskwright tune --catalog``."""
    from maskwright.autotune import commands

    return commands.tune_catalog(args)


def tune_replay(args: Namespace) -> int:
    """``maskwright tune replay TABLE ...``."""
    from maskwright.autotune import commands

    return commands.replay(args)


def tune_merge(args: Namespace) -> int:
    """``maskwright tune merge A B -o C``."""
    from maskwright.autotune import commands

    return commands.merge(args)


def tune_show(args: Namespace) -> int:
    """``maskwright tune show``."""
    from maskwright.autotune import commands

    return commands.show(args)


def bench(args: Namespace) -> int:
    """``maskwright bench``: runs the harness that comes with a checkout, not with a wheel."""
    root = Path(maskwright.__file__).resolve().parent.parent
    if not (root / "benchmarks" / "bench.py").is_file():
        raise MaskwrightError(
            "the benchmarks are not part of the installed package",
            fix="run `maskwright bench` in a checkout (pip install --editable .)",
        )
    command = [sys.executable, "-m", "benchmarks.bench", *args.extra]
    return subprocess.run(command, cwd=root, check=False).returncode


def cache_command(args: Namespace) -> int:
    """``maskwright cache ls|clear``."""
    where = cache.directory()
    if args.action == "clear":
        count = cache.clear()
        result: dict[str, Any] = {"directory": str(where), "removed": count}
        return _print(args, result, f"removed {count} file(s) below {where.parent}")
    found = cache.entries()
    if args.json:
        rows = [{"name": e.name, "size": e.size, "modified": e.modified} for e in found]
        render.print_json({"directory": str(where), "entries": rows})
        return 0
    if found:
        render.print_table(["name", "bytes"], [[e.name, e.size] for e in found])
    print(f"{len(found)} file(s), {sum(e.size for e in found):,} bytes in {where}")
    return 0


def doctor(args: Namespace) -> int:
    """``maskwright doctor``."""
    from maskwright.runtime import doctor as program

    found = program.examine()
    if args.json:
        render.print_json(found)
    else:
        render.print_pairs(program.flat(found))
    return 0


# -- shared -------------------------------------------------------------------------------------
def _inputs(args: Namespace) -> tuple[MaskArgument, Shape, dict[str, Any]]:
    argument = read_mask(args.mask)
    heads = args.heads or args.kv_heads or 1
    kv_len = args.q_len if args.kv_len is None else args.kv_len
    shape = Shape(args.batch, heads, args.kv_heads or heads, args.q_len, kv_len)
    bindings, notes = read_bindings(argument, args.bind, shape, args.seed)
    for text in notes:
        render.note(text)
    return argument, shape, bindings


def _sizes(args: Namespace, shape: Shape) -> dict[str, Any]:
    found: dict[str, Any] = dict(vars(shape))
    if args.q_offset is not None:
        found["q_offset"] = args.q_offset
    return found


def _source(args: Namespace, argument: MaskArgument, arch: str | None) -> str:
    options = {"op": args.op, "dtype": args.dtype, "head_dim": args.head_dim}
    text: str = maskwright.source(argument.mask, arch=arch, **options)
    return text


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise MaskwrightError(f"cannot write {path}: {error.strerror}") from error


def _print(args: Namespace, result: dict[str, Any], text: str) -> int:
    if args.json:
        render.print_json(result)
    else:
        print(text)
    return 0
