"""maskwright itself. Whatever it prepares on the device is part of its call and of its time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import maskwright as mw
from benchmarks.peers.base import Prepared
from maskwright.patterns import selectors

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Mapping
    from typing import Any

    from torch import Tensor

    from benchmarks.cases import Case
    from benchmarks.cases import Tensors


@dataclass(frozen=True)
class Maskwright:
    """The compiled mask, called as a user calls it."""

    name: str
    backend: str = "auto"
    prepared: bool = False  # what the device computes before the kernel is outside the call
    select: tuple[int, int] | None = None  # first choose as many columns and diagonals, in the call

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
        if self.select is not None:
            return Prepared(partial(_select_and_attend, attend, tensors, self.select, options))
        if not self.prepared:
            return Prepared(lambda: attend(*tensors, **options))

        def setup() -> mw.Prepared:
            return compiled.prepare(tensors.query, tensors.key, **options)

        ready = setup()
        return Prepared(lambda: attend(*tensors, prepared=ready, **options), setup)


def _select_and_attend(
    attend: Callable[..., Tensor],
    tensors: Tensors,
    sizes: tuple[int, int],
    options: Mapping[str, Any],
) -> Tensor:
    """Choose lists, then attend along those of the case: random inputs would choose scattered ones,
    and the time of choosing does not depend on what is chosen."""
    selectors.vertical_slash(tensors.query, tensors.key, *sizes)
    return attend(*tensors, **options)
