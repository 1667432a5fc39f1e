"""On-disk cache of generated sources: ``<cache_dir>/<version>/<slug>_<hash>.py``.

A file is what its name says or it is rewritten, so a stale or corrupt entry cannot be used. Writes
go to a temporary file in the same directory and are moved into place in one step: any number of
processes may write and clear at once. If the directory cannot be used, one warning says so and a
private temporary directory serves for the rest of the process.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import os
import shutil
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from maskwright.dsl.errors import MaskwrightError
from maskwright.runtime import settings

_TEMPORARY = ".tmp"
_ABANDONED = 3600.0  # seconds after which a temporary file cannot belong to a living writer


class MaskwrightWarning(UserWarning):
    """Something works, but not as well as it should; says what and why."""


@dataclass(frozen=True)
class CacheEntry:
    """One cached file."""

    name: str
    path: Path
    size: int
    modified: float


def directory() -> Path:
    """Where sources of this version are cached (it need not exist yet)."""
    return settings.current().cache_dir / _version()


def store(name: str, text: str) -> Path:
    """Put ``text`` under ``name`` and return its path; a file with that content is left alone.

    Args:
        name: file name, ``<slug>_<hash>.py``; no directories.
        text: the content.

    A concurrent ``clear()`` in another process may remove the file again after this returns.

    Raises:
        MaskwrightError: if ``name`` is not a plain file name.
    """
    if name != os.path.basename(name) or not name or name.startswith("."):
        raise MaskwrightError("a cached source needs a plain file name", expression=name)
    where = directory()
    content = text.encode()
    try:
        return _put(where, name, content)
    except OSError as error:
        _warn_once(str(where), f"{type(error).__name__}: {error.strerror or error}")
        return _put(_private_directory(os.getpid()), name, content)


def _put(where: Path, name: str, content: bytes) -> Path:
    path = where / name
    try:
        if path.read_bytes() == content:
            return path
    except FileNotFoundError:
        where.mkdir(parents=True, exist_ok=True)
    _write(path, content)
    return path


def _write(path: Path, content: bytes) -> None:
    """Write and move into place; leaves nothing behind on failure."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=_TEMPORARY)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        _remove(Path(temporary))
        raise


def entries() -> list[CacheEntry]:
    """All cached sources of this version, oldest first."""
    found = []
    for path in _files(directory()):
        try:
            status = path.stat()
        except OSError:  # removed by another process meanwhile
            continue
        if path.suffix != _TEMPORARY:
            found.append(CacheEntry(path.name, path, status.st_size, status.st_mtime))
    return sorted(found, key=lambda e: (e.modified, e.name))


def size() -> int:
    """Bytes of all cached sources of this version."""
    return sum(entry.size for entry in entries())


def clear() -> int:
    """Remove the cached sources of every version; returns how many files went.

    Only files of the shape this module writes are touched; directories stay, so that writers at
    work in other processes are not disturbed.
    """
    count = 0
    root = settings.current().cache_dir
    for folder in _folders(root):
        count += sum(_remove(path) for path in _files(folder) if path.suffix == ".py")
        for path in _files(folder):
            if path.suffix == _TEMPORARY and _age(path) > _ABANDONED:
                _remove(path)
        shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    return count


def _folders(root: Path) -> list[Path]:
    try:
        return [p for p in root.iterdir() if p.is_dir() and p.name[:1].isdigit()]
    except OSError:
        return []


def _files(folder: Path) -> list[Path]:
    try:
        return [p for p in folder.iterdir() if p.is_file()]
    except OSError:
        return []


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True


@functools.cache
def _version() -> str:
    return str(importlib.import_module("maskwright").__version__)


@functools.cache
def _private_directory(_process: int) -> Path:
    """A temporary directory of this process, removed at exit."""
    path = Path(tempfile.mkdtemp(prefix="maskwright-"))
    atexit.register(_remove_private, path, os.getpid())
    return path


def _remove_private(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child must not remove its parent's files
        shutil.rmtree(path, ignore_errors=True)


@functools.cache
def _warn_once(where: str, reason: str) -> None:
    warnings.warn(
        f"the cache directory {where} cannot be used ({reason}); working without it. "
        "Set MASKWRIGHT_CACHE_DIR to a directory that can be written.",
        MaskwrightWarning,
        stacklevel=4,
    )
