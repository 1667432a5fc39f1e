"""All settings: one frozen dataclass, one environment variable a field.

``current()`` reads the environment; ``override`` and ``debug`` change settings for a block of code.
Run this file as a module to print the table of ``docs/settings.md``.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from dataclasses import field
from dataclasses import fields
from dataclasses import replace
from pathlib import Path
from typing import Any
from typing import Literal
from typing import TypeAlias
from typing import get_args

from maskwright.dsl.errors import MaskwrightError

DebugTopic: TypeAlias = Literal["mask", "schedule", "plan", "source", "ptx", "tune"]
TuneMode: TypeAlias = Literal["off", "use", "on"]
BackendName: TypeAlias = Literal["auto", "gluon", "triton", "interpret", "reference"]

_PREFIX = "MASKWRIGHT_"
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("", "0", "false", "no", "off")


class SettingsError(MaskwrightError):
    """A setting, or the environment variable behind it, has a value that is not allowed."""


def _default_cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or ""
    # The base directory specification says to ignore relative paths.
    root = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~")) / ".cache"
    return root / "maskwright"


def _doc(text: str, values: str) -> dict[str, str]:
    return {"doc": text, "values": values}


@dataclass(frozen=True)
class Settings:
    """What can be set from outside. Tuned values (tile sizes, ...) are not settings.

    Every field can be given as ``MASKWRIGHT_<FIELD>`` in the environment.
    """

    cache_dir: Path = field(
        default_factory=_default_cache_dir,
        metadata=_doc(
            "Directory of generated kernel sources; one folder a version below it.",
            "a path (default: `maskwright` in the user's cache directory)",
        ),
    )
    debug: frozenset[DebugTopic] = field(
        default=frozenset(),
        metadata=_doc(
            "Stages of the compiler to print to stderr while they run.",
            "comma list of " + ", ".join(f"`{t}`" for t in get_args(DebugTopic)),
        ),
    )
    tune: TuneMode = field(
        default="use",
        metadata=_doc(
            "`off`: heuristics only; `use`: kernels made from now on take tuned configurations that "
            "exist; `on`: and search missing ones first (15 s each, on a GPU, in one process alone).",
            ", ".join(f"`{t}`" for t in get_args(TuneMode)),
        ),
    )
    tune_storage: str = field(
        default="",
        metadata=_doc(
            "Database where machines with the same GPUs share each search; a journal on disk without one.",
            "a URL: `postgresql+psycopg://USER@HOST/DATABASE`",
        ),
    )
    strict: bool = field(
        default=False,
        metadata=_doc(
            "Raise `StrictError` where a mask has no closed form and would take the general path.",
            "`0`, `1`",
        ),
    )
    backend: BackendName = field(
        default="auto",
        metadata=_doc(
            'Backend of calls that leave `backend="auto"`.',
            ", ".join(f"`{t}`" for t in get_args(BackendName)),
        ),
    )
    verify: bool = field(
        default=False,
        metadata=_doc(
            "Reserved: checks of the compiler's intermediate forms; no effect in this version.",
            "`0`, `1`",
        ),
    )


FIELDS = tuple(f.name for f in fields(Settings))
VARIABLES = tuple(_PREFIX + name.upper() for name in FIELDS)
_OVERRIDDEN: ContextVar[tuple[tuple[str, Any], ...]] = ContextVar("maskwright_settings", default=())


def current() -> Settings:
    """The settings in force: overrides first, then the environment, then defaults.

    Cheap enough for every call: values are parsed again only when a variable has changed.

    Raises:
        SettingsError: if a variable has a value that is not allowed.
    """
    environ = os.environ
    raw = tuple([environ.get(name) for name in VARIABLES])
    home = (environ.get("XDG_CACHE_HOME"), environ.get("HOME"))
    return _settings(raw, home, _OVERRIDDEN.get())


# What os.environ wraps: a name that is not set costs os.environ an exception, half a microsecond.
_ENVIRONMENT: Mapping[Any, Any] = getattr(os.environ, "_data", os.environ)
_BACKEND = _PREFIX + "BACKEND"
if _ENVIRONMENT is not os.environ:
    _BACKEND = os.environ.encodekey(_BACKEND)


def asked_backend() -> tuple[Any, ...]:
    """What ``backend="auto"`` depends on, without a look at its value: part of a key."""
    return _OVERRIDDEN.get(), _ENVIRONMENT.get(_BACKEND)


@functools.lru_cache(maxsize=64)
def _settings(
    raw: tuple[str | None, ...],
    _home: tuple[str | None, ...],  # the default of cache_dir depends on it
    changes: tuple[tuple[str, Any], ...],
) -> Settings:
    given = {
        name: _parse(name, text, variable)
        for name, text, variable in zip(FIELDS, raw, VARIABLES, strict=True)
        if text is not None and text.strip() and name not in dict(changes)
    }
    return replace(Settings(), **given, **dict(changes))


@contextlib.contextmanager
def override(**changes: Any) -> Iterator[Settings]:
    """Change settings for a block of code, in this thread (or task) only.

    >>> with override(strict=True) as settings:
    ...     settings.strict
    True

    Raises:
        SettingsError: if a name or a value is not allowed.
    """
    parsed = {
        name: _parse(name, value, f"settings.override({name}=...)")
        for name, value in changes.items()
    }
    token = _OVERRIDDEN.set(tuple({**dict(_OVERRIDDEN.get()), **parsed}.items()))
    try:
        yield current()
    finally:
        _OVERRIDDEN.reset(token)


@contextlib.contextmanager
def debug(*topics: str) -> Iterator[Settings]:
    """Print stages of the compiler while a block of code runs, e.g. ``with mw.debug("plan"):``.

    Args:
        topics: any of mask, schedule, plan, source, ptx, tune; added to those already on.
    """
    added = _topics("debug", ",".join(topics), "maskwright.debug()")
    with override(debug=current().debug | added) as settings:
        yield settings


def _parse(name: str, value: Any, where: str) -> Any:
    """``value`` as field ``name`` holds it."""
    if name not in FIELDS:
        raise SettingsError(
            f"there is no setting {name!r}", fix=f"settings are {', '.join(FIELDS)}"
        )
    match name:
        case "cache_dir":
            return _path(value, where)
        case "debug":
            return _topics(name, value, where)
        case "tune":
            return _choice(name, value, where, get_args(TuneMode))
        case "backend":
            return _choice(name, value, where, get_args(BackendName))
        case "tune_storage":
            return _url(name, value, where)
    return _flag(name, value, where)


def _path(value: Any, where: str) -> Path:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise _refusal("cache_dir", value, where, "a path")
    return Path(os.path.expanduser(os.fspath(value))).absolute()


def _url(name: str, value: Any, where: str) -> str:
    text = str(value).strip()
    if text and "://" not in text:
        raise _refusal(name, value, where, "a URL: postgresql+psycopg://USER@HOST/DATABASE")
    return text


def _flag(name: str, value: Any, where: str) -> bool:
    text = str(value).strip().lower()
    if text not in _TRUE + _FALSE:
        raise _refusal(name, value, where, "0 or 1")
    return text in _TRUE


def _choice(name: str, value: Any, where: str, allowed: tuple[str, ...]) -> str:
    text = str(value).strip().lower()
    if text not in allowed:
        raise _refusal(name, value, where, "one of " + ", ".join(allowed))
    return text


def _topics(name: str, value: Any, where: str) -> frozenset[str]:
    parts = value.split(",") if isinstance(value, str) else list(value)
    topics = frozenset(str(p).strip().lower() for p in parts) - {""}
    unknown = sorted(topics - set(get_args(DebugTopic)))
    if unknown:
        allowed = "any of " + ", ".join(get_args(DebugTopic))
        raise _refusal(name, unknown[0], where, allowed)
    return topics


def _refusal(name: str, value: object, where: str, allowed: str) -> SettingsError:
    return SettingsError(
        f"setting {name!r} cannot be {value!r}", expression=where, fix=f"use {allowed}"
    )


def docs_table() -> str:
    """The table of ``docs/settings.md``, generated from the fields of ``Settings``."""
    lines = [
        "# Settings",
        "",
        "Generated by `python -m maskwright.runtime.settings`; do not edit. In code, for one thread:",
        '`with maskwright.settings.override(strict=True):` and `with maskwright.debug("plan"):`.',
        "",
        "| variable | field | values | default | meaning |",
        "|---|---|---|---|---|",
    ]
    for f, variable in zip(fields(Settings), VARIABLES, strict=True):
        cells = (variable, f.name, f.metadata["values"], _default_text(f.name), f.metadata["doc"])
        lines.append("| `{}` | `{}` | {} | {} | {} |".format(*cells))
    return "\n".join(lines) + "\n"


def _default_text(name: str) -> str:
    match getattr(Settings(), name):
        case bool() as flag:
            return f"`{int(flag)}`"
        case str() as text:
            return f"`{text}`" if text else "none"
        case frozenset():
            return "none"
    return "see values"


if __name__ == "__main__":
    print(docs_table(), end="")
