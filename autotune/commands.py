"""``maskwright tune merge`` and ``maskwright tune show``."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from maskwright.autotune import merge as merging
from maskwright.autotune import store
from maskwright.autotune.entry import Entry
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.configs import AnyConfig
from maskwright.runtime import cli_render as render
from maskwright.runtime import settings

COLUMNS = ("mask", "kernel", "sizes (log2)", "gpu", "configuration", "ms", "of default", "kind")


def merge(args: Namespace) -> int:
    """``maskwright tune merge A B -o C``."""
    given = merging.collect([Path(path) for path in args.inputs])
    merged = merging.merge(given)
    written = merging.write(merged, Path(args.output))
    if args.json:
        counts = {"given": len(given), "merged": len(merged)}
        render.print_json(counts | {"files": [str(path) for path in written]})
    else:
        print(f"{len(merged)} of {len(given)} configurations in {len(written)} file(s)")
        for path in written:
            print(path)
    return 0


def show(args: Namespace) -> int:
    """``maskwright tune show [PATH ...]``: of the user's cache without paths."""
    cache_dir = settings.current().cache_dir
    if args.inputs:
        found = merging.collect([Path(path) for path in args.inputs])
    else:
        found = store.every_user_entry(cache_dir)
    found = sorted(found, key=lambda entry: (entry.key.canonical, entry.digest))
    where = ", ".join(args.inputs) or str(store.root(cache_dir))
    if args.json:
        render.print_json({"where": where, "entries": [entry.to_dict() for entry in found]})
        return 0
    if found:
        render.print_table(COLUMNS, [_row(entry) for entry in found])
    print(f"{len(found)} tuned configuration(s) in {where}")
    return 0


def _row(entry: Entry) -> list[Any]:
    p, size = entry.key.problem, entry.key.bucket
    return [
        p.slug,
        f"{p.op} {p.template} {p.dtype} {p.head_dim}/{p.value_dim}",
        f"{size.q_len} {size.kv_len} {size.programs} {size.density}",
        *(entry.key.hardware.name, config_text(entry.config)),
        *(entry.result.ms, entry.result.ratio, entry.provenance.kind),
    ]


def config_text(config: AnyConfig) -> str:
    """A configuration in few letters."""
    if isinstance(config, BackwardConfig):
        return f"{config_text(config.queries)} + {config_text(config.keys)}"
    return f"{config.block_m}x{config.block_n} w{config.num_warps} s{config.num_stages} {config.loads[:4]}"
