"""The benchmarks of host cost and of recompilations, on a CPU."""

from __future__ import annotations

import json

import pytest

from benchmarks import report

torch = pytest.importorskip("torch")


def table_of(kind, found):
    """The table of a result, after a round trip through JSON."""
    names = ("gpu", "driver", "torch", "triton", "maskwright")
    result = {"kind": kind, "date": "2030-01-02", "command": "x", "cases": found}
    environment = dict.fromkeys(names, "1")
    return report.table_of(json.loads(json.dumps(result | {"environment": environment})))


class TestHostCost:
    def test_bursts_make_all_calls(self):
        from benchmarks import host_cost

        made = []
        spent = host_cost.host_clock(lambda: made.append(None), 2 * host_cost.BURST + 7)
        assert len(made) == 2 * host_cost.BURST + 7
        assert spent > 0

    def test_everyone_takes_turns(self):
        from benchmarks import host_cost

        log = []

        def clock(call, count):
            log.append((call, count))
            return {"a": 0.01, "b": 0.03}[call] * count

        found = host_cost.time_hosts({"a": "a", "b": "b"}, 3, 500, clock)
        assert log[:2] == [("a", host_cost.WARM_UP), ("b", host_cost.WARM_UP)]
        assert len(log) == 2 + 3 * 2
        assert host_cost.microseconds(found["b"])["us"] == pytest.approx(30.0)

    def test_main(self, tmp_path, capsys):
        from benchmarks import host_cost

        path = tmp_path / "out.json"
        given = ["--device=cpu", "--rounds=2", "--calls=3", "--seq=32", f"--out={path}"]
        given += ["--peers=maskwright,maskwright_attention,sdpa"]
        assert host_cost.main(given) == 0
        found = json.loads(path.read_text())
        assert [case["name"] for case in found["cases"]] == list(host_cost.MODES)
        for case in found["cases"]:
            entries = case["contestants"]
            assert all(entries[n]["us"] > 0 for n in ("maskwright", "maskwright_attention", "sdpa"))
        printed = capsys.readouterr().out
        assert "mw.attention" in printed
        assert "torch.no_grad" in printed

    def test_unknown_names_are_refused(self):
        from benchmarks import host_cost

        with pytest.raises(SystemExit):
            host_cost.main(["--peers=flexx"])


def tiny(**changes):
    from benchmarks.recompiles import Setup
    from benchmarks.tiny_model import Sizes

    sizes = Sizes(batch=1, heads=2, kv_heads=1, head_dim=8, shortest=20, longest=40)
    return Setup(
        sizes, **{"steps": 4, "device": "cpu", "dynamic": "true", "compiler": "eager"} | changes
    )


class TestTinyModel:
    def test_both_attentions_are_the_same(self):
        from benchmarks import tiny_model

        sizes = tiny().sizes
        batch = next(tiny_model.batches(sizes, frozenset({"window", "documents"}), "cpu"))
        outs = []
        for attend in tiny_model.attentions("reference").values():
            torch.manual_seed(0)
            outs.append(tiny_model.Block(sizes, attend)(*batch))
        assert torch.allclose(*outs, atol=1e-5)

    @pytest.mark.parametrize("changes", [set(), {"window"}, {"documents"}, {"lengths"}])
    def test_only_what_shall_change_changes(self, changes):
        from itertools import islice

        from benchmarks import tiny_model

        drawn = list(islice(tiny_model.batches(tiny().sizes, frozenset(changes), "cpu"), 6))
        assert (len({x.window for x in drawn}) > 1) == ("window" in changes)
        assert (len({x.tokens.shape[1] for x in drawn}) > 1) == ("lengths" in changes)
        same = [x.doc_id.tolist() == drawn[0].doc_id.tolist() for x in drawn]
        assert all(same) == (not changes & {"documents", "lengths"})


class TestRecompiles:
    def test_counts(self):
        from benchmarks.recompiles import Counts

        counts = Counts([0, 1, 1, 2], [3, 4, 4, 4], [0, 2, 2, 2], [1.0, 0.5, 0.25])
        found = counts.to_dict()
        assert (found["steps"], found["graphs"], found["recompiles"]) == (3, 2, 1)
        assert (found["graphs_at"], found["kernels_after_first_step"]) == ([0, 2], 0)
        assert (found["variants"], found["losses"]) == (2, [1.0, 0.25])
        assert Counts([0]).to_dict()["recompiles"] == 0

    def test_plain_torch_is_counted(self):
        from benchmarks import recompiles
        from benchmarks.tiny_model import attend_dense

        setup = tiny()
        found = recompiles.run(recompiles.SCENARIOS["all"], setup, attend_dense)
        assert (found["status"], found["steps"], found["graphs"]) == ("ok", 4, 1)
        assert (found["recompiles"], found["kernels"]) == (0, 0)

    def test_a_recompilation_has_a_reason(self):
        from benchmarks import recompiles
        from benchmarks.tiny_model import attend_dense

        found = recompiles.run(frozenset({"window"}), tiny(dynamic="mark"), attend_dense)
        assert found["recompiles"] == 1
        assert found["graphs_at"] == [0, 1]
        assert "window ==" in found["reasons"][0]

    def test_a_failure_keeps_what_was_counted(self):
        from benchmarks import recompiles

        def breaks(query, key, value, window, doc_id):
            torch._dynamo.graph_break()
            return query

        found = recompiles.run(frozenset(), tiny(), breaks)
        assert (found["status"], found["steps"]) == ("error", 0)
        assert "graph_break" in found["reason"]
        case = recompiles.describe("nothing", tiny()) | {"contestants": {"maskwright": found}}
        table = table_of("recompiles", [case])
        assert table.rows[0][:3] == ["nothing", "maskwright", "0 (failed)"]

    def test_main(self, tmp_path, capsys):
        from benchmarks import recompiles

        path = tmp_path / "out.json"
        given = ["--device=cpu", "--steps=2", "--longest=70", "--compiler=eager", "--peers=dense"]
        given += ["--scenarios=nothing,lengths", "--child-timeout=0"]
        assert recompiles.main([*given, f"--out={path}"]) == 0
        found = json.loads(path.read_text())
        assert [case["name"] for case in found["cases"]] == ["nothing", "lengths"]
        assert found["cases"][1]["contestants"]["dense"]["status"] == "ok"
        assert "Recompilations" in capsys.readouterr().out

    def test_a_hanging_child_costs_one_scenario(self, monkeypatch):
        from benchmarks import child
        from benchmarks import recompiles

        monkeypatch.setattr(child, "run", lambda *_: ([], "no result within 1 s"))
        (case,) = recompiles.run_child(recompiles.parser().parse_args(["--device=cpu"]), "all")
        assert (case["failed"], case["contestants"]) == ("no result within 1 s", {})

    def test_unknown_names_are_refused(self):
        from benchmarks import recompiles

        with pytest.raises(SystemExit):
            recompiles.main(["--scenarios=everything"])
