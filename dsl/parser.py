"""Text to expressions: a fixed grammar over Python's own ``ast``, never ``eval``.

The grammar is what ``dsl.text`` prints, plus a few natural spellings (``abs``, ``softcap``, unary
``+``). Everything is built through the functions a user would call, so the same checks apply.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings

from maskwright.dsl import grammar as g
from maskwright.dsl import symbols
from maskwright.dsl.errors import MaskError
from maskwright.dsl.errors import MaskSyntaxError
from maskwright.dsl.expr import Expr
from maskwright.dsl.expr import TableHandle
from maskwright.dsl.expr import arith
from maskwright.dsl.expr import compare
from maskwright.dsl.expr import equal
from maskwright.dsl.expr import logic


def parse(text: str) -> Expr:
    """The expression a text describes; ``parse(str(e))`` is the same expression again.

    Args:
        text: mask or score text, one expression of at most 20,000 characters.

    Raises:
        MaskSyntaxError: the text is outside the grammar; shows the place with a caret.
        MaskError: the text is grammatical but the expression is wrong, e.g. ``k / 2``.

    >>> parse("(k<=q) & (q-k<1024)")
    <bool (k <= q) & (q - k < 1024)>
    """
    source, tree = syntax_tree(text)
    return _Reader(source).expression(tree)


def syntax_tree(text: object) -> tuple[str, ast.expr]:
    """Checked one-line source and its Python syntax tree; shared with pattern calls.

    Raises:
        MaskSyntaxError: not one Python expression in plain ASCII, too long, or too deep.
    """
    if not isinstance(text, str):
        raise MaskError(f"mask text is a str, not {type(text).__name__}", expression=repr(text))
    source = re.sub(r"\s", " ", text).strip()
    _check_characters(source)
    try:
        with warnings.catch_warnings():  # e.g. `5.isin(...)` warns before it fails
            warnings.simplefilter("ignore")
            tree = ast.parse(source, mode="eval").body
    except SyntaxError as error:
        raise _python_error(source, error) from None
    except (RecursionError, MemoryError):
        raise _too_deep(source) from None
    _check_depth(source, tree)
    return source, tree


def _check_characters(source: str) -> None:
    if not source:
        raise MaskSyntaxError("the mask text is empty", text="", fix=g.EXAMPLE)
    if len(source) > g.MAX_LENGTH:
        raise MaskSyntaxError(
            f"the mask text has {len(source):,} characters; the limit is {g.MAX_LENGTH:,}",
            text=source[:80],
            fix="build it in Python with mw.param and mw.table",
        )
    odd = re.search(r"[^ -~]|#", source)
    if odd:
        char = odd.group()
        right = g.LOOKALIKES.get(char)
        raise MaskSyntaxError(
            f"{char!r} is not allowed in mask text",
            text=source,
            column=odd.start(),
            fix=f"write `{right}`" if right else "use plain ASCII, without comments",
        )


def _check_depth(source: str, tree: ast.expr) -> None:
    level: list[ast.AST] = [tree]
    for _ in range(g.MAX_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if any(isinstance(node, ast.expr) for node in level):
        raise _too_deep(source)


def _too_deep(source: str) -> MaskSyntaxError:
    return MaskSyntaxError(
        f"the expression is nested deeper than {g.MAX_DEPTH} levels",
        text=source[:80],
        fix="put long lists of numbers in a table and use `x.isin(row)`",
    )


def _python_error(source: str, error: SyntaxError) -> MaskSyntaxError:
    """A syntax error of Python itself, with a better hint where the cause is known."""
    if "nested" in str(error.msg):
        return _too_deep(source)
    column = min(error.offset - 1, len(source)) if error.offset else len(source)
    fix = "write `==` to compare" if source[column : column + 1] == "=" else g.EXAMPLE
    typo = next((wrong for wrong in g.TYPOS if wrong in source), None)
    if typo:
        column, fix = source.index(typo), f"write `{g.TYPOS[typo]}` for `{typo}`"
    what = f"this is not a Python expression: {str(error.msg).split(';')[0]}"
    return MaskSyntaxError(what, text=source, column=column, fix=fix)


class _Reader:
    """Walks one Python syntax tree and builds the expression.

    Two Python frames a level of nesting at most, so ``MAX_DEPTH`` levels are safe.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    # -- expressions ------------------------------------------------------------------------
    def expression(self, node: ast.expr) -> Expr:
        """The expression of any node of the grammar."""
        match node:
            case ast.Constant():
                return self._literal(node)
            case ast.Name(id=name) if name in g.NAMES:
                return g.NAMES[name]
            case ast.UnaryOp():
                return self._unary(node)
            case ast.BinOp():
                return self._binary(node)
            case ast.Compare():
                return self._comparison(node)
            case ast.Call():
                return self._call(node)
            case ast.Subscript():
                return self._read(node)
        raise self._refusal(node)

    def _literal(self, node: ast.Constant, sign: int = 1) -> Expr:
        match node.value:
            case bool() as value if sign > 0:
                return symbols.as_expr(value)
            case bool():
                raise self._error(node, "a bool has no sign", "write `~` to negate a mask")
            case int() as value:
                return symbols.as_expr(self._int32(node, sign * value))
            case float() as value if math.isfinite(value):
                return symbols.as_expr(sign * value)
            case float():
                raise self._error(
                    node, "this number is too large for a float", "use a finite number"
                )
            case str():
                what = "a string is only the name of a param or a table"
                raise self._error(node, what, f"write `param({self._piece(node)})`")
        raise self._error(node, f"{self._piece(node)} is no value of a mask", g.EXAMPLE)

    def _unary(self, node: ast.UnaryOp) -> Expr:
        match node.op, node.operand:
            case ast.USub(), ast.Constant() as literal:
                return self._literal(literal, sign=-1)
            case ast.USub(), operand:
                return -self.expression(operand)
            case ast.UAdd(), operand:
                return +self.expression(operand)
            case ast.Invert(), operand:
                return ~self.expression(operand)
        raise self._operator(node.op, node)

    def _binary(self, node: ast.BinOp) -> Expr:
        kind = type(node.op)
        if kind not in g.ARITH and kind not in g.LOGIC:
            raise self._operator(node.op, node)
        a, b = self.expression(node.left), self.expression(node.right)
        return arith(g.ARITH[kind], a, b) if kind in g.ARITH else logic(g.LOGIC[kind], a, b)

    def _comparison(self, node: ast.Compare) -> Expr:
        if len(node.ops) > 1:
            raise self._chain(node)
        kind = type(node.ops[0])
        if kind not in g.COMPARE:
            raise self._operator(node.ops[0], node)
        a, b = self.expression(node.left), self.expression(node.comparators[0])
        if kind in (ast.Eq, ast.NotEq) and "bool" in (a.dtype, b.dtype):
            return self._equal_masks(node, a, b)
        return compare(g.COMPARE[kind], a, b)

    def _equal_masks(self, node: ast.Compare, a: Expr, b: Expr) -> Expr:
        same = equal(a, b)
        if isinstance(same, Expr):
            return same if isinstance(node.ops[0], ast.Eq) else operator.invert(same)
        raise self._error(
            node,
            "`==` and `!=` compare numbers, but this is a mask",
            "write `a ^ b` where two masks differ, `~(a ^ b)` where they agree",
        )

    # -- calls and reads --------------------------------------------------------------------
    def _call(self, node: ast.Call) -> Expr:
        match node.func:
            case ast.Attribute(value=value, attr="isin"):
                (row,) = self._positional(node, "isin", 1, keywords=True)
                options = self._options(node, ("run",))
                run = self._integer(options["run"]) if options else 1
                return self.expression(value).isin(self.expression(row), run=run)
            case ast.Name(id="param"):
                return self._param(node)
            case ast.Name(id="by_head"):
                return self._by_head(node)
            case ast.Name(id="softcap"):
                x, cap = self._positional(node, "softcap", 2)
                return symbols.softcap(self.expression(x), self._number(cap))
            case ast.Name(id="table"):
                what = "a table is no value by itself"
                raise self._error(
                    node, what, "read it with explicit indices, e.g. `table(...)[b, q]`"
                )
            case ast.Name(id=name) if name in g.FUNCTIONS:
                count, function = g.FUNCTIONS[name]
                return function(*map(self.expression, self._positional(node, name, count)))
        if isinstance(node.func, ast.Name) and node.func.id in g.NAMES:
            raise self._error(node, f"`{node.func.id}` is no function", g.EXAMPLE)
        raise self._refusal(node.func)

    def _read(self, node: ast.Subscript) -> Expr:
        handle = self._table(node.value)
        index = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return handle[tuple(self.expression(part) for part in index)]

    def _param(self, node: ast.Call) -> Expr:
        (name,) = self._positional(node, "param", 1, keywords=True)
        options = self._options(node, ("min", "max"))
        bounds = {key: self._integer(value) for key, value in options.items()}
        return symbols.param(self._string(name), min=bounds.get("min"), max=bounds.get("max"))

    def _table(self, node: ast.expr) -> TableHandle:
        match node:
            case ast.Call(func=ast.Name(id="table"), args=[name, *rest]) if len(rest) <= 1:
                options = self._options(node, ("ndim", "sorted", "dtype"))
                if rest and "ndim" in options:
                    raise self._error(options["ndim"], "ndim is given twice", "give it once")
                return self._table_of(name, {"ndim": rest[0], **options} if rest else options)
        piece = self._piece(node)
        name_text = piece if piece.isidentifier() and piece not in g.WORDS else "doc_id"
        fix = f'declare it in place, e.g. `table("{name_text}", ndim=2)[b, q]`'
        raise self._error(node, "only a table can be indexed", fix)

    def _table_of(self, name: ast.expr, options: dict[str, ast.expr]) -> TableHandle:
        return symbols.table(
            self._string(name),
            ndim=self._integer(options["ndim"]) if "ndim" in options else 1,
            sorted=self._flag(options["sorted"]) if "sorted" in options else False,
            dtype=self._dtype(options["dtype"]) if "dtype" in options else int,
        )

    def _by_head(self, node: ast.Call) -> Expr:
        kinds, masks = self._positional(node, "by_head", 2)
        if not isinstance(masks, ast.List):
            raise self._error(
                masks, "by_head needs a list of masks", "by_head([0, 1], [k <= q, k < 4])"
            )
        members = [self.expression(mask) for mask in masks.elts]
        if isinstance(kinds, ast.List):
            return symbols.by_head([self._integer(kind) for kind in kinds.elts], members)
        if not isinstance(kinds, ast.Call):
            raise self._error(
                kinds, "kinds are a list of numbers or a 1-D table", "by_head([0, 1], ...)"
            )
        return symbols.by_head(self._table(kinds), members)

    # -- arguments --------------------------------------------------------------------------
    def _positional(
        self, node: ast.Call, name: str, count: int, *, keywords: bool = False
    ) -> list[ast.expr]:
        if node.keywords and not keywords:
            fix = "write the value without its name"
            raise self._error(node.keywords[0].value, f"{name}() takes no keyword arguments", fix)
        if len(node.args) != count:
            what = f"{name}() takes {count} argument{'s' if count > 1 else ''}"
            raise self._error(
                node, f"{what}, but {len(node.args)} are given", f"in `{self._piece(node)}`"
            )
        return node.args

    def _options(self, node: ast.Call, allowed: tuple[str, ...]) -> dict[str, ast.expr]:
        found: dict[str, ast.expr] = {}
        for keyword in node.keywords:
            if keyword.arg not in allowed or keyword.arg in found:
                what = f"unknown or repeated argument `{keyword.arg or '**'}`"
                raise self._error(
                    keyword.value, what, f"the keywords here are {', '.join(allowed)}"
                )
            found[keyword.arg] = keyword.value
        return found

    def _string(self, node: ast.expr) -> str:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        raise self._error(node, "a name in quotes is needed here", 'e.g. `param("window", min=1)`')

    def _number(self, node: ast.expr) -> float:
        match node:
            case ast.Constant(value=float() as value):
                return value
            case ast.Constant(value=int() as value) if type(value) is int:
                return float(self._int32(node, value))
        raise self._error(
            node, "a positive literal number is needed here", "e.g. `softcap(s, 30.0)`"
        )

    def _integer(self, node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int() as value) if type(value) is int:
                return self._int32(node, value)
            case ast.UnaryOp(op=ast.USub(), operand=operand) if isinstance(operand, ast.Constant):
                return -self._integer(operand)
        raise self._error(node, "a literal integer is needed here", "write the number itself")

    def _flag(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Constant) and isinstance(node.value, bool):
            return node.value
        raise self._error(node, "True or False is needed here", "e.g. `sorted=True`")

    def _dtype(self, node: ast.expr) -> type:
        if isinstance(node, ast.Name) and node.id in g.DTYPES:
            return g.DTYPES[node.id]
        raise self._error(node, "dtype is int, bool or float", "e.g. `dtype=bool`")

    def _int32(self, node: ast.expr, value: int) -> int:
        if -g.INT32 <= value < g.INT32:
            return value
        raise self._error(
            node, "this integer does not fit into 32 bits", "positions and lengths are int32"
        )

    # -- refusals ---------------------------------------------------------------------------
    def _piece(self, node: ast.expr) -> str:
        return self.source[node.col_offset : node.end_col_offset]

    def _error(self, node: ast.expr, what: str, fix: str) -> MaskSyntaxError:
        return MaskSyntaxError(what, text=self.source, column=node.col_offset, fix=fix)

    def _refusal(self, node: ast.expr) -> MaskSyntaxError:
        """The error for a node that is outside the grammar."""
        match node:
            case ast.BoolOp(op=op):
                return self._operator(op, node)
            case ast.Name(id=name):
                what = f"`{name}` is not a name of the mask language"
                return self._error(node, what, g.name_fix(name))
            case ast.Attribute(attr=attr):
                fix = (
                    f"write `{attr}` without a prefix" if attr in g.WORDS else "only `x.isin(row)`"
                )
                return self._error(node, "attribute access is not allowed", fix)
        return self._operator(node, node)

    def _operator(self, kind: ast.AST, node: ast.expr) -> MaskSyntaxError:
        """The same for an operator, which has no position of its own."""
        fallback = (f"{type(kind).__name__} is no part of the mask language", g.EXAMPLE)
        return self._error(node, *g.REFUSED.get(type(kind), fallback))

    def _chain(self, node: ast.Compare) -> MaskSyntaxError:
        parts = [node.left, *node.comparators]
        if any(isinstance(part, ast.BinOp) and type(part.op) in g.LOGIC for part in parts):
            what = "`& | ^` bind tighter than comparisons"
            return self._error(node, what, "put parentheses around each: `(k <= q) & (k < 64)`")
        pieces = [
            f"({self._piece(a)} {g.COMPARE.get(type(op), '==')} {self._piece(b)})"
            for a, op, b in zip(parts, node.ops, parts[1:], strict=False)
        ]
        return self._error(node, "a chained comparison is two", f"write `{' & '.join(pieces)}`")
