"""The training table: forward and backward together, and how each compares with FlexAttention."""

from __future__ import annotations

from benchmarks.table import BASELINE
from benchmarks.table import NONE
from benchmarks.table import OURS
from benchmarks.table import TITLES
from benchmarks.table import Entry
from benchmarks.table import Result
from benchmarks.table import Table
from benchmarks.table import cell
from benchmarks.table import origin
from benchmarks.table import reasons
from benchmarks.table import spread
from benchmarks.table import times
from benchmarks.table import tried

ABOUT = [
    "TFLOP/s on attended pairs (ms of a step, median of rounds in turn); higher is better.",
    "A step is forward and backward and counts 3.5 x the FLOPs of the forward pass.",
    "vs Flex: steps; forward and backward: their parts; backward is step minus forward, by rounds.",
    "Flex mask: building its block mask, compiled and warm, ms.",
]


def training_table(result: Result) -> Table:
    """One row a case, one column a contestant."""
    cases: list[Entry] = result["cases"]
    names = tried(cases)
    header = ["mask", "S", *(TITLES.get(name, name) for name in names)]
    header += ["Flex mask", "vs Flex", "forward", "backward", "with mask"]
    notes = [*ABOUT, *_summary(cases), *reasons(cases), *origin(result)]
    return Table("Forward and backward", header, [_row(case, names) for case in cases], notes)


def _row(case: Entry, names: list[str]) -> list[str]:
    found = case["contestants"]
    ours, flex = found.get(OURS, {}), found.get(BASELINE, {})
    return [
        case["name"],
        str(case["shape"]["seq"]),
        *(cell(found.get(name), case.get("failed")) for name in names),
        f"{flex['prepare_ms']:.2f}" if flex.get("prepare_ms") else NONE,
        times(ours.get("speedup")),
        *(times(ours.get(part, {}).get("speedup")) for part in ("forward", "backward")),
        times(ours.get("speedup_with_prepare")),
    ]


def _summary(cases: list[Entry]) -> list[str]:
    """Over how many cases we are faster; spread; memory; the largest errors of gradients."""
    ours = [case["contestants"].get(OURS, {}) for case in cases]
    ratios = [entry["speedup"] for entry in ours if "speedup" in entry]
    lines: list[str] = []
    if ratios:
        faster = sum(ratio > 1 for ratio in ratios)
        lines.append(f"Faster than FlexAttention in {faster} of {len(cases)} cases (mask apart).")
    lines += spread(cases)
    for name in tried(cases):
        entries = [case["contestants"].get(name, {}) for case in cases]
        lines += _about(TITLES.get(name, name), entries)
    return lines


def _about(title: str, entries: list[Entry]) -> list[str]:
    """Largest relative errors of dq, dk, dv and largest extra memory of one contestant."""
    errors = [entry["gradient_error"] for entry in entries if entry.get("gradient_error")]
    memory = [entry["extra_memory_mib"] for entry in entries if "extra_memory_mib" in entry]
    parts = [
        f"{name} {max(e[name] for e in errors if name in e):.1e}"
        for name in ("dq", "dk", "dv")
        if any(name in e for e in errors)
    ]
    if memory:
        parts.append(f"{max(memory):.0f} MiB beyond inputs, output, LSE and gradients")
    return [f"{title}, at most: {', '.join(parts)}."] if parts else []
