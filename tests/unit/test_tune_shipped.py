"""Entries of the package: how they are made without a GPU and with one, and that they are sound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from maskwright import k
from maskwright import q
from maskwright.autotune import lookup
from maskwright.autotune import store
from maskwright.autotune import tune as tuning
from maskwright.autotune import untuned
from maskwright.autotune.entry import Entry
from maskwright.autotune.filter import Limits
from maskwright.autotune.filter import unfit
from maskwright.autotune.key import Software
from maskwright.autotune.outcome import Build
from maskwright.autotune.outcome import NoCompiler
from maskwright.autotune.rates import GPUS
from maskwright.autotune.search import Budget
from maskwright.autotune.space import Target
from maskwright.autotune.space import contains
from maskwright.autotune.table import TableDevice
from maskwright.codegen.config import default_config
from maskwright.dsl.errors import TuningError
from maskwright.patterns import catalog
from maskwright.runtime import settings
from maskwright.runtime.cli import main

LATER = Software("3.9.0", "13.0", "fedcba9876543210")
SHIPPED = sorted(store.SHIPPED.rglob("*.json"))
UNTUNED = {"sm_80", "sm_86", "sm_89", "sm_100"}
NAMES = ("full", "causal", "a_shape")


# -- what is shipped ------------------------------------------------------------------------------
def test_it_is_little():
    """Goal 21."""
    assert 0 < len(SHIPPED) <= 30
    assert sum(path.stat().st_size for path in SHIPPED) <= 500_000
    assert {path.stem for path in SHIPPED if path.parent.name == store.UNTUNED} == UNTUNED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_entry_is_sound(path):
    entries = store.read_file(path)  # says if a digest does not hold
    assert entries
    assert len(path.read_text().splitlines()) == 2 + len(entries)
    assert len({lookup.any_software(x.key) for x in entries}) == len(entries)
    for entry in entries:
        assert unfit(entry.config, entry.key) == ""
        assert contains(entry.config, Target(entry.key))
        folder = store.UNTUNED if entry.provenance.kind == "model" else entry.key.hardware.folder
        assert path.parent.name == folder


@pytest.mark.parametrize("arch", sorted(UNTUNED))
def test_each_architecture_has_a_choice_for_any_mask(arch):
    entries = store.untuned_entries(arch)
    known = {(x.key.problem.op, x.key.problem.head_dim, x.key.problem.mask) for x in entries}
    for op in untuned.OPS:
        assert {(op, size, lookup.ANY_MASK) for size in untuned.HEAD_DIMS} <= known
    for entry in entries:
        nothing = (entry.provenance.kind, entry.result.rounds, entry.result.ms)
        assert nothing == ("model", 0, 0.0)
        assert entry.key.hardware.arch == arch


# -- made without a GPU ---------------------------------------------------------------------------
def case_of(tmp_path, arch="sm_80", op="forward", size=64):
    masks = [x for x in catalog.entries("paper", heads=16, kv_heads=16) if x.name in NAMES]
    return untuned.Case(GPUS[arch], op, size, untuned._jobs(masks, op, size, tmp_path))


def chosen(case, spills=lambda job, config: False):
    """(choices, configurations in the order they were compiled)."""
    tried = []

    def compile_(job, config, gpu):
        assert gpu == case.gpu
        tried.append(config)
        return Build(stack=8 * spills(job, config))

    return untuned.chosen(case, compile_, lambda text: None), tried


@pytest.mark.parametrize("op", untuned.OPS)
@pytest.mark.parametrize("arch", sorted(UNTUNED))
def test_the_heuristics_choice_stays_if_it_does_not_spill(tmp_path, arch, op):
    case = case_of(tmp_path, arch, op, 128)
    (found,), tried = chosen(case)
    assert found.config == case.default
    assert set(tried) == {case.default}
    assert found.key.problem.mask == lookup.ANY_MASK
    assert found.checks.shapes == (f"no spills on {arch}, masks compiled: 3",)


def test_a_mask_that_spills_has_a_choice_of_its_own(tmp_path):
    case = case_of(tmp_path)
    (first, own), tried = chosen(
        case, lambda job, config: job == case.jobs["causal"] and config == case.default
    )
    assert first.config == case.default
    assert own.key.problem.mask == case.key(case.jobs["causal"]).problem.mask
    assert own.config == tried[-1] != case.default
    assert untuned._steps(own.config, case.default) == 1


def test_the_choice_of_most_masks_is_that_for_all(tmp_path):
    case = case_of(tmp_path)
    (first, own), _ = chosen(
        case, lambda job, config: job != case.jobs["causal"] and config == case.default
    )
    assert own.config == case.default
    assert first.config != case.default
    assert first.key.problem.mask == lookup.ANY_MASK


def test_where_everything_spills_nothing_is_chosen(tmp_path):
    with pytest.raises(TuningError, match="no forward compiles without spills"):
        chosen(case_of(tmp_path), lambda job, config: True)


def test_only_a_large_gain_replaces_the_heuristics_choice(tmp_path, monkeypatch):
    case = case_of(tmp_path)
    other = replace(case.default, num_stages=2)
    times = {case.default: 1.0, other: 0.7}
    monkeypatch.setattr(untuned, "relative", lambda case: times)
    assert untuned.candidates(case)[0] == case.default
    times[other] = 0.6
    assert untuned.candidates(case)[0] == other


def test_the_command_writes_what_look_ups_read(tmp_path, monkeypatch, capsys):
    class Clean:
        def __call__(self, job, config, gpu):
            return Build()

        def close(self):
            pass

    monkeypatch.setattr(untuned, "Compiler", Clean)
    monkeypatch.setattr(store, "SHIPPED", tmp_path)
    command = ["tune", "--catalog", "--untuned", "--only", "full,causal", "--arch", "sm_86"]
    assert main([*command, "-o", str(tmp_path / store.UNTUNED)]) == 0
    assert "128x32 w4 s2" in capsys.readouterr().out
    found = store.untuned_entries("sm_86")
    assert len(found) == len(untuned.OPS) * len(untuned.HEAD_DIMS)
    assert {x.key.problem.mask for x in found} == {lookup.ANY_MASK}


def test_unknown_architectures_and_missing_options_are_told(tmp_path, capsys):
    command = ["tune", "--catalog", "--untuned", "--only", "causal"]
    assert main(command) == 2
    assert "--arch sm_89 -o" in capsys.readouterr().err
    assert main([*command, "--arch", "sm_75", "-o", str(tmp_path)]) == 2
    assert "no figures for sm_75" in capsys.readouterr().err


# -- made with one --------------------------------------------------------------------------------
def test_what_searches_find_is_what_look_ups_read(make_table, tmp_path, monkeypatch, capsys):
    """From searches to ``tune merge -o DIR`` to a package with other templates."""
    monkeypatch.setattr(tuning, "_compiler", lambda *args, **options: NoCompiler())
    cache, table = settings.current().cache_dir, make_table()
    tuned = tuning.tune_job(table.job, Budget(1e9, 12), tuning.Options(), TableDevice(table))
    bucket = replace(table.key.bucket, q_len=15, kv_len=15)
    longer = replace(table, key=replace(table.key, bucket=bucket))
    tuning.tune_job(table.job, Budget(1e9, 12), tuning.Options(), TableDevice(longer))
    found = sorted(store.root(cache).glob("*/entries"))
    assert main(["tune", "merge", *map(str, found), "-o", str(tmp_path / "configs")]) == 0
    (written,) = (tmp_path / "configs").rglob("*.json")
    assert written.parent.name == "nvidia_h100_80gb_hbm3"
    assert written.name == "forward_triton_bfloat16_d128.json"

    monkeypatch.setattr(store, "SHIPPED", tmp_path / "configs")
    index = lookup.index(tmp_path / "empty", LATER, table.key.hardware.folder, "sm_90")
    key = replace(table.key, software=LATER)
    choice = index.find(key, lambda x: unfit(x, key, Limits()))
    assert (choice.origin, choice.config) == ("shipped", tuned.config)
    assert "other templates" in choice.told(key)
    assert index.find(replace(key, bucket=bucket)).origin == "shipped"
    assert index.find(replace(key, bucket=replace(bucket, q_len=14))).origin == "nearest"
    assert lookup.index(tmp_path / "empty", LATER, "nvidia_h200", "sm_90").find(key) is None


def test_a_directory_keeps_one_entry_for_all_versions(make_entry, tmp_path):
    old = make_entry(config=default_config(), date="2026-01-01")
    new = make_entry(date="2026-02-01", software=LATER)
    other = make_entry((k <= q) & (q - k < 64), date="2026-01-01")
    for i, entry in enumerate((new, old, other)):
        (tmp_path / f"{i}.json").write_text(entry.to_text())
    files = [str(path) for path in tmp_path.glob("*.json")]
    assert main(["tune", "merge", *files, "-o", str(tmp_path / "out")]) == 0
    (written,) = (tmp_path / "out").rglob("*.json")
    assert sorted(x.digest for x in store.read_file(written)) == sorted([new.digest, other.digest])
    assert main(["tune", "merge", *files, "-o", str(tmp_path / "all.json")]) == 0
    assert len(store.read_file(tmp_path / "all.json")) == 3


def test_bundles_have_a_line_for_each_entry(make_entry, tmp_path):
    entries = [make_entry(), make_entry(head_dim=64)]
    path = tmp_path / "x.json"
    path.write_text(store.bundle_text(entries))
    assert len(path.read_text().splitlines()) == 2 + len(entries)
    assert all(isinstance(x, Entry) for x in store.read_file(path))


def test_the_package_data_holds_them():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '"maskwright.autotune" = ["configs/**/*.json"]' in text
