"""What MASK and ``--bind`` on the command line mean."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.dsl import nodes as n
from maskwright.dsl.errors import BindingError
from maskwright.dsl.errors import MaskError
from maskwright.dsl.expr import Expr

LONG = 8192  # from here on example data has the published sizes
_NAME = re.compile(r"\s*([A-Za-z_]\w*)")
_FILE = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)")


@dataclass(frozen=True)
class Shape:
    """Sizes of one call."""

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int


@dataclass(frozen=True, eq=False)
class MaskArgument:
    """A mask as given on the command line.

    Attributes:
        mask: the expression.
        name: a short name for files and titles.
        pattern: the pattern's name, if it was a pattern call: example data is made for those.
    """

    mask: Expr
    name: str
    pattern: str = ""


def read_mask(text: str) -> MaskArgument:
    """The mask that an argument names.

    Raises:
        MaskError: if it is neither text of the mask language, nor a pattern call, nor file.py:name.
    """
    found = _FILE.fullmatch(text.strip())
    if found:
        return MaskArgument(_from_file(Path(found["file"]), found["name"]), found["name"])
    from maskwright.patterns.lookup import resolve

    pattern = _pattern_name(text)
    return MaskArgument(_as_mask(resolve(text), "the text"), pattern or "mask", pattern)


def read_bindings(
    argument: MaskArgument, given: Sequence[str], shape: Shape, seed: int
) -> tuple[dict[str, Any], list[str]]:
    """Runtime values for a mask, and notes on those that are example data.

    Args:
        argument: the mask; a pattern call may fall back on example data of the catalogue.
        given: ``name=value`` texts.
        shape: sizes the example data is made for.
        seed: seed of random example data.

    Raises:
        BindingError: if a text is not ``name=value`` or its value cannot be read.
    """
    values = dict(_bind(text) for text in given)
    missing = sorted(_names(argument.mask) - set(values))
    if not missing or not argument.pattern:
        return values, []
    example = example_data(argument.pattern, missing, shape, seed)
    notes = [f"example data: {name} = {_describe(value)}" for name, value in example.items()]
    return example | values, notes


def example_data(pattern: str, names: Sequence[str], shape: Shape, seed: int = 0) -> dict[str, Any]:
    """Runtime values from the catalogue: of the first variant of a pattern that has all names."""
    from maskwright.patterns import catalog

    scale: catalog.ScaleName = "paper" if shape.kv_len >= LONG else "small"
    sizes = (shape.batch, shape.heads, shape.kv_heads, shape.q_len, shape.kv_len)
    for entry in catalog.entries(scale, heads=shape.heads, kv_heads=shape.kv_heads):
        if entry.name.startswith(pattern) and set(names) <= _names(entry.mask):
            made = entry.bindings(*sizes, seed)
            return {name: made[name] for name in names}
    return {}


def _names(mask: Expr) -> set[str]:
    return {x.name for x in n.params(mask.node)} | {x.name for x in n.tables(mask.node)}


def _describe(value: Any) -> str:
    return str(value) if np.ndim(value) == 0 else f"{np.asarray(value).dtype}{np.shape(value)}"


# -- masks --------------------------------------------------------------------------------------
def _pattern_name(text: str) -> str:
    """The pattern that a text calls, or an empty string."""
    from maskwright import patterns

    head = _NAME.match(text)
    return head[1] if head and head[1] in patterns.__all__ else ""


def _from_file(path: Path, name: str) -> Expr:
    """``name`` of a Python file, which is run as its author's own program."""
    if not path.is_file():
        raise MaskError("there is no such file", expression=path, fix="give file.py:name")
    spec = importlib.util.spec_from_file_location(f"_maskwright_user_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    if not hasattr(module, name):
        raise MaskError(f"{path.name} has no name {name!r}", expression=f"{path}:{name}")
    return _as_mask(getattr(module, name), name)


def _as_mask(value: Any, name: str) -> Expr:
    made = value() if callable(value) and not isinstance(value, Expr) else value
    if not isinstance(made, Expr):
        raise MaskError(
            f"{name} is no mask but {type(made).__name__}",
            expression=made,
            fix="name a mask expression, or a function without required arguments that returns one",
        )
    if made.dtype != "bool":
        raise MaskError(
            f"this is a number ({made.dtype}), not a mask",
            expression=made,
            fix="compare it with something, e.g. `q - k < 1024`",
        )
    return made


# -- bindings -----------------------------------------------------------------------------------
def _bind(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip().isidentifier():
        raise BindingError(
            "--bind takes NAME=VALUE", expression=text, fix="e.g. --bind window=1024"
        )
    return name.strip(), _bound_value(text, value.strip())


def _bound_value(text: str, value: str) -> Any:
    if value.endswith(".npy"):
        try:
            return np.load(value, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise BindingError(f"cannot read {value}: {error}", expression=text) from error
    try:
        literal = ast.literal_eval(value)
        array = np.asarray(literal)
    except (ValueError, SyntaxError) as error:
        raise BindingError(
            "this value is neither an int, nor a list literal, nor a .npy file",
            expression=text,
            fix='e.g. --bind window=1024, --bind "kinds=[0, 1]", --bind doc_id=ids.npy',
        ) from error
    if array.dtype.kind not in "ibf":
        raise BindingError("a runtime value holds numbers", expression=text)
    if array.ndim == 0:
        return literal
    return array.astype(np.int32) if array.dtype.kind == "i" else array
