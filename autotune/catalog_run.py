"""``maskwright tune --catalog``: which patterns and sizes, and the search of one of them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from dataclasses import fields
from typing import Any

from maskwright.autotune.spares import Spares
from maskwright.dsl.errors import TuningError
from maskwright.patterns import catalog
from maskwright.patterns.catalog import CatalogEntry

Q_LEN = 8192
_KERNEL = ("op", "backend", "dtype", "head_dim", "value_dim", "layout")
_SIZES = (*_KERNEL, "batch", "heads", "kv_heads", "seed")


@dataclass(frozen=True)
class Item:
    """One pattern at one length."""

    name: str
    q_len: int

    def __str__(self) -> str:
        return f"{self.name}, {self.q_len}"


@dataclass(frozen=True)
class CatalogRun:
    """What the command was asked for, in a form that crosses process borders.

    Attributes:
        only: names of patterns, with commas between; all if empty.
        workers: processes that compile for one GPU; 0 is as many as the machine has room for.
    """

    only: str
    again: bool
    q_len: tuple[int, ...]
    heads: int
    kv_heads: int
    batch: int
    seed: int
    budget: float | None
    trials: int | None
    effort: str | None
    op: str
    backend: str
    dtype: str
    head_dim: int
    value_dim: int | None
    layout: str
    workers: int
    sampler: str

    @staticmethod
    def of(args: Namespace) -> CatalogRun:
        """Of the arguments of the command."""
        found = {f.name: getattr(args, f.name) for f in fields(CatalogRun)}
        found["q_len"] = tuple(args.q_len or [Q_LEN])
        found["kv_heads"] = args.kv_heads or args.heads
        return CatalogRun(**found)

    def items(self) -> list[Item]:
        """What is tuned, in order; each once."""
        found = (Item(mask.name, q_len) for q_len in self.q_len for mask in self.masks())
        return list(dict.fromkeys(found))

    def masks(self) -> list[CatalogEntry]:
        """Patterns that are asked for."""
        only = {x for x in self.only.split(",") if x}
        return [x for x in self._entries().values() if not only or x.name in only]

    def tune(
        self,
        item: Item,
        *,
        quiet: bool,
        tell: Callable[[str], None] | None = None,
        spares: Spares | None = None,
    ) -> dict[str, Any]:
        """Tune one, and say what came out.

        Args:
            tell: takes the progress; it is shown on the terminal if None.
            spares: keeps the workers for the next one.

        Raises:
            TuningError: there is no result.
        """
        from maskwright.autotune import tune as tuning
        from maskwright.autotune.ask import budget_of

        limits = budget_of(self.budget, self.trials, self.effort)
        options = tuning.Options(
            quiet, self.again, self.workers, self.sampler, tell=tell, spares=spares
        )
        entry, length = self._entries()[item.name], item.q_len
        sizes: dict[str, Any] = {name: getattr(self, name) for name in _SIZES}
        sizes |= entry.bindings(self.batch, self.heads, self.kv_heads, length, length, self.seed)
        found = tuning.tune(entry.mask, limits, options, q_len=length, **sizes)
        return named(item, **found.to_dict())

    def _entries(self) -> dict[str, CatalogEntry]:
        found = catalog.entries("paper", heads=self.heads, kv_heads=self.kv_heads)
        return {x.name: x for x in found}


def named(item: Item, **fields: Any) -> dict[str, Any]:
    """A line of the result."""
    return {"name": item.name, "q_len": item.q_len, **fields}


def one_by_one(run: CatalogRun, *, quiet: bool, note: Callable[[str], None]) -> list[Any]:
    """All in this process; what fails is told, and the rest goes on."""
    results = []
    with closing(Spares()) as spares:
        for item in run.items():
            note(str(item))
            try:
                results.append(run.tune(item, quiet=quiet, spares=spares))
            except TuningError as error:
                results.append(named(item, failed=error.what))
    return results
