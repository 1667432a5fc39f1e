"""The command line's MASK text: a pattern call such as ``a_shape(sink=4, window=8)``, or a formula."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
from collections.abc import Callable
from typing import Any
from typing import TypeAlias

from maskwright import patterns
from maskwright.dsl.errors import MaskError
from maskwright.dsl.errors import MaskSyntaxError
from maskwright.dsl.expr import Expr
from maskwright.dsl.grammar import WORDS
from maskwright.dsl.parser import parse
from maskwright.dsl.parser import syntax_tree

Literal: TypeAlias = int | bool | float | str | list[int] | None


def resolve(text: str) -> Expr:
    """The mask a text names: a pattern, a pattern call, or an expression.

    Raises:
        MaskSyntaxError: neither a pattern call nor mask text.
        MaskError: an unknown pattern, or arguments it does not take.

    >>> str(resolve("a_shape(sink=4, window=8)"))
    '(k <= q) & ((k < 4) | (q - k < 8))'
    >>> str(resolve("causal")), str(resolve("k<=q"))
    ('k <= q', 'k <= q')
    """
    if not _is_call(text):
        return parse(text)
    name, arguments = parse_call(text)
    return pattern(name)(**arguments)


def pattern(name: str) -> Callable[..., Expr]:
    """The pattern function of that name.

    Raises:
        MaskError: if there is none; suggests close names.
    """
    if name in patterns.__all__:
        function: Callable[..., Expr] = getattr(patterns, name)
        return function
    close = difflib.get_close_matches(name, patterns.__all__, n=3)
    names = close or patterns.__all__
    raise MaskError(
        f"there is no pattern `{name}`",
        fix=f"{'did you mean' if close else 'the patterns are'} {', '.join(names)}",
    )


def parse_call(text: str) -> tuple[str, dict[str, Literal]]:
    """Name and arguments of a pattern call; positional arguments get their names.

    Arguments are literals only: integers, floats, booleans, strings, None, lists of integers.

    Raises:
        MaskSyntaxError: the text is no call, or an argument is no literal.
        MaskError: an unknown pattern, or arguments it does not take.

    >>> parse_call("sliding_window(64, right=0)")
    ('sliding_window', {'left': 64, 'right': 0})
    """
    source, tree = syntax_tree(text)
    match tree:
        case ast.Name(id=name):
            return name, _bind(name, [], {})
        case ast.Call(func=ast.Name(id=name)):
            args = [_literal(source, arg) for arg in tree.args]
            return name, _bind(name, args, _keywords(source, tree.keywords))
    raise MaskSyntaxError("this is no pattern call", text=source, fix="e.g. `a_shape(4, 8)`")


def _is_call(text: str) -> bool:
    """A bare name or a whole-text call of a name that the expression language does not know."""
    head = re.match(r"\s*([A-Za-z_]\w*)\s*(\(|$)", text)
    if head is None or head.group(1) in (*WORDS, "True", "False", "None", "not", "lambda"):
        return False
    if not head.group(2):
        return True
    _, tree = syntax_tree(text)
    return isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name)


def _keywords(source: str, keywords: list[ast.keyword]) -> dict[str, Literal]:
    found: dict[str, Literal] = {}
    for keyword in keywords:
        if keyword.arg is None or keyword.arg in found:
            raise MaskSyntaxError(
                f"unknown or repeated argument `{keyword.arg or '**'}`",
                text=source,
                column=keyword.value.col_offset,
                fix="write each argument once, by name",
            )
        found[keyword.arg] = _literal(source, keyword.value)
    return found


def _bind(name: str, args: list[Literal], keywords: dict[str, Literal]) -> dict[str, Any]:
    signature = inspect.signature(pattern(name))
    try:
        return dict(signature.bind(*args, **keywords).arguments)
    except TypeError as error:
        takes = ", ".join(str(p).split(":")[0] for p in signature.parameters.values())
        raise MaskError(
            f"{name}(): {error}", expression=f"{name}({takes})", fix="pass these arguments"
        ) from None


def _literal(source: str, node: ast.expr) -> Literal:
    match node:
        case ast.Constant(value=int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.List(elts=items):
            numbers = [_literal(source, item) for item in items]
            if all(type(number) is int for number in numbers):
                return [number for number in numbers if isinstance(number, int)]
    raise MaskSyntaxError(
        "arguments of a pattern call are literals",
        text=source,
        column=node.col_offset,
        fix="numbers, True, False, None, 'text' or [1, 2]; write runtime values in Python",
    )
