"""The benchmark of block lists: drawn lists, counted pairs, a run on a CPU, its tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import maskwright as mw

pytest.importorskip("torch.nn.attention.flex_attention")

from benchmarks import block_list_case as blc
from benchmarks import block_lists
from benchmarks import cases
from benchmarks import correct
from benchmarks import report

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = [blc.Kind(64), blc.Kind(16, 4), blc.Kind(128)]
FACTS = dict.fromkeys(("gpu", "driver", "torch", "triton", "maskwright"), "?")


@pytest.mark.parametrize("kind", KINDS, ids=lambda x: x.name)
def test_lists_pairs_and_both_forms_of_the_mask(kind):
    seq, heads = 300, 3
    assert blc.Kind.parse(kind.name) == kind
    kept = blc.draw(kind, seq, heads, "cpu")
    shape = cases.Shape(heads=heads, kv_heads=1, seq=seq)
    case = blc.listed(shape, kind, kept)
    lists = {name: x.numpy() for name, x in case.bindings.items()}
    dense = mw.to_dense(case.mask, seq, heads=heads, kv_heads=1, **lists)
    index = [torch.arange(n) for n in (1, heads, seq, seq)]
    grid = torch.meshgrid(*index, indexing="ij")
    assert np.array_equal(dense, case.flex_mod(*grid).numpy())
    assert blc.pairs_of(kept, kind.size, seq) == dense.sum()
    assert dense[0, :, range(seq), range(seq)].all()  # its own block, at least


def test_neighbours_share_what_lies_before_them():
    kept = blc.draw(blc.Kind(16, 4), 640, 2, "cpu")
    first, last = kept[:, 4:40:4], kept[:, 7:40:4]
    for i in range(first.shape[1]):
        before = slice(0, 4 + 4 * i)
        assert torch.equal(first[:, i, before], last[:, i, before])
    share = kept.tril(-1).sum() / (2 * 40 * 39 / 2)
    assert 0.15 < share < 0.31
    assert not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize("op", ["forward", "training"])
def test_a_run_on_a_cpu(op, tmp_path, monkeypatch):
    monkeypatch.setattr(correct, "SAMPLES", 4)
    out = tmp_path / "blocks.json"
    options = ["--device=cpu", "--dtype=float32", "--heads=2", "--kv-heads=1", "--head-dim=16"]
    options += ["--rounds=2", "--target-ms=1", "--seqs=200", "--blocks=64,16x4", f"--op={op}"]
    assert block_lists.main([*options, "--quiet", f"--out={out}"]) == 0
    result = json.loads(out.read_text())
    kind = {"forward": "block_lists", "training": "block_lists_training"}[op]
    assert (result["kind"], result["command"].split()[2]) == (kind, "benchmarks.block_lists")
    assert [x["blocks"] for x in result["cases"]] == ["64", "16x4"]
    for case in result["cases"]:
        kept = blc.draw(blc.Kind.parse(case["blocks"]), 200, 2, "cpu")
        found = case["contestants"]["maskwright"]
        assert found["status"] == "ok"
        assert found["pairs"] == blc.pairs_of(kept, int(case["blocks"][:2]), 200)
        assert case["pairs_ratio"] == pytest.approx(2 * 200 * 201 / 2 / found["pairs"])
        assert all("GPU" in case["contestants"][x]["reason"] for x in ("flex", "sdpa_cudnn"))
    table = report.table_of(result)
    assert [row[:2] for row in table.rows] == [["200", "64"], ["200", "16x4"]]
    assert all(len(row) == len(table.header) for row in table.rows)
    assert table.rows[0][-1] == "-"  # nothing to compare with here


def entry(ms, tflops, **others):
    return {"status": "ok", "ms": ms, "iqr": 0.1, "tflops": tflops, **others}


def rows_of(kind, contestants):
    case = {"name": "block_list", "shape": {"seq": 8}, "blocks": "64", "pairs_ratio": 4.0}
    result = {"kind": kind, "cases": [case | {"contestants": contestants}], "environment": FACTS}
    return report.table_of(result | {"date": "", "command": ""}).rows


def test_the_table():
    found = {
        "maskwright": entry(2.0, 300.0),
        "maskwright_prepared": entry(1.5, 400.0),
        "flex": entry(5.0, 120.0, prepare_ms=3.0),
        "sdpa_cudnn": entry(6.0, 400.0),
    }
    ((*times, flex, whole, share),) = rows_of("block_lists", found)
    assert times[2:5] == ["300 (2.000)", "400 (1.500)", "120 (5.000)"]
    assert times[5:] == ["3.00", "400 (6.000)"]
    assert (flex, whole, share) == ("2.50x", "4.00x", "0.75")


def test_the_table_of_training():
    parts = [{"forward": {"ms": x}, "backward": {"ms": 3 * x}} for x in (1.0, 3.0)]
    found = {
        "maskwright": entry(4.0, 200.0, **parts[0]),
        "sdpa_cudnn": entry(12.0, 250.0, **parts[1]),
    }
    found["flex"] = {"status": "error", "reason": "no memory"}
    ((*_, forward, backward, flex, share, behind),) = rows_of("block_lists_training", found)
    assert (forward, backward, flex, share, behind) == ("1.000", "3.000", "-", "0.80", "0.75")
