"""The tables of runtime lists, of heads of two kinds, and of selectors."""

from __future__ import annotations

from benchmarks.table import NONE
from benchmarks.table import TITLES
from benchmarks.table import Entry
from benchmarks.table import Result
from benchmarks.table import Table
from benchmarks.table import absent
from benchmarks.table import cell
from benchmarks.table import origin
from benchmarks.table import reasons
from benchmarks.table import spread
from benchmarks.table import times
from benchmarks.table import tried

PREPARED = {"maskwright": "maskwright_prepared", "minference": "minference_prepared"}


def lists_table(result: Result) -> Table:
    """One row a distribution of lists."""
    cases: list[Entry] = result["cases"]
    names = [name for name in tried(cases) if name not in PREPARED.values()]
    header = ["seq/columns/diagonals/runs", "exact %", "ours %", "MInference %"]
    header += [TITLES.get(name, name) for name in names]
    others = [name for name in names if name != "maskwright"]
    header += [f"vs {TITLES.get(name, name)}" for name in others]
    header += [f"index MiB, {name}" for name in PREPARED if name in names]
    rows = [_row(case, names, others) for case in cases]
    notes = [
        "ms of a call with its preparation, median of rounds in turn (preparation + attention apart).",
        "%: of the causal triangle: attended pairs, and what the kernels multiply, first head.",
        "vs: how many times faster maskwright is, preparation included. FA3 is dense causal.",
    ]
    notes += [*spread(cases), *reasons(cases), *origin(result)]
    return Table("Vertical-slash lists", header, rows, notes)


def _row(case: Entry, names: list[str], others: list[str]) -> list[str]:
    found, shares = case["contestants"], case.get("shares", {})
    percent = [shares.get(name) for name in ("exact", "maskwright", "minference")]
    return [
        case["name"],
        *(NONE if x is None else f"{100 * x:.1f}" for x in percent),
        *(_cell(found, name, case.get("failed")) for name in names),
        *(times(found.get(name, {}).get("ours")) for name in others),
        *(_mib(found.get(PREPARED[name], {})) for name in PREPARED if name in names),
    ]


def _cell(found: dict[str, Entry], name: str, failed: str | None) -> str:
    entry = found.get(name)
    missing = absent(entry, failed)
    if entry is None or missing:
        return missing
    apart = found.get(PREPARED.get(name, ""), {})
    if "ms" in apart:
        return f"{entry['ms']:.3f} ({apart['prepare_ms']:.3f} + {apart['ms']:.3f})"
    if entry.get("prepare_ms"):
        return f"{entry['ms']:.3f} (+ {entry['prepare_ms']:.3f})"
    return f"{entry['ms']:.3f}"


def _mib(entry: Entry) -> str:
    return f"{entry['prepare_mib']:.1f}" if "prepare_mib" in entry else NONE


def head_mix_table(result: Result) -> Table:
    """One row a length."""
    cases: list[Entry] = result["cases"]
    rows: list[list[str]] = []
    for case in cases:
        found, predicted = case["contestants"], case.get("predicted_ms")
        mix = found.get("head_mix", {})
        rows.append(
            [
                str(case["shape"]["seq"]),
                *(cell(found.get(name), case.get("failed")) for name in ("causal", "head_mix")),
                NONE if predicted is None else f"{predicted:.3f}",
                NONE if predicted is None else f"{100 * mix['ms'] / predicted - 100:+.1f} %",
                f"{100 * case['loss'] - 100:.1f} %" if "loss" in case else NONE,
            ]
        )
    header = ["S", "causal", "head mix", "predicted ms", "measured against it", "order loses"]
    notes = [
        "TFLOP/s on attended pairs (ms). Predicted: causal ms x ratio of pairs.",
        "order loses: modelled, from tile counts and 264 slots (launch_order.py).",
        *(spread(cases) + reasons(cases) + origin(result)),
    ]
    return Table("Streaming and causal heads in one launch", header, rows, notes)


