"""What the tables of all kinds of results are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]
Entry = dict[str, Any]

OURS, BASELINE = "maskwright", "flex"
TITLES = {
    "maskwright_gluon": "maskwright, Gluon",
    "maskwright_triton": "maskwright, Triton",
    "flex": "FlexAttention",
    "flex_tuned": "FlexAttention, tuned",
    "flex_flash": "Flex FLASH (FA4)",
    "sdpa_cudnn": "cuDNN",
    "sdpa_flash": "FA2",
    "fa3": "FA3",
    "fa4": "FA4",
    "minference": "MInference (anew)",
    "maskwright_selected": "maskwright, and choosing lists",
    "maskwright_tiled": "maskwright, tiled=64",
    "maskwright_attention": "mw.attention",
    "sdpa": "SDPA",
    "dense": "torch, dense mask",
}
NONE = "-"


@dataclass(frozen=True)
class Table:
    """Title, column names, rows of text, and lines below."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]


def tried(cases: list[Entry]) -> list[str]:
    """All contestants that were not skipped everywhere."""
    found = [
        n for case in cases for n, e in case["contestants"].items() if e["status"] != "skipped"
    ]
    return list(dict.fromkeys(found))


def cell(entry: Entry | None, failed: str | None = None) -> str:
    """One contestant's speed, or why there is none."""
    missing = absent(entry, failed)
    if entry is None or missing:
        return missing
    return f"{entry['tflops']:.0f} ({entry['ms']:.3f})"


def absent(entry: Entry | None, failed: str | None = None) -> str:
    """Why a contestant has no number here, or nothing if it has one."""
    if entry is None:
        return "failed" if failed else NONE
    if entry["status"] != "ok":
        return NONE if entry["status"] == "skipped" else str(entry["status"])
    return ""


def times(ratio: float | None) -> str:
    """``1.25x``."""
    return NONE if ratio is None else f"{ratio:.2f}x"


def spread(cases: list[Entry]) -> list[str]:
    """The widest spread between rounds, if anything was timed."""
    timed = [e for c in cases for e in c["contestants"].values() if "iqr" in e]
    if not timed:
        return []
    widest = max(100 * entry["iqr"] / entry["ms"] for entry in timed)
    return [f"Widest spread between rounds (IQR): {widest:.1f} %."]


def reasons(cases: list[Entry]) -> list[str]:
    """One line for each failure, wrong result and failed case."""
    lines: list[str] = []
    for case in cases:
        label = " ".join([case["name"], *(str(x) for x in [case["shape"].get("seq")] if x)])
        if case.get("failed"):
            lines.append(f"{label}: {case['failed'][:200]}")
        for name, entry in case["contestants"].items():
            if entry["status"] not in ("ok", "skipped"):
                reason = " ".join(entry.get("reason", "").split())
                lines.append(f"{label}, {name}: {entry['status']}: {reason[:200]}")
    return lines


def origin(result: Result) -> list[str]:
    """GPU, versions, date and command."""
    facts = result["environment"]
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "triton", "maskwright"))
    where = f"{facts['gpu']}, driver {facts['driver']}, {versions}, {result['date']}"
    return [where, f"`{result['command']}`"]
