"""``maskwright tune`` on the command line, with Triton's interpreter in the place of a GPU."""

from __future__ import annotations

import json

import pytest

from maskwright.autotune import lookup
from maskwright.autotune.table import Table
from maskwright.runtime.cli import main

SMALL = ["--heads", "2", "--q-len", "32", "--head-dim", "16", "--dtype", "float32"]
SMALL += ["--backend", "interpret"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE_DIR", str(tmp_path))
    lookup.forget()
    yield
    lookup.forget()


def run(capsys, *arguments):
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_a_pattern_of_the_catalogue_is_tuned_once(capsys):
    command = ["tune", "--catalog", "--only", "causal", *SMALL, "--trials", "2", "--json"]
    code, out, err = run(capsys, *command)
    assert code == 0, err
    (found,) = json.loads(out)
    assert (found["name"], found["tried"], found["wrong"]) == ("causal", 2, [])
    code, out, _ = run(capsys, *command)
    (again,) = json.loads(out)
    assert (again["reason"], again["config"]) == ("found, not searched", found["config"])
    code, out, _ = run(capsys, "tune", "show", "--json")
    (entry,) = json.loads(out)["entries"]
    assert entry["config"] == found["config"]


def test_the_catalogue_on_two_gpus(capsys, monkeypatch):
    """Two processes with the interpreter in them; entries end in one cache."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    command = ["tune", "--catalog", "--only", "full,causal", "--gpus", "0,1", *SMALL]
    code, out, err = run(capsys, *command, "--trials", "2", "--workers", "2")
    assert code == 0, err
    assert "failed" in out  # the column's name
    assert "GPU 0 | " in err
    assert "GPU 1 | " in err
    assert "2 done" in err
    code, out, _ = run(capsys, "tune", "show", "--json")
    assert len(json.loads(out)["entries"]) == 2


def test_a_table_is_recorded_and_gone_on_with(capsys, tmp_path):
    path = tmp_path / "table.json.gz"
    command = ["tune", "causal", *SMALL, "--table", str(path), "--sample", "3", "--budget", "12"]
    code, out, err = run(capsys, *command)
    assert code == 0, err
    assert "3 of " in out
    first = Table.read(path)
    assert all(row.ratio for row in first.rows)
    code, out, _ = run(capsys, *command, "--json")
    assert json.loads(out)["rows"] == 5
    assert Table.read(path).job == first.job
