"""The training benchmark on a CPU: gradients, results, tables."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from benchmarks import bench
from benchmarks import report
from benchmarks import results
from benchmarks import timing
from benchmarks import train

torch = pytest.importorskip("torch")
cases = pytest.importorskip("benchmarks.cases")

ENVIRONMENT = {"gpu": "GPU 1", "driver": "1.2", "torch": "2", "triton": "3", "maskwright": "0"}
SIZES = {"batch": 1, "heads": 4, "kv_heads": 2, "seq": 300, "head_dim": 16, "dtype": "float32"}


def small(name, **changes):
    found = cases.build(name, cases.Shape(**SIZES | changes), "cpu")
    return found if name != "document" else cases.document(found.shape, "cpu", mean=90)


def result_of(kind, found):
    """A result file's content, after a round trip through JSON."""
    result = {"kind": kind, "date": "2030-01-02", "command": "x", "environment": ENVIRONMENT}
    return json.loads(json.dumps(result | {"cases": found}, allow_nan=False))


def dense(case, tensors):
    """Attention by autograd in float64."""
    from benchmarks import correct

    group, rows = case.shape.heads // case.shape.kv_heads, torch.arange(case.shape.seq)
    mask = torch.stack([correct.mask_rows(case, h, rows) for h in range(case.shape.heads)])
    query = tensors.query.double()
    key, value = (x.double().repeat_interleave(group, 1) for x in tensors[1:])
    scores = query @ key.mT / math.sqrt(case.shape.head_dim)
    return (scores.masked_fill(~mask, -math.inf).softmax(-1) @ value).float()


class Dense:
    """A right contestant; ``spoil`` changes its inputs in ways that only gradients show."""

    def __init__(self, name, spoil=lambda tensors: tensors):
        self.name = name
        self.spoil = spoil

    def available(self):
        return None

    def supports(self, case):
        return None

    def prepare(self, case, tensors):
        from benchmarks.peers import Prepared

        return Prepared(lambda: dense(case, self.spoil(tensors)), setup=lambda: torch.zeros(3))


def detached_key(tensors):
    return tensors._replace(key=tensors.key.detach())


def scaled_value(tensors):
    value = tensors.value
    return tensors._replace(value=1.1 * value - 0.1 * value.detach())


def wrong_rows(tensors):
    """Half the gradient of the last rows of one head of the query: little of the whole."""
    share = torch.ones_like(tensors.query)
    share[0, 0, -20:] = 0.5
    return tensors._replace(query=share * tensors.query + (1 - share) * tensors.query.detach())


class NoBackward(Dense):
    def prepare(self, case, tensors):
        from benchmarks.peers import Prepared

        return Prepared(lambda: dense(case, tensors).detach())


class TestCommandLine:
    def test_defaults(self):
        from benchmarks.peers import PEERS

        args = bench.parser(train.PROGRAM).parse_args([])
        assert set(args.masks.split(",")) == set(cases.CASES) - {"full"}
        assert set(args.peers.split(",")) <= set(PEERS)
        assert (args.seqs, args.heads, args.kv_heads) == ("8192,32768", 32, 8)

    def test_lengths_is_another_name_of_seqs(self):
        assert bench.parser(train.PROGRAM).parse_args(["--lengths", "64"]).seqs == "64"

    def test_a_child_is_the_same_program(self, tmp_path):
        args = bench.parser(train.PROGRAM).parse_args(["--rounds", "3", "--lengths", "64,128"])
        command = bench.child_command(args, "window", 64, tmp_path / "o.json", train.PROGRAM)
        again = bench.parser(train.PROGRAM).parse_args(command[3:])
        assert command[1:3] == ["-m", "benchmarks.train"]
        assert (again.masks, again.seqs, again.rounds, again.child_timeout) == (
            "window",
            "64",
            3,
            0,
        )

    def test_unknown_names_are_refused(self, capsys):
        with pytest.raises(SystemExit):
            train.main(["--masks", "caussal"])
        assert "benchmarks.train: error: unknown: caussal" in capsys.readouterr().err

    def test_every_kind_has_a_module_and_a_table(self):
        import importlib.util

        assert all(importlib.util.find_spec(module) for module in results.MODULES.values())
        for kind in ("training", "host_cost", "recompiles"):
            assert report.table_of(result_of(kind, [])).rows == []

    def test_end_to_end_in_a_child(self, tmp_path, capsys):
        path = tmp_path / "out.json"
        sizes = [f"--{k.replace('_', '-')}={v}" for k, v in SIZES.items() if k != "seq"]
        given = ["--device=cpu", "--masks=window", "--lengths=100", "--rounds=1", "--target-ms=1"]
        given += ["--peers=maskwright,fa3"]
        assert train.main([*sizes, *given, f"--out={path}"]) == 0
        found = json.loads(path.read_text())
        assert found["command"].startswith("python -m benchmarks.train --batch=1")
        entry = found["cases"][0]["contestants"]["maskwright"]
        assert entry["status"] == "ok"
        assert entry["gradient_error"]["dq"] < 1e-5
        assert found["cases"][0]["contestants"]["fa3"]["status"] == "skipped"
        assert "Forward and backward" in capsys.readouterr().out


