"""The benchmark harness: timing with a fake clock, checks, tables, and that cases mean one mask."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from benchmarks import bench
from benchmarks import report
from benchmarks import results
from benchmarks import sweep
from benchmarks import timing
from benchmarks.gpu import slug
from benchmarks.guard import attempt


class FakeClock:
    """Each contestant is its own cost in ms; the clock slows down by ``drift`` a measurement."""

    def __init__(self, drift=0.0):
        self.drift = drift
        self.log = []

    def __call__(self, call, count):
        self.log.append((call.name, count))
        return call.cost * count * (1 + self.drift * len(self.log))


@dataclasses.dataclass(frozen=True)
class FakeCall:
    name: str
    cost: float

    def __call__(self):
        raise AssertionError("the fake clock does not call")


FAKES = {"a": FakeCall("a", 1.0), "b": FakeCall("b", 4.0), "c": FakeCall("c", 500.0)}


class TestTiming:
    def test_a_turn_lasts_about_the_target(self):
        found = timing.interleaved(FAKES, rounds=3, target_ms=40.0, measure=FakeClock())
        assert {name: t.calls for name, t in found.items()} == {"a": 40, "b": 10, "c": 1}
        assert {name: t.median for name, t in found.items()} == {"a": 1.0, "b": 4.0, "c": 500.0}

    def test_very_fast_calls_are_bounded(self):
        found = timing.interleaved({"x": FakeCall("x", 0.0)}, rounds=1, measure=FakeClock())
        assert found["x"].calls == timing.MAX_CALLS

    def test_every_round_holds_everyone_once_in_another_order(self):
        clock, rounds = FakeClock(), 6
        timing.interleaved(FAKES, rounds=rounds, measure=clock)
        turns = [name for name, _ in clock.log[-rounds * len(FAKES) :]]
        orders = [tuple(turns[i : i + 3]) for i in range(0, len(turns), 3)]
        assert all(sorted(order) == ["a", "b", "c"] for order in orders)
        assert len(set(orders)) == 6

    def test_the_cache_is_cleared_before_every_turn(self):
        cleared = []
        timing.interleaved(FAKES, rounds=2, measure=FakeClock(), clear=lambda: cleared.append(None))
        assert len(cleared) == 2 * len(FAKES)

    def test_warm_up_is_not_counted(self):
        clock = FakeClock()
        found = timing.interleaved({"a": FAKES["a"]}, rounds=4, measure=clock)
        assert len(clock.log) > 4
        assert len(found["a"].rounds) == 4

    def test_no_contestants(self):
        assert timing.interleaved({}, measure=FakeClock()) == {}
        assert timing.order([], 3) == []

    def test_spread(self):
        found = timing.Timing((1.0, 2.0, 3.0, 4.0, 100.0), calls=5)
        assert (found.median, found.iqr) == (3.0, 2.0)
        assert found.to_dict()["min"] == 1.0
        assert found.to_dict()["max"] == 100.0
        assert timing.Timing((1.0,), calls=1).iqr == 0.0

    def test_paired_ratio_cancels_drift(self):
        calls = {"slow": FakeCall("slow", 2.0), "fast": FakeCall("fast", 1.0)}
        found = timing.interleaved(calls, rounds=9, measure=FakeClock(drift=0.02))
        ratio = timing.paired_ratio(found["slow"], found["fast"])
        assert ratio == pytest.approx(2.0, rel=0.03)
        assert found["slow"].iqr > 0.1

    def test_median_ms(self):
        assert timing.median_ms(FakeCall("x", 3.0), FakeClock()) == 3.0


RESULT = {
    "schema": 1,
    "kind": "forward",
    "date": "2030-01-02",
    "command": "python -m benchmarks.bench --masks causal,strided",
    "environment": {"gpu": "GPU 1", "driver": "1.2", "torch": "2", "triton": "3", "maskwright": "0"},
    "cases": [
        {
            "name": "causal",
            "shape": {"seq": 8192},
            "contestants": {
                "maskwright": {
                    "status": "ok", "ms": 1.0, "iqr": 0.01, "tflops": 550.4, "prepare_ms": 0.0,
                    "speedup": 1.25, "speedup_with_prepare": 1.5, "extra_memory_percent": 0.25,
                },
                "flex": {"status": "ok", "ms": 1.25, "iqr": 0.05, "tflops": 440.3, "prepare_ms": 0.25,
                         "speedup": 1.0, "speedup_with_prepare": 1.0},
                "sdpa_cudnn": {"status": "error", "reason": "no"},
                "fa3": {"status": "skipped", "reason": "not here"},
            },
        },
        {"name": "strided", "shape": {"seq": 8192}, "failed": "no result", "contestants": {}},
    ],
}  # fmt: skip


class TestReport:
    def test_forward_rows(self):
        table = report.table_of(RESULT)
        assert table.header[2:5] == ["maskwright", "FlexAttention", "cuDNN"]
        assert table.rows == [
            ["causal", "8192", "550 (1.000)", "440 (1.250)", "error", "0.25", "1.25x", "1.50x"],
            ["strided", "8192", "failed", "failed", "failed", "-", "-", "-"],
        ]

    def test_notes_hold_the_origin(self):
        text = "\n".join(report.table_of(RESULT).notes)
        for part in ("1 of 2 cases", "4.0 %", "0.25 %", "GPU 1", "triton 3", RESULT["command"]):
            assert part in text

    def test_markdown_is_a_table(self):
        lines = report.markdown(report.table_of(RESULT)).splitlines()
        assert lines[1] == "|---|" + "---:|" * 7
        assert {line.count("|") for line in lines[:4]} == {9}

    def test_main_prints_markdown(self, tmp_path, capsys):
        path = tmp_path / "x" / "result.json"
        results.write(path, RESULT)
        assert json.loads(path.read_text()) == RESULT
        report.main([str(path), "--markdown"])
        assert "| causal | 8192 | 550 (1.000) |" in capsys.readouterr().out

    def test_terminal_table(self, capsys):
        report.show(RESULT)
        assert "GPU 1, driver 1.2" in capsys.readouterr().out

    def test_sweep_of_gluon_configs(self):
        given = ["--gluon", '{"stages": [2, 3]}', "--gluon-backward", '{"links": [2, 3]}']
        names = list(sweep.contestants(sweep.parser().parse_args(given)))
        assert names[0] == "gluon stages=2 backward links=2"
        assert len(set(names)) == 4
        parts = [sweep.parser().parse_args([*given, f"--part={i}/3"]) for i in range(3)]
        assert sorted(x for part in parts for x in sweep.contestants(part)) == sorted(names)
        (only,) = sweep.contestants(sweep.parser().parse_args(["--gluon", "{}"])).values()
        assert (only.name, only.backend) == ("gluon", "gluon")

    def test_sweep_of_training_steps_shows_both_parts(self):
        part = {"ms": 1.0, "tflops": 400.0}
        entry = {"status": "ok", "ms": 3.0, "tflops": 410.0, "forward": part, "backward": part}
        case = {"name": "causal", "shape": {"seq": 64}, "contestants": {"gluon": entry}}
        table = report.table_of(RESULT | {"kind": "sweep", "cases": [case]})
        assert table.header[2:4] == ["forward", "backward"]
        assert len(table.rows[0]) == len(table.header)

    def test_sweep_is_sorted(self):
        timed = {"status": "ok", "iqr": 0.0, "tflops": 1.0, "first_call_s": 2.0}
        entries = {
            "broken": {"status": "error", "reason": "OutOfResources"},
            "slow": timed | {"ms": 2.0},
            "fast": timed | {"ms": 1.0},
        }
        case = {"name": "causal", "shape": {"seq": 64}, "contestants": entries}
        table = report.table_of(RESULT | {"kind": "sweep", "cases": [case]})
        assert [row[0] for row in table.rows] == ["fast", "slow", "broken"]
        assert table.rows[2][-1] == "OutOfResources"

    def test_compile_speed(self):
        cases = [{"name": "causal", "ms": 12.34, "max": 20.0, "lines": 90}]
        cases += [{"name": "tree", "failed": "LoweringError: no"}]
        table = report.table_of(RESULT | {"kind": "compile_speed", "cases": cases})
        assert table.rows[0] == ["causal", "12.3", "20.0", "90"]
        assert table.rows[1][1] == "LoweringError: no"
        assert "12.3 ms" in table.notes[0]


class TestHarness:
    def test_attempt_reports_and_goes_on(self):
        assert attempt(lambda: 3) == (3, "")
        assert attempt(lambda: 1 // 0)[1].startswith("ZeroDivisionError")

    def test_the_recorded_command_has_no_path(self):
        given = ["--rounds", "3", "--out", "x/y.json", "--out=z.json", "--quiet"]
        assert results.without_out(given) == ["--rounds", "3", "--quiet"]

    def test_slug(self):
        assert slug("NVIDIA H100 80GB HBM3") == "nvidia_h100_80gb_hbm3"

    def test_a_child_is_this_program_for_one_case(self, tmp_path):
        args = bench.parser().parse_args(
            ["--masks", "full,causal", "--rounds", "3", "--heads", "4"]
        )
        command = bench.child_command(args, "causal", 64, tmp_path / "o.json")
        again = bench.parser().parse_args(command[3:])
        assert command[1:3] == ["-m", "benchmarks.bench"]
        assert (again.masks, again.seqs, again.child_timeout) == ("causal", "64", 0)
        assert (again.rounds, again.heads, again.quiet) == (3, 4, True)

    @pytest.mark.parametrize("given", [["--masks", "caussal"], ["--peers", "flexx"]])
    def test_unknown_names_are_refused(self, given, capsys):
        with pytest.raises(SystemExit):
            bench.main(given)
        assert "unknown: " in capsys.readouterr().err

    def test_a_hanging_child_costs_one_case(self, monkeypatch):
        command = ["python3", "-c", "import time; time.sleep(60)"]
        monkeypatch.setattr(bench, "child_command", lambda *_: command)
        args = bench.parser().parse_args(["--child-timeout", "0.2"])
        (case,) = bench.run_child(args, "causal", 64)
        assert case["failed"].startswith("no result within")

    def test_a_crashing_child_costs_one_case(self, monkeypatch):
        monkeypatch.setattr(bench, "child_command", lambda *_: ["python3", "-c", "exit(3)"])
        (case,) = bench.run_child(bench.parser().parse_args([]), "causal", 64)
        assert "code 3" in case["failed"]


torch = pytest.importorskip("torch")
cases = pytest.importorskip("benchmarks.cases")

SMALL = {
    # Long enough that the fixed windows and strides of the cases show.
    "full": lambda shape: cases.full(shape, "cpu"),
    "causal": lambda shape: cases.causal(shape, "cpu"),
    "window": lambda shape: cases.window(shape, "cpu"),
    "a_shape": lambda shape: cases.a_shape(shape, "cpu"),
    "strided": lambda shape: cases.strided(shape, "cpu"),
    "document": lambda shape: cases.document(shape, "cpu", mean=300),
    "anchor_document": lambda shape: cases.anchor_document(shape, "cpu", mean=300),
}
LENGTH = {"full": 65, "causal": 65, "window": 1100, "strided": 1300, "a_shape": 2300}


def small(name, **changes):
    sizes = {"batch": 1, "heads": 4, "kv_heads": 2, "seq": LENGTH.get(name, 900), "head_dim": 16}
    return SMALL[name](cases.Shape(**sizes | {"dtype": "float32"} | changes))


def dense(case):
    """(H, S, S) bool, by the case's flex_mod."""
    from benchmarks import correct

    rows = torch.arange(case.shape.seq)
    return torch.stack([correct.mask_rows(case, h, rows) for h in range(case.shape.heads)])


