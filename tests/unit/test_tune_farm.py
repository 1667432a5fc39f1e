"""The catalogue on many GPUs: fake processes that are slow, fail, die or hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from maskwright.autotune import farm
from maskwright.autotune.catalog_run import CatalogRun
from maskwright.autotune.child import Child
from maskwright.autotune.farm import Farm
from maskwright.autotune.farm import visible
from maskwright.autotune.farm_view import FarmView
from maskwright.autotune.progress import Progress
from maskwright.dsl.errors import TuningError
from maskwright.runtime.cli import main
from maskwright.runtime.cli import parser

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("fake_driver.py")
QUICK, LONG, END, FAIL, BUSY, HANG, NOTE = range(1, 8)


def run_of(*lengths, only="causal", workers=4):
    lengths = [f"--q-len={x}" for x in lengths]
    more = ["--only", only, "--workers", str(workers)]
    return CatalogRun.of(parser().parse_args(["tune --catalog", *lengths, *more]))


class Made:
    """Farms of fake processes, and which were started."""

    def __init__(self, log):
        self.log, self.started, self.env = log, [], {}

    def spawn(self, gpu):
        env = {"PYTHONPATH": str(ROOT), "LOG": str(self.log), "CUDA_VISIBLE_DEVICES": gpu}
        self.started.append(Child([sys.executable, str(DRIVER)], env | self.env))
        return self.started[-1]

    def farm(self, run, *gpus):
        return Farm(run, gpus, FarmView(gpus, quiet=False), self.spawn)

    @property
    def begun(self):
        return [x.split() for x in self.log.read_text().splitlines()]


@pytest.fixture
def made(tmp_path):
    found = Made(tmp_path / "log")
    yield found
    assert all(x.process.poll() is not None for x in found.started)


def test_no_gpu_idles_while_keys_are_left(made, capsys):
    run = run_of(LONG, QUICK, 10, 11, 12, 13)
    results = made.farm(run, "0", "1").tune()
    assert [x["q_len"] for x in results] == [LONG, QUICK, 10, 11, 12, 13]
    assert not any("failed" in x for x in results)
    # The one that is slow does one key, the other one the rest.
    slow = next(gpu for gpu, _, length in made.begun if length == str(LONG))
    assert [length for gpu, _, length in made.begun if gpu == slow] == [str(LONG)]
    err = capsys.readouterr().err
    assert "GPU 0 | causal, " in err
    assert "GPU 1 | causal, " in err
    assert "0.500 ms, 0.900 of the default | 6 done" in err


def test_compile_workers_are_divided(made):
    found = made.farm(run_of(QUICK, 10, workers=5), "0", "1", "2", "3")
    found.tune()
    assert found.hardware["workers"] == 2
    assert len(made.started) == 2  # as many as there are keys


@pytest.mark.parametrize(("key", "what"), [(END, "SIGKILL"), (FAIL, "no configuration is right")])
def test_a_key_that_fails_harms_no_other(made, key, what):
    first, second = made.farm(run_of(key, QUICK), "0").tune()
    assert what in first["failed"]
    assert second["ms"] == 0.5


def test_a_gpu_whose_process_dies_again_and_again_is_dropped(made, capsys):
    results = made.farm(run_of(END, QUICK, END), "0").tune()
    assert ["failed" in x for x in results] == [True, False]  # a length given twice counts once
    results = made.farm(run_of(END, QUICK, only="causal,full"), "0").tune()
    assert [x["failed"] for x in results][2:] == ["no GPU is left"] * 2
    assert "GPU 0 | not used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fault", "what"), [("raise", "no such GPU"), ("end", "it ends"), ("hang", "not ready")]
)
def test_a_gpu_that_is_not_there_takes_no_keys(made, fault, what, capsys):
    made.env = {"FAULT_1": fault}
    found = made.farm(run_of(LONG, QUICK, only="causal,full,sliding_window"), "0", "1")
    found.start_limit = 3.0 if fault == "hang" else 60.0  # the keys take 6 s
    results = found.tune()
    assert not any("failed" in x for x in results)
    assert {gpu for gpu, *_ in made.begun} == {"0"}
    assert what in capsys.readouterr().err


def test_gpus_of_two_kinds_are_refused(made):
    made.env = {"FAULT_1": "A100"}
    with pytest.raises(TuningError, match="of another kind"):
        made.farm(run_of(LONG, HANG), "0", "1").tune()


def test_two_sizes_of_one_key_take_turns(made):
    """The second is told that the first is under way, and comes again when that is done."""
    results = made.farm(run_of(LONG, BUSY), "0", "1").tune()
    assert not any("failed" in x for x in results)
    assert sum(length == str(BUSY) for _, _, length in made.begun) == 2


def test_a_key_that_others_keep_fails(made):
    (result,) = made.farm(run_of(BUSY), "0").tune()
    assert result["failed"] == "another process tunes this"


def test_notes_come_through(made, capsys):
    made.farm(run_of(NOTE), "0").tune()
    assert "GPU 0 | note: a warning" in capsys.readouterr().err


# A background job of a shell is started with interrupts ignored.
INTERRUPTED = """
import signal; signal.signal(signal.SIGINT, signal.default_int_handler)
import sys; sys.path.insert(0, {tests!r}); from pathlib import Path
from test_tune_farm import HANG, Made, run_of
made = Made(Path({log!r}))
made.farm(run_of(HANG, only="causal,full"), "0", "1").tune()
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nobody_is_left_when_it_is_interrupted(tmp_path, how):
    log = tmp_path / "log"
    code = INTERRUPTED.format(tests=str(DRIVER.parent), log=str(log))
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], env=env) as found:
        pids = within(30.0, lambda: pids_of(log) if len(pids_of(log)) == 2 else None)
        found.send_signal(how)
        assert found.wait(30)
    assert pids
    assert within(5.0, lambda: not any(map(alive, pids)))


def within(seconds, what):
    end = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def pids_of(log):
    path = log.with_suffix(".pids")
    return [int(x) for x in path.read_text().split()] if path.exists() else []


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- what it is given -----------------------------------------------------------------------------
def test_numbers_count_among_the_gpus_that_are_seen(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible(["0", "3"]) == ["0", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5")
    assert visible(["1", "0", "GPU-7"]) == ["GPU-5", "4", "GPU-7"]
    with pytest.raises(TuningError, match="no GPU 2"):
        visible(["2"])


@pytest.mark.parametrize("text", ["", "0,0", "a", "0,,1"])
def test_lists_that_are_none(text, capsys):
    with pytest.raises(SystemExit):
        main(["tune", "--catalog", "--gpus", text])
    assert "no list of different GPUs" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "code"), [(QUICK, 0), (FAIL, 1)])
def test_the_exit_code_tells_of_failures(made, monkeypatch, key, code, capsys):
    monkeypatch.setattr(farm.Child, "python", lambda _, **env: made.spawn(**_gpu(env)))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    command = ["tune", "--catalog", "--only", "causal,full", "--gpus", "0,1"]
    assert main([*command, "--q-len", str(key)]) == code
    assert "causal" in capsys.readouterr().out


def _gpu(env):
    return {"gpu": env["CUDA_VISIBLE_DEVICES"]}


def test_progress_goes_where_it_is_told(make_table):
    told = []
    progress = Progress(make_table(keep=0.0).job, None, quiet=False, tell=told.append)
    progress.open()
    progress.insist("a line")
    assert told == ["a line"]
    assert progress.status is None
