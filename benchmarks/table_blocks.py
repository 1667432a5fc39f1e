"""Tables of block lists: ours beside FlexAttention on the same lists, and a dense library."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any

from benchmarks.table import NONE
from benchmarks.table import Table
from benchmarks.table import cell
from benchmarks.table import origin
from benchmarks.table import reasons
from benchmarks.table import spread
from benchmarks.table import times

if TYPE_CHECKING:
    from benchmarks.results import Result

Entry = dict[str, Any]
_OURS, _FLEX, _DENSE = "maskwright", "flex", "sdpa_cudnn"


def block_lists_table(result: Result) -> Table:
    """One row a length and kind of lists."""
    cases: list[Entry] = result["cases"]
    header = ["S", "blocks", "maskwright", "lists kept", "FlexAttention", "Flex mask"]
    header += ["cuDNN, dense causal", "vs Flex", "vs Flex with mask", "of the dense rate"]
    notes = [
        "TFLOP/s on attended pairs (ms of a call, median of rounds in turn).",
        "blocks: 64x8: eight neighbours share a list. Flex mask: building its block mask, ms.",
        *(spread(cases) + reasons(cases) + origin(result)),
    ]
    return Table("Lists of blocks", header, [_row(case) for case in cases], notes)


def _row(case: Entry) -> list[str]:
    found, failed = case["contestants"], case.get("failed")
    ours, flex, dense = (found.get(x, {}) for x in (_OURS, _FLEX, _DENSE))
    mask = flex.get("prepare_ms")
    whole = {"ms": flex["ms"] + mask} if "ms" in flex and mask else flex
    return [
        *(str(case["shape"]["seq"]), case["blocks"]),
        *(cell(found.get(name), failed) for name in (_OURS, "maskwright_prepared", _FLEX)),
        NONE if mask is None else f"{mask:.2f}",
        cell(found.get(_DENSE), failed),
        *(times(_ratio(x, ours, "ms")) for x in (flex, whole)),
        _share(ours, dense),
    ]


def block_lists_training_table(result: Result) -> Table:
    """Likewise, of steps: forward and backward."""
    cases: list[Entry] = result["cases"]
    header = ["S", "blocks", "maskwright", "FlexAttention", "cuDNN, dense causal"]
    header += ["forward ms", "backward ms", "vs Flex", "of the dense rate", "its backward"]
    notes = [
        "TFLOP/s on attended pairs (ms of a step, median of rounds in turn); a step counts 3.5 x forward.",
        "forward and backward ms: of maskwright; backward is step minus forward, by rounds.",
        *(spread(cases) + reasons(cases) + origin(result)),
    ]
    rows = [_training_row(case) for case in cases]
    return Table("Lists of blocks, forward and backward", header, rows, notes)


def _training_row(case: Entry) -> list[str]:
    found, failed = case["contestants"], case.get("failed")
    ours, flex, dense = (found.get(x, {}) for x in (_OURS, _FLEX, _DENSE))
    ahead = _ratio(dense.get("backward", {}), ours.get("backward", {}), "ms")
    pairs = case.get("pairs_ratio")
    return [
        *(str(case["shape"]["seq"]), case["blocks"]),
        *(cell(found.get(name), failed) for name in (_OURS, _FLEX, _DENSE)),
        *(f"{ours[x]['ms']:.3f}" if x in ours else NONE for x in ("forward", "backward")),
        times(_ratio(flex, ours, "ms")),
        _share(ours, dense),
        NONE if ahead is None or pairs is None else f"{ahead / pairs:.2f}",
    ]


def _ratio(a: Entry, b: Entry, name: str) -> float | None:
    return a[name] / b[name] if name in a and name in b else None


def _share(ours: Entry, dense: Entry) -> str:
    found = _ratio(ours, dense, "tflops")
    return NONE if found is None else f"{found:.2f}"
