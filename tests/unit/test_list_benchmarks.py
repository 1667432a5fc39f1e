"""The benchmark of runtime lists: its lists, its counts, its masks, its table."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import maskwright as mw  # noqa: E402
from benchmarks import cases  # noqa: E402
from benchmarks import correct  # noqa: E402
from benchmarks import head_mix  # noqa: E402
from benchmarks import launch_order  # noqa: E402
from benchmarks import list_cases  # noqa: E402
from benchmarks import lists  # noqa: E402
from benchmarks import lists_case  # noqa: E402
from benchmarks import nsa  # noqa: E402
from benchmarks import nsa_case  # noqa: E402
from benchmarks import report  # noqa: E402
from benchmarks import select_cost  # noqa: E402
from benchmarks import tiled  # noqa: E402
from benchmarks.list_cases import Row  # noqa: E402
from benchmarks.peers import maskwright_peer  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = Row(512, 64, 140, 3)
SHAPE = cases.Shape(1, 2, 1, 512, 16, "float32")


def runs_of(diagonals):
    """Lengths of the contiguous runs of a descending list, nearest first."""
    ascending = np.sort(diagonals)
    return [len(x) for x in np.split(ascending, np.flatnonzero(np.diff(ascending) > 1) + 1)]


@pytest.mark.parametrize(
    "row", [SMALL, Row(2048, 100, 400, 0), Row(1024, 30, 100, 1), *list_cases.ROWS[:3]]
)
def test_lists_have_the_sizes_of_their_row(row):
    columns, diagonals = (x[0].numpy() for x in list_cases.draw(row, 3))
    assert columns.shape == (3, row.columns)
    assert diagonals.shape == (3, row.diagonals)
    for head in range(3):
        assert (np.diff(columns[head]) > 0).all()
        assert (np.diff(diagonals[head]) < 0).all()
        assert columns[head, :30].tolist() == list(range(30))
        assert diagonals[head, ::-1][:100].tolist() == list(range(100))
        assert diagonals[head, 0] < row.seq
        assert columns[head, -1] < row.seq
    if row.columns > 30:
        assert (columns[0] != columns[1]).any()


def test_diagonals_come_in_runs():
    for runs in (1, 5, 20):
        row = Row(8192, 100, 500, runs)
        for seed in range(3):
            found = runs_of(list_cases.draw(row, 1, seed)[1][0, 0].numpy())
            # A run may lie beside the nearest 100, or two side by side; none is split.
            assert runs - 1 <= len(found) <= runs + 1
            assert all(length >= 400 // runs or length == 100 for length in found)
    scattered = runs_of(list_cases.draw(Row(32768, 100, 328, 0), 1)[1][0, 0].numpy())
    assert len(scattered) > 200


def test_a_row_is_read_as_it_is_named():
    for row in list_cases.ROWS:
        assert list_cases.parse(row.name) == row
    for text in ("8192/1000/328", "8192/1000/328/-1", "8192/20/328/5", "200/100/300/5", "a/b/c/d"):
        with pytest.raises(ValueError, match="/"):
            list_cases.parse(text)


@pytest.fixture
def drawn():
    return list_cases.draw(SMALL, 2)


def test_pairs_are_those_of_the_mask(drawn):
    given = {"v_idx": drawn[0].numpy(), "s_idx": drawn[1].numpy()}
    dense = mw.to_dense(mw.patterns.vertical_slash(), 512, heads=2, **given)
    assert lists_case.exact_pairs(SMALL, drawn) == dense.sum()
    masks = lists_case.masks_of(SMALL, SHAPE, drawn, "cpu")
    rows = torch.arange(512)
    for head in range(2):
        assert (correct.mask_rows(masks["exact"], head, rows).numpy() == dense[0, head]).all()
        tiles = correct.mask_rows(masks["tiled"], head, rows).numpy()
        assert not (dense[0, head] & ~tiles).any()
        assert not (tiles & ~np.tri(512, dtype=bool)).any()


@pytest.mark.parametrize(("seq", "columns", "far", "runs"), [(1024, 60, 20, 0), (2048, 200, 99, 3)])
def test_how_the_peer_differs_from_the_tiled_pattern(seq, columns, far, runs):
    """What the pattern's docstring says: without the nearest diagonals it loses columns."""
    row = Row(seq, columns, list_cases.RECENT + far, runs)
    given = list_cases.draw(row, 1)
    vertical, slash = given[0][0, 0].numpy(), given[1][0, 0].numpy()
    for diagonals in (slash, slash[slash >= 200]):
        mask = mw.patterns.vertical_slash(tiled=64)
        ours = mw.to_dense(mask, seq, v_idx=vertical[None, None], s_idx=diagonals[None, None])[0, 0]
        theirs = tiled.rows(vertical, diagonals, np.arange(seq), seq)
        only_ours = ours & ~theirs
        assert only_ours.any() == (0 not in diagonals)
        assert np.isin(np.nonzero(only_ours)[1], vertical).all()
        assert 0.01 < (theirs & ~ours).sum() / theirs.sum() < 0.2


