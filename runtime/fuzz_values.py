"""Random runtime values of random masks: params, tables of ids, flags and limits."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import TypeVar

import numpy as np

from maskwright.dsl import symbols as y
from maskwright.dsl.expr import Expr
from maskwright.dsl.expr import Operand
from maskwright.dsl.expr import TableHandle

T = TypeVar("T")


@dataclass(frozen=True)
class Shape:
    """Sizes that a mask is drawn for: tables get fitting lengths, windows a fitting scale."""

    batch: int
    heads: int
    q_len: int
    kv_len: int


@dataclass
class Values:
    """Random choices, and the params and tables of one mask; ``values`` collects their values."""

    rng: np.random.Generator
    shape: Shape
    values: dict[str, Any] = field(default_factory=dict)
    handles: dict[str, TableHandle] = field(default_factory=dict)

    # -- choices --------------------------------------------------------------------------------
    def chance(self, p: float) -> bool:
        """True with probability ``p``."""
        return bool(self.rng.random() < p)

    def pick(self, options: Sequence[T]) -> T:
        """One of them."""
        return options[int(self.rng.integers(len(options)))]

    def between(self, low: int, high: int) -> int:
        """An integer of [low, high]."""
        return int(self.rng.integers(low, high + 1))

    # -- runtime values -------------------------------------------------------------------------
    def _name(self, stem: str) -> str:
        count = sum(name.startswith(stem) for name in self.values)
        return stem if count == 0 else f"{stem}{count}"

    def param(self, value: int) -> Expr:
        """A param of that value; with a promised range sometimes."""
        name = self._name("p")
        self.values[name] = value
        low = value - self.pick((0, 1, 9)) if self.chance(0.4) else None
        low = min(1, value) if self.chance(0.3) else low
        high = value + self.pick((0, 3)) if self.chance(0.2) else None
        return y.param(name, min=low, max=high)

    def size(self, value: int) -> Operand:
        """A number: a constant mostly, else a param or something of the head or batch."""
        roll = self.rng.random()
        if roll < 0.65:
            return value
        if roll < 0.85:
            return self.param(value)
        step = self.between(-9, 9)
        if self.chance(0.7):
            return self.pick((y.h, y.kv_head, y.b)) * step + value
        return self.per_batch(value)

    def per_batch(self, value: int) -> Expr:
        """A scalar table read."""
        spread = self.rng.integers(-9, 10, self._leading(2)) + value
        if self.chance(0.5):
            return self.table("limit", spread[:, 0])[y.b]
        return self.table("head_limit", spread)[y.b, y.h]

    def _leading(self, axes: int) -> tuple[int, ...]:
        """Batch (and head) axes; too short sometimes, so that reads fall outside."""
        sizes = (self.shape.batch, self.shape.heads)[:axes]
        return tuple(1 if self.chance(0.1) else size for size in sizes)

    def length(self) -> int:
        """Length of a table along positions: kv_len mostly, else too short or too long."""
        exact = self.shape.kv_len
        if self.chance(0.75):
            return exact
        return max(0, exact + self.between(-min(exact, 20), 20))

    def table(self, stem: str, value: Any, *, ordered: bool = False) -> TableHandle:
        """A table with that content; one of an earlier part of the mask now and then."""
        data = np.asarray(value)
        if stem in self.handles and self.chance(0.6):
            return self.handles[stem]
        name = self._name(stem)
        flag = data.dtype == bool
        self.values[name] = data if flag else data.astype(np.int32)
        kind = bool if flag else int
        self.handles[stem] = y.table(name, ndim=data.ndim, sorted=ordered, dtype=kind)
        return self.handles[stem]

    def ids(self, *, ordered: bool) -> Callable[[Operand], Expr]:
        """Reads of a table of small ids, one a position (or one a position and batch entry)."""
        documents = self.between(1, 6)
        low = self.pick((0, 0, 0, -2, 3))
        batched = self.chance(0.7)
        shape = (*self._leading(1), self.length()) if batched else (self.length(),)
        data = self.rng.integers(low, low + documents, shape)
        data = np.sort(data, -1) if ordered else data
        stem = f"{'doc' if ordered else 'group'}{'' if batched else '_flat'}"
        handle = self.table(stem, data, ordered=ordered)
        if batched:
            return lambda position: handle[y.b, position]
        return lambda position: handle[position]
