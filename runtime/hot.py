"""The hot path: a call like an earlier one goes to its compiled kernel with one look-up.

It serves eager calls without gradients whose kernel needs nothing but the tensors and params: no
tables, no sinks, no work before it. Everything else takes the checked way of ``Attention``. What
makes two calls alike is in the key; what the key does not hold is asked in ``Hot.find``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maskwright.dsl import nodes as n
from maskwright.dsl.evaluate import PARAM_LIMIT
from maskwright.runtime.call import Call
from maskwright.runtime.launch import Kernel

_MOST = 4096  # kinds of calls remembered for one mask


class Launch:
    """One kernel with all arguments in place but the tensors and the params."""

    def __init__(self, kernel: Kernel, call: Call) -> None:
        from triton import knobs

        module, plan = kernel.module, kernel.compiled.plan
        tensors = (call.query, call.key, call.value)
        params = {x.text: call.values[x.name] for x in plan.bindings}
        options = {"scale": call.scale, "q_offset": call.shapes.q_offset}
        self.grid, found, out, lse = module.arguments(*tensors, **options, **params)
        self.arguments = [*(None,) * 5, *found[5:]]
        self.described = [
            vars(x) if plan.request.config.loads == "descriptor" else None for x in found[:3]
        ]
        self.shape, self.rows = out.shape, lse.shape
        first = len(found) - len(params)
        self.params = [(first + i, x.name) for i, x in enumerate(plan.bindings)]
        self.handle, self.runtime = kernel.handle, knobs.runtime
        self.run, self.function = kernel.handle.run, kernel.handle.function
        self.metadata, self.device = kernel.handle.packed_metadata, call.query.get_device()
        self.kind = type(found[0])

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, bindings: Mapping[str, int]
    ) -> tuple[Tensor, Tensor]:
        """(out, lse)."""
        out = query.new_empty(self.shape)
        lse = query.new_empty(self.rows, dtype=torch.float32)
        arguments = self.arguments.copy()
        arguments[:5] = [*self._describe(query, key, value), out, lse]
        for place, name in self.params:
            arguments[place] = bindings[name]
        if self.runtime.launch_enter_hook is not None:
            self.handle[self.grid](*arguments)
            return out, lse
        stream = torch._C._cuda_getCurrentRawStream(self.device)  # noqa: SLF001
        self.run(*self.grid, stream, self.function, self.metadata, None, None, None, *arguments)
        return out, lse

    def _describe(self, *tensors: Tensor) -> list[Any]:
        """The tensors as the kernel takes them: as they are, or in a copy of a descriptor."""
        found: list[Any] = []
        for x, fields in zip(tensors, self.described, strict=True):
            if fields is None:
                found.append(x)
                continue
            descriptor = object.__new__(self.kind)
            descriptor.__dict__.update(fields, base=x)
            found.append(descriptor)
        return found


class Hot:
    """The launches of one mask and score, by kind of call."""

    def __init__(self, params: tuple[n.Param, ...], *, tables: bool) -> None:
        self.ranges = [(p.name, *_range(p)) for p in params]
        self.tables = tables
        self.launches: dict[Any, Launch] = {}

    def key(self, query: Tensor, key: Tensor, value: Tensor, *options: Any) -> Any:
        """What makes calls alike, besides what ``find`` asks."""
        return (
            (query.shape, query.stride(), key.shape, key.stride(), value.shape, value.stride()),
            (query.dtype, key.dtype, value.dtype),
            (query.get_device(), key.get_device(), value.get_device()),
            options,
        )

    def find(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bindings: Mapping[str, Any],
        *options: Any,
    ) -> Launch | None:
        """The launch of a call like an earlier one, if nothing but the kernel is wanted."""
        if not self.launches or not self._plain(query, key, value) or not self._bound(bindings):
            return None
        return self.launches.get(self.key(query, key, value, *options))

    def remember(
        self, given: tuple[Tensor, Tensor, Tensor], call: Call, kernel: Kernel, *options: Any
    ) -> None:
        """Keep the launch of a call that has just been made, if it is simple enough."""
        alike = all(x is y for x, y in zip(given, (call.query, call.key, call.value), strict=True))
        simple = alike and not (self.tables or kernel.prepares or call.scale < 0)
        if simple and call.sinks is None and call.backend == "triton" and self._plain(*given):
            if len(self.launches) >= _MOST:
                self.launches.clear()
            self.launches[self.key(*given, *options)] = Launch(kernel, call)

    def _plain(self, query: Tensor, key: Tensor, value: Tensor) -> bool:
        """Tensors of the current GPU and nobody who must see the call: autograd, modes, autocast."""
        return (
            type(query) is Tensor
            and type(key) is Tensor
            and type(value) is Tensor
            and not (query.data_ptr() | key.data_ptr() | value.data_ptr()) & 15
            and query.get_device() == torch._C._cuda_getDevice()  # noqa: SLF001
            and not (
                torch.is_grad_enabled()
                and (query.requires_grad or key.requires_grad or value.requires_grad)
            )
            and not torch._C._len_torch_dispatch_stack()  # noqa: SLF001
            and not torch._C._are_functorch_transforms_active()  # noqa: SLF001
            and not torch.is_autocast_enabled("cuda")
        )

    def _bound(self, bindings: Mapping[str, Any]) -> bool:
        """Every param has an int in its range, and there is nothing else."""
        if len(bindings) != len(self.ranges):
            return False
        for name, low, high in self.ranges:
            value = bindings.get(name)
            if type(value) is not int or not low <= value <= high:
                return False
        return True


def _range(p: n.Param) -> tuple[int, int]:
    low = -PARAM_LIMIT if p.min is None else max(p.min, -PARAM_LIMIT)
    high = PARAM_LIMIT if p.max is None else min(p.max, PARAM_LIMIT)
    return low, high
