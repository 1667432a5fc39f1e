"""One row of the table of lists: check every contestant against its own mask, time all in turn."""

from __future__ import annotations

from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import cases
from benchmarks import correct
from benchmarks import gpu
from benchmarks import list_cases
from benchmarks import runner
from benchmarks import tiled
from benchmarks.guard import attempt
from benchmarks.peers.fa3 import FlashAttention3
from benchmarks.peers.flex import Flex
from benchmarks.peers.maskwright_peer import Maskwright
from benchmarks.peers.minference import Minference
from benchmarks.timing import paired_ratio
from maskwright import patterns
from maskwright.codegen.config import default_config
from maskwright.codegen.listed import schedule_of
from maskwright.codegen.listed_walk import ListedWalk
from maskwright.codegen.tile import TileShape
from maskwright.codegen.walk import Call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.list_cases import Row
    from benchmarks.peers import Peer
    from benchmarks.peers import Prepared

Entry = dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """A peer, and the mask that it computes: ``exact``, ``widened``, ``tiled`` or ``causal``."""

    peer: Peer
    mask: str


CONTESTANTS: dict[str, Contestant] = {
    x.peer.name: x
    for x in (
        Contestant(Maskwright("maskwright"), "exact"),
        Contestant(Maskwright("maskwright_prepared", prepared=True), "exact"),
        Contestant(Maskwright("maskwright_selected", select=(0, 0)), "exact"),
        Contestant(Maskwright("maskwright_tiled"), "widened"),
        Contestant(Minference("minference"), "tiled"),
        Contestant(Minference("minference_prepared", prepared=True), "tiled"),
        Contestant(FlashAttention3("fa3"), "causal"),
        Contestant(Flex("flex"), "exact"),
    )
}
DEFAULT = ("maskwright", "maskwright_prepared", "minference", "minference_prepared", "fa3")
OURS = "maskwright"
WIDTH = 64  # of MInference's tiles


def run_row(row: Row, shape: cases.Shape, names: Sequence[str], options: runner.Options) -> Entry:
    """Everything measured of one row, ready for JSON."""
    lists = list_cases.draw(row, shape.heads)
    masks = masks_of(row, shape, lists, options.device)
    tensors = cases.make_tensors(shape, options.device)
    benches: dict[str, runner.Bench] = {}
    entries: dict[str, Entry] = {}
    ready: dict[str, Prepared] = {}
    for name in names:
        peer, mask = _peer(name, row), CONTESTANTS[name].mask
        if mask not in benches:
            case = masks[mask]
            benches[mask] = runner.Bench(case, tensors, correct.reference(case, tensors))
        first = partial(runner.first_call, peer, benches[mask])
        entries[name], prepared = runner.admit(peer, benches[mask], first)
        if prepared is not None:
            ready[name] = prepared
    before = gpu.snapshot()
    calls = {name: prepared.call for name, prepared in ready.items()}
    timings, error = attempt(lambda: runner.time_calls(calls, options))
    after = gpu.snapshot()
    pairs = exact_pairs(row, lists)
    for name, prepared in ready.items():
        if timings is None:  # which call failed is not known: none has a time
            entries[name] |= {"status": "error", "reason": f"while timing: {error}"}
            continue
        entries[name] |= runner.figures(timings[name], pairs, masks["exact"])
        entries[name] |= runner.preparation(prepared)
        if OURS in timings:
            entries[name]["ours"] = round(paired_ratio(timings[name], timings[OURS]), 4)
    return {
        "name": row.name,
        "mask": str(masks["exact"].mask),
        "shape": asdict(shape),
        "pairs": pairs,
        "shares": shares(row, lists, shape, theirs="minference" in names),
        "gpu_before": before,
        "gpu_after": after,
        "contestants": entries,
    }


def _peer(name: str, row: Row) -> Peer:
    """A contestant; what it selects is as much as the row lists."""
    peer = CONTESTANTS[name].peer
    if isinstance(peer, Maskwright) and peer.select is not None:
        return replace(peer, select=(row.columns, row.diagonals))
    return peer


