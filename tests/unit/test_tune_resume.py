"""A search that is killed goes on where it was; a disk that is full costs the journal only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from maskwright.autotune.chance import proposer_of
from maskwright.autotune.flat import Flat
from maskwright.autotune.outcome import Outcome
from maskwright.autotune.proposer import OptunaProposer
from maskwright.autotune.proposer import finished_journal
from maskwright.autotune.space import Knob
from maskwright.dsl.errors import TuningError
from maskwright.runtime.cache import MaskwrightWarning

ROOT = Path(__file__).parents[2]
DRIVER = """
import sys
from pathlib import Path
from maskwright.autotune.filter import Limits
from maskwright.autotune.flat import Flat
from maskwright.autotune.outcome import NoCompiler
from maskwright.autotune.proposer import OptunaProposer
from maskwright.autotune.search import Budget, Study, search
from maskwright.autotune.space import Target
from maskwright.autotune.table import Table, TableDevice

table = Table.read(Path(sys.argv[1]))
space, target = Flat("forward", "triton"), Target(table.key, Limits())
default = table.config(table.default)
study = Study(space, target, default, (), Budget(1e9, int(sys.argv[3])))
proposer = OptunaProposer(space.knobs, Path(sys.argv[2]), 0)
print("known", len(proposer.known()), flush=True)

def watch(state, config, outcome):
    print("trial", len(state.outcomes), flush=True)

found = search(study, TableDevice(table), NoCompiler(), proposer, watch)
print("regret", table.regret(found.winner.config), flush=True)
"""


@pytest.fixture
def drive(make_table, tmp_path):
    """Run the driver, killed after some trials if asked for; returns what it printed."""
    path, journal = tmp_path / "table.json.gz", tmp_path / "study.journal"
    make_table().write(path)

    def made(trials, kill_after=None):
        command = [sys.executable, "-c", DRIVER, str(path), str(journal), str(trials)]
        lines = []
        env = {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                lines.append(line.split())
                if sum(x[0] == "trial" for x in lines) == kill_after:
                    process.kill()
        return lines

    made.journal = journal
    return made


def test_a_killed_search_goes_on(drive):
    done = 0
    for kill_after in (7, 12):
        lines = drive(60, kill_after)
        assert int(lines[0][1]) >= done
        done = int(lines[-1][1])
        assert lines[-1][0] == "trial"
    lines = drive(25)
    known = int(lines[0][1])
    assert known >= done - 1  # the one that was under way may be lost
    assert lines[-1][0] == "regret"
    assert float(lines[-1][1]) <= 0.12
    assert not drive.journal.exists()
    assert finished_journal(drive.journal).exists()
    assert drive(3)[0] == ["known", "0"]  # a finished study is not gone on with


KNOBS = (
    Knob("block", (16, 32, 64, 128), ""),
    Knob("stages", (1, 2, 3), ""),
    Knob("loads", ("pointer", "descriptor"), ""),
)
POINT = {"block": 64, "stages": 2, "loads": "descriptor"}


def test_what_was_under_way_is_proposed_again(tmp_path):
    journal = tmp_path / "study.journal"
    first = OptunaProposer(KNOBS, journal, 0)
    first.seed(POINT)
    ask = first.ask()
    assert ask.values == POINT
    first.tell(ask, Outcome("ok", 1.0, 0.9))
    under_way = first.ask()  # and then nothing more is heard
    second = OptunaProposer(KNOBS, journal, 0)
    assert second.known() == [(POINT, Outcome("ok", 1.0, 0.9))]
    assert second.ask().values == under_way.values


def test_failures_are_remembered_and_avoided():
    proposer = OptunaProposer(KNOBS, None, 0)
    for _ in range(60):
        ask = proposer.ask()
        bad = ask.values["loads"] == "pointer"
        proposer.tell(ask, Outcome("sticky") if bad else Outcome("ok", 1.0, ask.values["block"]))
    late = [proposer.ask().values["loads"] for _ in range(12)]
    assert late.count("descriptor") >= 9


def test_a_full_disk_costs_the_journal_only(tmp_path, monkeypatch):
    proposer = OptunaProposer(KNOBS, tmp_path / "study.journal", 0)
    ask = proposer.ask()

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    backend = proposer.optuna.storages.journal.JournalFileBackend
    monkeypatch.setattr(backend, "append_logs", full)
    with pytest.warns(MaskwrightWarning, match="No space left"):
        proposer.tell(ask, Outcome("ok", 1.0, 0.9))
    again = proposer.ask()
    proposer.tell(again, Outcome("ok", 1.0, 0.8))
    assert proposer.study.best_value == 0.8
    proposer.close(finished=True)


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.warns(MaskwrightWarning, match="cannot be kept"):
        proposer = OptunaProposer(KNOBS, tmp_path / "none" / "study.journal", 0)
    proposer.tell(proposer.ask(), Outcome("ok", 1.0, 0.9))


def test_powers_of_two_are_proposed_by_their_logarithm():
    proposer = OptunaProposer(KNOBS, None, 0)
    proposer.ask()
    kinds = proposer.study.get_trials()[0].distributions
    assert set(kinds) == {"log2 block", "stages", "loads"}
    assert (kinds["log2 block"].low, kinds["log2 block"].high) == (4, 7)


@pytest.mark.parametrize("op", ["forward", "backward"])
@pytest.mark.parametrize("template", ["triton", "gluon_sm90"])
def test_every_space_can_be_proposed(op, template, make_entry):
    from maskwright.autotune.entry import CONFIGS
    from maskwright.autotune.space import Target

    space = Flat(op, template)
    config = CONFIGS[op, template]()
    target = Target(make_entry(op=op, template=template, config=config).key)
    assert space.values(config) is not None
    proposer = OptunaProposer(space.knobs, None, 0)
    proposer.seed(space.values(config))
    asked = [proposer.ask() for _ in range(30)]
    made = [space.config(x.values, target)[0] for x in asked]
    assert made[0] == config
    assert len({str(x) for x in made if x is not None}) >= 3
    assert all(space.values(x) == ask.values for x, ask in zip(made, asked, strict=True) if x)


def test_proposals_at_random_need_no_optuna():
    code = (
        "import sys; sys.modules['optuna'] = None\n"
        "from maskwright.autotune.chance import proposer_of\n"
        "from maskwright.autotune.flat import Flat\n"
        "from maskwright.dsl.errors import TuningError\n"
        "knobs = Flat('forward', 'triton').knobs\n"
        "p = proposer_of('random', knobs, None, 0)\n"
        "p.seed({'first': 1}); print(p.ask().values, len({str(p.ask().values) for _ in range(50)}))\n"
        "try: proposer_of('tpe', knobs, None, 0)\n"
        "except TuningError as error: print(error.fix)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    first, fix = done.stdout.splitlines()
    assert first.startswith("{'first': 1} "), done.stderr
    assert int(first.split()[-1]) >= 40
    assert "random" in fix
    with pytest.raises(TuningError, match="no sampler"):
        proposer_of("genetic", KNOBS, None, 0)
