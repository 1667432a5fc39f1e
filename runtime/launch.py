"""A loaded kernel and how to launch it with little work on the host."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import field
from types import ModuleType
from typing import Any
from typing import TypeAlias

import torch
from torch import Tensor

from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.pipeline import Compiled
from maskwright.codegen.plan import WalkPlan
from maskwright.runtime.interpret import interpreter

Pair: TypeAlias = tuple[Tensor, Tensor]


@dataclass
class Kernel:
    """One kernel for one kind of call: dtypes, sizes, strides and alignment are fixed.

    The first launch goes through Triton's own dispatch; later ones use the compiled kernel it
    returned, which is right because everything Triton specialises on is fixed.
    """

    compiled: Compiled[WalkPlan]
    module: ModuleType
    interpreted: bool
    handle: Any = None
    names: tuple[tuple[str, str], ...] = field(init=False)
    prepares: bool = field(init=False)
    counts: bool = field(init=False)  # needs a number in memory that starts at 0

    def __post_init__(self) -> None:
        plan = self.compiled.plan
        self.names = tuple((x.name, x.text) for x in plan.bindings)
        lists = any(x.sorted_list for x in plan.bindings)
        self.prepares = lists or plan.bounds is not None or plan.tile_list is not None
        self.counts = isinstance(plan.request.config, GluonConfig) and plan.request.config.counter

    def launch(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Pair:
        """(out, lse) of one call."""
        if self.interpreted:
            with interpreter():
                out, lse = self.module.forward(query, key, value, **options)
            return out, lse
        index = query.device.index
        if index != torch.cuda.current_device():
            with torch.cuda.device(index):
                return self._launch(query, key, value, options)
        return self._launch(query, key, value, options)

    def _launch(self, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Pair:
        module = self.module
        grid, found, out, lse = module.arguments(query, key, value, **options)
        if self.handle is None:
            self.handle = module.forward_kernel[grid](*found, **module.OPTIONS)
        else:
            self.handle[grid](*found)
        return out, lse

    def prepare(self, *args: Any, **options: Any) -> Any:
        """Extra kernel arguments that the device computes."""
        if self.interpreted:
            with interpreter():
                return self.module.prepare(*args, **options)
        with torch.cuda.device(args[-1]):
            return self.module.prepare(*args, **options)
