"""Source text to a loaded module: memory, then disk; compiled or interpreted."""

from __future__ import annotations

import importlib.util
import threading
from types import ModuleType
from typing import Any

from maskwright.codegen.pipeline import Compiled
from maskwright.runtime import cache
from maskwright.runtime.interpret import interpreter

_modules: dict[tuple[str, bool], ModuleType] = {}
_lock = threading.Lock()


def load(compiled: Compiled[Any], *, interpreted: bool = False) -> ModuleType:
    """The module of a compilation; the same object for the same source.

    Triton reads a kernel's text from its file, so the source is put into the disk cache first.
    """
    key = (compiled.name, interpreted)
    if key in _modules:
        return _modules[key]
    with _lock:
        if key not in _modules:
            _modules[key] = _load(compiled, interpreted)
    return _modules[key]


def _load(compiled: Compiled[Any], interpreted: bool) -> ModuleType:
    path = cache.store(f"{compiled.name}.py", compiled.source)
    name = f"maskwright_{'interpreted' if interpreted else 'compiled'}_{compiled.name}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if not interpreted:
        spec.loader.exec_module(module)
        return module
    with interpreter():
        spec.loader.exec_module(module)
    return module


def loaded() -> int:
    """How many kernels this process has generated and loaded: 0 more after a value changed."""
    return len(_modules)
