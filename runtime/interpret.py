"""Run generated Triton in Triton's interpreter on CPU tensors, in any process.

Triton decides at import whether its own library functions (``tl.sum`` and friends) are compiled
or interpreted. Here both live side by side: interpreted twins are swapped in for a launch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType
from typing import Any

_lock = threading.RLock()


@lru_cache(maxsize=1)
def _twins() -> list[tuple[ModuleType, str, Any]]:
    """(module, name, interpreted twin) of every compiled library function."""
    # A launch imports Gluon, which keeps the functions of Triton that it finds: not patched ones.
    import triton.experimental.gluon.nvidia.hopper  # noqa: F401
    import triton.language as tl
    import triton.language.standard as standard
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    made: dict[int, Any] = {}
    found: list[tuple[ModuleType, str, Any]] = []
    for module in (standard, tl, tl.core, tl.math):
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction):
                twin = made.setdefault(id(value), InterpretedFunction(value.fn))
                found.append((module, name, twin))
    return found


def _places() -> list[Any]:
    """Every object whose attributes the interpreter replaces while it runs."""
    import triton.language as tl

    descriptor = tl.core.tensor_descriptor_base
    return [tl, tl.core, tl.math, tl.standard, tl.tensor, descriptor, tl.dtype]


@contextmanager
def interpreter() -> Iterator[None]:
    """Inside: ``triton.jit`` gives interpreted functions, and launches of them run on the CPU."""
    from triton import knobs

    with _lock:
        # Nested interpreted calls leave their patches behind: everything is put back by hand.
        saved = [(place, dict(vars(place))) for place in _places()]
        before = knobs.runtime.interpret
        try:
            knobs.runtime.interpret = True
            for module, name, twin in _twins():
                setattr(module, name, twin)
            yield
        finally:
            knobs.runtime.interpret = before
            for place, values in saved:
                _restore(place, values)


def _restore(place: Any, values: dict[str, Any]) -> None:
    now = dict(vars(place))
    for name, value in values.items():
        if now.get(name) is not value:
            setattr(place, name, value)
