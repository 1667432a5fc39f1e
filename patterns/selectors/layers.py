"""The choices of a search in a JSON file: for each layer, for each query head, a pattern.

{"format": "maskwright heads", "version": 1, "layers": [[
    {"pattern": "a_shape", "sink": 100, "window": 800, "recall": 0.97, "share": 0.05}, ...], ...]}
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import fields
from pathlib import Path
from typing import Any

from maskwright.dsl.errors import MaskError
from maskwright.patterns.selectors.candidates import KINDS
from maskwright.patterns.selectors.candidates import Candidate
from maskwright.patterns.selectors.search import Head
from maskwright.patterns.selectors.search import Layer

FORMAT = "maskwright heads"
VERSION = 1


def write(path: str | Path, layers: Sequence[Layer]) -> None:
    """Write the file whole: a reader never sees half of it."""
    text = json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "layers": [[_record(head) for head in layer] for layer in layers],
        },
        indent=1,
        allow_nan=False,
    )
    path = Path(path)
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(text + "\n")
    part.replace(path)


def read(path: str | Path) -> tuple[Layer, ...]:
    """The layers of a file.

    Raises:
        MaskError: if it is no such file, of another version, or names what does not exist.
    """
    try:
        found = json.loads(Path(path).read_text())
    except ValueError as error:
        raise MaskError(f"this is no JSON: {error}", expression=str(path)) from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise MaskError("this is no file of heads", expression=str(path))
    if found.get("version") != VERSION:
        raise MaskError(
            f"files of version {VERSION} are read, this is {found.get('version')}",
            expression=str(path),
            fix="search again",
        )
    layers = found.get("layers")
    if not isinstance(layers, list) or not all(isinstance(x, list) and x for x in layers):
        raise MaskError("layers is a list of lists of heads", expression=str(path))
    return tuple(tuple(_head(record) for record in layer) for layer in layers)


def _record(head: Head) -> dict[str, Any]:
    sizes = asdict(head.pattern)
    rounded = {"recall": round(head.recall, 6), "share": round(head.share, 6)}
    return {"pattern": head.pattern.name, **sizes, **rounded}


def _head(record: Any) -> Head:
    if not isinstance(record, dict) or record.get("pattern") not in list(KINDS):
        known = ", ".join(KINDS)
        raise MaskError("a head names a pattern", expression=str(record), fix=f"one of {known}")
    return Head(_pattern(record), *(_number(record, name) for name in ("recall", "share")))


def _pattern(record: dict[str, Any]) -> Candidate:
    kind = KINDS[record["pattern"]]
    sizes = {name: x for name, x in record.items() if name not in ("pattern", "recall", "share")}
    names = {x.name for x in fields(kind)}
    if set(sizes) != names or any(type(x) is not int or x < 0 for x in sizes.values()):
        raise MaskError(
            f"{record['pattern']} has the sizes {', '.join(sorted(names)) or 'none'}, not negative",
            expression=str(record),
        )
    return kind(**sizes)


def _number(record: dict[str, Any], name: str) -> float:
    value: Any = record.get(name)
    if type(value) not in (int, float) or not math.isfinite(value):
        raise MaskError(f"{name} is a number", expression=str(record))
    return float(value)
