"""MInference's vertical-slash attention, in kernels written anew (see ``minference_kernel.py``).

It attends to more than the mask: a diagonal becomes tiles. Its reference is ``tiled.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from benchmarks.peers.base import Prepared

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.cases import Case
    from benchmarks.cases import Tensors


@dataclass(frozen=True)
class Minference:
    """Its index builder and its kernel; ``prepared``: the index is built outside the call."""

    name: str
    prepared: bool = False

    def available(self) -> str | None:
        """Needs a GPU."""
        return None if torch.cuda.is_available() else "needs a CUDA GPU"

    def supports(self, case: Case) -> str | None:
        """Lists of columns and diagonals."""
        if case.training:
            return "no backward"
        return None if {"v_idx", "s_idx"} <= set(case.bindings) else "vertical-slash only"

    def prepare(self, case: Case, tensors: Tensors) -> Prepared:
        """Put the lists in its order, untimed: its selector does so."""
        from benchmarks.peers import minference_kernel as kernel

        vertical = case.bindings["v_idx"].sort(-1).values
        slash = case.bindings["s_idx"].sort(-1, descending=True).values
        length = case.shape.seq

        def build() -> kernel.Index:
            return kernel.build(vertical, slash, length)

        def both() -> Tensor:
            return kernel.attend(*tensors, build())

        if not self.prepared:
            return Prepared(both)
        index = build()
        return Prepared(lambda: kernel.attend(*tensors, index), build)
