"""Distributed jobs: 8 processes with one answer, whether rank 0 finds, searches or fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from maskwright import k
from maskwright import q
from maskwright.autotune import ask
from maskwright.autotune import tune
from maskwright.dsl.errors import TuningError

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, sys, time
import torch
import torch.distributed as dist
from maskwright.autotune.ranks import from_rank_0
from maskwright.dsl.errors import TuningError

torch.set_num_threads(1)
world, store = int(sys.argv[1]), sys.argv[2]
rank = next((i for i in range(1, world) if os.fork() == 0), 0)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
made = 0

def hit():
    return "an entry"

def miss():
    time.sleep(0.2)
    return "a new entry"

def fail():
    raise TuningError("nothing survived")

def told(make, here="the same"):
    global made
    try:
        return from_rank_0(make, here)
    except TuningError as error:
        return "error: " + error.what

lines = [told(hit if i % 2 else miss) for i in range(10)]
lines += [told(fail), told(hit, f"GPU {rank % 2}"), told(hit)]
print(lines, flush=True)
dist.barrier()
dist.destroy_process_group()
if rank == 0:
    for _ in range(world - 1):
        os.wait()
else:
    os._exit(0)
"""
WORLD = 8


def test_eight_ranks_agree_on_hits_misses_and_failures(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(WORLD), str(tmp_path / "store")]
    done = subprocess.run(
        command,
        env={"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = done.stdout.split("]\n")[:-1]
    assert len(lines) == WORLD, done.stderr[-2000:]
    assert len(set(lines)) == 1
    assert lines[0].count("'an entry'") == 6
    assert lines[0].count("'a new entry'") == 5
    assert "error: rank 0: TuningError: nothing survived" in lines[0]
    assert "error: the ranks have different GPUs or software" in lines[0]


def test_one_of_many_ranks_does_not_tune_for_itself(monkeypatch):
    monkeypatch.setattr(tune, "many_ranks", lambda: True)
    with pytest.raises(TuningError, match="one of many"):
        tune.tune(k <= q, ask.budget_of(), q_len=64, backend="interpret")


def test_no_search_while_a_graph_is_recorded(monkeypatch):
    monkeypatch.setattr(tune.torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(tune.torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(TuningError, match="recorded"):
        tune.tune(k <= q, ask.budget_of(), q_len=64, backend="interpret")