def test_shares_count_whole_tiles(drawn):
    found = lists_case.shares(SMALL, drawn, SHAPE)
    whole = list_cases.triangle(512)
    masks = lists_case.masks_of(SMALL, SHAPE, drawn, "cpu")
    tiles = correct.mask_rows(masks["tiled"], 0, torch.arange(512)).sum()
    one_head = drawn[0][:, :1], drawn[1][:, :1]
    assert found["exact"] == lists_case.exact_pairs(SMALL, one_head) / whole
    assert tiles <= found["minference"] * whole
    assert found["exact"] <= found["maskwright"]
    # Every column and every diagonal near: all tiles up to the diagonal, none gathered twice.
    dense = torch.arange(512)[None, None]
    both = lists_case.shares(Row(512, 512, 512, 1), (dense, dense.flip(-1)), SHAPE)
    assert both["minference"] * whole == 64 * 64 * 8 * 9 / 2
    assert both["exact"] == 1.0


def test_a_run_without_a_gpu(tmp_path, monkeypatch):
    """The peers that need one are skipped, and say so; the table still has its row."""
    monkeypatch.setattr(correct, "SAMPLES", 4)
    out = tmp_path / "lists.json"
    options = ["--device=cpu", "--dtype=float32", "--heads=2", "--kv-heads=1", "--head-dim=16"]
    options += ["--rounds=2", "--target-ms=1", "--child-timeout=0", "--quiet", f"--out={out}"]
    peers = ",".join([*lists_case.DEFAULT, "maskwright_tiled"])
    assert lists.main(["--rows=256/40/110/1", f"--peers={peers}", *options]) == 0
    result = json.loads(out.read_text())
    found = result["cases"][0]["contestants"]
    assert {name for name, x in found.items() if x["status"] == "ok"} == {
        "maskwright",
        "maskwright_prepared",
        "maskwright_tiled",
    }
    assert "GPU" in found["minference"]["reason"]
    assert found["maskwright_prepared"]["prepare_ms"] > 0
    table = report.table_of(result)
    assert table.rows[0][0] == "256/40/110/1"
    assert "maskwright" in table.header
    assert "minference" not in "".join(table.header)


def test_lists_can_be_chosen_in_the_call(tmp_path, monkeypatch):
    """As many as the row lists, in every call; what is attended to is still the row's."""
    asked, chosen = [], maskwright_peer.selectors.vertical_slash

    def select(query, key, columns, diagonals):
        asked.append((columns, diagonals))
        return chosen(query, key, columns, diagonals)

    monkeypatch.setattr(maskwright_peer.selectors, "vertical_slash", select)
    monkeypatch.setattr(correct, "SAMPLES", 4)
    out = tmp_path / "lists.json"
    options = ["--device=cpu", "--dtype=float32", "--heads=2", "--kv-heads=1", "--head-dim=16"]
    options += ["--rounds=1", "--target-ms=1", "--child-timeout=0", "--quiet", f"--out={out}"]
    assert lists.main(["--rows=256/40/110/1", "--peers=maskwright_selected", *options]) == 0
    case = json.loads(out.read_text())["cases"][0]
    assert case["contestants"]["maskwright_selected"]["status"] == "ok"
    assert "minference" not in case["shares"]
    assert len(asked) > 1
    assert set(asked) == {(40, 110)}


