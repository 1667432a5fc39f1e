"""Derivatives of score expressions, by the rules of calculus on nodes."""

from __future__ import annotations

from functools import cache

from maskwright.dsl import nodes as n

_ZERO, _ONE = n.Const(0.0), n.Const(1.0)


@cache
def derivative(node: n.Node, of: n.Node) -> n.Node:
    """d ``node`` / d ``of``, where ``of`` is a symbol or a read of a float table.

    Other reads, and all integers, are constants. Where the derivative jumps (``minimum``,
    ``maximum``, ``absolute``, ``where``) it is that of the branch that is taken, the second at a
    tie.
    """
    if node is of:
        return _ONE
    match node:
        case n.Arith("+", a, b):
            return _add(derivative(a, of), derivative(b, of))
        case n.Arith("-", a, b):
            return _subtract(derivative(a, of), derivative(b, of))
        case n.Arith("*", a, b):
            return _add(_times(derivative(a, of), b), _times(a, derivative(b, of)))
        case n.Arith("/", a, b):
            by_b = _times(node, derivative(b, of))
            return _over(_subtract(derivative(a, of), by_b), b)
        case n.Arith("min" | "max" as op, a, b):
            first = n.Compare("<" if op == "min" else ">", a, b)
            return _where(first, derivative(a, of), derivative(b, of))
        case n.Where(cond, a, b):
            return _where(cond, derivative(a, of), derivative(b, of))
        case n.Call(name, a):
            inner = derivative(a, of)
            return _ZERO if inner is _ZERO else _times(_outer(name, a, node), inner)
    return _ZERO


def _outer(name: str, a: n.Node, value: n.Node) -> n.Node:
    """Derivative of a function at ``a``, where it has the value ``value``."""
    match name:
        case "abs":
            return n.Where(n.Compare("<", a, n.Const(0)), n.Const(-1.0), _ONE)
        case "exp":
            return value
        case "log":
            return n.Arith("/", _ONE, a)
        case "tanh":
            return n.Arith("-", _ONE, n.Arith("*", value, value))
        case "sigmoid":
            return n.Arith("*", value, n.Arith("-", _ONE, value))
    msg = f"no derivative of {name}"
    raise TypeError(msg)


def _add(a: n.Node, b: n.Node) -> n.Node:
    if a is _ZERO:
        return b
    return a if b is _ZERO else n.Arith("+", a, b)


def _subtract(a: n.Node, b: n.Node) -> n.Node:
    if b is _ZERO:
        return a
    return n.Arith("-", _ZERO if a is _ZERO else a, b)


def _times(a: n.Node, b: n.Node) -> n.Node:
    if _ZERO in (a, b):
        return _ZERO
    if a is _ONE:
        return b
    return a if b is _ONE else n.Arith("*", a, b)


def _over(a: n.Node, b: n.Node) -> n.Node:
    return _ZERO if a is _ZERO else n.Arith("/", a, b)


def _where(cond: n.Node, a: n.Node, b: n.Node) -> n.Node:
    return a if a is b else n.Where(cond, a, b)
