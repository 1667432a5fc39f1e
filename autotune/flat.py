"""A search space as one flat list of choices, whatever the kernels are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from maskwright.autotune import space as s
from maskwright.autotune.filter import unfit
from maskwright.autotune.key import Op
from maskwright.autotune.key import Template
from maskwright.autotune.record import canonical
from maskwright.autotune.space import Knob
from maskwright.autotune.space import Target
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.configs import AnyConfig
from maskwright.dsl import nodes as n

_SHARED = "loads"  # both kernels of a backward load alike


@dataclass(frozen=True)
class Flat:
    """The spaces of one op and template, side by side.

    Attributes:
        names: of the configuration's parts; one empty name if it has no parts.
    """

    op: Op
    template: Template

    @property
    def spaces(self) -> tuple[s.Space, ...]:
        """One a kernel."""
        return s.space_of(self.op, self.template)

    @property
    def names(self) -> tuple[str, ...]:
        """Prefixes of the knobs of each kernel."""
        return ("",) if len(self.spaces) == 1 else ("queries.", "keys.")

    @cached_property
    def knobs(self) -> tuple[Knob, ...]:
        """All choices, by a name of their own."""
        found = {
            self._name(prefix, knob): Knob(self._name(prefix, knob), knob.values, knob.why)
            for prefix, space in zip(self.names, self.spaces, strict=True)
            for knob in space.knobs
        }
        return tuple(found.values())

    @cached_property
    def digest(self) -> str:
        """Hash of all spaces."""
        return n.digest(canonical([space.digest for space in self.spaces]))

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
        both = BackwardConfig(*made)
        return (
            (None, "both together do not fit")
            if unfit(both, target.key, target.limits)
            else (
                both,
                "",
            )
        )

    def values(self, config: AnyConfig) -> dict[str, Any] | None:
        """The choices that make a configuration; None if no choices do."""
        parts: list[Any] = [config]
        if isinstance(config, BackwardConfig):
            parts = [config.queries, config.keys]
        found: dict[str, Any] = {}
        for prefix, space, part in zip(self.names, self.spaces, parts, strict=True):
            data = part.to_dict()
            for knob in space.knobs:
                if data[knob.name] not in knob.values:
                    return None
                found[self._name(prefix, knob)] = data[knob.name]
            if space.make(**{knob.name: data[knob.name] for knob in space.knobs}) != part:
                return None  # it differs in what is no knob
        return found

    def points(self, target: Target) -> Iterator[AnyConfig]:
        """All configurations; the product of two spaces can be long."""
        if len(self.spaces) == 1:
            yield from self.spaces[0].points(target)
        else:
            yield from s.backward_points(target)

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
        return knob.name if knob.name == _SHARED else prefix + knob.name
