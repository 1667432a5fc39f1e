"""Entries on disk: one small file each, published in one step, read with patience.

``<cache_dir>/tune/v1/<software>/manifest.json`` says for which software a directory is, and
``entries/<name>_<hash>.json`` are its entries. Nothing shared is ever rewritten, so no writer can
lose another one's work, and nobody takes a lock.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path

from maskwright.autotune.entry import SCHEMA
from maskwright.autotune.entry import Entry
from maskwright.autotune.entry import parse_json
from maskwright.autotune.key import Software
from maskwright.autotune.record import RecordError
from maskwright.autotune.record import canonical
from maskwright.autotune.record import pretty
from maskwright.runtime.cache import MaskwrightWarning

MANIFEST = "manifest.json"
_TEMPORARY = ".tmp"
_ABANDONED = 3600.0  # seconds after which a temporary file cannot belong to a living writer
SHIPPED = Path(__file__).parent / "configs"
UNTUNED = "untuned"  # folder of choices that nobody measured, a file for each architecture


def root(cache_dir: Path) -> Path:
    """Where tuned configurations of every software live."""
    return cache_dir / "tune" / f"v{SCHEMA}"


def publish(entry: Entry, cache_dir: Path) -> Path | None:
    """Write an entry where look-ups find it; the last writer of a key wins.

    It is whole or not there, also after a crash. Returns its path, or None after one warning if
    the directory cannot be written (read-only, full).
    """
    folder = root(cache_dir) / entry.key.software.digest
    path = folder / "entries" / f"{entry.key.name}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _manifest(folder, entry.key.software)
        write_durably(path, entry.to_text())
        _tidy(path.parent)
    except OSError as error:
        reason = f"{type(error).__name__}: {error.strerror or error}"
        _warn(f"a tuned configuration cannot be kept in {folder}: {reason}")
        return None
    return path


def write_durably(path: Path, text: str) -> None:
    """Whole or not at all, and on the disk when this returns.

    Raises:
        OSError: nothing is left behind, and an older file stays as it was.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=_TEMPORARY)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        _remove(Path(temporary))
        raise
    _sync_directory(path.parent)


def user_entries(cache_dir: Path, software: Software) -> list[Entry]:
    """Of the user's cache, for one software."""
    return read(_files(root(cache_dir) / software.digest / "entries"))


def every_user_entry(cache_dir: Path) -> list[Entry]:
    """Of the user's cache, for any software."""
    found = sorted(_folders(root(cache_dir)))
    return read(path for folder in found for path in _files(folder / "entries"))


def shipped_entries(folder: str) -> list[Entry]:
    """Entries that come with the package, for one GPU."""
    return read(_files(SHIPPED / folder))


def untuned_entries(arch: str) -> list[Entry]:
    """Choices that come with the package for an architecture; none if that is empty."""
    return read([SHIPPED / UNTUNED / f"{arch}.json"] if arch else [])


def read(paths: Iterable[Path]) -> list[Entry]:
    """Entries of files; a file that is none is skipped with one warning."""
    entries = []
    for path in paths:
        try:
            entries += read_file(path)
        except FileNotFoundError:  # removed meanwhile
            continue
        except (OSError, RecordError) as error:
            what = error.what if isinstance(error, RecordError) else error.strerror
            _warn(f"{path} is no tuned configuration and is ignored: {what}")
    return entries


def read_file(path: Path) -> list[Entry]:
    """Entries of one file: an entry, or a bundle of them.

    Raises:
        OSError: it cannot be read.
        RecordError: it holds something else.
    """
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise RecordError("this is no text") from error
    data = parse_json(text)
    if isinstance(data, dict) and isinstance(data.get("entries"), list):
        return [Entry.from_dict(x) for x in data["entries"]]
    return [Entry.from_dict(data)]


def bundle_text(entries: Iterable[Entry]) -> str:
    """Many entries as one file: sorted, so that the order they came in does not show; a line each."""
    found = sorted(entries, key=lambda entry: entry.key.canonical)
    lines = ",\n".join(canonical(entry.to_dict()) for entry in found)
    return f'{{"schema": {SCHEMA}, "entries": [\n{lines}\n]}}\n'


def _manifest(folder: Path, software: Software) -> None:
    path = folder / MANIFEST
    if not path.exists():
        write_durably(path, pretty({"schema": SCHEMA, "software": asdict(software)}))


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(p for p in folder.iterdir() if p.suffix == ".json" and p.name != MANIFEST)
    except OSError:
        return []


def _folders(folder: Path) -> list[Path]:
    try:
        return [p for p in folder.iterdir() if p.is_dir()]
    except OSError:
        return []


@cache
def _tidy(folder: Path) -> None:
    """Remove what killed writers left behind; once a process is enough."""
    for path in folder.glob(f"*{_TEMPORARY}"):
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED:
                _remove(path)
        except OSError:
            continue


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError:
        pass


def _sync_directory(folder: Path) -> None:
    """Make a rename survive a power cut; some file systems refuse, and some systems cannot."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


@cache
def _warn(text: str) -> None:
    warnings.warn(text, MaskwrightWarning, stacklevel=3)
