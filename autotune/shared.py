"""A search that machines with the same GPUs share: Optuna's RDB storage, on PostgreSQL, with a heartbeat.

Each machine asks and is told in its own process, and times candidates by its own default. It hears what
the others were told, and the best of all race on its own GPU. What a machine had under way when
it was last heard of is proposed to the others.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import time
from dataclasses import dataclass
from typing import Any

from maskwright.autotune.outcome import Outcome
from maskwright.autotune.proposer import Ask
from maskwright.autotune.proposer import OptunaProposer
from maskwright.autotune.space import Knob
from maskwright.dsl.errors import TuningError

# Seconds without a sign of life. A candidate may take minutes, if the GPU's process hangs in it.
GRACE = 300
_BEATS = 20  # signs of life in that time
_RETRIES = 1  # of a candidate whose machine was lost: it may be guilty
_FINISHED = "finished"
_TRIES, _PAUSE = 3, 1.0  # machines that start together all create the tables
# Of PostgreSQL: a server that is out of reach must not hold up a search.
_LIMITS = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15000,
    "options": "-c statement_timeout=15000 -c lock_timeout=10000",
}
_FIX = (
    "pip install 'maskwright[farm]'; "
    "MASKWRIGHT_TUNE_STORAGE=postgresql+psycopg://USER@HOST/DATABASE"
)


@dataclass(frozen=True)
class Shared:
    """Where a study is kept, and what it is called.

    Attributes:
        url: of the database, as SQLAlchemy takes it.
        name: of what is searched; who has the same name shares.
        grace: seconds after which a machine that is not heard of has lost its candidates.
    """

    url: str
    name: str
    grace: int = GRACE

    @property
    def parsed(self) -> Any:
        """The URL.

        Raises:
            TuningError: it is none; its text is not told, it may hold a password.
        """
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return make_url(self.url)
        except (ValueError, SQLAlchemyError):
            raise TuningError("MASKWRIGHT_TUNE_STORAGE is no URL", fix=_FIX) from None

    @property
    def place(self) -> str:
        """For people: without a password."""
        return f"the database {self.parsed.render_as_string(hide_password=True)}"

    @property
    def limits(self) -> dict[str, Any]:
        """Seconds, of what waits for the server; what the URL says itself counts."""
        url = self.parsed
        known = url.drivername in ("postgresql", "postgresql+psycopg", "postgresql+psycopg2")
        return {x: y for x, y in _LIMITS.items() if x not in url.query} if known else {}


class SharedProposer(OptunaProposer):
    """Optuna, with a database.

    A study that somebody has finished is not joined: who comes later begins another one.

    Raises:
        TuningError: Optuna is missing or too old, or the database cannot be used.
    """

    def __init__(self, knobs: tuple[Knob, ...], shared: Shared, seed: int | None = None) -> None:
        self.shared: Shared | None = shared
        self.storage: Any = None
        self.beaten = -math.inf
        # With one seed for all, every machine would begin with the same proposals.
        own = random.SystemRandom().randrange(1 << 31) if seed is None else seed
        super().__init__(knobs, None, own)

    def tell(self, ask: Ask, outcome: Outcome, *, spills: bool = False) -> None:
        """See ``Proposer``."""
        with self._quiet():
            self._kept(self._beat)
        # Who was silent for too long has lost the candidate: somebody else tries it.
        with contextlib.suppress(self.optuna.exceptions.UpdateFinishedTrialError):
            super().tell(ask, outcome, spills=spills)

    def known(self) -> list[tuple[dict[str, Any], Outcome]]:
        """See ``Proposer``."""
        with self._quiet():
            self._kept(self._beat)
            return self._kept(self._outcomes)

    def close(self, *, finished: bool) -> None:
        """See ``Proposer``."""
        super().close(finished=finished)
        if finished and self.storage is not None:
            with self._quiet(), contextlib.suppress(*self.LOST):
                self.study.set_user_attr(_FINISHED, True)

    # -- Optuna ---------------------------------------------------------------------------------
    def _study(self) -> Any:
        if self.shared is None:
            return super()._study()
        self.LOST = (OSError, self.optuna.exceptions.StorageInternalError, *_of_databases())
        self.storage = self._connect(self.shared)
        studies = (self._open(f"{self.shared.name} {number}") for number in itertools.count(1))
        return next(x for x in studies if _FINISHED not in x.user_attrs)

    def _resume(self) -> list[tuple[dict[str, Any], Outcome]]:
        """Nothing is taken from those who are at work."""
        return []

    def _open(self, name: str) -> Any:
        return self.optuna.create_study(
            storage=self.storage, sampler=self.sampler, study_name=name, load_if_exists=True
        )

    def _connect(self, shared: Shared, tries: int = _TRIES) -> Any:
        storages = self.optuna.storages
        try:
            return storages.RDBStorage(
                shared.url,
                engine_kwargs={"pool_pre_ping": True, "connect_args": shared.limits},
                heartbeat_interval=max(1, shared.grace // _BEATS),
                grace_period=shared.grace,
                heartbeat_stale_trial_callback=storages.RetryHeartbeatStaleTrialCallback(_RETRIES),
            )
        except ImportError as error:
            raise _unusable(shared, error) from error
        except self.LOST as error:
            if tries == 1:
                raise _unusable(shared, error) from error
        time.sleep(_PAUSE)
        return self._connect(shared, tries - 1)

    def _begun(self, trial: Any) -> None:
        # Optuna's own loop keeps a thread for this; nobody who asks and is told has one. A trial
        # without a first sign is never missed.
        if self.storage is not None:
            self.storage.record_heartbeat(trial._trial_id)

    def _drop(self, trial: Any) -> None:
        """Others may try it."""
        with contextlib.suppress(self.optuna.exceptions.UpdateFinishedTrialError):
            super()._drop(trial)
            if self.storage is not None:
                self.study.enqueue_trial(trial.params, skip_if_exists=False)

    def _beat(self) -> None:
        """A sign of life; and whoever gave none is not waited for."""
        now = time.monotonic()
        if self.shared is None or now - self.beaten < self.shared.grace / _BEATS:
            return
        self.beaten = now
        for trial in self.trials.values():
            self.storage.record_heartbeat(trial._trial_id)
        self.optuna.storages.fail_stale_trials(self.study)

    def _leave(self) -> str:
        place = "" if self.shared is None else self.shared.place
        self.shared = self.storage = None
        return place


def _of_databases() -> tuple[type[Exception], ...]:
    from sqlalchemy.exc import SQLAlchemyError

    return (SQLAlchemyError,)


def _unusable(shared: Shared, error: Exception) -> TuningError:
    text = str(error).strip().partition("\n")[0]
    return TuningError(f"{shared.place} cannot be used: {text}", fix=_FIX)