class TestCases:
    def test_every_case_is_tested(self):
        assert set(SMALL) == set(cases.CASES)
        assert set(bench.MASKS.split(",")) == set(cases.CASES)

    @pytest.mark.parametrize("name", list(SMALL))
    def test_flex_mod_means_the_mask(self, name):
        from maskwright.dsl.evaluate import to_dense

        case = small(name, heads=3, kv_heads=1)
        seq, bindings = case.shape.seq, {n: t.numpy() for n, t in case.bindings.items()}
        wanted = to_dense(case.mask, seq, batch=1, heads=3, kv_heads=1, **bindings)[0]
        assert (dense(case).numpy() == wanted).all()
        differs = any((wanted[h] != wanted[0]).any() for h in range(3))
        assert differs == case.per_head

    @pytest.mark.parametrize("name", list(SMALL))
    def test_pairs_are_exact(self, name, monkeypatch):
        from benchmarks import correct

        monkeypatch.setattr(correct, "CHUNK", 10_000)
        case = small(name, batch=2)
        assert correct.count_pairs(case, "cpu") == 2 * int(dense(case).sum())

    def test_document_ids(self):
        ids = cases.document_ids(32768)
        assert ids.dtype == torch.int32
        assert (ids.diff() >= 0).all()
        assert ids.unique().tolist() == list(range(8))
        assert torch.equal(ids, cases.document_ids(32768))

    def test_the_anchor_is_one_token(self):
        ids = cases.anchor_document(cases.Shape(batch=2, seq=9000), "cpu").bindings["doc_id"]
        assert ids.shape == (2, 9000)
        assert (ids == 0).sum(1).tolist() == [1, 1]
        assert ids[:, 1].tolist() == [1, 1]

    @pytest.mark.parametrize("seq", [1, 2, 3])
    def test_tiny_sequences(self, seq):
        assert len(cases.document_ids(seq)) == seq


