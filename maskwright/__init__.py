"""maskwright: a compiler for attention masks.

Write a mask as a formula over positions; get the kernel, its source and its schedule:

>>> import maskwright as mw
>>> from maskwright import k, q
>>> mask = (k <= q) & ((k < 64) | (q - k < 1024))
>>> str(mask)
'(k <= q) & ((k < 64) | (q - k < 1024))'

Importing this module loads neither torch nor triton: names that need them come on first use.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING
from typing import Any

if (Path(__file__).parent / "dsl").is_file():
    raise ImportError(
        "maskwright/dsl is a text file, but it should be a symbolic link to ../dsl: this checkout "
        "was made without symbolic links.\n"
        "  fix: git config core.symlinks true && git checkout -- maskwright   (on Windows, switch "
        "on Developer Mode first), or install the wheel, which holds real files"
    )

from maskwright.dsl.errors import BindingError
from maskwright.dsl.errors import DispatchError
from maskwright.dsl.errors import LoweringError
from maskwright.dsl.errors import MaskError
from maskwright.dsl.errors import MaskSyntaxError
from maskwright.dsl.errors import MaskwrightError
from maskwright.dsl.errors import ShapeError
from maskwright.dsl.errors import StrictError
from maskwright.dsl.errors import TuningError
from maskwright.dsl.expr import Expr
from maskwright.dsl.parser import parse
from maskwright.dsl.symbols import absolute
from maskwright.dsl.symbols import b
from maskwright.dsl.symbols import by_head
from maskwright.dsl.symbols import exp
from maskwright.dsl.symbols import h
from maskwright.dsl.symbols import k
from maskwright.dsl.symbols import kv_head
from maskwright.dsl.symbols import kv_len
from maskwright.dsl.symbols import log
from maskwright.dsl.symbols import mask
from maskwright.dsl.symbols import maximum
from maskwright.dsl.symbols import minimum
from maskwright.dsl.symbols import param
from maskwright.dsl.symbols import q
from maskwright.dsl.symbols import q_len
from maskwright.dsl.symbols import s
from maskwright.dsl.symbols import sigmoid
from maskwright.dsl.symbols import softcap
from maskwright.dsl.symbols import table
from maskwright.dsl.symbols import tanh
from maskwright.dsl.symbols import where

if TYPE_CHECKING:
    from maskwright import patterns
    from maskwright.codegen.api import Explanation
    from maskwright.codegen.api import draw
    from maskwright.codegen.api import explain
    from maskwright.codegen.api import source
    from maskwright.codegen.config import BackwardConfig
    from maskwright.codegen.config import KernelConfig
    from maskwright.dsl.evaluate import to_dense
    from maskwright.runtime import settings
    from maskwright.runtime.api import Attention
    from maskwright.runtime.api import Prepared
    from maskwright.runtime.api import Report
    from maskwright.runtime.api import attention
    from maskwright.runtime.api import check
    from maskwright.runtime.api import compile  # noqa: A004
    from maskwright.runtime.api import prepare
    from maskwright.runtime.api import tune
    from maskwright.runtime.cache import MaskwrightWarning
    from maskwright.runtime.settings import debug

__version__ = "0.1.0"

__all__ = [
    "Attention",
    "BackwardConfig",
    "BindingError",
    "DispatchError",
    "Explanation",
    "Expr",
    "GluonBackwardConfig",
    "GluonConfig",
    "KernelConfig",
    "LoweringError",
    "MaskError",
    "MaskSyntaxError",
    "MaskwrightError",
    "MaskwrightWarning",
    "Prepared",
    "Report",
    "ShapeError",
    "StrictError",
    "TuningError",
    "absolute",
    "attention",
    "b",
    "by_head",
    "check",
    "compile",
    "debug",
    "draw",
    "exp",
    "explain",
    "h",
    "k",
    "kv_head",
    "kv_len",
    "log",
    "mask",
    "maximum",
    "minimum",
    "param",
    "parse",
    "patterns",
    "prepare",
    "q",
    "q_len",
    "s",
    "settings",
    "sigmoid",
    "softcap",
    "source",
    "table",
    "tanh",
    "to_dense",
    "tune",
    "where",
]

# name -> module that defines it; loaded on first use (PEP 562).
_LAZY = {
    "Attention": "maskwright.runtime.api",
    "BackwardConfig": "maskwright.codegen.config",
    "Explanation": "maskwright.codegen.api",
    "GluonBackwardConfig": "maskwright.codegen.gluon_backward",
    "GluonConfig": "maskwright.codegen.gluon",
    "KernelConfig": "maskwright.codegen.config",
    "MaskwrightWarning": "maskwright.runtime.cache",
    "Prepared": "maskwright.runtime.api",
    "Report": "maskwright.runtime.api",
    "attention": "maskwright.runtime.api",
    "check": "maskwright.runtime.api",
    "compile": "maskwright.runtime.api",
    "debug": "maskwright.runtime.settings",
    "draw": "maskwright.codegen.api",
    "explain": "maskwright.codegen.api",
    "prepare": "maskwright.runtime.api",
    "source": "maskwright.codegen.api",
    "to_dense": "maskwright.dsl.evaluate",
    "tune": "maskwright.runtime.api",
}
_LAZY_MODULES = {"patterns": "maskwright.patterns", "settings": "maskwright.runtime.settings"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
    elif name in _LAZY_MODULES:
        value = importlib.import_module(_LAZY_MODULES[name])
    else:
        raise AttributeError(f"module 'maskwright' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(n for n in globals() if n.startswith("__"))})
