"""``maskwright tune`` and its relatives: arguments in, text or JSON out, exit code back."""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

from maskwright.autotune import merge as merging
from maskwright.autotune import store
from maskwright.autotune.entry import Entry
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.configs import AnyConfig
from maskwright.codegen.gluon import GluonTemplate
from maskwright.dsl.errors import TuningError
from maskwright.patterns.catalog import CatalogEntry
from maskwright.runtime import cli_render as render
from maskwright.runtime import settings

if TYPE_CHECKING:
    from maskwright.autotune.table import Table

FAILED = 1
COLUMNS = ("mask", "kernel", "sizes (log2)", "gpu", "configuration", "ms", "of default", "kind")


def tune(args: Namespace, mask: Any, sizes: dict[str, Any]) -> int:
    """``maskwright tune MASK``; 1 if a candidate computed wrong numbers."""
    from maskwright.autotune import tune as tuning
    from maskwright.autotune.ask import budget_of

    sizes |= _of_kernel(args) | {"seed": args.seed}
    if args.table:
        return _record(args, mask, sizes)
    limits = budget_of(args.budget, args.trials, args.effort)
    found = tuning.tune(mask, limits, _options(args), **sizes)
    if args.json:
        render.print_json(found.to_dict())
    else:
        print(found)
    if args.dashboard:
        shared = settings.current().tune_storage
        journals = sorted(found.folder.glob("*.journal")) if found.folder is not None else []
        for place in ["$MASKWRIGHT_TUNE_STORAGE"] if shared else journals:
            render.note(f"pip install optuna-dashboard; optuna-dashboard {place}")
    return FAILED if found.wrong else 0


def _record(args: Namespace, mask: Any, sizes: dict[str, Any]) -> int:
    """``maskwright tune MASK --table PATH``; a file that is there is gone on with."""
    from maskwright.autotune import tune as tuning
    from maskwright.autotune.table import Table

    path, seconds = Path(args.table), args.budget or 280.0
    known = Table.read(path) if path.exists() else None
    table = tuning.record_table(mask, seconds, args.sample, _options(args), known, **sizes)
    table.write(path)
    counts = Counter(row.status for row in table.rows)
    timed = sum(bool(row.ratio) for row in table.rows)
    told = {"path": str(path), "points": table.points, "rows": len(table.rows), "timed": timed}
    if args.json:
        render.print_json(told | {"status": counts, "best": table.best.to_dict()})
        return 0
    print(f"{path}: {len(table.rows)} of {table.points} configurations, {timed} with times")
    print(", ".join(f"{count} {status}" for status, count in sorted(counts.items())))
    row = table.by_config[table.best]
    print(f"best {table.best}: {row.median:.3f} of the default's {table.ms:.3f} ms")
    return FAILED if counts["wrong"] else 0


def tune_catalog(args: Namespace) -> int:
    """``maskwright tune --catalog``; 1 if something failed or computed wrong numbers."""
    from maskwright.autotune import catalog_run
    from maskwright.autotune import farm

    run = catalog_run.CatalogRun.of(args)
    if args.untuned:
        return _untuned(args, run.masks())
    if args.gpus:
        results = farm.tune_on(run, args.gpus, quiet=args.json)
    else:
        results = catalog_run.one_by_one(run, quiet=args.json, note=render.note)
    if args.json:
        render.print_json(results)
    else:
        names = ("name", "q_len", "ms", "ratio", "reason", "failed")
        render.print_table(names, [[x.get(name, "") for name in names] for x in results])
    return FAILED if any("failed" in x or x.get("wrong") for x in results) else 0


def _untuned(args: Namespace, masks: list[CatalogEntry]) -> int:
    """``maskwright tune --catalog --untuned --arch ARCH -o DIR``: both ops, heads of 64 and 128."""
    from maskwright.autotune import untuned

    if not args.arch or not args.output:
        raise TuningError("--untuned takes --arch and -o", fix="--arch sm_89 -o configs/untuned")
    found = untuned.write(args.arch, masks, Path(args.output), render.note)
    if args.json:
        render.print_json([entry.to_dict() for entry in found])
        return 0
    names = ("gpu", "op", "head_dim", "mask", "configuration", "of the model")
    rows = [(x.key.hardware.arch, x.key.problem, x.config, x.cost_rank) for x in found]
    table = [[arch, p.op, p.head_dim, p.slug, config_text(c), n] for arch, p, c, n in rows]
    render.print_table(names, table)
    return 0


def replay(args: Namespace) -> int:
    """``maskwright tune replay TABLE ...``."""
    from maskwright.autotune.replay import replay as run
    from maskwright.autotune.table import Table

    paths = [file for x in args.inputs for file in _tables(Path(x))]
    if args.transfer:
        return _transfer(args, {str(path): Table.read(path) for path in paths})
    results = []
    with render.progress(len(paths), quiet=args.json) as steps:
        for path in paths:
            steps.step(path.name)
            found = run(
                Table.read(path), path.name, args.searches, args.trials, sampler=args.sampler
            )
            results.append(found.to_dict())
    if args.json:
        render.print_json(results)
    else:
        for result in results:
            render.print_pairs(result)
    return 0


def _transfer(args: Namespace, tables: dict[str, Table]) -> int:
    """``maskwright tune replay --transfer TABLE TABLE ...``."""
    from maskwright.autotune import transfer

    found = transfer.transfers(tables)
    if args.json:
        told = {**transfer.summary(found), "transfers": [x.to_dict() for x in found]}
        render.print_json(told)
        return 0
    names = ("source", "target", "common", "loss", "default")
    render.print_table(names, [[getattr(x, name) for name in names] for x in found])
    render.print_pairs(transfer.summary(found))
    return 0


def _tables(path: Path) -> list[Path]:
    return sorted(path.glob("*.json.gz")) if path.is_dir() else [path]


def _of_kernel(args: Namespace) -> dict[str, Any]:
    names = ("op", "backend", "dtype", "head_dim", "value_dim", "layout")
    return {name: getattr(args, name) for name in names}


def _options(args: Namespace) -> Any:
    from maskwright.autotune.tune import Options

    return Options(args.json, workers=args.workers, sampler=args.sampler)


def merge(args: Namespace) -> int:
    """``maskwright tune merge A B -o C``."""
    given = merging.collect([Path(path) for path in args.inputs])
    output = Path(args.output)
    merged = merging.fitting(merging.merge(given), output)
    written = merging.write(merged, output)
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
        parts = f", {config.parts} parts" if config.parts > 1 else ""
        return f"{config_text(config.queries)} + {config_text(config.keys)}{parts}"
    if isinstance(config, GluonTemplate):
        chosen = {name: x for name, x in config.to_dict().items() if x not in (False, 0, "none")}
        return " ".join(f"{name} {x}" for name, x in chosen.items())
    heads = f"x{config.heads}" if config.heads > 1 else ""
    shape = f"{config.block_m}{heads}x{config.block_n}"
    return f"{shape} w{config.num_warps} s{config.num_stages} {config.loads[:4]}"
