"""Who proposes candidates: Optuna's tree of Parzen estimators, with its journal on disk.

Optuna asks and is told in one process; it neither runs nor times anything. Numbers that are powers
of two are proposed by their logarithm. What cannot be, or failed, is told as a large value that
violates a constraint: the sampler ignores trials that are told as failed and proposes them again.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Protocol
from typing import TypeVar

from maskwright.autotune.outcome import Outcome
from maskwright.autotune.record import RecordError
from maskwright.autotune.record import from_plain
from maskwright.autotune.space import Knob
from maskwright.dsl.errors import TuningError
from maskwright.runtime.cache import MaskwrightWarning

T = TypeVar("T")
FAILED = 100.0  # times the default: what a candidate without a time is told as
_STARTUP = 15  # random proposals beside the seeds, until the estimators know something


@dataclass(frozen=True)
class Ask:
    """A proposal: number of the trial, and a value of each knob."""

    number: int
    values: dict[str, Any]


class Proposer(Protocol):
    """Who proposes."""

    def seed(self, values: dict[str, Any]) -> None:
        """Propose this one first."""

    def ask(self) -> Ask:
        """The next proposal."""

    def tell(self, ask: Ask, outcome: Outcome, *, spills: bool = False) -> None:
        """What became of it."""

    def known(self) -> list[tuple[dict[str, Any], Outcome]]:
        """What an earlier run was told, and what others who share the study were told until now."""

    def close(self, *, finished: bool) -> None:
        """The end; ``finished`` if no later run shall go on from here."""


class OptunaProposer:
    """Optuna, with a journal.

    Args:
        journal: file of the study; None keeps it in memory. A study that was cut short goes on: what
            was under way is proposed again. The caller sees to it that nobody else writes there.

    Raises:
        TuningError: Optuna is missing or too old.
    """

    LOST: tuple[type[Exception], ...] = (OSError,)  # where the study is kept cannot be written

    def __init__(self, knobs: tuple[Knob, ...], journal: Path | None, seed: int) -> None:
        self.knobs, self.journal = knobs, journal
        self.optuna = _optuna()
        self.start = seed
        self.sampler = self._sampler()
        self.trials: dict[int, Any] = {}
        self.asked = 0  # Optuna's own numbers begin anew where a study does
        self.resumed: list[tuple[dict[str, Any], Outcome]] = []
        with self._quiet():
            try:
                self.study = self._study()
                self.resumed = self._resume()
            except self.LOST as error:
                self._go_on_in_memory(error)

    def seed(self, values: dict[str, Any]) -> None:
        """See ``Proposer``."""
        with self._quiet():
            self._kept(lambda: self._enqueue(self._to_parameters(values)))

    def ask(self) -> Ask:
        """See ``Proposer``."""
        with self._quiet():
            trial, values = self._kept(self._ask)
        self.asked += 1
        self.trials[self.asked] = trial
        return Ask(self.asked, values)

    def tell(self, ask: Ask, outcome: Outcome, *, spills: bool = False) -> None:
        """See ``Proposer``."""
        trial = self.trials.pop(ask.number, None)
        if trial is None:  # of a study that was lost since
            return
        with self._quiet():
            try:
                trial.set_constraint("measured", 0.0 if outcome.measured else 1.0)
                trial.set_constraint("spills", 1.0 if spills else 0.0)
                told = {"values": ask.values, "outcome": asdict(outcome)}
                trial.set_user_attr("told", json.dumps(told))
                value = outcome.ratio if outcome.measured else FAILED
                self.study.tell(trial, value, skip_if_finished=True)
            except self.LOST as error:
                self._go_on_in_memory(error)

    def known(self) -> list[tuple[dict[str, Any], Outcome]]:
        """See ``Proposer``."""
        return self.resumed

    def close(self, *, finished: bool) -> None:
        """See ``Proposer``."""
        with self._quiet():
            for trial in self.trials.values():
                with contextlib.suppress(*self.LOST):
                    self._drop(trial)
        self.trials.clear()
        if finished and self.journal is not None:
            with contextlib.suppress(OSError):
                self.journal.replace(finished_journal(self.journal))

    # -- Optuna ---------------------------------------------------------------------------------
    def _ask(self) -> tuple[Any, dict[str, Any]]:
        trial = self.study.ask()
        self._begun(trial)
        return trial, {knob.name: self._suggest(trial, knob) for knob in self.knobs}

    def _begun(self, trial: Any) -> None:
        """It was asked for, and has no values yet."""

    def _drop(self, trial: Any) -> None:
        """It is not tried any more."""
        state = self.optuna.trial.TrialState.FAIL
        self.study.tell(trial, state=state, skip_if_finished=True)

    def _enqueue(self, parameters: dict[str, Any]) -> None:
        self.study.enqueue_trial(parameters, skip_if_exists=True)

    def _kept(self, work: Callable[[], T]) -> T:
        """What came of it where the study is kept, or else in memory."""
        try:
            return work()
        except self.LOST as error:
            self._go_on_in_memory(error)
            return work()

    def _go_on_in_memory(self, error: Exception) -> None:
        """A disk that is full, or a database that is gone, costs what the sampler had learned only."""
        place = self._leave()
        if not place:
            raise error
        cause = error.__cause__ or error  # Optuna wraps what a database says
        what = getattr(cause, "strerror", None) or str(cause).strip().partition("\n")[0]
        warnings.showwarning(
            MaskwrightWarning(f"{place} cannot be kept: {what}"), MaskwrightWarning, __file__, 0
        )
        self.trials.clear()
        self.sampler = self._sampler()  # one remembers its study, and refuses another
        self.study = self._study()

    def _leave(self) -> str:
        """From now on the study is kept in memory; where it was kept, empty if it already was there."""
        place = "" if self.journal is None else f"the journal {self.journal}"
        self.journal = None
        return place

    def _sampler(self) -> Any:
        make = self.optuna.samplers.TPESampler
        with self._quiet():
            return make(n_startup_trials=_STARTUP, multivariate=True, seed=self.start)

    def _study(self) -> Any:
        storage = None
        if self.journal is not None:
            journal = self.optuna.storages.journal
            storage = self.optuna.storages.JournalStorage(
                journal.JournalFileBackend(str(self.journal), lock_obj=_Ours())
            )
        return self.optuna.create_study(
            storage=storage, sampler=self.sampler, study_name="tune", load_if_exists=True
        )

    def _resume(self) -> list[tuple[dict[str, Any], Outcome]]:
        """Outcomes of an earlier run; what was under way then is proposed again."""
        states = self.optuna.trial.TrialState
        for trial in self.study.get_trials(deepcopy=False, states=(states.RUNNING,)):
            self.study.tell(trial.number, state=states.FAIL)
            if len(trial.params) == len(self.knobs):
                self.study.enqueue_trial(trial.params, skip_if_exists=False)
        return self._outcomes()

    def _outcomes(self) -> list[tuple[dict[str, Any], Outcome]]:
        """What the study was told."""
        done = (self.optuna.trial.TrialState.COMPLETE,)
        trials = self.study.get_trials(deepcopy=False, states=done)
        found = (_told(x.user_attrs.get("told", "")) for x in trials)
        return [x for x in found if x is not None]

    def _suggest(self, trial: Any, knob: Knob) -> Any:
        if _powers(knob):
            low, high = (x.bit_length() - 1 for x in (knob.values[0], knob.values[-1]))
            return 1 << trial.suggest_int(f"log2 {knob.name}", low, high)
        if _counts(knob):
            return trial.suggest_int(knob.name, knob.values[0], knob.values[-1])
        return trial.suggest_categorical(knob.name, knob.values)

    def _to_parameters(self, values: dict[str, Any]) -> dict[str, Any]:
        return {
            **{f"log2 {x.name}": values[x.name].bit_length() - 1 for x in self.knobs if _powers(x)},
            **{x.name: values[x.name] for x in self.knobs if not _powers(x)},
        }

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """Optuna says nothing, and a user's own studies are as talkative as before."""
        logging = self.optuna.logging
        before = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.set_verbosity(before)


