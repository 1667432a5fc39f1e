"""The vocabulary of mask text: names, operators, limits, and what is said about anything else."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING

from maskwright.dsl import symbols

if TYPE_CHECKING:
    from maskwright.dsl.expr import Expr
    from maskwright.dsl.nodes import ArithOp
    from maskwright.dsl.nodes import CompareOp
    from maskwright.dsl.nodes import LogicOp

MAX_LENGTH = 20_000
MAX_DEPTH = 200  # printing recurses too: about three Python frames a level
INT32 = 2**31
EXAMPLE = "write one expression, e.g. `(k <= q) & (q - k < 1024)`"

NAMES: dict[str, Expr] = {**symbols.INDEX_SYMBOLS, "s": symbols.s}
FUNCTIONS: dict[str, tuple[int, Callable[..., Expr]]] = {
    "minimum": (2, symbols.minimum),
    "maximum": (2, symbols.maximum),
    "absolute": (1, symbols.absolute),
    "abs": (1, symbols.absolute),
    "where": (3, symbols.where),
    "tanh": (1, symbols.tanh),
    "exp": (1, symbols.exp),
    "log": (1, symbols.log),
    "sigmoid": (1, symbols.sigmoid),
}
WORDS = (*NAMES, *FUNCTIONS, "softcap", "param", "table", "by_head")
ARITH: dict[type[ast.operator], ArithOp] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.Div: "/",
}
LOGIC: dict[type[ast.operator], LogicOp] = {ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^"}
COMPARE: dict[type[ast.cmpop], CompareOp] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
DTYPES: dict[str, type] = {"int": int, "bool": bool, "float": float}

# Spellings from other languages and libraries -> ours.
RENAMED = {
    "min": "minimum",
    "max": "maximum",
    "q_idx": "q",
    "kv_idx": "k",
    "head": "h",
    "batch": "b",
    "true": "True",
    "false": "False",
}
TYPOS = {"&&": "&", "||": "|", "=<": "<=", "=>": ">=", "<>": "!=", "!(": "~("}
LOOKALIKES = {"≤": "<=", "≥": ">=", "≠": "!=", "∧": "&", "¬": "~"}
LOOKALIKES |= {"∨": "|", "−": "-", "×": "*"}

# Python that is not mask text: what it is, and the right spelling.
REFUSED: dict[type[ast.AST], tuple[str, str]] = {
    ast.And: ("`and` cannot join masks", "write `(a) & (b)`, parentheses around each comparison"),
    ast.Or: ("`or` cannot join masks", "write `(a) | (b)`, parentheses around each comparison"),
    ast.Not: ("`not` cannot negate a mask", "write `~(a)`"),
    ast.In: ("`in` is no mask operator", "write `k.isin(row)`"),
    ast.NotIn: ("`not in` is no mask operator", "write `~k.isin(row)`"),
    ast.Is: ("`is` is no mask operator", "write `==`"),
    ast.IsNot: ("`is not` is no mask operator", "write `!=`"),
    ast.Pow: ("there is no power operator", "write the product: `x * x`"),
    ast.LShift: ("there are no shifts", "write `x * 8` for `x << 3`"),
    ast.RShift: ("there are no shifts", "write `x // 8` for `x >> 3`"),
    ast.MatMult: ("there is no matrix product in a mask", EXAMPLE),
    ast.IfExp: ("`if ... else` cannot choose inside a mask", "write `where(cond, a, b)`"),
    ast.Lambda: ("a lambda is no mask text", "write the expression after the colon only"),
    ast.ListComp: ("a comprehension is no mask text", "write the terms out, joined by `|` or `&`"),
    ast.SetComp: ("a comprehension is no mask text", "write the terms out, joined by `|` or `&`"),
    ast.DictComp: ("a comprehension is no mask text", "write the terms out, joined by `|` or `&`"),
    ast.GeneratorExp: ("a generator is no mask text", "write the terms out, joined by `|` or `&`"),
    ast.NamedExpr: ("`:=` is not allowed", "write the value where it is used"),
    ast.Starred: ("`*` unpacking is not allowed", "write each argument out"),
    ast.Slice: ("slices are not allowed", "give every index: `doc_id[b, q]`"),
    ast.Tuple: ("a comma makes a tuple, which is no mask", "join masks by `&` or `|`"),
    ast.List: ("a list only appears inside by_head()", "join masks by `&` or `|`"),
    ast.JoinedStr: ("f-strings are not allowed", "write the number, or `param(...)`"),
}


def name_fix(name: str) -> str:
    """What to write for an unknown name."""
    if name in RENAMED:
        return f"write `{RENAMED[name]}`"
    close = difflib.get_close_matches(name, WORDS, n=1)
    if close:
        return f"did you mean `{close[0]}`?"
    return f'for a value given at the call write `param("{name}")`; symbols: {", ".join(NAMES)}'