class NaivePeer:
    """Dense attention in float64, spoiled by ``spoil``."""

    def __init__(self, name, spoil=None):
        self.name = name
        self.spoil = spoil

    def available(self):
        return None

    def supports(self, case):
        return None

    def prepare(self, case, tensors):
        from benchmarks.peers import Prepared

        return Prepared(lambda: self.attend(case, tensors), setup=lambda: dense(case))

    def attend(self, case, tensors):
        group = case.shape.heads // case.shape.kv_heads
        query = tensors.query.double()
        key, value = (x.double().repeat_interleave(group, 1) for x in tensors[1:])
        scores = query @ key.mT / math.sqrt(case.shape.head_dim)
        out = scores.masked_fill(~dense(case), -math.inf).softmax(-1) @ value
        return self.spoil(out.float()) if self.spoil else out.float()


def one_bad_row(out):
    out[0, 0, -1] *= 1.1
    return out


def not_finite(out):
    out[0, 0, 3, 0] = math.nan
    return out


class Absent(NaivePeer):
    def available(self):
        return "not here"


class BrokenImport(NaivePeer):
    def available(self):
        raise RuntimeError("broken library")


class Raises(NaivePeer):
    def prepare(self, case, tensors):
        raise RuntimeError("no kernel")


@pytest.fixture(scope="module")
def found():
    from benchmarks import runner

    peers = {
        "flex": NaivePeer("flex"),
        "maskwright": NaivePeer("maskwright"),
        "scaled": NaivePeer("scaled", lambda out: 1.05 * out),
        "row": NaivePeer("row", one_bad_row),
        "nan": NaivePeer("nan", not_finite),
        "view": NaivePeer("view", lambda out: out[:, :, 1:]),
        "absent": Absent("absent"),
        "raises": Raises("raises"),
        "broken": BrokenImport("broken"),
    }
    options = runner.Options(rounds=2, target_ms=1.0, device="cpu")
    return runner.run_case(small("strided"), peers, options)


