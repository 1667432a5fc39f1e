"""How often a training loop compiles anew: ``python -m benchmarks.recompiles``.

A transformer block under ``torch.compile(fullgraph=True)`` takes training steps in which the window,
the documents, the lengths, or all of them change at every step. Counted are the graphs that torch
compiled, the kernels that maskwright generated, and the variants that Triton compiled of them.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from functools import partial
from itertools import islice
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

import torch
from torch._dynamo import mark_dynamic
from torch._dynamo import utils as dynamo

from benchmarks import child
from benchmarks import results
from benchmarks.bench import finish
from benchmarks.guard import attempt
from benchmarks.tiny_model import Block
from benchmarks.tiny_model import Sizes
from benchmarks.tiny_model import attentions
from benchmarks.tiny_model import batches

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Iterator
    from collections.abc import Sequence

    from benchmarks.tiny_model import Attend
    from benchmarks.tiny_model import Batch

SCENARIOS = {
    "nothing": frozenset[str](),
    "window": frozenset({"window"}),
    "documents": frozenset({"documents"}),
    "lengths": frozenset({"lengths"}),
    "all": frozenset({"window", "documents", "lengths"}),
}
COUNTED = ("graphs", "kernels", "variants")
LEARNING_RATE = 1e-2
REASON = 200  # characters of a reason that are kept
Entry = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """How the block is compiled and trained.

    Attributes:
        sizes: of the block and its batches.
        steps: of training, in each scenario.
        dynamic: ``true`` passes ``dynamic=True``; ``mark`` marks the length of the inputs.
        compiler: torch.compile's backend.
    """

    sizes: Sizes
    steps: int
    device: str
    dynamic: str
    compiler: str


@dataclass
class Counts:
    """Totals after each step, the step before the first included."""

    graphs: list[int] = field(default_factory=list[int])
    kernels: list[int] = field(default_factory=list[int])
    variants: list[int] = field(default_factory=list[int])
    losses: list[float] = field(default_factory=list[float])

    def to_dict(self) -> Entry:
        """For JSON: how many of each, and the steps (from 0) at which one was added."""
        found: Entry = {"steps": len(self.losses)}
        for name in COUNTED:
            totals: list[int] = getattr(self, name)
            added = [after - before for before, after in pairwise(totals)]
            found[name] = sum(added)
            found[f"{name}_at"] = [step for step, count in enumerate(added) if count]
            found[f"{name}_after_first_step"] = sum(added[1:])
        found["recompiles"] = found["graphs_after_first_step"]
        found["losses"] = [round(loss, 6) for loss in (*self.losses[:1], *self.losses[-1:])]
        return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all scenarios, write the result file, print the table."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    args = parser().parse_args(given)
    contestants = chosen(args.peers, attentions(args.backend))
    result = results.header(given, "recompiles")
    path = args.out or results.default_path(result, "recompiles")
    for name in chosen(args.scenarios, SCENARIOS):
        result["cases"] += (
            run_child(args, name)
            if args.child_timeout > 0
            else [run_here(name, setup_of(args), contestants)]
        )
        results.write(path, result)
    return finish(args, path, result)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m benchmarks.recompiles", description=__doc__)
    found.add_argument("--scenarios", default=",".join(SCENARIOS), help="comma-separated")
    found.add_argument("--peers", default="maskwright,dense", help="comma-separated")
    found.add_argument("--steps", type=int, default=100)
    found.add_argument("--longest", type=int, default=Sizes.longest, help="longest sequence")
    found.add_argument("--dtype", default="", help="default: bfloat16 on a GPU, else float32")
    found.add_argument("--dynamic", default="true", choices=("true", "mark"))
    found.add_argument("--compiler", default="inductor", help="torch.compile's backend")
    found.add_argument("--backend", default="auto", help="maskwright's backend")
    found.add_argument("--child-timeout", type=float, default=300.0, help="0: all in this process")
    found.add_argument("--out", type=Path, default=None, help="result file")
    found.add_argument("--quiet", action="store_true", help="write the file only")
    found.add_argument("--device", default="cuda")
    return found


def chosen(names: str, known: dict[str, Any]) -> dict[str, Any]:
    """The named ones; unknown names are refused before anything runs."""
    unknown = [name for name in names.split(",") if name not in known]
    if unknown:
        parser().error(f"unknown: {', '.join(unknown)} (known: {', '.join(known)})")
    return {name: known[name] for name in names.split(",")}


def setup_of(args: argparse.Namespace) -> Setup:
    """What the command line asks for."""
    dtype = args.dtype or ("bfloat16" if args.device == "cuda" else "float32")
    shortest = min(Sizes.shortest, args.longest)
    sizes = Sizes(longest=args.longest, shortest=shortest, dtype=getattr(torch, dtype))
    return Setup(sizes, args.steps, args.device, args.dynamic, args.compiler)


def run_child(args: argparse.Namespace, name: str) -> list[Entry]:
    """One scenario in its own process: what another one compiled would not be counted."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    values = vars(args) | {"scenarios": name, "child_timeout": 0}
    given = [f"--{key.replace('_', '-')}={value}" for key, value in values.items()]
    given = [x for x in given if not x.startswith(("--quiet", "--out"))]
    command = [sys.executable, "-m", "benchmarks.recompiles", "--quiet", *given]
    cases, reason = child.run(lambda out: [*command, f"--out={out}"], args.child_timeout)
    return [describe(name, setup_of(args)) | {"failed": reason}] if reason else cases