class TestGradients:
    @pytest.mark.parametrize("name", ["causal", "strided", "document"])
    def test_reference_is_what_autograd_says(self, name, monkeypatch):
        from benchmarks import correct
        from benchmarks import gradients

        case = small(name)
        tensors = cases.make_tensors(case.shape, "cpu")
        slope = cases.make_tensors(case.shape, "cpu", 3).query
        monkeypatch.setattr(correct, "CHUNK", 10_000)
        wanted = gradients.reference(case, tensors, slope)
        for x in tensors:
            x.requires_grad_()
        dense(case, tensors).backward(slope)
        for x, right in zip(tensors, wanted, strict=True):
            assert torch.allclose(x.grad, right, atol=1e-5)

    def test_some_heads_alone(self):
        """The first KV head's gradients; what is wrong in another goes unnoticed, but not NaN."""
        from benchmarks import gradients

        case = replace(small("causal"), shape=cases.Shape(1, 4, 2, 40, 8, "float32"))
        tensors = cases.make_tensors(case.shape, "cpu")
        slope = cases.make_tensors(case.shape, "cpu", 3).query
        whole = gradients.reference(case, tensors, slope)
        part = gradients.reference(case, tensors, slope, kv_heads=1)
        assert [x.shape[1] for x in part] == [2, 1, 1]
        for x, y in zip(part, whole, strict=True):
            assert torch.equal(x, y[:, : x.shape[1]])
        found = [x.clone() for x in whole]
        found[1][:, 1] = 7.0
        assert "reason" not in gradients.check(found, part, case)
        found[1][:, 0] = 7.0
        assert "dk: relative error" in gradients.check(found, part, case)["reason"]
        found[0][:, 3, 5] = math.inf
        assert gradients.check(found, part, case)["reason"] == "dq is not finite everywhere"
        cut = [found[0][:, :2], *found[1:]]
        assert "not (1, 4, 40, 8)" in gradients.check(cut, part, case)["reason"]

    def test_distance(self):
        from benchmarks import gradients

        wanted = torch.ones(1, 2, 300, 4)
        found = wanted.clone()
        assert gradients.distance(found, wanted) == (0.0, 0.0)
        found[0, 1, 290:] *= 1.5  # 10 of the 44 rows of the last block
        whole, worst = gradients.distance(found, wanted)
        assert whole == pytest.approx(0.5 * math.sqrt(10 / 600), rel=1e-4)
        assert worst == pytest.approx(0.5 * math.sqrt(10 / 44), rel=1e-4)

    def test_missing_and_infinite(self):
        from benchmarks import gradients

        case = small("causal")
        wanted = cases.make_tensors(case.shape, "cpu")
        found = [x.clone() for x in wanted]
        assert "reason" not in gradients.check(found, wanted, case)
        assert gradients.check([None, *found[1:]], wanted, case)["reason"] == "dq is missing"
        found[2][0, 0, 0, 0] = math.nan
        assert gradients.check(found, wanted, case)["reason"] == "dv is not finite everywhere"