def test_the_table_with_all_contestants():
    entry = {
        "status": "ok",
        "ms": 2.0,
        "iqr": 0.1,
        "prepare_ms": 0.0,
        "prepare_mib": 0.0,
        "ours": 1.0,
    }
    found = {
        "maskwright": entry,
        "maskwright_prepared": entry | {"ms": 1.5, "prepare_ms": 0.4, "prepare_mib": 1.25},
        "minference": entry | {"ms": 3.0, "ours": 1.5},
        "minference_prepared": entry | {"ms": 2.2, "prepare_ms": 0.9, "prepare_mib": 310.0},
        "fa3": entry | {"status": "wrong", "reason": "x"},
        "flex": entry | {"prepare_ms": 7.0},
    }
    shares = {"exact": 0.25, "maskwright": 0.3, "minference": 0.5}
    case = {"name": "a/b/c/d", "shape": {"seq": 1}, "shares": shares, "contestants": found}
    failed = {"name": "e", "shape": {"seq": 1}, "failed": "no result", "contestants": {}}
    facts = dict.fromkeys(("gpu", "driver", "torch", "triton", "maskwright"), "?")
    table = report.table_of(
        {"kind": "lists", "cases": [case, failed], "environment": facts, "date": "", "command": ""}
    )
    assert table.rows[0] == [
        *("a/b/c/d", "25.0", "30.0", "50.0"),
        *("2.000 (0.400 + 1.500)", "3.000 (0.900 + 2.200)", "wrong", "2.000 (+ 7.000)"),
        *("1.50x", "1.00x", "1.00x", "1.2", "310.0"),
    ]
    assert table.rows[1][1:5] == ["-", "-", "-", "failed"]
    assert any("fa3" in note for note in table.notes)


def test_names_are_refused_before_anything_runs(capsys):
    for option in ("--rows=1/2/3", "--peers=fa9"):
        with pytest.raises(SystemExit):
            lists.main([option, "--device=cpu"])
        assert option.split("=")[1] in capsys.readouterr().err


# -- heads of two kinds ---------------------------------------------------------------------------
def test_programs_cost_the_tiles_they_visit():
    costs = launch_order.program_costs(mw.patterns.causal(), 512, 2, 1)
    assert costs.tolist() == [[2, 4, 6, 8]] * 2
    mixed = mw.by_head([0, 1], [mw.patterns.causal(), mw.patterns.sliding_window(0, 0)])
    assert launch_order.program_costs(mixed, 512, 2, 1).tolist() == [[2, 4, 6, 8], [2, 2, 2, 2]]
    assert launch_order.launched(np.array([[1, 2], [3, 4]])) == [2, 4, 1, 3]
    assert launch_order.by_head(np.array([[1, 2], [3, 4]])) == [4, 3, 2, 1]


def test_the_loss_of_an_order():
    assert launch_order.loss([8, 8], slots=2) == 1.0
    assert launch_order.loss([1, 1, 8], slots=2) > launch_order.loss([8, 1, 1], slots=2) == 1.0