def run_here(name: str, setup: Setup, contestants: dict[str, Attend]) -> Entry:
    """One scenario in this process."""
    case = describe(name, setup)
    for contestant, attend in contestants.items():
        case["contestants"][contestant] = run(SCENARIOS[name], setup, attend)
    return case


def describe(name: str, setup: Setup) -> Entry:
    """What the scenario is."""
    sizes = asdict(setup.sizes) | {"dtype": str(setup.sizes.dtype).removeprefix("torch.")}
    how = {"dynamic": setup.dynamic, "compiler": setup.compiler, "device": setup.device}
    return (
        {"name": name, "changes": sorted(SCENARIOS[name]), "shape": sizes}
        | how
        | {"contestants": {}}
    )


def run(changes: frozenset[str], setup: Setup, attend: Attend) -> Entry:
    """One contestant in one scenario; what it counted before a failure is kept."""
    counts = Counts()
    torch.compiler.reset()
    dynamo.counters.clear()
    dynamo.clear_compilation_metrics()
    start = time.perf_counter()
    done, error = attempt(partial(train, changes, setup, attend, counts))
    entry: Entry = {"status": "ok" if done else "error"}
    entry |= {} if done else {"reason": error}
    entry |= counts.to_dict()
    entry["reasons"] = reasons(dynamo.get_compilation_metrics())
    return entry | {"seconds": round(time.perf_counter() - start, 2)}


def train(changes: frozenset[str], setup: Setup, attend: Attend, counts: Counts) -> bool:
    """The training loop."""
    torch.manual_seed(0)
    block = Block(setup.sizes, attend).to(setup.device, setup.sizes.dtype)
    dynamic = True if setup.dynamic == "true" else None
    compiled = torch.compile(block, fullgraph=True, dynamic=dynamic, backend=setup.compiler)
    optimizer = torch.optim.SGD(block.parameters(), LEARNING_RATE)
    with triton_variants() as variants:
        note(counts, variants)
        for batch in islice(batches(setup.sizes, changes, setup.device), setup.steps):
            counts.losses.append(step(compiled, optimizer, mark(batch, setup.dynamic)))
            note(counts, variants)
    return True


def step(model: Callable[..., Any], optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    """One step towards predicting the next token's features; the loss before it."""
    out = model(*batch)
    loss = (out[:, :-1].float() - batch.tokens[:, 1:].float()).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def mark(batch: Batch, dynamic: str) -> Batch:
    """With ``mark``: the length is dynamic, all else is torch's own choice."""
    if dynamic == "mark":
        mark_dynamic(batch.tokens, 1)
        mark_dynamic(batch.doc_id, 1)
    return batch


def note(counts: Counts, variants: list[str]) -> None:
    """Write down the totals."""
    from maskwright.runtime import build

    counts.graphs.append(int(dynamo.counters["stats"]["unique_graphs"]))
    counts.kernels.append(build.loaded())
    counts.variants.append(len(variants))


@contextlib.contextmanager
def triton_variants() -> Iterator[list[str]]:
    """Names of the kernels that Triton compiles meanwhile, those of torch's compiler apart."""
    names: list[str] = []
    try:
        from triton import knobs
    except ImportError:
        yield names
        return

    def listen(*, src: Any, **_: Any) -> None:
        name = str(getattr(src, "name", ""))
        if not name.startswith("triton_"):
            names.append(name)

    before, knobs.compilation.listener = knobs.compilation.listener, listen
    try:
        yield names
    finally:
        knobs.compilation.listener = before


def reasons(metrics: Sequence[Any]) -> list[str]:
    """The guards that made torch compile again, as far as it says; without its stack traces."""
    found = [getattr(metric, "recompile_reason", None) for metric in metrics]
    return [" ".join(text.partition("#")[0].split())[:REASON] for text in found if text]


if __name__ == "__main__":
    sys.exit(main())