class TestRunner:
    def test_who_is_right(self, found):
        status = {name: entry["status"] for name, entry in found["contestants"].items()}
        assert status == {
            "flex": "ok", "maskwright": "ok", "scaled": "wrong", "row": "wrong", "nan": "wrong",
            "view": "wrong", "absent": "skipped", "raises": "error", "broken": "error",
        }  # fmt: skip

    def test_only_the_right_are_timed(self, found):
        entries = found["contestants"]
        assert {name for name, entry in entries.items() if "ms" in entry} == {"flex", "maskwright"}
        ours = entries["maskwright"]
        assert ours["error"] < 1e-6
        assert ours["tflops"] >= 0
        assert ours["prepare_ms"] > 0
        assert ours["total_ms"] > ours["ms"]
        assert entries["flex"]["speedup"] == 1.0

    def test_reasons_are_told(self, found):
        entries = found["contestants"]
        assert entries["absent"]["reason"] == "not here"
        assert entries["raises"]["reason"] == "RuntimeError: no kernel"
        assert "relative error" in entries["scaled"]["reason"]
        assert "finite" in entries["nan"]["reason"]

    def test_the_result_is_json_and_makes_a_table(self, found):
        text = json.dumps(found, allow_nan=False)
        table = report.table_of(RESULT | {"cases": [json.loads(text)]})
        assert "wrong" in table.rows[0]

    def test_a_failure_while_timing_is_told(self, monkeypatch):
        from benchmarks import runner

        def lost(*_):
            raise RuntimeError("the context is lost")

        monkeypatch.setattr(runner, "time_calls", lost)
        options = runner.Options(rounds=1, target_ms=1.0, device="cpu")
        found = runner.run_case(small("causal"), {"flex": NaivePeer("flex")}, options)
        assert found["contestants"]["flex"]["status"] == "error"
        assert "the context is lost" in found["contestants"]["flex"]["reason"]


def test_peers_have_the_names_the_command_line_uses():
    peers = pytest.importorskip("benchmarks.peers")
    assert set(peers.DEFAULT) <= set(peers.PEERS)
    assert all(name == peer.name for name, peer in peers.PEERS.items())
    assert (report.OURS, report.BASELINE) == (peers.OURS, peers.BASELINE)
