"""Proposals at random: the yardstick of every sampler, and a search where there is no Optuna."""

from __future__ import annotations

import random
from collections import deque
from pathlib import Path
from typing import Any

from maskwright.autotune.outcome import Outcome
from maskwright.autotune.proposer import Ask
from maskwright.autotune.proposer import OptunaProposer
from maskwright.autotune.proposer import Proposer
from maskwright.autotune.shared import Shared
from maskwright.autotune.shared import SharedProposer
from maskwright.autotune.space import Knob
from maskwright.dsl.errors import TuningError

SAMPLERS = ("tpe", "random")


class ChanceProposer:
    """A ``Proposer`` that learns nothing and keeps nothing."""

    def __init__(self, knobs: tuple[Knob, ...], seed: int) -> None:
        self.knobs, self.random = knobs, random.Random(seed)
        self.queue: deque[dict[str, Any]] = deque()
        self.count = 0

    def seed(self, values: dict[str, Any]) -> None:
        """See ``Proposer``."""
        self.queue.append(values)

    def ask(self) -> Ask:
        """See ``Proposer``."""
        self.count += 1
        if self.queue:
            return Ask(self.count, self.queue.popleft())
        return Ask(self.count, {x.name: self.random.choice(x.values) for x in self.knobs})

    def tell(self, ask: Ask, outcome: Outcome, *, spills: bool = False) -> None:
        """See ``Proposer``."""

    def known(self) -> list[tuple[dict[str, Any], Outcome]]:
        """See ``Proposer``."""
        return []

    def close(self, *, finished: bool) -> None:
        """See ``Proposer``."""


def proposer_of(
    sampler: str,
    knobs: tuple[Knob, ...],
    journal: Path | None,
    seed: int,
    shared: Shared | None = None,
) -> Proposer:
    """The proposer of a name.

    Args:
        shared: instead of the journal, a study that other machines work on, too.

    Raises:
        TuningError: there is none, or it needs what is not installed.
    """
    match sampler:
        case "tpe" if shared is not None:
            return SharedProposer(knobs, shared)
        case "tpe":
            return OptunaProposer(knobs, journal, seed)
        case "random" if shared is not None:
            raise TuningError("a random search is not shared", fix="unset MASKWRIGHT_TUNE_STORAGE")
        case "random":
            return ChanceProposer(knobs, seed)
    raise TuningError(f"no sampler {sampler!r}", fix=f"one of {', '.join(SAMPLERS)}")
