"""Frozen dataclasses to JSON and back: strict, sorted, the same text for equal values."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import fields
from dataclasses import is_dataclass
from functools import cache
from typing import Any
from typing import Literal
from typing import TypeVar
from typing import get_args
from typing import get_origin
from typing import get_type_hints

from maskwright.dsl.errors import TuningError

T = TypeVar("T")
DIGITS = 4  # of a measured number; more would be noise in a diff


class RecordError(TuningError):
    """Stored data is not what its schema says."""


def canonical(value: Any) -> str:
    """One line of JSON: sorted, no blanks. Equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def pretty(value: Any) -> str:
    """JSON for people and diffs: indented, sorted, with a final newline."""
    return json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n"


def round_floats(record: Any) -> None:
    """Keep four digits of the floats of a frozen dataclass; for its ``__post_init__``."""
    for f in fields(record):
        value = getattr(record, f.name)
        if isinstance(value, float):
            object.__setattr__(record, f.name, float(f"{value:.{DIGITS}g}"))


def from_plain(kind: type[T], data: Any, where: str = "") -> T:
    """The dataclass that ``dataclasses.asdict`` made plain.

    Raises:
        RecordError: a field is missing, unknown, or of another type.
    """
    found: T = _read(kind, data, where or kind.__name__)
    return found


def _read(kind: Any, data: Any, where: str) -> Any:
    origin = get_origin(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return _read_record(kind, data, where)
    if origin is tuple:
        items = _of_type(list, data, where)
        return tuple(_read(get_args(kind)[0], x, f"{where}[{i}]") for i, x in enumerate(items))
    if origin is dict:
        values = _of_type(dict, data, where)
        return {
            str(name): _read(get_args(kind)[1], x, f"{where}.{name}") for name, x in values.items()
        }
    if origin is types.UnionType:
        return None if data is None else _read(get_args(kind)[0], data, where)
    if origin is Literal:
        if data not in get_args(kind):
            raise RecordError(f"{where} is {data!r}, not one of {', '.join(get_args(kind))}")
        return data
    if kind is Any:
        return data
    if kind is float and type(data) is int:
        return float(data)
    return _of_type(kind, data, where)


def _read_record(kind: Any, data: Any, where: str) -> Any:
    values = _of_type(dict, data, where)
    hints = _hints(kind)
    different = sorted(hints.keys() ^ values.keys())
    if different:
        raise RecordError(f"{where}: missing or unknown {', '.join(map(str, different))}")
    return kind(
        **{name: _read(hint, values[name], f"{where}.{name}") for name, hint in hints.items()}
    )


def _of_type(kind: type, data: Any, where: str) -> Any:
    if type(data) is not kind:
        raise RecordError(f"{where} is {type(data).__name__}, not {kind.__name__}")
    return data


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind) if f.init}
