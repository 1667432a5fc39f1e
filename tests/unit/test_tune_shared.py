"""A study that several share, in a small database: who hears what, who is waited for, what is lost."""

from __future__ import annotations

import time

import pytest

from maskwright.autotune import shared as shared_study
from maskwright.autotune.chance import proposer_of
from maskwright.autotune.outcome import Outcome
from maskwright.autotune.shared import Shared
from maskwright.autotune.shared import SharedProposer
from maskwright.autotune.space import Knob
from maskwright.dsl.errors import TuningError
from maskwright.runtime import settings
from maskwright.runtime.cache import MaskwrightWarning

KNOBS = (
    Knob("block", (16, 32, 64, 128), ""),
    Knob("stages", (1, 2, 3), ""),
    Knob("loads", ("pointer", "descriptor"), ""),
    Knob("number", tuple(range(1, 10001)), "so that nothing is proposed twice by chance"),
)
POINT = {"block": 64, "stages": 2, "loads": "descriptor", "number": 77}
GOOD = Outcome("ok", 1.0, 0.9)


@pytest.fixture
def join(tmp_path):
    """Another machine at the same study."""

    def made(name="a search", grace=300):
        shared = Shared(f"sqlite:///{tmp_path / 'studies.db'}", name, grace)
        return proposer_of("tpe", KNOBS, None, 0, shared)

    return made


def test_each_hears_what_the_others_were_told(join):
    one, other, stranger = join(), join(), join("another search")
    one.seed(POINT)
    other.seed(POINT)  # once is enough
    ask = one.ask()
    assert ask.values == POINT
    assert (other.known(), other.ask().values == POINT) == ([], False)
    one.tell(ask, GOOD)
    assert one.known() == other.known() == join().known() == [(POINT, GOOD)]
    assert stranger.known() == []


def test_machines_do_not_begin_with_the_same_proposals(join):
    one, other = join(), join()
    first, second = ([x.ask().values for _ in range(8)] for x in (one, other))
    assert first != second


def test_what_the_lost_had_under_way_is_proposed_to_others_once(join):
    lost, other = join(grace=1), join(grace=1)
    lost.seed(POINT)
    late = lost.ask()
    for proposer in (other, join(grace=1)):
        time.sleep(2.1)
        proposer.known()
        last = proposer.ask()
        assert (last.values == POINT) == (proposer is other)
    lost.tell(late, GOOD)  # it was slow only, and is not heard any more
    assert other.known() == []


def test_a_sign_of_life_keeps_what_is_under_way(join):
    slow, other = join(grace=5), join(grace=5)
    slow.seed(POINT)
    ask = slow.ask()
    for _ in range(13):
        time.sleep(0.5)
        slow.known()
    assert other.known() == []
    assert other.ask().values != POINT
    slow.tell(ask, GOOD)
    assert other.known() == [(POINT, GOOD)]


def test_a_finished_study_is_not_joined(join):
    one, other = join(), join()
    one.tell(one.ask(), GOOD)
    one.ask()
    under_way = one.ask()
    one.close(finished=False)  # interrupted: others go on, and with what it had under way
    assert under_way.values in [other.ask().values for _ in range(2)]
    assert len(join().known()) == 1
    other.close(finished=True)
    assert join().known() == []


def test_a_database_that_is_lost_costs_the_study_only(join, tmp_path):
    proposer = join()
    for _ in range(20):  # the sampler has begun to estimate
        proposer.tell(proposer.ask(), GOOD)
    under_way = proposer.ask()
    path = tmp_path / "studies.db"
    path.write_bytes(b"no database" * path.stat().st_size)
    with pytest.warns(MaskwrightWarning, match=r"studies.db cannot be kept: .*database"):
        again = proposer.ask()
    for _ in range(20):
        proposer.tell(again, GOOD)
        again = proposer.ask()
    assert len(proposer.known()) == 20  # from now on in memory
    proposer.tell(under_way, GOOD)  # of the study that is lost; nobody else is meant
    assert len(proposer.known()) == 20
    proposer.close(finished=True)


def test_a_database_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_study, "_PAUSE", 0.0)
    url = "postgresql+nodriver://me:secret@nowhere/tune"
    bad = ["postgresql+psycopg://me:secret@host:port/x", "postgresql://me:secret@[::1/x", "://x"]
    for text in (url, f"sqlite:///{tmp_path / 'no' / 'folder' / 'x.db'}", *bad):
        with pytest.raises(
            TuningError, match="no URL" if text in bad else "cannot be used"
        ) as caught:
            SharedProposer(KNOBS, Shared(text, "a search"))
        assert "secret" not in str(caught.value)
        assert "maskwright[farm]" in str(caught.value)


def test_a_machine_that_dies_before_it_has_values(join):
    """Optuna never misses a trial that gave no sign of life at all."""
    lost, other = join(grace=1), join(grace=1)
    lost.seed(POINT)
    lost._suggest = None  # the end
    with pytest.raises(TypeError):
        lost.ask()
    time.sleep(2.1)
    other.known()
    assert other.ask().values == POINT


def test_what_was_given_to_others_meanwhile(join, monkeypatch):
    """Between two steps of telling."""
    one, other = join(), join()
    ask = one.ask()
    trial = one.trials[ask.number]

    def late(name, value):
        other.study.tell(trial.number, state=other.optuna.trial.TrialState.FAIL)

    monkeypatch.setattr(trial, "set_user_attr", late)
    one.tell(ask, GOOD)
    assert one.known() == []


def test_servers_out_of_reach_are_not_waited_for():
    limits = Shared("postgresql+psycopg://me@host/x?connect_timeout=3", "").limits
    assert "connect_timeout" not in limits
    assert "statement_timeout" in limits["options"]
    assert Shared("sqlite:///x.db", "").limits == {}


def test_a_random_search_is_not_shared():
    with pytest.raises(TuningError, match="not shared"):
        proposer_of("random", KNOBS, None, 0, Shared("sqlite:///x.db", ""))


def test_the_setting(monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_TUNE_STORAGE", "postgresql+psycopg://me@host/tune")
    assert settings.current().tune_storage == "postgresql+psycopg://me@host/tune"
    monkeypatch.setenv("MASKWRIGHT_TUNE_STORAGE", "host")
    with pytest.raises(settings.SettingsError, match="a URL"):
        settings.current()
