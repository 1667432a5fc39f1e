"""What a search hands back: the configuration, why it, and the entry that is kept."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from datetime import timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from maskwright.autotune.entry import Entry
from maskwright.autotune.entry import Kind
from maskwright.autotune.entry import Provenance
from maskwright.autotune.entry import Result
from maskwright.autotune.outcome import Facts
from maskwright.autotune.search import Found
from maskwright.autotune.search import Study
from maskwright.codegen.configs import AnyConfig


@dataclass(frozen=True)
class Tuned:
    """A configuration and how it was found.

    Attributes:
        ms: of a call.
        ratio: of its time to that of the default; below 1 is faster.
        spread: of that ratio: half the width of its 95 % interval.
        tried: candidates.
        events: how many failed, by reason, and how many were known already.
        wrong: (configuration, what is wrong): each is a bug of the compiler, please report it.
        partial: the search was cut short; the next one goes on from there.
        reason: why it ended.
        kept: file of the entry that later calls find; None if it could not be written.
        folder: of the study: log, journal, wrong candidates.
    """

    config: AnyConfig
    default: AnyConfig
    ms: float
    ratio: float
    spread: float
    tflops: float
    tried: int
    seconds: float
    events: dict[str, int]
    wrong: tuple[tuple[AnyConfig, str], ...]
    partial: bool
    reason: str
    entry: Entry
    kept: Path | None
    folder: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        names = ("ms", "ratio", "spread", "tflops", "tried", "seconds", "events", "partial")
        return {name: getattr(self, name) for name in names} | {
            "config": self.config.to_dict(),
            "default": self.default.to_dict(),
            "reason": self.reason,
            "wrong": [{"config": x.to_dict(), "what": what} for x, what in self.wrong],
            "key": self.entry.key.name,
            "kept": None if self.kept is None else str(self.kept),
            "folder": None if self.folder is None else str(self.folder),
        }

    def __str__(self) -> str:
        rate = f", {self.tflops:.0f} TFLOP/s" if self.tflops else ""
        which = "the default" if self.config == self.default else f"default: {self.default}"
        counts = ", ".join(f"{count} {name}" for name, count in sorted(self.events.items()))
        gain = f"{1 / self.ratio:.3f}x the default (+- {100 * self.spread:.1f} %); {which}"
        why = f"{self.reason}{', partial' if self.partial else ''}"
        lines = [
            f"{self.config}",
            f"  {self.ms:.4g} ms{rate}, {gain}",
            f"  {self.tried} tried in {self.seconds:.0f} s{counts and f' ({counts})'}: {why}",
            f"  kept in {self.kept}" if self.kept else "  not kept",
        ]
        lines += [f"  WRONG, please report: {config}: {what}" for config, what in self.wrong]
        return "\n".join(lines)


def entry_of(study: Study, facts: Facts, found: Found) -> Entry:
    """The entry of a search that found something."""
    winner, checks = found.winner, found.checks
    assert winner is not None
    assert checks is not None
    kind: Kind = "partial" if found.partial else "measured"
    rate = facts.flops / winner.ms / 1e9 if facts.flops else 0.0
    result = Result(
        winner.ms, winner.ratio, winner.spread, winner.rounds, winner.clock, round(rate, 1)
    )
    source = Provenance(
        kind,
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
        *(facts.gpu, facts.driver, facts.torch, version()),
        *(study.budget.seconds, found.state.tried, study.space.digest),
    )
    counts = Counter(x.status for x in found.state.outcomes.values() if not x.measured)
    failed: dict[str, int] = dict(sorted(counts.items()))
    rank = study.ranked.index(winner.config) + 1 if winner.config in study.ranked else 0
    return Entry(facts.key, winner.config, result, source, checks, found.tied, failed, rank)


def tuned_of(
    study: Study, facts: Facts, found: Found, entry: Entry, kept: Path | None, folder: Path | None
) -> Tuned:
    """What a search that found something hands back."""
    winner = found.winner
    assert winner is not None
    state = found.state
    return Tuned(
        config=winner.config,
        default=study.default,
        ms=winner.ms,
        ratio=winner.ratio,
        spread=winner.spread,
        tflops=entry.result.tflops,
        tried=state.tried,
        seconds=time.monotonic() - state.started,
        events={name: count for name, count in state.events.items() if count},
        wrong=found.wrong,
        partial=found.partial,
        reason=found.reason,
        entry=entry,
        kept=kept,
        folder=folder,
    )


def tuned_from(entry: Entry, default: AnyConfig, kept: Path | None = None) -> Tuned:
    """What an entry that was found says."""
    r, p = entry.result, entry.provenance
    return Tuned(
        *(entry.config, default, r.ms, r.ratio, r.spread, r.tflops, p.trials, 0.0),
        events={},
        wrong=(),
        partial=p.kind == "partial",
        reason="found, not searched",
        entry=entry,
        kept=kept,
    )


def version() -> str:
    """Of this package."""
    try:
        return metadata.version("maskwright")
    except metadata.PackageNotFoundError:
        import maskwright

        return maskwright.__version__
