"""Blocks chosen anew by every token: ``python -m benchmarks.nsa [--groups 1,4,16] [--seqs 65536]``.

The selected branch of NSA (arXiv 2502.11089): each token and KV head attends to COUNT blocks of BLOCK
keys, its own and the first among them, shared by the query heads of the group. Lists are drawn
at random, for each token (nothing in common with its neighbours) or for runs of BLOCK tokens. Dense
causal FlashAttention-3 takes turns.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from functools import partial
from typing import TYPE_CHECKING
from typing import Any

import torch

from benchmarks import bench
from benchmarks import cases
from benchmarks import correct
from benchmarks import results
from benchmarks import runner
from benchmarks.guard import attempt
from benchmarks.peers.fa3 import FlashAttention3
from benchmarks.peers.maskwright_peer import Maskwright

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from benchmarks.cases import Case
    from benchmarks.cases import Shape
    from benchmarks.peers import Peer
    from benchmarks.results import Result

KIND = "nsa"
BLOCK, COUNT = 64, 16
RUNS = {"tokens": 1, "runs": BLOCK}  # tokens that share their lists
OURS, KEPT, DENSE = "maskwright", "maskwright_prepared", "fa3"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all rows and write the result file."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser().parse_args(given)
    result = results.header(given, KIND)
    path = args.out or results.default_path(result, KIND)
    sizes = (map(int, x.split(",")) for x in (args.seqs, args.groups))
    for seq, group, lists in itertools.product(*sizes, args.lists.split(",")):
        found, error = attempt(partial(run_row, args, seq, group, lists))
        case = bench.failed(f"nsa {lists}", seq, error) if found is None else found
        result["cases"].append(case | {"group": group, "lists": lists})
        results.write(path, result)
    return bench.finish(args, path, result)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog=f"python -m {results.MODULES[KIND]}", description=__doc__)
    found.add_argument("--seqs", default="65536", help="comma-separated lengths")
    found.add_argument("--groups", default="1,4,16", help="query heads of a KV head")
    found.add_argument("--lists", default="runs,tokens", help="who shares lists")
    bench.add_common(found)
    found.set_defaults(kv_heads=4)
    return found


def draw(seq: int, kv_heads: int, run: int, device: str) -> Tensor:
    """(1, kv_heads, seq, COUNT) int32: the own block, the first one, others before; -1 where none is."""
    generator = torch.Generator(device).manual_seed(seq + run)
    blocks = -(-seq // BLOCK)
    rows = torch.arange(0, seq, run, device=device) // BLOCK
    found = torch.empty(1, kv_heads, len(rows), COUNT, dtype=torch.int32, device=device)
    for head, start in itertools.product(range(kv_heads), range(0, len(rows), 4096)):
        own = rows[start : start + 4096, None]
        chance = torch.rand(len(own), blocks, generator=generator, device=device)
        ahead = torch.arange(blocks, device=device) > own
        chance.masked_fill_(ahead, -1.0).scatter_(1, own, 2.0)[:, 0] = 3.0
        best = chance.topk(min(COUNT, blocks), 1)
        chosen = torch.where(best.values < 0, -1, best.indices)
        found[0, head, start : start + 4096] = -1
        found[0, head, start : start + 4096, : chosen.shape[1]] = chosen
    return found.repeat_interleave(run, 2)[:, :, :seq].contiguous()


def selected(shape: Shape, lists: Tensor) -> Case:
    """Causal, in the listed blocks."""
    import maskwright as mw
    from maskwright import k
    from maskwright import q

    topk = mw.table("topk", ndim=4)
    mask = (k <= q) & (k // BLOCK).isin(topk[mw.b, mw.kv_head, q])
    group = shape.heads // shape.kv_heads

    def mod(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (k <= q) & (lists[b, h // group][q.long()] == (k // BLOCK)[..., None]).any(-1)

    return cases.Case("nsa", mask, mod, shape, bindings={"topk": lists})


def pairs_of(lists: Tensor, group: int) -> int:
    """Attended pairs: whole blocks, but for the own one."""
    whole = int((lists >= 0).sum()) * BLOCK
    at = torch.arange(lists.shape[2], device=lists.device) % BLOCK
    return group * (whole - lists.shape[1] * int((BLOCK - 1 - at).sum()))


def run_row(args: argparse.Namespace, seq: int, group: int, lists: str) -> Result:
    """One length, group and kind of lists: checked, then timed in turn."""
    heads = args.kv_heads * group
    shape = cases.Shape(args.batch, heads, args.kv_heads, seq, args.head_dim, args.dtype)
    options = runner.Options(args.rounds, args.target_ms, args.device)
    drawn = draw(seq, args.kv_heads, RUNS[lists], args.device)
    case, causal = selected(shape, drawn), cases.causal(shape, args.device)
    ours, dense = pairs_of(drawn, group), heads * seq * (seq + 1) // 2
    contestants: list[tuple[Peer, Case, int]] = [
        (Maskwright(OURS), case, ours),
        (Maskwright(KEPT, prepared=True), case, ours),
        (FlashAttention3(DENSE), causal, dense),
    ]
    tensors = cases.make_tensors(shape, args.device)
    calls, entries = {}, {}
    for peer, wanted, pairs in contestants:
        ready = runner.Bench(wanted, tensors, correct.reference(wanted, tensors))
        entry, prepared = runner.admit(peer, ready, partial(runner.first_call, peer, ready))
        entries[peer.name] = entry | {"pairs": pairs}
        if prepared is not None:
            calls[peer.name] = prepared.call
    for name, found in runner.time_calls(calls, options).items():
        entries[name] |= runner.figures(found, entries[name]["pairs"], case)
    return runner.describe(case) | {"contestants": entries, "pairs_ratio": dense / ours}


if __name__ == "__main__":
    sys.exit(main())
