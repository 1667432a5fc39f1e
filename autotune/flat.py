"""A search space as one flat list of choices, whatever the kernels are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import asdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from maskwright.autotune import space as s
from maskwright.autotune.filter import unfit
from maskwright.autotune.job import Job
from maskwright.autotune.key import Op
from maskwright.autotune.key import Template
from maskwright.autotune.record import canonical
from maskwright.autotune.space import Knob
from maskwright.autotune.space import Target
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.configs import AnyConfig
from maskwright.codegen.pipeline import heads_together
from maskwright.dsl import nodes as n

_SHARED = ("loads", "heads")  # both kernels of a backward have the same


@dataclass(frozen=True)
class Flat:
    """The spaces of one op and template, side by side.

    Attributes:
        together: most query heads in a tile; 0 for masks without lists of few queries, and one part.
    """

    op: Op
    template: Template
    together: int = 0

    @staticmethod
    def of(job: Job) -> Flat:
        """The space of a job: its mask and score decide whether heads share tiles."""
        if job.template != "triton":
            return Flat(job.op, job.template)
        nodes, group = (job.mask_node, job.score_node), job.heads // job.kv_heads
        together = heads_together(*nodes, group, gradients=job.op == "backward")
        return Flat(job.op, job.template, together)

    @property
    def spaces(self) -> tuple[s.Space, ...]:
        """One a kernel."""
        return s.space_of(self.op, self.template, self.together)

    @property
    def names(self) -> tuple[str, ...]:
        """Prefixes of the knobs of each kernel; one empty name if there is one kernel."""
        return ("",) if len(self.spaces) == 1 else ("queries.", "keys.")

    @cached_property
    def knobs(self) -> tuple[Knob, ...]:
        """All choices, by a name of their own."""
        found = {
            self._name(prefix, knob): Knob(self._name(prefix, knob), knob.values, knob.why)
            for prefix, space in zip(self.names, self.spaces, strict=True)
            for knob in space.knobs
        }
        return (*found.values(), *self._of_all)

    @property
    def _of_all(self) -> tuple[Knob, ...]:
        """Choices of no single kernel."""
        return (s.PARTS,) if self.together and len(self.spaces) > 1 else ()

    @cached_property
    def digest(self) -> str:
        """Hash of all spaces."""
        parts = [asdict(knob) for knob in self._of_all]
        return n.digest(canonical([space.digest for space in self.spaces] + parts))

    def config(self, values: dict[str, Any], target: Target) -> tuple[AnyConfig | None, str]:
        """(configuration, why it is no point: empty if it is one)."""
        made: list[Any] = []
        for prefix, space in zip(self.names, self.spaces, strict=True):
            own = {knob.name: values[self._name(prefix, knob)] for knob in space.knobs}
            config, refused = space.refusal(own, target)
            if refused:
                return None, refused
            made.append(config)
        if len(made) == 1:
            return made[0], ""
        both = BackwardConfig(*made, **{knob.name: values[knob.name] for knob in self._of_all})
        fits = not unfit(both, target.key, target.limits)
        return (both, "") if fits else (None, "both together do not fit")

    def values(self, config: AnyConfig) -> dict[str, Any] | None:
        """The choices that make a configuration; None if no choices do."""
        parts: list[Any] = [config]
        found: dict[str, Any] = {}
        if isinstance(config, BackwardConfig):
            parts = [config.queries, config.keys]
            found = {knob.name: getattr(config, knob.name) for knob in self._of_all}
            if config.parts not in (s.PARTS.values if found else (1,)):
                return None
        for prefix, space, part in zip(self.names, self.spaces, parts, strict=True):
            own = space.values(part)
            if own is None:
                return None
            named = {self._name(prefix, knob): own[knob.name] for knob in space.knobs}
            if any(found.get(name, x) != x for name, x in named.items()):
                return None  # what both kernels share differs
            found |= named
        return found

    def points(self, target: Target) -> Iterator[AnyConfig]:
        """All configurations; the product of two spaces can be long."""
        if len(self.spaces) == 1:
            yield from self.spaces[0].points(target)
        else:
            yield from s.backward_points(target, self.together)

    def neighbours(self, config: AnyConfig, target: Target) -> list[AnyConfig]:
        """Points that differ in one choice, by one step."""
        values = self.values(config)
        if values is None:
            return []
        changed = (
            values | {knob.name: value}
            for knob in self.knobs
            for value in knob.neighbours(values[knob.name])
        )
        found = (self.config(x, target)[0] for x in changed)
        return [x for x in found if x is not None]

    def size(self, target: Target, most: int = 100_000) -> int:
        """How many points there are, counted up to ``most``."""
        return sum(1 for _ in itertools.islice(self.points(target), most))

    def _name(self, prefix: str, knob: Knob) -> str:
        return knob.name if knob.name in _SHARED else prefix + knob.name
