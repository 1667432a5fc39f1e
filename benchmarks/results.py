"""Result files: where they lie, what they begin with, how they are written."""

from __future__ import annotations

import datetime
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

from benchmarks import gpu

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDER = Path(__file__).parent / "results"
MODULES = {
    "forward": "benchmarks.bench",
    "training": "benchmarks.train",
    "lists": "benchmarks.lists",
    "head_mix": "benchmarks.head_mix",
    "block_lists": "benchmarks.block_lists",
    "block_lists_training": "benchmarks.block_lists",
    "nsa": "benchmarks.nsa",
    "nsa_training": "benchmarks.nsa",
    "select_cost": "benchmarks.select_cost",
    "host_cost": "benchmarks.host_cost",
    "recompiles": "benchmarks.recompiles",
    "sweep": "benchmarks.sweep",
    "defaults": "benchmarks.defaults",
    "compile_speed": "benchmarks.compile_speed",
}
Result = dict[str, Any]


def header(given: Sequence[str], kind: str) -> Result:
    """What every result file begins with: kind, date, command line, GPU and versions."""
    return {
        "schema": 1,
        "kind": kind,
        "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
        "command": shlex.join(["python", "-m", MODULES[kind], *without_out(given)]),
        "environment": gpu.environment(),
        "cases": [],
    }


def without_out(given: Sequence[str]) -> list[str]:
    """The arguments less ``--out PATH``: it changes no number, and paths are nobody's business."""
    kept: list[str] = []
    for before, word in zip(["", *given], given, strict=False):
        if word != "--out" and before != "--out" and not word.startswith("--out="):
            kept.append(word)
    return kept


def default_path(result: Result, name: str) -> Path:
    """``results/<gpu>/<date>_<name>.json``."""
    return FOLDER / gpu.slug(result["environment"]["gpu"]) / f"{result['date']}_{name}.json"


def write(path: Path, result: Result) -> None:
    """Write the file whole: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    part.replace(path)
