"""Entries: readable text and back, whatever is wrong with a file is refused, merging."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace

import pytest

from maskwright import k
from maskwright import q
from maskwright.autotune.entry import Entry
from maskwright.autotune.key import Hardware
from maskwright.autotune.merge import merge
from maskwright.autotune.record import RecordError
from maskwright.autotune.store import bundle_text
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon_backward import GluonBackwardConfig
from maskwright.runtime.cli import main

CONFIGS = {
    ("forward", "triton"): KernelConfig(128, 64, 4, 2, "descriptor"),
    ("backward", "triton"): BackwardConfig(),
    ("forward", "gluon_sm90"): GluonConfig(stages=3),
    ("backward", "gluon_sm90"): GluonBackwardConfig(),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_text_and_back(make_entry, kind):
    op, template = kind
    entry = make_entry(op=op, template=template, config=CONFIGS[kind])
    entry = replace(entry, runner_up=(CONFIGS[kind],))
    again = Entry.from_text(entry.to_text())
    assert again == entry
    assert again.to_text() == entry.to_text()


def test_text_is_readable(make_entry, golden):
    assert make_entry().to_text() == golden


def test_four_digits(make_entry):
    assert make_entry(ms=0.123456789).result.ms == 0.1235


def test_a_configuration_of_another_kernel_is_refused(make_entry):
    with pytest.raises(RecordError, match="takes a KernelConfig"):
        make_entry(config=GluonConfig())
    with pytest.raises(RecordError, match="runners-up"):
        replace(make_entry(), runner_up=(KernelConfig(),) * 5)


def damaged(text):
    """(what was done, text) for files that must not be taken for an entry."""
    data = json.loads(text)
    yield "empty", ""
    yield "truncated", text[: len(text) // 2]
    yield "null", "null"
    yield "list", "[]"
    yield "number", "1e999"
    yield "deep", "[" * 100_000
    yield "schema", json.dumps(data | {"schema": 2})
    yield "digest", json.dumps(data | {"digest": "0" * 16})
    yield "edited", text.replace('"block_m": 64', '"block_m": 128')
    yield "unsigned", json.dumps({name: x for name, x in data.items() if name != "digest"})


def test_what_is_no_entry_is_refused(make_entry):
    for what, text in damaged(make_entry().to_text()):
        try:
            Entry.from_text(text)
        except RecordError:
            continue
        pytest.fail(f"{what}: taken for an entry")


def signed(data):
    """The digest of changed data, as somebody who edits by hand would set it."""
    from maskwright.autotune.record import canonical
    from maskwright.dsl import nodes as n

    body = {name: x for name, x in data.items() if name != "digest"}
    return body | {"digest": n.digest(canonical(body))}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("config", {}),
        (
            "config",
            {"block_m": 65, "block_n": 64, "num_warps": 4, "num_stages": 2, "loads": "pointer"},
        ),
        ("config", None),
        ("runner_up", {}),
        ("result", {"ms": 1.0}),
        ("failed", {"spill": "6"}),
        ("cost_rank", 1.5),
        ("key", {}),
    ],
)
def test_signed_nonsense_is_refused(make_entry, name, value):
    data = signed(json.loads(make_entry().to_text()) | {name: value})
    with pytest.raises(RecordError):
        Entry.from_dict(data)


@pytest.mark.parametrize(
    ("name", "where", "config"),
    [
        ("counter", {"template": "gluon_sm90"}, GluonConfig(stages=3)),
        ("heads", {}, KernelConfig(64, 64, 4, 2)),
    ],
)
def test_a_choice_that_came_later_is_as_before(make_entry, name, where, config):
    entry = make_entry(config=config, **where)
    data = json.loads(entry.to_text())
    del data["config"][name]
    assert Entry.from_dict(signed(data)).config == entry.config
    del data["config"]["block_n"]
    with pytest.raises(RecordError, match="block_n"):
        Entry.from_dict(signed(data))


def test_choices_that_came_later_in_a_backward(make_entry):
    config = BackwardConfig(KernelConfig(64, 64, 4, 2), KernelConfig(32, 64, 4, 2))
    entry = make_entry(op="backward", config=config)
    data = json.loads(entry.to_text())
    del data["config"]["parts"]
    for x in data["config"].values():
        del x["heads"]
    assert Entry.from_dict(signed(data)).config == entry.config
    del data["config"]["keys"]["num_stages"]
    with pytest.raises(RecordError, match="num_stages"):
        Entry.from_dict(signed(data))


# -- merging --------------------------------------------------------------------------------------
def some_entries(make_entry):
    """Entries for three keys, alike but for what merging looks at."""
    found = []
    masks = (k <= q, (k <= q) & (q - k < 1024), k < 64)
    for mask, kind, ratio, day in itertools.product(
        masks, ("measured", "partial", "model"), (0.80, 0.81, 0.95), (1, 2)
    ):
        found.append(
            make_entry(mask, kind=kind, ratio=ratio, spread=0.02, date=f"2026-11-{day:02}")
        )
    return found


def test_merging_has_no_order(make_entry):
    """Commutative, idempotent, sorted, one entry a key."""
    entries = some_entries(make_entry)
    wanted = bundle_text(merge(entries))
    generator = random.Random(0)
    for _ in range(20):
        mixed = [*entries, *generator.sample(entries, 10)]
        generator.shuffle(mixed)
        merged = merge(mixed)
        assert bundle_text(merged) == wanted
        assert merge(merged) == merged
        assert [x.key.canonical for x in merged] == sorted({x.key.canonical for x in entries})


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("old", "new", "stays"),
    [
        ({"ratio": 0.90}, {"ratio": 0.70}, "new"),
        ({"ratio": 0.90}, {"ratio": 0.885}, "old"),  # inside the spreads: noise moves nothing
        ({"ratio": 0.70}, {"ratio": 0.90}, "old"),
        ({"ratio": 0.90, "kind": "model"}, {"ratio": 0.95}, "new"),
        ({"ratio": 0.90}, {"ratio": 0.5, "kind": "partial"}, "old"),
        ({"ratio": 0.90, "spread": 0.5}, {"ratio": 0.5}, "old"),
    ],
)
def test_which_entry_stays(make_entry, old, new, stays, swap):
    names = {"spread": 0.02, "kind": "measured"}
    pair = [
        make_entry(**(names | old), date="2026-11-01"),
        make_entry(**(names | new), date="2026-11-02"),
    ]
    wanted = pair[stays == "new"]
    assert merge(reversed(pair) if swap else pair) == [wanted]


def test_gpus_do_not_mix(make_entry):
    other = Hardware("NVIDIA H200", "sm_90", 132, 232448, 62914560)
    assert len(merge([make_entry(), make_entry(hardware=other)])) == 2


def test_the_merge_command(make_entry, tmp_path, capsys):
    first, second = tmp_path / "a.json", tmp_path / "b"
    second.mkdir()
    first.write_text(make_entry(ratio=0.9).to_text())
    (second / "x.json").write_text(make_entry(ratio=0.5).to_text())
    (second / "y.json").write_text(bundle_text([make_entry(k < 64), make_entry(head_dim=64)]))
    for given in ((first, second), (second, first)):
        output = tmp_path / "c.json"
        assert main(["tune", "merge", *map(str, given), "-o", str(output), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["given"], found["merged"]) == (4, 3)
    folder = tmp_path / "shipped"
    assert main(["tune", "merge", str(output), "-o", str(folder)]) == 0
    assert "3 of 3 configurations in 2 file(s)" in capsys.readouterr().out
    names = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*.json"))]
    gpu = "nvidia_h100_80gb_hbm3"
    assert names == [
        f"{gpu}/forward_triton_bfloat16_d128.json",
        f"{gpu}/forward_triton_bfloat16_d64_128.json",
    ]
    again = tmp_path / "d.json"
    assert main(["tune", "merge", str(folder), "-o", str(again), "--json"]) == 0
    assert again.read_text() == output.read_text()


def test_merging_leaves_nothing_out_silently(tmp_path, capsys):
    (tmp_path / "a.json").write_text("{}")
    assert main(["tune", "merge", str(tmp_path), "-o", str(tmp_path / "c.json")]) == 2
    assert "a.json cannot be merged" in capsys.readouterr().err
    assert main(["tune", "merge", str(tmp_path / "none"), "-o", str(tmp_path / "c.json")]) == 2