@pytest.mark.parametrize("seq", [2048, 8192, 32768])
@pytest.mark.parametrize("streaming", [1, 4, 7])
def test_long_heads_do_not_trail(seq, streaming):
    """Causal and streaming heads: the kernel's order is within 5 % of the least time."""
    kinds = [int(head // 4 < streaming) for head in range(32)]
    mask = mw.by_head(kinds, [mw.patterns.causal(), mw.patterns.a_shape(64, 256)])
    costs = launch_order.program_costs(mask, seq, 32, 8)
    assert launch_order.loss(launch_order.launched(costs)) < 1.05


def test_the_mix_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(correct, "SAMPLES", 4)
    out = tmp_path / "mix.json"
    options = ["--device=cpu", "--dtype=float32", "--heads=4", "--kv-heads=2", "--head-dim=16"]
    options += ["--rounds=2", "--target-ms=1", "--seqs=600", "--quiet", f"--out={out}"]
    assert head_mix.main(options) == 0
    result = json.loads(out.read_text())
    (case,) = result["cases"]
    pairs = {name: entry["pairs"] for name, entry in case["contestants"].items()}
    dense = mw.to_dense(mw.parse(case["mask"]), 600, heads=4, kv_heads=2)
    assert pairs == {"causal": 4 * 600 * 601 // 2, "head_mix": dense.sum()}
    assert dense[0, 1].sum() == 600 * 601 // 2
    assert dense[0, 2].sum() < dense[0, 1].sum()
    ratio = pairs["head_mix"] / pairs["causal"]
    assert case["predicted_ms"] == pytest.approx(
        case["contestants"]["causal"]["ms"] * ratio, rel=1e-3
    )
    assert report.table_of(result).rows[0][0] == "600"


def test_blocks_of_every_token_on_a_cpu(tmp_path, monkeypatch):
    group = 2
    monkeypatch.setattr(correct, "SAMPLES", 4)
    out = tmp_path / "nsa.json"
    options = ["--device=cpu", "--dtype=float32", "--kv-heads=2", "--head-dim=16", "--rounds=2"]
    options += [f"--groups={group}", "--seqs=700", "--target-ms=1", "--quiet", f"--out={out}"]
    assert nsa.main(options) == 0
    result = json.loads(out.read_text())
    assert [x["lists"] for x in result["cases"]] == ["runs", "tokens"]
    for case in result["cases"]:
        drawn = nsa_case.draw(700, 2, nsa_case.RUNS[case["lists"]], "cpu")
        topk = {"topk": drawn.numpy()}
        kept = mw.to_dense(mw.parse(case["mask"]), 700, heads=2 * group, kv_heads=2, **topk)
        found = case["contestants"]["maskwright"]
        assert (found["status"], found["pairs"]) == ("ok", kept.sum())
        assert case["pairs_ratio"] == 2 * group * 700 * 701 // 2 / kept.sum()
    assert report.table_of(result).rows[0][:3] == ["700", str(group), "runs"]


def test_gradients_of_blocks_of_every_token_on_a_cpu(tmp_path, monkeypatch):
    """Checked and timed; dense contestants need a GPU, and the table says so."""
    monkeypatch.setattr(correct, "SAMPLES", 4)
    out = tmp_path / "nsa.json"
    options = ["--device=cpu", "--dtype=float32", "--kv-heads=2", "--head-dim=16", "--rounds=2"]
    options += ["--op=training", "--groups=2", "--seqs=300", "--target-ms=1", f"--out={out}"]
    assert nsa.main([*options, "--quiet"]) == 0
    result = json.loads(out.read_text())
    assert (result["kind"], result["command"].split()[2]) == ("nsa_training", "benchmarks.nsa")
    for case in result["cases"]:
        found = case["contestants"]["maskwright"]
        assert found["status"] == "ok"
        assert set(found["gradient_error"]) >= {"dq", "dk", "dv"}
        assert found["backward"]["ms"] > 0
        assert "GPU" in case["contestants"]["sdpa_cudnn"]["reason"]
    row = report.table_of(result).rows[0]
    assert (row[:3], row[4:6], row[8:10]) == (["300", "2", "runs"], ["-", "-"], ["-", "-"])


def test_the_table_of_gradients_of_blocks():
    def entry(step, backward):
        parts = {"forward": {"ms": step - backward}, "backward": {"ms": backward}}
        return {"status": "ok", "ms": step, "iqr": 0.1, "tflops": 100.0, **parts}

    found = {"maskwright": entry(20.0, 15.0), "sdpa_cudnn": entry(100.0, 75.0)}
    case = {"name": "nsa", "shape": {"seq": 8}, "group": 4, "lists": "runs", "contestants": found}
    failed = {"name": "nsa runs", "shape": {"seq": 8}, "failed": "no memory", "contestants": {}}
    facts = dict.fromkeys(("gpu", "driver", "torch", "triton", "maskwright"), "?")
    both = [case | {"pairs_ratio": 10.0}, failed | {"group": 4, "lists": "runs"}]
    result = {"kind": "nsa_training", "cases": both, "environment": facts, "date": ""}
    table = report.table_of(result | {"command": ""})
    assert table.rows[0][3:] == [
        *("100 (20.000)", "100 (100.000)", "-", "5.000", "15.000"),
        *("5.00x", "5.00x", "10.0", "0.50"),
    ]
    assert table.rows[1][3:] == ["failed"] * 3 + ["-"] * 6
    assert any("no memory" in note for note in table.notes)


def test_the_cost_of_selection(tmp_path):
    out = tmp_path / "cost.json"
    options = ["--device=cpu", "--dtype=float32", "--heads=2", "--kv-heads=1", "--head-dim=16"]
    options += ["--rounds=2", "--target-ms=1", "--seqs=300", "--quiet", f"--out={out}"]
    assert select_cost.main(options) == 0
    result = json.loads(out.read_text())
    found = result["cases"][0]["contestants"]
    assert found["vertical_slash"]["agrees"] == 1.0
    assert found["nsa_blocks"]["ms"] > 0
    table = report.table_of(result)
    assert table.header[:3] == ["S", "vertical_slash", "vertical_slash_torch"]
    assert "100.00 %" in table.notes[1]
    half = select_cost.agreement(
        {"v_idx": torch.tensor([[[1, 2, -1]]])}, {"v_idx": torch.tensor([[[-1, 2, 3]]])}
    )
    assert half == 0.5
