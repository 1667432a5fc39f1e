"""Searches that share a study on a real PostgreSQL server; skipped where there is none.

A server of the test's own is started in a temporary folder, and listens at a socket there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from maskwright.autotune.outcome import Outcome
from maskwright.autotune.shared import Shared
from maskwright.autotune.shared import SharedProposer
from maskwright.autotune.space import Knob

GOOD = 0.3  # regret that any search stays below: this is no test of the sampler
ROOT = Path(__file__).parents[2]
DRIVER = """
import sys, time, warnings
from pathlib import Path
from maskwright.autotune.filter import Limits
from maskwright.autotune.flat import Flat
from maskwright.autotune.outcome import NoCompiler, config_key
from maskwright.autotune.search import Budget, Study, search
from maskwright.autotune.shared import Shared, SharedProposer
from maskwright.autotune.space import Target
from maskwright.autotune.table import Table, TableDevice

path, url, seed, trials, grace = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
warnings.showwarning = lambda message, *rest: print("warning", message, flush=True)
table = Table.read(Path(path))
space, target = Flat("forward", "triton"), Target(table.key, Limits())
study = Study(space, target, table.config(table.default), (), Budget(1e9, trials))
proposer = SharedProposer(space.knobs, Shared(url, "a search", grace), seed)
print("ready", flush=True)
sys.stdin.readline()

def watch(state, config, outcome):
    print("trial", len(state.outcomes), config_key(config), flush=True)
    time.sleep(0.05)  # else one has done all before the other begins

found = search(study, TableDevice(table, seed), NoCompiler(), proposer, watch)
print("known", len(found.state.outcomes), "regret", table.regret(found.winner.config), flush=True)
"""


class Server:
    """A PostgreSQL of one's own."""

    def __init__(self, folder):
        self.folder, self.data = folder, folder / "data"
        self.user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
        if self.user:
            shutil.chown(folder, self.user)
        self.run("initdb", "-D", self.data, "-U", "tuner", "-A", "trust", "--no-sync")
        self.url = f"postgresql+psycopg://tuner@/postgres?host={folder}"

    def run(self, program, *arguments):
        """A program of the server's, as its user."""
        command = [shutil.which(program), *map(str, arguments)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        done = subprocess.run(command, user=self.user, cwd=self.folder, check=False, **quiet)
        assert done.returncode == 0, done.stderr

    def start(self):
        """At a socket in the folder."""
        options = f"-c listen_addresses='' -k {self.folder} -c fsync=off"
        log = self.folder / "log"
        self.run("pg_ctl", "-D", self.data, "-w", "-l", log, "-o", options, "start")

    def stop(self):
        """At once: connections are cut."""
        self.run("pg_ctl", "-D", self.data, "-m", "immediate", "stop")


@pytest.fixture
def server():
    pytest.importorskip("psycopg")
    missing = [x for x in ("initdb", "pg_ctl") if shutil.which(x) is None]
    if missing:
        pytest.skip(f"needs a PostgreSQL server: no {missing[0]}")
    with tempfile.TemporaryDirectory() as folder:  # short: the name of a socket has 107 characters
        made = Server(Path(folder))
        made.start()
        yield made
        if (made.data / "postmaster.pid").exists():
            made.stop()


@pytest.fixture
def drive(make_table, tmp_path, server):
    """Starts a machine: its process, whose lines say what it does."""
    path = tmp_path / "table.json.gz"
    make_table().write(path)
    started = []

    def made(seed, trials=30, grace=300):
        numbers = map(str, (seed, trials, grace))
        command = [sys.executable, "-c", DRIVER, str(path), server.url, *numbers]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, env=env, **pipes)
        started.append(process)
        return process

    yield made
    for process in started:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def go(*processes):
    """All begin when the last one is ready."""
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    return processes


def words(process):
    """All it still has to say."""
    return [line.split() for line in process.stdout]


def test_two_machines_share_the_work(drive):
    """Both begin together, on an empty database."""
    found = [words(x) for x in go(drive(0), drive(1))]
    tried = [{x[2] for x in lines if x[0] == "trial"} for lines in found]
    assert all(len(x) >= 25 for x in tried)
    assert len(tried[0] & tried[1]) <= 10  # of 30: the first, before they know of each other
    for lines in found:
        _, known, _, regret = lines[-1]
        assert int(known) > 40  # its own 30, and some of the other's
        assert float(regret) <= GOOD


def test_a_machine_that_is_killed_loses_nothing_but_time(drive, server):
    (process,) = go(drive(0, trials=500, grace=2))
    for line in process.stdout:
        if line.startswith("trial 6 "):
            break
    process.kill()
    process.wait()
    lines = words(*go(drive(1, trials=25, grace=2)))
    assert int(lines[-1][1]) >= 25 + 5
    assert float(lines[-1][3]) <= GOOD
    assert not [x for x in lines if x[0] == "warning"]


def test_a_server_that_goes_away_costs_the_study_only(drive, server):
    (process,) = go(drive(0, trials=40))
    for line in process.stdout:
        if line.startswith("trial 8 "):
            server.stop()
            break
    lines = words(process)
    assert [x[0] for x in lines].count("warning") == 1
    assert lines[-1][0] == "known"
    assert float(lines[-1][3]) <= GOOD


def test_a_connection_that_was_cut_is_made_anew(server):
    """The server was down between two questions, and nobody noticed."""
    knobs = (Knob("block", (16, 32, 64, 128), ""),)
    proposer = SharedProposer(knobs, Shared(server.url, "a search"))
    proposer.tell(proposer.ask(), Outcome("ok", 1.0, 0.9))
    server.stop()
    server.start()
    proposer.tell(proposer.ask(), Outcome("ok", 1.0, 0.8))
    assert len(SharedProposer(knobs, Shared(server.url, "a search")).known()) == 2