def nsa_table(result: Result) -> Table:
    """One row a length, group and kind of lists."""
    cases: list[Entry] = result["cases"]
    rows = [_nsa_row(case) for case in cases]
    header = ["S", "group", "lists", "maskwright", "lists kept", "FA3, dense causal"]
    header += ["faster", "pairs, dense / listed", "of that"]
    notes = [
        "TFLOP/s on attended pairs (ms of a call, median of rounds in turn).",
        "lists: of each token, or shared by runs of 64. of that: how much of the ratio of pairs is kept.",
        *(spread(cases) + reasons(cases) + origin(result)),
    ]
    return Table("Blocks chosen by every token", header, rows, notes)


def _nsa_row(case: Entry) -> list[str]:
    found, failed = case["contestants"], case.get("failed")
    names = ("maskwright", "maskwright_prepared", "fa3")
    ours, dense = (found.get(x, {}).get("ms") for x in ("maskwright", "fa3"))
    ratio = dense / ours if ours and dense else None
    pairs = case.get("pairs_ratio")
    return [
        *(str(case["shape"]["seq"]), str(case["group"]), case["lists"]),
        *(cell(found.get(name), failed) for name in names),
        times(ratio),
        NONE if pairs is None else f"{pairs:.1f}",
        NONE if ratio is None or pairs is None else f"{ratio / pairs:.2f}",
    ]


def nsa_training_table(result: Result) -> Table:
    """Likewise, of steps: forward and backward."""
    cases: list[Entry] = result["cases"]
    rows = [_nsa_training_row(case) for case in cases]
    header = ["S", "group", "lists", "maskwright", "cuDNN, dense causal", "FA2, dense causal"]
    header += ["forward ms", "backward ms", "faster", "its backward", "pairs, dense / listed"]
    header += ["of that, backward"]
    notes = [
        "TFLOP/s on attended pairs (ms of a step, median of rounds in turn); a step counts 3.5 x forward.",
        "forward and backward ms: of maskwright; backward is step minus forward, by rounds.",
        "faster: than dense cuDNN, steps and backward. of that: how much of the ratio of pairs is kept.",
        *(spread(cases) + reasons(cases) + origin(result)),
    ]
    return Table("Blocks chosen by every token, forward and backward", header, rows, notes)


def _nsa_training_row(case: Entry) -> list[str]:
    found, failed = case["contestants"], case.get("failed")
    ours, dense = (found.get(x, {}) for x in ("maskwright", "sdpa_cudnn"))
    both = "ms" in ours and "ms" in dense
    faster = dense["ms"] / ours["ms"] if both else None
    back = dense["backward"]["ms"] / ours["backward"]["ms"] if both else None
    pairs = case.get("pairs_ratio")
    return [
        *(str(case["shape"]["seq"]), str(case["group"]), case["lists"]),
        *(cell(found.get(x), failed) for x in ("maskwright", "sdpa_cudnn", "sdpa_flash")),
        *(f"{ours[x]['ms']:.3f}" if x in ours else NONE for x in ("forward", "backward")),
        *(times(faster), times(back)),
        NONE if pairs is None else f"{pairs:.1f}",
        NONE if back is None or pairs is None else f"{back / pairs:.2f}",
    ]


def select_table(result: Result) -> Table:
    """One row a length, one column a selector."""
    cases: list[Entry] = result["cases"]
    names = tried(cases)
    rows = [
        [
            str(case["shape"]["seq"]),
            *(_selected(case["contestants"].get(name), case.get("failed")) for name in names),
        ]
        for case in cases
    ]
    notes = ["ms (peak MiB), median of rounds in turn."]
    notes += [
        f"{case['shape']['seq']}: {100 * entry['agrees']:.2f} % of the kernels' entries are torch's."
        for case in cases
        for entry in case["contestants"].values()
        if "agrees" in entry
    ]
    return Table("Selectors", ["S", *names], rows, [*notes, *reasons(cases), *origin(result)])


def _selected(entry: Entry | None, failed: str | None) -> str:
    missing = absent(entry, failed)
    if entry is None or missing:
        return missing
    return f"{entry['ms']:.3f} ({entry['mib']:.1f})"