@pytest.fixture(scope="module")
def found():
    from benchmarks import runner
    from benchmarks import train_case
    from benchmarks.peers import PEERS

    contestants = [
        *(Dense("flex"), Dense("missing", detached_key), Dense("scaled", scaled_value)),
        *(Dense("rows", wrong_rows), NoBackward("forward_only"), PEERS["fa3"]),
    ]
    peers = {peer.name: peer for peer in contestants}
    peers["maskwright"] = PEERS["maskwright"]
    options = runner.Options(rounds=2, target_ms=1.0, device="cpu")
    return train_case.run_case(small("strided"), peers, options)


class TestTrainCase:
    def test_who_is_right(self, found):
        status = {name: entry["status"] for name, entry in found["contestants"].items()}
        assert status == {
            "flex": "ok", "missing": "wrong", "scaled": "wrong", "rows": "wrong",
            "forward_only": "error", "fa3": "skipped", "maskwright": "ok",
        }  # fmt: skip

    def test_reasons_are_told(self, found):
        entries = found["contestants"]
        assert entries["missing"]["reason"] == "dk is missing"
        assert entries["scaled"]["reason"].startswith("dv: relative error 1.0")
        assert entries["rows"]["reason"].startswith("dq: relative error")
        assert "does not require grad" in entries["forward_only"]["reason"]

    def test_the_step_and_its_parts_are_timed(self, found):
        ours = found["contestants"]["maskwright"]
        assert ours["ms"] > 0
        assert ours["forward"]["ms"] > 0
        assert len(ours["backward"]["rounds"]) == len(ours["rounds"]) == 2
        for part in (ours, ours["forward"], ours["backward"]):
            assert part["speedup"] > 0
        assert found["contestants"]["flex"]["backward"]["speedup"] == 1.0
        assert ours["total_ms"] == pytest.approx(ours["ms"])

    def test_it_makes_a_table(self, found):
        table = report.table_of(result_of("training", [found]))
        assert table.header[2:4] == ["FlexAttention", "missing"]
        row = dict(zip(table.header, table.rows[0], strict=True))
        assert (row["mask"], row["S"], row["scaled"]) == ("strided", "300", "wrong")
        assert row["vs Flex"].endswith("x")
        notes = "\n".join(table.notes)
        assert "strided 300, missing: wrong: dk is missing" in notes
        assert "maskwright, at most: dq " in notes

    def test_flops_are_three_and_a_half_forward_passes(self):
        from benchmarks import train_case

        times = {"x step": timing.Timing((7.0, 9.0, 8.0), 2)}
        times["x forward"] = timing.Timing((2.0, 1.0, 3.0), 5)
        case = small("causal")
        entry = train_case.figures("x", times, 10**9, case)
        forward = 4 * 10**9 * case.shape.head_dim / 1e9  # GFLOP; divided by ms: TFLOP/s
        assert entry["tflops"] == pytest.approx(3.5 * forward / 8.0)
        assert entry["forward"]["tflops"] == pytest.approx(forward / 2.0)
        assert entry["backward"]["rounds"] == [5.0, 8.0, 5.0]
        assert entry["backward"]["tflops"] == pytest.approx(2.5 * forward / 5.0)

    def test_a_failure_while_timing_is_told(self, monkeypatch):
        from benchmarks import runner
        from benchmarks import train_case

        def lost(*_):
            raise RuntimeError("the context is lost")

        monkeypatch.setattr(runner, "time_calls", lost)
        options = runner.Options(rounds=1, target_ms=1.0, device="cpu")
        found = train_case.run_case(small("causal", seq=40), {"flex": Dense("flex")}, options)
        assert "the context is lost" in found["contestants"]["flex"]["reason"]

    def test_a_failed_case_makes_a_row(self):
        failed = {"name": "window", "shape": {"seq": 64}, "failed": "no result", "contestants": {}}
        table = report.table_of(result_of("training", [failed]))
        assert "window 64: no result" in table.notes
