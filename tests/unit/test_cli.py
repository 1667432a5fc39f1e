"""The command line: what it accepts, prints and returns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maskwright.dsl.errors import BindingError
from maskwright.dsl.errors import MaskError
from maskwright.runtime import cache
from maskwright.runtime import cli_mask
from maskwright.runtime import doctor
from maskwright.runtime.cli import main

ROOT = Path(__file__).parents[2]
SHAPE = cli_mask.Shape(batch=1, heads=2, kv_heads=1, q_len=48, kv_len=64)
MASKS = """
import maskwright as mw
from maskwright import k, q

causal = k <= q
number = 3


@mw.mask
def window(q, k, *, size=8):
    return (k <= q) & (q - k < size)
"""


def run(capsys, *arguments):
    """(exit code, stdout, stderr) of a command."""
    code = main(list(arguments))
    return code, *capsys.readouterr()


@pytest.fixture
def masks_file(tmp_path):
    path = tmp_path / "my_masks.py"
    path.write_text(MASKS)
    return path


# -- MASK ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(k <= q) & (q - k < 8)", "(k <= q) & (q - k < 8)"),
        ("causal", "k <= q"),
        ("causal()", "k <= q"),
        ("a_shape(sink=4, window=8)", "(k <= q) & ((k < 4) | (q - k < 8))"),
        ("a_shape(4, 8)", "(k <= q) & ((k < 4) | (q - k < 8))"),
    ],
)
def test_mask_texts(text, expected):
    assert str(cli_mask.read_mask(text).mask) == expected


def test_mask_from_a_file(masks_file):
    assert str(cli_mask.read_mask(f"{masks_file}:causal").mask) == "k <= q"
    found = cli_mask.read_mask(f"{masks_file}:window")
    assert (str(found.mask), found.name) == ("(k <= q) & (q - k < 8)", "window")


def test_bad_masks_from_a_file(masks_file, tmp_path):
    with pytest.raises(MaskError, match="no name 'other'"):
        cli_mask.read_mask(f"{masks_file}:other")
    with pytest.raises(MaskError, match="is no mask but int"):
        cli_mask.read_mask(f"{masks_file}:number")
    with pytest.raises(MaskError, match="no such file"):
        cli_mask.read_mask(f"{tmp_path / 'none.py'}:mask")


@pytest.mark.parametrize(
    "text", ["(k <= q) and (k < 3)", "a_shape(sink=4)", "__import__('os')", "k +", "", "q - k"]
)
def test_wrong_masks_are_one_clear_error(capsys, text):
    code, out, err = run(capsys, "explain", text)
    assert (code, out) == (2, "")
    assert err.startswith("maskwright: ")
    assert "Traceback" not in err


# -- --bind -------------------------------------------------------------------------------------
def test_bindings(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(6, dtype=np.int32))
    texts = ["window=7", "kinds=[0, 1]", "flags=[True, False]", f"ids={tmp_path / 'ids.npy'}"]
    argument = cli_mask.read_mask("k <= q")
    found, notes = cli_mask.read_bindings(argument, texts, SHAPE, 0)
    assert found["window"] == 7
    assert found["kinds"].dtype == np.int32
    assert found["flags"].dtype == np.bool_
    assert found["ids"].tolist() == [0, 1, 2, 3, 4, 5]
    assert notes == []


@pytest.mark.parametrize(
    "text", ["window", "=3", "w=x", "w='text'", "w=[[1], [2, 3]]", "w=none.npy", "w={}", "w="]
)
def test_bad_bindings(text):
    with pytest.raises(BindingError):
        cli_mask.read_bindings(cli_mask.read_mask("k <= q"), [text], SHAPE, 0)


def test_patterns_get_example_data_and_say_so():
    argument = cli_mask.read_mask("vertical_slash()")
    found, notes = cli_mask.read_bindings(argument, ["s_idx=[[[0], [1]]]"], SHAPE, 0)
    assert found["s_idx"].tolist() == [[[0], [1]]]
    assert found["v_idx"].shape[:2] == (1, 2)
    assert len(notes) == 1
    assert "v_idx" in notes[0]


def test_text_masks_get_no_example_data():
    argument = cli_mask.read_mask('k < table("prefix")[b]')
    assert cli_mask.read_bindings(argument, [], SHAPE, 0) == ({}, [])


# -- commands -----------------------------------------------------------------------------------
def test_every_command_is_listed(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    names = (
        "demo",
        "show",
        "explain",
        "emit",
        "build",
        "check",
        "tune",
        "bench",
        "cache",
        "doctor",
    )
    assert all(f"\n    {name} " in out for name in names)


@pytest.mark.parametrize(
    "arguments",
    [[], ["unknown"], ["show"], ["explain", "k<=q", "--q-len=-1"], ["doctor", "--what"]],
)
def test_wrong_usage_exits_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


def test_explain(capsys):
    code, out, _ = run(capsys, "explain", "a_shape(64, 1024)", "--q-len", "128K", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["closed_form"] is True
    assert found["mask"].startswith("(k <= q)")
    code, out, _ = run(capsys, "explain", "causal", "--q-len", "256")
    assert code == 0
    assert out.strip()


def test_explain_with_runtime_values(capsys):
    mask = '(k <= q) & (q - k < param("window", min=1))'
    code, out, _ = run(capsys, "explain", mask, "--q-len", "64", "--bind", "window=4", "--json")
    assert code == 0
    assert json.loads(out)["pairs"] == sum(min(row + 1, 4) for row in range(64))
    code, _, err = run(capsys, "explain", mask, "--q-len", "64")
    assert code == 2
    assert "window" in err


def test_notes_go_to_stderr(capsys):
    code, out, err = run(capsys, "explain", "document()", "--q-len", "300", "--json")
    assert code == 0
    assert json.loads(out)
    assert err.startswith("note: example data: doc_id")


def test_show(capsys, tmp_path):
    code, out, _ = run(capsys, "show", "causal", "--q-len", "16")
    assert code == 0
    assert out.strip()
    picture = tmp_path / "causal.png"
    code, out, _ = run(capsys, "show", "causal", "--q-len", "64", "--output", str(picture))
    assert code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_emit(capsys, tmp_path):
    code, out, _ = run(capsys, "emit", "causal", "--arch", "sm_90")
    assert code == 0
    compile(out, "kernel.py", "exec")
    path = tmp_path / "kernel.py"
    code, _, _ = run(capsys, "emit", "causal", "--arch", "sm_90", "--output", str(path))
    assert code == 0
    assert path.read_text() == out
    code, _, err = run(capsys, "emit", "causal", "--output", str(tmp_path / "no" / "kernel.py"))
    assert code == 2
    assert "cannot write" in err


def test_check(capsys):
    options = ["--q-len", "40", "--head-dim", "16", "--backend", "reference", "--json"]
    code, out, _ = run(capsys, "check", "causal", *options)
    assert (code, json.loads(out)["ok"]) == (0, True)
    code, _, err = run(capsys, "check")
    assert code == 2
    assert "--random" in err


def test_tune_says_that_there_is_no_gpu(capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, err = run(capsys, "tune", "causal")
    assert code == 2
    assert err.startswith("maskwright: tuning measures on a GPU")


def test_cache(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MASKWRIGHT_CACHE_DIR", str(tmp_path))
    cache.store("causal_0.py", "x = 1\n")
    code, out, _ = run(capsys, "cache", "ls", "--json")
    assert (code, [e["name"] for e in json.loads(out)["entries"]]) == (0, ["causal_0.py"])
    assert "causal_0.py" in run(capsys, "cache", "ls")[1]
    assert json.loads(run(capsys, "cache", "clear", "--json")[1])["removed"] == 1
    assert "0 file(s)" in run(capsys, "cache")[1]


def test_bench_passes_its_options_on(capfd):
    assert main(["bench", "--help"]) == 0
    assert "--masks" in capfd.readouterr().out


def test_doctor(capsys):
    code, out, _ = run(capsys, "doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert set(found["backends"]) >= {"triton", "interpret", "reference"}
    assert all(why == "yes" or why.startswith("no: ") for why in found["backends"].values())
    assert "backends.triton" in run(capsys, "doctor")[1]


def test_doctor_reports_a_bad_setting(capsys, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_STRICT", "perhaps")
    code, out, _ = run(capsys, "doctor", "--json")
    assert code == 0
    assert "perhaps" in json.loads(out)["settings"]["error"]


def test_doctor_knows_what_the_interpreter_needs():
    versions = {"torch": "2.13.0", "triton": "3.6.0", "numpy": "2.4.1"}
    assert "numpy < 2.4" in doctor.backends(versions, [])["interpret"]
    assert doctor.backends(versions | {"triton": "3.7.0"}, [])["interpret"] == "yes"
    old = [{"name": "V100", "capability": [7, 0]}]
    assert "8.0" in doctor.backends(versions, old)["triton"]


def test_module_entry_point_and_closed_pipes():
    command = [sys.executable, "-m", "maskwright", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("maskwright 0.")
