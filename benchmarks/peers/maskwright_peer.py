"""maskwright itself. Whatever it prepares on the device is part of its call and of its time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import maskwright as mw
from benchmarks.peers.base import Prepared

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from benchmarks.cases import Case
    from benchmarks.cases import Tensors


@dataclass(frozen=True)
class Maskwright:
    """The compiled mask, called as a user calls it."""

    name: str
    backend: str = "auto"
    prepared: bool = False  # what the device computes before the kernel is outside the call

    def available(self) -> str | None:
        """Always."""
        return None

    def supports(self, case: Case) -> str | None:
        """Every mask."""
        return None

    def prepare(self, case: Case, tensors: Tensors) -> Prepared:
        """Compile once; bindings are given at every call."""
        compiled = mw.compile(case.mask)
        attend: Callable[..., Tensor] = compiled  # type: ignore[assignment]
        options = {"backend": self.backend, **case.bindings}
        if not self.prepared:
            return Prepared(lambda: attend(*tensors, **options))

        def setup() -> mw.Prepared:
            return compiled.prepare(tensors.query, tensors.key, **options)

        ready = setup()
        return Prepared(lambda: attend(*tensors, prepared=ready, **options), setup)
