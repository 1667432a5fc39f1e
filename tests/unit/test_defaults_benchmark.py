"""The benchmark of default configurations: what it compares, a run in the interpreter, its table."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks import defaults
from benchmarks import report
from maskwright.autotune.outcome import Outcome
from maskwright.codegen.gluon import GluonConfig
from maskwright.dsl.errors import TuningError

FACTS = dict.fromkeys(("gpu", "driver", "torch", "triton", "maskwright"), "?")


def test_what_differs_from_the_default():
    default = GluonConfig(stages=2)
    changes = [{"stages": 2}, {"stages": 3, "block_n": 64}, {"block_n": 64, "stages": 3}]
    found = defaults.changed(default, changes)
    assert list(found) == ["default", "stages=3 block_n=64"]
    assert (found["stages=3 block_n=64"].stages, found["default"]) == (3, default)


def test_ratios_are_taken_in_each_round():
    """A process that is slow in both is no slower in the ratio."""
    races = [[(1.0, 2.0), (2.0, 4.2), (1.0, 2.0)], [(10.0, 15.0), (10.0, 15.0), (10.0, 30.0)]]
    found = defaults.entries_of(["default", "other"], races)
    assert found["default"]["ratios"] == [1.0, 1.0]
    assert found["other"]["ratios"] == [2.0, 1.5]
    assert found["other"]["ratio"] == 1.75
    assert found["other"]["ms"] == pytest.approx((4.2 + 15.0) / 2)


def test_without_the_default_there_is_nothing_to_compare_with():
    class Wrong:
        def measure(self, config, best):
            return Outcome("wrong", message="row 7")

    with ThreadPoolExecutor(1) as threads, pytest.raises(TuningError, match="row 7"):
        defaults.Processes([Wrong()], threads).compare({"default": GluonConfig()}, 3)


def test_a_run_in_the_interpreter(tmp_path):
    out = tmp_path / "defaults.json"
    options = ["--backend=interpret", "--dtype=float32", "--scale=small", "--seq=32", "--rounds=2"]
    options += ["--heads=1", "--kv-heads=1", "--head-dim=16", "--processes=2", "--quiet"]
    change = '--change={"block_n": 16}'
    assert defaults.main([*options, "--masks=causal", change, f"--out={out}"]) == 0
    result = json.loads(out.read_text())
    (right,) = result["cases"]
    found = right["contestants"]["block_n=16"]
    assert found["status"] == "ok"
    assert len(found["ratios"]) == 2
    assert right["shape"]["seq"] == 32
    table = report.table_of(result)
    assert table.header[3:] == ["block_n=16"]
    assert table.rows[0][3] == f"{found['ratio']:.3f}"
    assert any("2 processes within" in x for x in table.notes)


def test_an_unknown_mask_is_refused_before_anything_runs(capsys):
    with pytest.raises(SystemExit):
        defaults.main(["--masks=causal,tree_of_life"])
    assert "unknown: tree_of_life (known: full, causal" in capsys.readouterr().err


def rows_of(contestants):
    case = {"name": "causal", "shape": {"seq": 8}, "contestants": contestants}
    result = {"kind": "defaults", "cases": [case], "environment": FACTS, "date": "", "command": ""}
    return report.table_of(result)


def entry(ratio, *ratios):
    return {"status": "ok", "ms": ratio, "iqr": 0.0, "ratio": ratio, "ratios": list(ratios)}


def test_the_table():
    ratios = [1.2, *[0.8] * 9]
    found = {"default": entry(1.0, 1.0), "a": entry(0.8, *ratios), "b": {"status": "wrong"}}
    table = rows_of(found)
    assert table.rows == [["causal", "8", "1.000", "0.800", "wrong"]]
    assert "by 25.0 % on average, 25.0 % at most" in table.notes[1]
    assert "10 processes within 50.0 %, the middle eight tenths within 0.0 %" in table.notes[2]