class _Ours:
    """The lock of a journal whose folder is locked already.

    Optuna's own is a file, and waits half a minute for one that a killed process has left.
    """

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def finished_journal(journal: Path) -> Path:
    """Where a journal goes when its study is over: for the dashboard only."""
    return journal.with_suffix(".finished.journal")


def _powers(knob: Knob) -> bool:
    """Its values are consecutive powers of two."""
    return (
        _numbers(knob)
        and list(knob.values) == [knob.values[0] << i for i in range(len(knob.values))]
        and knob.values[0].bit_count() == 1
    )


def _counts(knob: Knob) -> bool:
    """Its values are consecutive numbers."""
    return _numbers(knob) and list(knob.values) == [
        knob.values[0] + i for i in range(len(knob.values))
    ]


def _numbers(knob: Knob) -> bool:
    """Of two values none lies between the others: they are mere names."""
    return len(knob.values) > 2 and all(type(x) is int and x > 0 for x in knob.values)


def _told(text: str) -> tuple[dict[str, Any], Outcome] | None:
    try:
        data = json.loads(text)
        return data["values"], from_plain(Outcome, data["outcome"])
    except (ValueError, KeyError, TypeError, RecordError):
        return None


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise TuningError(
            "the search needs Optuna", fix="pip install 'optuna>=5', or sampler=\"random\""
        ) from error
    if not hasattr(optuna.trial.Trial, "set_constraint"):
        raise TuningError(
            f"the search needs Optuna 5, not {optuna.__version__}",
            fix="pip install 'optuna>=5', or sampler=\"random\"",
        )
    return optuna
