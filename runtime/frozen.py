"""A kernel launch with everything in place but what changes from call to call.

What Triton does for each argument of each launch (specialise, describe, encode) is done once here:
it depends on sizes, strides and types only, and they are fixed. A launch then fills in addresses
and params and calls the compiled kernel.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from functools import lru_cache
from types import BuiltinFunctionType
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from maskwright.runtime.cache import MaskwrightWarning

_MOST_MAPS = 64  # addresses that a descriptor has been encoded for


def warn_slow(error: Exception) -> None:
    """Say once that calls take a slower way than they should."""
    _say(f"kernels are launched the slow way: {type(error).__name__}: {error}")


@lru_cache(maxsize=16)
def _say(text: str) -> None:
    warnings.warn(text, MaskwrightWarning, stacklevel=4)


class Slot:
    """Stands for a value that each call brings, such as a param."""


class Frozen:
    """One launch.

    Args:
        handle: the compiled kernel, as a first launch returned it.
        grid: programs along three axes.
        arguments: of the kernel, with tensors, descriptors of tensors, and slots among them.
        places: the place in a call's values of each tensor and slot, by ``id``.
        device: index of the GPU.
    """

    def __init__(
        self,
        handle: Any,
        grid: tuple[int, int, int],
        arguments: Sequence[Any],
        places: Mapping[int, int],
        device: int,
    ) -> None:
        from triton import knobs

        self.handle, self.grid, self.device = handle, grid, device
        self.runtime, self.run = knobs.runtime, handle.run
        self.function, self.metadata = handle.function, handle.packed_metadata
        self.constant = [None if _changes(x) else x for x in arguments]
        self.plain = [(i, places[id(x)]) for i, x in enumerate(arguments) if id(x) in places]
        # Descriptors without their tensors: those of the first call must not be kept alive.
        self.described = [
            (i, places[id(x.base)], _moved(x, 0))
            for i, x in enumerate(arguments)
            if hasattr(x, "base")
        ]
        self.direct = _Direct.of(handle, arguments, self.plain, self.described)

    def __call__(self, values: Sequence[int]) -> None:
        """Launch on the current stream; ``values`` are addresses and params."""
        runtime = self.runtime
        if _calls(runtime.launch_enter_hook) or _calls(runtime.launch_exit_hook):
            # A profiler wants to see the launch.
            self.handle[self.grid](*self._filled(values))
            return
        stream = torch._C._cuda_getCurrentRawStream(self.device)  # noqa: SLF001
        direct = self.direct
        if direct is not None:
            try:
                direct.launch(self.grid, stream, values)
            except TypeError as error:  # another signature: nothing has been launched
                self.direct = None
                warn_slow(error)
            else:
                return
        place = (*self.grid, stream, self.function, self.metadata, None, None, None)
        self.run(*place, *self._filled(values))

    def _filled(self, values: Sequence[int]) -> list[Any]:
        filled = self.constant.copy()
        for i, place in self.plain:
            filled[i] = values[place]
        for i, place, descriptor in self.described:
            filled[i] = _moved(descriptor, values[place])
        return filled


def _calls(hook: Any) -> bool:
    """A hook of Triton's, or a chain of them, that does something."""
    return hook is not None and bool(getattr(hook, "calls", True))


def _changes(x: Any) -> bool:
    return isinstance(x, (Tensor, Slot)) or hasattr(x, "base")


class _Address:
    """What a descriptor needs of a tensor."""

    def __init__(self, address: int) -> None:
        self.address = address

    def data_ptr(self) -> int:
        return self.address


def _moved(descriptor: Any, address: int) -> Any:
    """The same descriptor of another tensor; its checks have been made."""
    copy = object.__new__(type(descriptor))
    copy.__dict__.update(vars(descriptor), base=_Address(address))
    return copy


class _Direct:
    """The launcher that Triton 3.6 generates in C for a kernel, and its arguments laid out for it.

    A descriptor is an encoded map, its shape and its strides there. The map depends on the address
    alone, so it is kept: an allocator hands out the same addresses again and again.
    """

    def __init__(self, launcher: Callable[..., None], handle: Any, arguments: list[Any]) -> None:
        cooperative, pdl = handle.run.launch_cooperative_grid, handle.run.launch_pdl
        none = (None, None)
        self.launcher = launcher
        self.options = (
            handle.function,
            cooperative,
            pdl,
            *none,
            handle.packed_metadata,
            *none,
            None,
        )
        self.arguments = arguments
        self.plain: list[tuple[int, int]] = []
        self.maps: list[tuple[int, int, dict[int, Any], Callable[[int], Any]]] = []

    @staticmethod
    def of(
        handle: Any,
        arguments: Sequence[Any],
        plain: list[tuple[int, int]],
        described: list[tuple[int, int, Any]],
    ) -> _Direct | None:
        """None for another Triton, or a kernel that needs more than its arguments."""
        launcher = _launcher(handle)
        metas = getattr(handle.metadata, "tensordesc_meta", None) or [None] * len(described)
        if launcher is None or len(metas) != len(described) or None in metas:
            return None
        from triton.backends.nvidia.driver import make_tensordesc_arg

        found = _Direct(launcher, handle, [])
        values, chosen = dict(plain), iter(zip(described, metas, strict=True))
        for i, x in enumerate(arguments):
            at = len(found.arguments)
            if i in values:
                found.plain.append((at, values[i]))
            if not hasattr(x, "base"):
                found.arguments.append(None if i in values else x)
                continue
            (_, place, descriptor), meta = next(chosen)

            def encode(address: int, descriptor: Any = descriptor, meta: Any = meta) -> Any:
                return make_tensordesc_arg(_moved(descriptor, address), meta)[0]

            found.maps.append((at, place, {}, encode))
            found.arguments += [None, *x.shape, *x.strides]
        return found

    def launch(self, grid: tuple[int, int, int], stream: int, values: Sequence[int]) -> None:
        """Fill in what changes, and go."""
        arguments = self.arguments.copy()
        for at, place in self.plain:
            arguments[at] = values[place]
        for at, place, maps, encode in self.maps:
            address = values[place]
            found = maps.get(address)
            if found is None:
                if len(maps) >= _MOST_MAPS:
                    maps.clear()
                found = maps[address] = encode(address)
            arguments[at] = found
        self.launcher(*grid, stream, *self.options, *arguments)


def _launcher(handle: Any) -> Callable[..., None] | None:
    import triton

    run = handle.run
    if not triton.__version__.startswith("3.6.") or run.global_scratch_size:
        return None
    if run.profile_scratch_size:
        return None
    launch = run.launch
    if isinstance(launch, FunctionType):  # it encodes descriptors around the one in C
        launch = inspect.getclosurevars(launch).nonlocals.get("launcher")
    return launch if isinstance(launch, BuiltinFunctionType) else None
