"""The table of default configurations beside others."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from benchmarks.table import Table
from benchmarks.table import absent
from benchmarks.table import origin
from benchmarks.table import reasons
from benchmarks.table import tried

if TYPE_CHECKING:
    from benchmarks.results import Result
    from benchmarks.table import Entry

_DEFAULT = "default"


def defaults_table(result: Result) -> Table:
    """One row a mask, one column a configuration: its time divided by the default's."""
    cases: list[Entry] = result["cases"]
    names = [x for x in tried(cases) if x != _DEFAULT]
    rows = [_row(case, names) for case in cases]
    notes = [
        "Time divided by the default's, median of rounds in turn, and of processes; below 1 is faster.",
        *(*_behind(cases), *_spreads(cases), *reasons(cases), *origin(result)),
    ]
    return Table("Defaults", ["mask", "S", "default ms", *names], rows, notes)


def _row(case: Entry, names: list[str]) -> list[str]:
    found, failed = case["contestants"], case.get("failed")
    default = found.get(_DEFAULT)
    missing = absent(default, failed)
    first = missing if default is None or missing else f"{default['ms']:.3f}"
    return [case["name"], str(case["shape"]["seq"]), first, *(_ratio(found.get(x)) for x in names)]


def _ratio(entry: Entry | None) -> str:
    missing = absent(entry)
    return missing if entry is None or missing else f"{entry['ratio']:.3f}"


def _behind(cases: list[Entry]) -> list[str]:
    """How far the default is behind the best of each mask."""
    best = [
        min(x["ratio"] for x in case["contestants"].values() if "ratio" in x)
        for case in cases
        if "ratio" in case["contestants"].get(_DEFAULT, {})
    ]
    if not best:
        return []
    lost = [100 * (1 / x - 1) for x in best]
    mean, most = statistics.fmean(lost), max(lost)
    return [
        f"The default is behind the best of these by {mean:.1f} % on average, {most:.1f} % at most."
    ]


def _spreads(cases: list[Entry]) -> list[str]:
    """How far the ratios of one configuration lie apart in several processes."""
    lines: list[str] = []
    for case in cases:
        for name, entry in case["contestants"].items():
            ratios = entry.get("ratios", [])
            if name != _DEFAULT and len(ratios) > 1:
                wide = 100 * (max(ratios) / min(ratios) - 1)
                middle = 100 * (_quantile(ratios, 0.9) / _quantile(ratios, 0.1) - 1)
                text = f"{case['name']}, {name}: {len(ratios)} processes within {wide:.1f} %"
                lines.append(f"{text}, the middle eight tenths within {middle:.1f} %.")
    return lines


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))]
