"""``mw.tune`` from end to end, with Triton's interpreter in the place of a GPU."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

import maskwright as mw
from maskwright import k
from maskwright import q
from maskwright.autotune import ask
from maskwright.autotune import keep
from maskwright.autotune import missing
from maskwright.autotune import runner
from maskwright.autotune import tune
from maskwright.autotune.bench import Bench
from maskwright.autotune.job import Job
from maskwright.autotune.runner import poisoned
from maskwright.autotune.shared import SharedProposer
from maskwright.autotune.truth import Setting
from maskwright.autotune.truth import lse_error
from maskwright.autotune.truth import row_error
from maskwright.autotune.truth import truth_of
from maskwright.autotune.verify import verify
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.dsl.errors import TuningError
from maskwright.runtime import settings
from maskwright.runtime import tuned
from maskwright.runtime.bind import check_tensors
from maskwright.runtime.cache import MaskwrightWarning

MASK = (k <= q) & (q - k < 37)
SIZES = {"q_len": 48, "heads": 2, "kv_heads": 1, "head_dim": 16, "dtype": "float32"}
OTHER = KernelConfig(16, 16, 4, 1)
DOC = mw.table("doc", ndim=2, sorted=True)
DOCUMENT = (k <= q) & (DOC[mw.b, q] == DOC[mw.b, k])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE_DIR", str(tmp_path))
    from maskwright.autotune import lookup

    lookup.forget()
    yield
    lookup.forget()


def job_of(mask=MASK, op="forward", folder=None, **values):
    return ask.job_of(mask, folder, op=op, backend="interpret", **(SIZES | values))


def test_a_search_is_found_by_the_next_call(tmp_path, capsys):
    found = mw.tune(MASK, **SIZES, budget=20.0, trials=3, backend="interpret", progress=True)
    assert found.tried == 3
    assert found.kept is not None
    assert f"{found.config}" in str(found)
    assert "fwd" in found.entry.key.name
    assert "for interpret d16 s48 | 1/3 | best" in capsys.readouterr().err
    lines = (found.folder / "trials.jsonl").read_text().splitlines()
    assert [json.loads(x)["trial"] for x in lines] == [1, 2, 3]
    assert found.entry.provenance.kind == "measured"
    attention = mw.compile(MASK)
    tensors = [torch.randn(1, n, 48, 16) for n in (2, 1, 1)]
    attention(*tensors, backend="interpret")
    (kernel,) = attention._kernels.values()
    assert kernel.compiled.plan.request.config == found.config
    # A second search with again=False finds the first, and does not search.
    options = tune.Options(again=False)
    again = tune.tune(MASK, ask.budget_of(), options, **SIZES, backend="interpret")
    assert (again.config, again.reason) == (found.config, "found, not searched")
    json.dumps(found.to_dict())


def test_a_search_goes_on_where_another_machine_was_cut_short(tmp_path, monkeypatch):
    """The database is theirs, the folder of the study is not."""
    monkeypatch.setenv("MASKWRIGHT_TUNE_STORAGE", f"sqlite:///{tmp_path / 'studies.db'}")
    options, key = {"budget": 30.0, "backend": "interpret"} | SIZES, []
    with monkeypatch.context() as patch:
        patch.setattr(SharedProposer, "close", lambda self, finished: key.append(self.shared))
        mw.tune(MASK, trials=3, **options)
    monkeypatch.setenv("MASKWRIGHT_CACHE_DIR", str(tmp_path / "other"))
    assert len(SharedProposer((), key[0]).known()) == 3
    found = mw.tune(MASK, trials=2, **options)
    assert found.tried == 2
    assert key[0].name.startswith(found.entry.key.name)
    assert not list(found.folder.glob("*.journal"))
    assert SharedProposer((), key[0]).known() == []  # that one is finished


@pytest.mark.parametrize(
    ("op", "config"), [("forward", OTHER), ("backward", BackwardConfig(OTHER, OTHER))]
)
def test_candidates_are_checked_and_timed(op, config, one_thread):
    bench = Bench(job_of(op=op))
    start = bench.start()
    facts = bench.ready()
    assert (start.key, start.default) == (facts.key, facts.default)
    assert facts.flops > 0
    assert facts.error < 1e-5
    outcome = bench.measure(config, 1e9)
    assert (outcome.status, outcome.measured) == ("ok", True)
    race = bench.race([facts.default, config], 2)
    assert len(race.rounds) == 2
    right, checks, wrong = verify(bench, config)
    assert (right, wrong) == (True, "")
    assert len(checks.shapes) == 3
    assert tuned.hardware(torch.device("cpu")) == facts.key.hardware


@pytest.mark.parametrize("damage", ["row", "nan", "tile", "lse"])
def test_wrong_numbers_are_seen(damage, monkeypatch, one_thread):
    bench = Bench(job_of())
    bench.start()
    bench.ready()
    plain = runner.Runner._forward

    def damaged(self, inputs):
        out, lse = plain(self, inputs)
        match damage:
            case "row":
                out[0, 1, 47] *= 1.01
            case "nan":
                out[0, 0, 0, 0] = float("nan")
            case "tile":
                out[0, 0, 32:40] = 0
            case "lse":
                lse[0, 0, 5] += 0.1
        return out, lse

    monkeypatch.setattr(runner.Runner, "_forward", damaged)
    outcome = bench.measure(OTHER, 1e9)
    assert outcome.status == "wrong"
    assert outcome.message
    right, _, wrong = verify(bench, OTHER)
    assert not right
    assert wrong


def test_a_default_that_is_wrong_is_told(monkeypatch, one_thread):
    monkeypatch.setattr(runner.Runner, "_forward", lambda self, x: (x.given[0], x.given[0][..., 0]))
    bench = Bench(job_of())
    bench.start()
    with pytest.raises(TuningError, match="default configuration is wrong"):
        bench.ready()


def test_poison_shows_what_is_not_written():
    with poisoned():
        assert torch.empty(3).isnan().all()
        assert torch.empty_like(torch.ones(2)).isnan().all()
        assert (torch.empty(2, dtype=torch.int32) != 0).all()
        assert not torch.zeros(3).isnan().any()
    assert torch.empty is torch._C._VariableFunctions.empty


@pytest.mark.parametrize(
    ("mask", "values"),
    [(MASK, {}), (k < q - 3, {}), (DOCUMENT, {"doc": torch.arange(48)[None] // 17})],
)
def test_the_truth_is_that_of_the_dense_definition(attend, mask, values, one_thread, monkeypatch):
    """Blocks of a few rows, rows without keys, tables, grouped heads, gradients."""
    from maskwright.autotune import truth
    from maskwright.runtime.check import dense_attention

    monkeypatch.setattr(truth, "_BLOCK", 48 * 7)
    tensors = attend.inputs(48, heads=4, kv_heads=2, dtype=torch.float64)
    leaves = [x.clone().requires_grad_() for x in tensors]
    dense = mw.to_dense(mask, 48, heads=4, kv_heads=2, **values)
    keep = torch.tensor(dense).expand(1, 4, 48, 48)
    empty = ~keep.any(-1)
    out, lse = dense_attention(*leaves, keep | empty[..., None])
    out = out.masked_fill(empty[..., None], 0.0)
    grad = torch.randn(out.shape, dtype=torch.float64)
    wanted = torch.autograd.grad(out, leaves, grad)
    setting = Setting(mask.node, None, values, 0)
    single = [x.float() for x in tensors]
    found = truth_of(setting, single, grad.float())
    assert row_error(found.out, out.detach()) < 1e-5
    assert lse_error(found.lse, lse.detach().masked_fill(empty, float("-inf"))) < 1e-5
    for one, other in zip(found.gradients, wanted, strict=True):
        assert row_error(one, other) < 1e-5
    plain = truth_of(setting, single)
    assert torch.equal(plain.out, found.out)


def test_gradients_start_from_the_rounded_output_if_it_is_given(attend):
    """dS = P (dP - rowsum(dO O)) with that output, and dQ = dS K scale."""
    query, key, value = (x.double() for x in attend.inputs(48))
    keep = torch.tensor(mw.to_dense(MASK, 48))[0, 0]
    weights = (query @ key.mT * query.shape[-1] ** -0.5).masked_fill(~keep, -torch.inf).softmax(-1)
    grad, out = torch.randn_like(query), (weights @ value).bfloat16().double()
    sums = weights * (grad @ value.mT - (grad * out).sum(-1, keepdim=True))
    setting, tensors = Setting(MASK.node, None, {}, 0), [x.float() for x in (query, key, value)]
    found = truth_of(setting, tensors, grad.float(), out.float()).gradients[0]
    assert row_error(found, sums @ key * query.shape[-1] ** -0.5) < 1e-5
    plain = truth_of(setting, tensors, grad.float()).gradients[0]
    assert row_error(found, plain) > 1e-3


def test_a_long_call_is_checked_on_some_rows(attend, monkeypatch):
    from maskwright.autotune import truth

    monkeypatch.setattr(truth, "_BLOCK", 64 * 8)
    monkeypatch.setattr(truth, "_MOST", 64 * 8 * 2 * 3)
    found = truth_of(Setting(MASK.node, None, {}, 0), attend.inputs(64))
    assert len(found.rows) == 24
    assert (int(found.rows[0]), int(found.rows[-1])) == (0, 63)
    assert found.out.shape[2] == 24


def test_tables_reach_the_worker(tmp_path, one_thread):
    job = job_of(DOCUMENT, folder=tmp_path, doc=torch.arange(48)[None] // 17)
    bench = Bench(Job.from_dict(job.to_dict()))
    bench.start()
    assert bench.ready().error < 1e-5
    assert bench.measure(OTHER, 1e9).measured
    assert verify(bench, OTHER)[0]


def test_layouts_have_their_own_keys(one_thread):
    keys = [Bench(job_of(layout=x)).start().key for x in ("heads", "tokens")]
    assert [x.problem.layout for x in keys] == ["heads", "tokens"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"op": "decode"}, "no kernel for op"),
        ({"backend": "reference"}, "has no configurations"),
        ({"layout": "rows"}, "no layout"),
        ({"effort": "heroic"}, "no effort"),
        ({"budget": 0.0}, "above 0"),
    ],
)
def test_what_cannot_be_tuned_says_so(changes, text):
    with pytest.raises(TuningError, match=text):
        mw.tune(MASK, **(SIZES | {"backend": "interpret"} | changes))


def test_without_a_gpu_it_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(TuningError, match="torch sees none"):
        mw.compile(MASK).tune(q_len=64)


def test_two_processes_do_not_tune_the_same(tmp_path, one_thread):
    key = Bench(job_of()).start().key
    with (
        keep.study_folder(key) as folder,
        pytest.raises(TuningError, match="another process"),
        keep.study_folder(key),
    ):
        pass
    assert folder is not None


# -- MASKWRIGHT_TUNE=on -------------------------------------------------------------------------
def test_a_missing_entry_is_searched_once(monkeypatch, attend):
    tensors = attend.inputs(80)
    shapes = check_tensors(*tensors, None)
    key = tuned.key_of(MASK.node, None, "forward", "triton", tensors, shapes, True)
    jobs = []
    monkeypatch.setattr(missing, "tune_job", lambda job, *rest: jobs.append(job))
    monkeypatch.setattr(missing, "_searched", set())
    assert missing.search(MASK.node, None, key, shapes)
    assert not missing.search(MASK.node, None, key, shapes)
    (job,) = jobs
    assert (job.q_len, job.heads, job.op, job.backend) == (80, 2, "forward", "triton")
    assert job.mask_node is MASK.node


def test_what_is_not_searched_is_told_once(monkeypatch, attend):
    tensors = attend.inputs(80)
    shapes = check_tensors(*tensors, None)
    monkeypatch.setattr(missing, "_searched", set())
    monkeypatch.setattr(missing, "tune_job", lambda *_: pytest.fail("it searched"))
    key = tuned.key_of(DOCUMENT.node, None, "forward", "triton", tensors, shapes, True)
    with pytest.warns(MaskwrightWarning, match="runtime values decide"):
        assert not missing.search(DOCUMENT.node, None, key, shapes)
    monkeypatch.setattr(missing, "many_ranks", lambda: True)
    other = tuned.key_of(MASK.node, None, "forward", "triton", tensors, shapes, True)
    with pytest.warns(MaskwrightWarning, match="one of many ranks"):
        assert not missing.search(MASK.node, None, other, shapes)


def test_the_interpreter_is_never_searched_behind_a_call(monkeypatch, attend):
    monkeypatch.setattr(missing, "search", lambda *_: pytest.fail("it searched"))
    with settings.override(tune="on"), warnings.catch_warnings():
        warnings.simplefilter("error", MaskwrightWarning)
        attend.matches(attend.inputs(50), MASK)
