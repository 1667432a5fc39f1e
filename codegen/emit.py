"""Expressions to Triton text, each part at the outermost loop level where it can be computed.

Levels: ``program`` (scalars), ``row`` (a column of the positions that stay, before the loops) and
``tile`` (inside a loop). A part of an outer level that an inner one uses becomes a variable of its level.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field
from typing import Literal
from typing import TypeAlias

from maskwright.codegen.algebra import linear
from maskwright.codegen.algebra import to_node
from maskwright.codegen.prove import Prover
from maskwright.codegen.taken import TAKEN
from maskwright.dsl import nodes as n
from maskwright.dsl.expr import Expr

Library: TypeAlias = Literal["tl", "gl"]

PROGRAM, ROW, TILE = 0, 1, 2
_FLIP = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_OUTSIDE = {"int": "-1", "bool": "0", "float": "0.0"}


# Families of names: of the templates, what the compiler numbers, and what belongs to a table.
_FAMILIES = re.compile(
    r"(stride|grad|partial|full|visit|row|query|key|value|lane|first|start|k|lse|delta|list"
    r"|acc|all|consumer|gl|out|scores|sum|weights|bit|bits|col|diag|gather|listed)_\w*"
    r"|(partial|full|visit|gather|near)\d+_\w+|(c|t|row|sum|bound)\d+|[A-Z][A-Z0-9_]*"
    r"|(every|some|mine)_\d+|mark_\d+_kernel"
    r"|\w+_((size|stride)\d+|sorted|steps|head)|\w*_"
)


def safe_name(name: str) -> str:
    """The kernel's spelling of a runtime value's name; different for different names."""
    return f"{name}_" if name in TAKEN or _FAMILIES.fullmatch(name) else name


def _is_position(node: n.Node) -> bool:
    return n.dtype_of(node) == "int" and bool(n.symbols(node) & {"q", "k"})


@dataclass
class Emitter:
    """Collects statements by level while it prints expressions.

    Args:
        prover: facts that make a plain ``//`` a floor division.
        search_steps: searches are emitted (in the bounds kernel; elsewhere they are loaded).
        names: text of nodes that the surrounding code already provides.
        walked: the position that changes inside a loop; ``q`` if keys stay.
        library: ``tl`` in a Triton kernel, ``gl`` in a Gluon kernel.
    """

    prover: Prover
    search_steps: bool = False
    names: dict[n.Node, str] = field(default_factory=dict)
    walked: str = "k"
    library: Library = "tl"
    lines: tuple[list[str], list[str], list[str]] = field(default_factory=lambda: ([], [], []))
    helpers: set[str] = field(default_factory=set)
    uses: Counter[n.Node] = field(default_factory=Counter)
    serial: int = 0

    @property
    def tile(self) -> str:
        """Name of the tile that a loop is at."""
        return "tile_n" if self.walked == "k" else "tile_m"

    def helper(self, name: str) -> str:
        """Name of a device function that the module will define."""
        self.helpers.add(name)
        return name if self.library == "tl" else f"gl_{name}"

    def level_of(self, node: n.Node) -> int:
        """The outermost level at which a node can be computed."""
        found = n.symbols(node)
        if found & {self.walked, n.SCORE}:
            return TILE
        return ROW if found & {"q", "k"} else PROGRAM

    def count_uses(self, roots: Iterable[n.Node]) -> None:
        """Parts used more than once become variables: call before emitting the roots."""
        seen: set[n.Node] = set()
        stack = list(roots)
        self.uses.update(stack)
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            parts = n.children(node)
            self.uses.update(parts)
            stack += parts

    def named(self, node: n.Node, hint: str) -> str:
        """Emit ``node`` into a variable called ``hint``."""
        if node in self.names:
            return self.names[node]
        if isinstance(node, n.Const):
            return self._text(node)
        text = _bare(self._text(node))
        self.lines[self.level_of(node)].append(f"{hint} = {text}")
        self.names[node] = hint
        return hint

    def emit(self, node: n.Node, at: int) -> str:
        """Text of ``node`` for use at level ``at``."""
        if node in self.names:
            return self.names[node]
        if isinstance(node, (n.Const, n.Sym, n.Param, n.Extent)):
            return self._text(node)
        own = self.level_of(node)
        if own < at or self.uses[node] > 1:
            return self.named(node, self._fresh(node, own))
        return self._text(node)

    def _fresh(self, node: n.Node, level: int) -> str:
        self.serial += 1
        kind = {PROGRAM: "c", ROW: "row", TILE: "t"}[level]
        if isinstance(node, n.Read):
            return f"{node.table.name}_{kind}{self.serial}"
        return f"{kind}{self.serial}"

    # -- one node -------------------------------------------------------------------------------
    def _text(self, node: n.Node) -> str:
        at = self.level_of(node)
        match node:
            case n.Const(value):
                return repr(value) if not isinstance(value, float) else f"({value!r})"
            case n.Sym(name):
                return "scores" if name == n.SCORE else name
            case n.Param(name):
                return safe_name(name)
            case n.Extent(table, axis):
                return f"{safe_name(table.name)}_size{axis}"
            case n.Arith(op, a, b):
                return self._arith(op, a, b, at)
            case n.Compare(op, a, b):
                return self._compare(op, a, b, at)
            case n.Logic(op, a, b):
                return f"({self.emit(a, at)} {op} {self.emit(b, at)})"
            case n.Not(a):
                return f"({self.emit(a, at)} == 0)"
            case n.Where(c, a, b):
                parts = ", ".join(self.emit(x, at) for x in (c, a, b))
                return f"{self.library}.where({parts})"
            case n.Call(name, a):
                return self._call(name, self.emit(a, at))
            case n.Read(table, index):
                return self._read(table, index, at)
            case n.Member(value, row, run):
                return self._member(value, row, run, at)
            case n.ByHead(kinds, masks):
                return self._by_head(kinds, masks, at)
            case n.Search(table, prefix, value) if self.search_steps:
                return self._search(table, prefix, value)
        msg = f"no kernel text for {Expr(node)}"
        raise TypeError(msg)

    def _arith(self, op: str, a: n.Node, b: n.Node, at: int) -> str:
        if op in ("//", "%"):
            return self._division(op, a, b, at)
        x, y = self.emit(a, at), self.emit(b, at)
        match op:
            case "min" | "max":
                return f"{self.library}.{op}imum({x}, {y})"
            case "-" if a is n.Const(0):
                return f"(-{y})"
            case "*" if _is_position(a) and _is_position(b):
                return (
                    f"({x}.to({self.library}.int64) * {y})"  # a product of positions leaves int32
                )
        return f"({x} {op} {y})"

    def _division(self, op: str, a: n.Node, b: n.Node, at: int) -> str:
        """Floor division and remainder; Triton's own truncate for negative numerators."""
        x, y = self.emit(a, at), self.emit(b, at)
        match b:
            case n.Const(int(size)) if size > 0 and size & (size - 1) == 0:
                # Shifts and masks of two's complement floor for either sign.
                shift = size.bit_length() - 1
                return f"({x} >> {shift})" if op == "//" else f"({x} & {size - 1})"
            case n.Const(int(size)) if size > 0 and self.prover.nonnegative(linear(a)):
                return f"({x} {op} {y})"
        divide = self.helper("floor_divide")
        return f"{divide if op == '//' else self.helper('floor_modulo')}({x}, {y})"

    def _compare(self, op: str, a: n.Node, b: n.Node, at: int) -> str:
        """What is walked over on the left, the rest on the right: one comparison an element."""
        if n.dtype_of(a) == n.dtype_of(b) == "int" and at == TILE:
            stays = "q" if self.walked == "k" else "k"
            moves, rest = linear(n.Arith("-", a, b)).split(self.walked)
            separable = moves.terms and not any(stays in n.symbols(t) for t, _ in moves.terms)
            if separable and stays in n.symbols(n.Compare("<", a, b)):
                if moves.terms[0][1] < 0:
                    moves, rest, op = moves.scale(-1), rest.scale(-1), _FLIP[op]
                a, b = to_node(moves), to_node(rest.scale(-1))
        return f"({self.emit(a, at)} {op} {self.emit(b, at)})"

    def _call(self, name: str, x: str) -> str:
        match name, self.library:
            case ("abs" | "exp" | "log", _) | ("sigmoid", "tl"):
                return f"{self.library}.{name}({x})"
        return f"{self.helper(name)}({x})"

    def _read(self, table: n.Table, index: tuple[n.Node, ...], at: int) -> str:
        pointer, inside = self.address(table, index, at)
        text = f"{self.library}.load({pointer}, mask={inside}, other={_OUTSIDE[table.dtype]})"
        return f"({text} != 0)" if table.dtype == "bool" else text

    def address(self, table: n.Table, index: tuple[n.Node, ...], at: int) -> tuple[str, str]:
        """(pointer, condition that it lies inside the tensor)."""
        name = safe_name(table.name)
        offsets, checks = [name], []
        for axis, i in enumerate(index):
            text = self.emit(i, at)
            offsets.append(f"{text} * {name}_stride{axis}")
            if not self.prover.nonnegative(linear(i)):
                checks.append(f"({text} >= 0)")
            checks.append(f"({text} < {name}_size{axis})")
        # `!= 0`: a scalar condition and a block of them make integers in newer interpreters.
        inside = checks[0] if len(checks) == 1 else f"({' & '.join(checks)}) != 0"
        return " + ".join(offsets), inside

    def _member(self, value: n.Node, row: n.Read, run: int, at: int) -> str:
        member = self.helper("is_member" if run == 1 else "in_run")
        name = safe_name(row.table.name)
        axis = len(row.index)
        parts, checks = ["0"], []
        for i, node in enumerate(row.index):
            text = self.emit(node, at)
            parts = [f"({' + '.join(parts)} + {text}) * {name}_size{i + 1}"]
            checks += [f"({text} >= 0)", f"({text} < {name}_size{i})"]
        inside = " & ".join(checks) or "True"
        start, size = parts[0], f"{name}_size{axis}"
        text = f"{self.emit(value, at)}, {name}_sorted, {start}, {size}, {name}_steps, {inside}"
        return f"{member}({text})" if run == 1 else f"{member}({text}, {run})"

    def _search(self, table: n.Table, prefix: tuple[n.Node, ...], value: n.Node) -> str:
        search = self.helper("count_below")
        name, axis = safe_name(table.name), table.ndim - 1
        if prefix:
            pointer, inside = self.address(table, prefix, PROGRAM)
        else:
            pointer, inside = name, "True"
        length = f"{self.library}.minimum({name}_size{axis}, kv_len)"
        target = self.emit(value, PROGRAM)
        return (
            f"{search}({pointer}, {name}_stride{axis}, {length}, {target}, search_steps, {inside})"
        )

    def _by_head(self, kinds: tuple[int, ...] | n.Table, masks: tuple[n.Node, ...], at: int) -> str:
        from maskwright.codegen.normal import kind_is

        chosen = [
            f"({self.emit(kind_is(kinds, i), at)} & {self.emit(mask, at)})"
            for i, mask in enumerate(masks)
        ]
        return f"({' | '.join(chosen)})"


def _bare(text: str) -> str:
    """``text`` without a pair of parentheses around all of it."""
    if not text.startswith("("):
        return text
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return text[1:-1] if i == len(text) - 1 else text
    return text
