"""What the patterns share: argument checks and two small builders."""

from __future__ import annotations

from numbers import Integral
from typing import TypeAlias

from maskwright.dsl.errors import MaskError
from maskwright.dsl.expr import Expr
from maskwright.dsl.expr import Operand
from maskwright.dsl.expr import compare
from maskwright.dsl.symbols import as_expr
from maskwright.dsl.symbols import h
from maskwright.dsl.symbols import kv_head

Size: TypeAlias = int | Expr

_HEADS: dict[str, Expr] = {"kv": kv_head, "query": h, "one": as_expr(0)}


def check_sizes(pattern: str, low: int, **values: Size) -> None:
    """Each value is an integer expression, or an integer of at least ``low``.

    Raises:
        MaskError: naming the pattern and the argument.
    """
    for name, value in values.items():
        if isinstance(value, Expr) and value.dtype == "int":
            continue
        check_constants(pattern, low, **{name: value})


def check_constants(pattern: str, low: int, **values: object) -> None:
    """Each value is a plain integer of at least ``low``; block sizes are part of the kernel.

    Raises:
        MaskError: naming the pattern and the argument.
    """
    for name, value in values.items():
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or int(value) < low:  # type: ignore[call-overload]
            raise MaskError(
                f"{pattern}() needs an integer of at least {low} for {name}",
                expression=f"{name}={value}",
                fix=f"e.g. {name}={max(low, 1)}",
            )


def is_zero(value: Size) -> bool:
    """Whether a term with this size can be left out of the formula."""
    return not isinstance(value, Expr) and value == 0


def same(a: Operand, b: Operand) -> Expr:
    """Elementwise ``a == b`` of two numbers."""
    return compare("==", a, b)


def head_index(pattern: str, axis: str, allowed: tuple[str, ...]) -> Expr:
    """The head symbol of an axis: ``kv_head``, ``h``, or 0 where one set serves all heads.

    Raises:
        MaskError: for an axis that is not allowed.
    """
    if axis not in allowed:
        raise MaskError(
            f"{pattern}() does not know this head_axis",
            expression=f"head_axis={axis!r}",
            fix=f"one of {', '.join(map(repr, allowed))}; 'kv' shares within a GQA group",
        )
    return _HEADS[axis]
