"""Entries of many machines joined into one set, whatever their order."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
from pathlib import Path

from maskwright.autotune import store
from maskwright.autotune.entry import KINDS
from maskwright.autotune.entry import Entry
from maskwright.autotune.key import Key
from maskwright.autotune.lookup import whatever_software
from maskwright.autotune.record import RecordError
from maskwright.dsl.errors import TuningError


def merge(entries: Iterable[Entry]) -> list[Entry]:
    """One entry a key, sorted by key. A GPU's name is part of a key, so GPUs never mix.

    The result is a function of the *set* of entries: no order, no double counts. Merge all inputs
    at once: which of several entries with overlapping spreads stays can depend on grouping.
    """
    found: dict[Key, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.key, []).append(entry)
    return [best(group) for _, group in sorted(found.items(), key=lambda item: item[0].canonical)]


def fitting(entries: Sequence[Entry], output: Path) -> list[Entry]:
    """Those that belong into an output: all of them, or one for all versions of the software.

    Look-ups of what is shipped do not ask for the software, so a directory laid out for that holds
    the entry that they would take.
    """
    return list(entries) if _is_bundle(output) else [*whatever_software(entries).values()]


def best(entries: Sequence[Entry]) -> Entry:
    """Of entries for one key.

    A complete search beats one that was cut short, and that a cost model's choice. Among those of
    one kind the lowest ratio to the default wins, but only beyond both spreads; else the older
    entry stays, so that noise does not move shipped files.
    """
    trust = max(KINDS.index(x.provenance.kind) for x in entries)
    equal = [x for x in entries if KINDS.index(x.provenance.kind) == trust]
    fastest = min(equal, key=lambda x: (x.result.ratio, *_age(x)))
    return min((x for x in equal if _tied(x, fastest)), key=_age)


def _tied(entry: Entry, fastest: Entry) -> bool:
    difference = entry.result.ratio - fastest.result.ratio
    return difference <= max(entry.result.spread, fastest.result.spread)


def _age(entry: Entry) -> tuple[str, str]:
    return entry.provenance.date, entry.digest


def collect(paths: Sequence[Path]) -> list[Entry]:
    """All entries of some files and directories (with those below them).

    Raises:
        TuningError: one of them cannot be read or is no entry; nothing is left out silently.
    """
    entries: list[Entry] = []
    for path in paths:
        files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        for file in files:
            if file.name == store.MANIFEST:
                continue
            try:
                entries += store.read_file(file)
            except (OSError, RecordError) as error:
                what = error.what if isinstance(error, RecordError) else error.strerror
                raise TuningError(
                    f"{file} cannot be merged: {what}",
                    fix="give entry files, or directories of them",
                ) from error
    return entries


def write(entries: Sequence[Entry], output: Path) -> list[Path]:
    """One bundle if ``output`` ends in ``.json``, else a directory laid out as the shipped one.

    Raises:
        TuningError: it cannot be written.
    """
    groups: dict[Path, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(_file(entry, output), []).append(entry)
    if _is_bundle(output):
        groups.setdefault(output, [])
    try:
        for path, group in groups.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            store.write_durably(path, store.bundle_text(group))
    except OSError as error:
        raise TuningError(f"cannot write {output}: {error.strerror or error}") from error
    return sorted(groups)


def _is_bundle(output: Path) -> bool:
    return output.suffix == ".json"


def _file(entry: Entry, output: Path) -> Path:
    if _is_bundle(output):
        return output
    p = entry.key.problem
    sizes = f"d{p.head_dim}" if p.head_dim == p.value_dim else f"d{p.head_dim}_{p.value_dim}"
    name = "_".join((p.op, p.template, p.dtype, sizes))
    return output / entry.key.hardware.folder / f"{name}.json"