def masks_of(
    row: Row, shape: cases.Shape, lists: tuple[Tensor, Tensor], device: str
) -> dict[str, cases.Case]:
    """The row's lists as masks: the definition, with diagonals that bring whole tiles, MInference's
    tiles, and dense causal."""
    columns, diagonals = (x[0].long().to(device) for x in lists)
    listed = torch.zeros((2, shape.heads, row.seq), dtype=torch.bool, device=device)
    listed[0].scatter_(1, columns, value=True)
    listed[1].scatter_(1, diagonals, value=True)
    on_host = [x[0].long().numpy() for x in lists]

    def exact(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (k <= q) & (listed[0][h, k] | listed[1][h, (q - k).clamp(min=0)])

    ends = torch.zeros((shape.heads, row.seq + 2 * WIDTH), dtype=torch.bool, device=device)
    for i in range(WIDTH):  # an entry stands for so many
        ends.scatter_(1, diagonals + WIDTH + i, value=True)

    def widened(b: Any, h: Any, q: Any, k: Any) -> Any:
        last = q // WIDTH * WIDTH + (WIDTH - 1) - k
        return (k <= q) & (listed[0][h, k] | ends[h, last.clamp(min=-WIDTH) + WIDTH])

    def tiles(b: Any, h: Any, q: Any, k: Any) -> Any:
        queries = q.flatten().cpu().numpy()
        found = tiled.rows(on_host[0][h], on_host[1][h], queries, row.seq)
        return torch.tensor(found, device=device)

    batch = shape.batch
    given = {
        name: x.repeat(batch, 1, 1).to(device)
        for name, x in zip(("v_idx", "s_idx"), lists, strict=True)
    }
    case = cases.Case(row.name, patterns.vertical_slash(), exact, shape, True, given)
    return {
        "exact": case,
        "widened": replace(case, mask=patterns.vertical_slash(tiled=WIDTH), flex_mod=widened),
        "tiled": replace(case, flex_mod=tiles),
        "causal": cases.causal(shape, device),
    }


def exact_pairs(row: Row, lists: tuple[Tensor, Tensor]) -> int:
    """Attended pairs of all heads of a batch entry."""
    heads = zip(*(x[0].long().numpy() for x in lists), strict=True)
    return sum(list_cases.exact_pairs(*head, row.seq) for head in heads)


def shares(
    row: Row, lists: tuple[Tensor, Tensor], shape: cases.Shape, *, theirs: bool = True
) -> dict[str, float]:
    """Of the causal triangle: attended, and what the kernels multiply; of the first head.

    Whole tiles and whole steps of gathered columns count, masked parts included.

    Args:
        theirs: count MInference's, too, in a loop over its blocks.
    """
    columns, diagonals = (x[0, 0].long().numpy() for x in lists)
    whole = list_cases.triangle(row.seq)
    found = {
        "exact": list_cases.exact_pairs(columns, diagonals, row.seq) / whole,
        "maskwright": _ours(row, columns, diagonals, shape) / whole,
    }
    if theirs:
        found["minference"] = _theirs(row, columns, diagonals) / whole
    return found


def _theirs(row: Row, columns: Any, diagonals: Any) -> int:
    """Products of MInference's kernel."""
    products = 0
    for block in range(-(-row.seq // 64)):
        keys = np.flatnonzero(tiled.visited(diagonals, block, row.seq))
        gathered = columns[columns <= keys[-1]]
        rest = len(gathered) - np.isin(gathered, keys, assume_unique=True).sum()
        products += 64 * (len(keys) + 64 * -(-int(rest) // 64))
    return products


def _ours(row: Row, columns: Any, diagonals: Any, shape: cases.Shape) -> int:
    """Products of our kernel, with the tiles of the default configuration."""
    config = default_config(dtype=shape.dtype, head_dim=shape.head_dim)
    size_m, size_n = config.block_m, config.block_n
    lists = {"v_idx": columns[None, None], "s_idx": diagonals[None, None]}
    call = Call(row.seq, row.seq, 0, 1, 1, 1, lists)
    schedule = schedule_of(patterns.vertical_slash().node, TileShape(size_m, size_n))
    tiles = np.arange(-(-row.seq // size_m))
    met = ListedWalk(schedule, call).meets(tiles)
    last = np.minimum((tiles + 1) * size_m, row.seq) - 1
    gathered = np.searchsorted(columns, (last // size_n + 1) * size_n)
    steps = int((met.full + met.partial).sum()) + int((-(-gathered // size_n)).sum())
    return steps * size_m * size_n
