"""Workers that hang, crash, talk nonsense or eat memory: the parent lives, and the rest goes on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from maskwright.autotune.child import Child
from maskwright.autotune.child import ChildError
from maskwright.autotune.compile_pool import CompilePool
from maskwright.autotune.gpu_device import GpuDevice
from maskwright.autotune.gpu_worker import classify
from maskwright.autotune.job import Job
from maskwright.autotune.outcome import Facts
from maskwright.autotune.spares import Spares
from maskwright.codegen.config import KernelConfig
from maskwright.dsl.errors import TuningError

WORKER = Path(__file__).with_name("misbehaving_worker.py")
ROOT = Path(__file__).parents[2]
(OK, HANG, END, CRASH, GARBAGE, EAT, GRANDCHILD, ONCE, STICKY, RAISE, WRONG) = range(1, 12)


def config(stages, rows=64):
    return KernelConfig(rows, 64, 4, stages)


@pytest.fixture
def job(make_table):
    return make_table(keep=0.0).job


@pytest.fixture
def spawn(tmp_path):
    """A function that starts a worker, and the list of those it started."""
    started = []

    def made(**env):
        env |= {"PYTHONPATH": str(ROOT), "MISBEHAVING": str(tmp_path / "marker")}
        started.append(Child([sys.executable, str(WORKER)], env))
        return started[-1]

    made.started = started
    return made


@pytest.fixture
def pool(job, spawn, make_entry):
    hardware = make_entry().key.hardware
    found = CompilePool(job, hardware, 2, limit=1.5, memory=200 << 20, spawn=spawn)
    yield found
    found.close()


@pytest.fixture
def device(job, spawn, make_entry):
    facts = Facts(make_entry().key, config(OK), 0.5, 0.004)
    text = json.dumps(asdict(facts))
    found = GpuDevice(job, spawn=lambda: spawn(FACTS=text), least=1.0, start_limit=30.0)
    found.start()
    found.ready()
    yield found
    found.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # One that has ended and waits to be reaped is not alive.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def results(pool, seconds=20.0):
    found, end = {}, time.monotonic() + seconds
    while pool.busy and time.monotonic() < end:
        found |= dict(pool.take(1.0))
    return found


# -- compilation ----------------------------------------------------------------------------------
def test_a_pool_compiles(pool):
    given = [config(OK, rows) for rows in (16, 32, 64, 128)]
    for x in given:
        pool.submit(x)
    assert pool.room < 0
    found = results(pool)
    assert {x: build.code for x, build in found.items()} == {x: str(x.block_m) for x in given}
    assert pool.room == 2
    assert len(pool.spawn.started) == 2


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (HANG, "timeout"),
        (GRANDCHILD, "timeout"),
        (END, "compile"),
        (CRASH, "compile"),
        (GARBAGE, "compile"),
        (EAT, "infeasible"),
        (RAISE, "compile"),
    ],
)
def test_a_compiler_that_misbehaves_harms_nobody_else(pool, fault, status, tmp_path):
    given = [config(OK, 16), config(fault, 32), config(OK, 64), config(OK, 128)]
    for x in given:
        pool.submit(x)
    found = results(pool)
    assert set(found) == set(given)
    assert found.pop(given[1]).status == status
    assert {build.status for build in found.values()} == {"ok"}
    if fault == GRANDCHILD:
        time.sleep(0.1)
        assert not alive(int((tmp_path / "marker").read_text()))


@pytest.fixture
def spares():
    with contextlib.closing(Spares()) as found:
        yield found


def test_workers_outlive_a_search(job, spawn, make_entry, spares):
    """The second search starts no worker; one that hangs at its end is not handed on."""
    hardware = make_entry().key.hardware
    for number in range(3):
        pool = CompilePool(job, None, 2, limit=1.5, spawn=spawn, spares=spares)
        pool.load()
        pool.gpu = hardware
        given = [config(OK, rows) for rows in (16, 32, 64)]
        for x in given:
            pool.submit(x)
        assert {build.code for build in results(pool).values()} == {"16", "32", "64"}
        if number == 1:
            pool.submit(config(HANG))
            pool.take(0.2)
        pool.close()
        assert len(spawn.started) == (2, 2, 3)[number]
    children = [child for kept in spares.kept.values() for child in kept]
    assert len(children) == 2
    assert sum(alive(x.process.pid) for x in spawn.started) == 2
    spares.close()
    assert not any(alive(x.process.pid) for x in spawn.started)


def test_a_spare_worker_that_died_is_replaced(job, spawn, make_entry, spares):
    for _ in range(2):
        pool = CompilePool(job, make_entry().key.hardware, 1, limit=1.5, spawn=spawn, spares=spares)
        pool.submit(config(OK, 16))
        assert [x.status for x in results(pool).values()] == ["ok"]
        pool.close()
        spawn.started[-1].process.kill()
        spawn.started[-1].process.wait()
    assert len(spawn.started) == 2


def test_the_process_of_the_gpu_outlives_a_search(job, spawn, make_entry, spares):
    """Unless it had to be replaced: the GPU may remember what happened."""
    text = json.dumps(asdict(Facts(make_entry().key, config(OK), 0.5, 0.004)))
    options = {"spawn": lambda: spawn(FACTS=text), "least": 1.0, "start_limit": 30.0}
    for fault, started in ((OK, 1), (OK, 1), (STICKY, 3), (OK, 4)):
        device = GpuDevice(job, spares=spares, **options)
        device.start()
        assert device.ready().ms == 0.5
        device.measure(config(fault), 1.0)
        device.close()
        assert len(spawn.started) == started


def test_a_process_that_had_nothing_to_measure_is_handed_on(job, spawn, make_entry, spares):
    """There was an entry for the key already."""
    text = json.dumps(asdict(Facts(make_entry().key, config(OK), 0.5, 0.004)))
    for _ in range(3):
        device = GpuDevice(job, spawn=lambda: spawn(FACTS=text), spares=spares)
        assert device.start().default == config(OK)
        device.close()
    assert len(spawn.started) == 1


def test_a_process_that_failed_is_not_handed_on(job, spawn, make_entry, spares):
    """After a sticky error every later job would fail in it, too."""
    facts = json.dumps(asdict(Facts(make_entry().key, config(OK), 0.5, 0.004)))
    for text in ("null", "null", facts):
        device = GpuDevice(job, spawn=lambda text=text: spawn(FACTS=text), spares=spares)
        if text == "null":
            with pytest.raises(TuningError, match="not ready"):
                device.start()
        else:
            device.start()
            assert device.ready().ms == 0.5
            with pytest.raises(TuningError, match="cannot be measured"):
                device.measure(config(RAISE), 1.0)
        device.close()
        assert not any(spares.kept.values())
    assert len(spawn.started) == 3


def test_unused_workers_are_kept(job, spawn, make_entry, spares):
    hardware = make_entry().key.hardware
    pool = CompilePool(job, hardware, 2, spawn=spawn, spares=spares)
    pool.submit(config(OK, 16))
    pool.submit(config(OK, 32))
    results(pool)
    pool.close()
    for _ in range(2):
        pool = CompilePool(job, hardware, 2, spawn=spawn, spares=spares)
        pool.load()
        pool.close()
    assert len(spawn.started) == len([x for kept in spares.kept.values() for x in kept]) == 2


def test_a_closed_pool_leaves_no_process(pool):
    pool.submit(config(HANG))
    pool.take(0.2)
    pool.close()
    assert not any(alive(x.process.pid) for x in pool.spawn.started)


def test_limits_follow_what_compilation_takes(pool):
    assert pool._limit() == 1.5
    pool.limit, pool.seconds = 30.0, [1.0] * 19 + [2.0]
    assert pool._limit() == 10.0
    pool.seconds = [6.0] * 20
    assert pool._limit() == pytest.approx(18.0)


def test_a_worker_ends_with_its_parent(tmp_path):
    """SIGKILL of the parent: no cleaning up, and still nobody is left."""
    code = (
        "import sys; from maskwright.autotune.child import Child;"
        f"c = Child([sys.executable, {str(WORKER)!r}], dict(MISBEHAVING='x'));"
        "c.receive(20.0); print(c.process.pid, flush=True);"
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = Child([sys.executable, "-c", code], {"PYTHONPATH": str(ROOT)})
    pid = int(done.process.stdout.readline() or b"0") if _wait(done) else 0
    done.kill()
    end = time.monotonic() + 5
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert pid
    assert not alive(pid)


def _wait(child):
    return child.process.wait(30) == -signal.SIGKILL


# -- the process of the GPU -----------------------------------------------------------------------
def test_a_device_measures_and_compares(device):
    assert device.measure(config(OK), 1.0).ratio == 0.5
    race = device.race([config(OK, 16), config(OK, 128)], 3)
    assert race.rounds == ((16.0, 128.0),) * 3
    assert device.respawned == 0


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (HANG, "timeout"),
        (END, "sticky"),
        (CRASH, "sticky"),
        (GARBAGE, "sticky"),
        (STICKY, "sticky"),
    ],
)
def test_the_guilty_fails_twice_alone_and_the_next_meets_a_fresh_process(device, fault, status):
    assert device.measure(config(fault), 1.0).status == status
    assert device.respawned == 2
    assert device.measure(config(OK), 1.0).status == "ok"
    assert device.respawned == 2


def test_who_crashes_once_is_innocent(device):
    assert device.measure(config(ONCE), 1.0).status == "ok"
    assert device.respawned == 1


def test_a_worker_that_somebody_kills_is_replaced(device):
    device.child.process.kill()
    assert device.measure(config(OK), 1.0).status == "ok"
    assert device.respawned == 1
    device.child.process.kill()
    assert len(device.race([config(OK)], 2).rounds) == 2


def test_wrong_numbers_are_a_result(device):
    assert device.measure(config(WRONG), 1.0).status == "wrong"
    assert device.respawned == 0


def test_our_own_mistakes_are_raised(device):
    with pytest.raises(TuningError, match="raised"):
        device.measure(config(RAISE), 1.0)


def test_no_worker_at_all(job):
    device = GpuDevice(job, spawn=lambda: Child([sys.executable, "-c", "raise SystemExit(7)"], {}))
    with pytest.raises(TuningError, match=r"did not start.*code 7"):
        device.start()
    assert device.child is None


def test_last_words():
    child = Child([sys.executable, "-c", "import sys; sys.exit('this is why')"], {})
    with pytest.raises(ChildError, match=r"code 1: this is why"):
        child.receive(20.0)
    with pytest.raises(ChildError):
        child.send(do="anything")
    child.kill()


@pytest.mark.parametrize(
    ("text", "phase", "status"),
    [
        ("CUDA error: an illegal memory access was encountered", "run", "sticky"),
        ("Triton Error [CUDA]: misaligned address", "run", "sticky"),
        ("CUDA error: unspecified launch failure", "compile", "sticky"),
        ("CUDA out of memory. Tried to allocate", "run", "infeasible"),
        ("PassManager::run failed", "compile", "compile"),
        ("name 'x' is not defined", "run", "harness"),
    ],
)
def test_classes_of_errors(text, phase, status):
    assert classify(RuntimeError(text), phase) == status


def test_a_job_crosses_processes(job):
    again = Job.from_dict(json.loads(json.dumps(job.to_dict())))
    assert again == job
    assert again.mask_node is job.mask_node
