"""One search at a time on a GPU: who waits, who is told, and who holds nothing any more."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from dataclasses import replace
from pathlib import Path

import pytest

from maskwright.autotune.child import Child
from maskwright.autotune.gpu_device import GpuDevice
from maskwright.autotune.gpu_turn import BusyError
from maskwright.autotune.gpu_turn import GpuTurn
from maskwright.autotune.outcome import Facts
from maskwright.codegen.config import KernelConfig
from maskwright.dsl.errors import TuningError
from maskwright.runtime.cache import MaskwrightWarning

WORKER = Path(__file__).with_name("misbehaving_worker.py")
ROOT = Path(__file__).parents[2]
GPU = "GPU-01"
HOLD = """
import sys, time; from pathlib import Path; from maskwright.autotune.gpu_turn import GpuTurn
turn = GpuTurn(folder=Path(sys.argv[1])); turn.take(sys.argv[2]); print("held", flush=True); time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that measures on the GPU."""
    command = [sys.executable, "-c", HOLD, str(tmp_path), GPU]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as found:
        assert found.stdout.readline() == "held\n"
        yield found
        found.kill()


def test_a_crashed_search_frees_the_gpu(holder, tmp_path):
    told = []

    def say(text):
        told.append(text)
        holder.kill()

    turn = GpuTurn(say, folder=tmp_path)
    turn.take(GPU)
    assert turn.waited > 0
    assert told == [f"waiting for GPU {GPU}, another process tunes on it | 0 s"]
    turn.take(GPU)  # ours already
    turn.release()


def test_patience_ends(holder, tmp_path):
    told = []
    with pytest.raises(BusyError, match="another process tunes on GPU"):
        GpuTurn(told.append, patience=0.3, folder=tmp_path).take(GPU)
    assert len(told) == 1
    assert holder.poll() is None


def test_other_gpus_are_free(holder, tmp_path):
    turn = GpuTurn(patience=0.0, folder=tmp_path)
    turn.take("GPU-02")
    with pytest.raises(BusyError):
        GpuTurn(patience=0.0, folder=tmp_path).take("GPU-02")
    turn.release()
    turn.take("GPU-02")
    turn.release()


def test_where_nothing_can_be_locked(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(MaskwrightWarning, match="not locked against other searches"):
        GpuTurn(folder=tmp_path / "file").take(GPU)


# -- the device -----------------------------------------------------------------------------------
@pytest.fixture
def device(make_table, make_entry, tmp_path):
    facts = json.dumps(asdict(Facts(make_entry().key, KernelConfig(64, 64, 4, 1), 0.5, 0.004)))
    env = {"PYTHONPATH": str(ROOT), "MISBEHAVING": str(tmp_path / "marker"), "FACTS": facts}
    found = GpuDevice(
        make_table(keep=0.0).job,
        spawn=lambda: Child([sys.executable, str(WORKER)], env | {"GPU": GPU}),
        turn=GpuTurn(patience=0.0, folder=tmp_path),
    )
    yield found
    found.close()


def busy(folder):
    turn = GpuTurn(patience=0.0, folder=folder)
    try:
        turn.take(GPU)
    except BusyError:
        return True
    turn.release()
    return False


def test_a_device_keeps_its_turn_until_it_is_closed(device, tmp_path):
    device.start()
    assert busy(tmp_path)
    device.ready()
    device.child.process.kill()
    assert device.measure(KernelConfig(64, 64, 4, 1), 1.0).status == "ok"
    assert device.respawned == 1
    assert busy(tmp_path)
    device.close()
    assert not busy(tmp_path)


def test_a_device_that_gets_no_turn_leaves_no_process(device, holder):
    with pytest.raises(BusyError):
        device.start()
    assert device.child is None
    assert holder.poll() is None


def test_a_process_without_a_gpu(device):
    device.spawn = lambda: Child([sys.executable, str(WORKER)], {"PYTHONPATH": str(ROOT)})
    with pytest.raises(TuningError, match="not ready"):
        device.start()
    assert device.child is None


def test_the_interpreter_waits_for_nobody(device, holder):
    device.job = replace(device.job, backend="interpret")
    device.start()
    assert device.turn.lock is None
    assert holder.poll() is None
