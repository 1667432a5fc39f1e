"""Training through attention: losses as with a dense mask, alone and on two processes.

Run as a script, this file is one process of the distributed test: RANK FOLDER.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
SMALL = {"length": 192, "rows": 2}
WORLD = 2
STEPS, ROWS = 4, 4  # of the distributed test


def load() -> ModuleType:
    """The example as a module."""
    path = ROOT / "examples" / "train_lm.py"
    spec = importlib.util.spec_from_file_location("example_train_lm", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example():
    return load()


pytestmark = pytest.mark.usefixtures("one_thread")


# -- one process ----------------------------------------------------------------------------------
def test_losses_are_those_of_a_dense_mask(example):
    documents, n_tokens = example.read()
    runs = [
        example.train(documents, n_tokens, backend=backend, steps=20, **SMALL)
        for backend in ("reference", "dense")
    ]
    ours, dense = (torch.tensor(run.losses) for run in runs)
    torch.testing.assert_close(ours, dense, atol=1e-4, rtol=0)
    assert ours[-3:].mean() < ours[:3].mean() - 1
    assert runs[0].held_out[20] == pytest.approx(runs[1].held_out[20], abs=1e-4)


def test_main_leaves_a_picture(example, tmp_path, capsys):
    sizes = ["--steps", "3", "--length", "96", "--rows", "1"]
    example.main([*sizes, "--out", str(tmp_path / "new")])
    picture = (tmp_path / "new" / "train_lm.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert "held out" in capsys.readouterr().out


def test_labels_stay_inside_their_document(example):
    first, second = torch.tensor([5, 6, example.END]), torch.tensor([7, 8, 9, example.END])
    batch = example.pack([[first, second]], 8)
    no = example.NO_LABEL
    assert batch.tokens.tolist() == [[example.ANCHOR, 5, 6, 1, 7, 8, 9, 1]]
    assert batch.doc_id.tolist() == [[0, 1, 1, 1, 2, 2, 2, 2]]
    assert batch.labels.tolist() == [[no, 6, 1, no, 8, 9, 1, no]]
    cut = example.pack([[first, second], [second, first]], 6)
    assert cut.doc_id.tolist() == [[0, 1, 1, 1, 2, 2], [0, 1, 1, 1, 1, 2]]
    assert cut.labels.tolist() == [[no, 6, 1, no, 8, no], [no, 8, 9, 1, no, no]]


@pytest.mark.parametrize("backend", ["reference", "dense"])
def test_a_packed_document_is_as_good_as_alone(example, backend):
    documents, n_tokens = example.read()
    torch.manual_seed(0)
    model = example.Model(n_tokens)
    first, second = documents[0][:150], documents[1][:100]
    packed = example.pack([[first, second]], 251)
    alone = example.pack([[second]], 101)
    with torch.no_grad():
        together = model(packed.tokens, packed.doc_id, backend)[:, 151:]
        by_itself = model(alone.tokens, alone.doc_id, backend)[:, 1:]
    torch.testing.assert_close(together, by_itself, atol=1e-4, rtol=0)


def test_gradients_reach_the_own_document_and_the_anchor_only(example):
    documents, n_tokens = example.read()
    torch.manual_seed(0)
    model = example.Model(n_tokens)
    batch = example.pack([[documents[0][:140], documents[1][:60]]], 201)
    seen = []
    model.embed.register_forward_hook(lambda _module, _args, out: seen.append(out))
    logits = model(batch.tokens, batch.doc_id)
    (gradient,) = torch.autograd.grad(logits[0, 160].square().sum(), seen)
    reached = gradient[0].abs().amax(-1).nonzero().flatten().tolist()
    assert reached == [0, *range(141, 161)]


# -- two processes --------------------------------------------------------------------------------
def steps_of(example, model, rank: int, world: int) -> list[float]:
    """Losses of the whole batch, where this process computes its part of the rows."""
    documents, _ = example.read()
    source = example.batches(documents, rows=ROWS, length=160, seed=0)
    part = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    losses = []
    for _ in range(STEPS):
        batch = next(source)
        batch.labels[0, :100] = example.NO_LABEL
        # Parts differ in labels, so the divisor is of the whole batch; DDP averages gradients.
        divisor = (batch.labels != example.NO_LABEL).sum() / world
        logits = model(batch.tokens[part], batch.doc_id[part], "reference")
        loss = example.total_loss(logits, batch.labels[part]) / divisor
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(averaged(loss.detach(), world))
    return losses


def averaged(loss, world: int) -> float:
    """The mean over all processes."""
    if world > 1:
        torch.distributed.all_reduce(loss)
    return loss.item() / world


def new_model(example):
    torch.manual_seed(0)
    return example.Model(example.read()[1])


def worker(rank: int, folder: Path) -> None:
    """Train in one of the processes; leaves its losses and parameters."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=(folder / "meet").as_uri(), rank=rank, world_size=WORLD
    )
    example = load()
    model = torch.nn.parallel.DistributedDataParallel(new_model(example))
    losses = steps_of(example, model, rank, WORLD)
    torch.save({"losses": losses, "model": model.module.state_dict()}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
    # A thread of gloo may outlive the interpreter, which then aborts: now and then, torch 2.13.
    os._exit(0)


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="needs torch.distributed with gloo",
)
def test_two_processes_train_as_one(example, tmp_path):
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, __file__, str(rank), str(tmp_path)] for rank in range(WORLD)]
    running = [subprocess.Popen(c, env=environment) for c in commands]
    try:
        model = new_model(example)
        alone = steps_of(example, model, 0, 1)
        codes = [process.wait(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0] * WORLD
    for rank in range(WORLD):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["losses"] == pytest.approx(alone, abs=1e-5)
        for name, parameter in model.state_dict().items():
            torch.testing.assert_close(found["model"][name], parameter, atol=1e-4, rtol=0)
    assert alone[-1] < alone[0] - 0.5


if __name__ == "__main__":
    worker(int(sys.argv[1]), Path(sys.argv[2]))
