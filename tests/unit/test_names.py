"""A user may give a param or a table any name: none of the generated code uses it otherwise."""

from __future__ import annotations

import ast

import pytest

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import q
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.emit import safe_name
from maskwright.codegen.gluon import GluonConfig
from maskwright.dsl import nodes as n
from maskwright.dsl.symbols import RESERVED

SAMPLES = (
    (k <= q) & (q - k < mw.param("p", min=1)),
    mw.patterns.document(),
    mw.patterns.vertical_slash(),
    mw.patterns.local_stride(block=64, local_blocks=2, stride=4),
    mw.patterns.block_list(64, 32),
    (k // 64).isin(mw.table("pages", ndim=2)[b]),
    mw.patterns.vertical_slash(tiled=64) & (k // 16).isin(mw.table("pages", ndim=2)[b], run=3),
)
KEPT = mw.table("kept", ndim=3, dtype=bool)[h, q // 64, k // 64]  # a list of tiles
# Searches for every pair.
SEARCHED = ~(k // 64).isin(mw.table("found", ndim=3)[b, h])
IN_RUN = ~(k // 64).isin(mw.table("found", ndim=3)[b, h], run=2)
TILED = mw.patterns.vertical_slash(tiled=64)
BLOCKS = mw.patterns.block_list(64, 64)
FOLLOWED = (SAMPLES[2], TILED, BLOCKS, *SAMPLES[4:])
SEVERAL = GluonConfig(block_n=64, persistent=True, pingpong=True, bulk_store=True)
TOGETHER = KernelConfig(16, 64, 4, 2, heads=4)
SHARED = {"op": "backward", "config": BackwardConfig(TOGETHER, TOGETHER, parts=3)}
KINDS = (
    *({"op": "forward"}, {"op": "backward"}, {"backend": "gluon"}),
    {"backend": "gluon", "config": SEVERAL},
    SHARED,
)


def used(source: str) -> set[str]:
    """Names that generated code stores, takes as an argument, or defines."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                found.add(name)
            case ast.FunctionDef(name=name):
                found.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                found.update(x.asname or x.name.split(".")[-1] for x in names)
    return found


def served(mask: mw.Expr, kind: dict[str, object]) -> bool:
    """Gluon kernels follow lists of blocks for many queries and of columns, with tiles of their own."""
    if kind is SHARED:  # heads of a tile have one mask
        return "h" not in n.symbols(mask.node)
    if not any(mask is x for x in FOLLOWED):
        return True
    return "backend" not in kind or (any(mask is x for x in FOLLOWED[:3]) and "config" not in kind)


NAMES = sorted(
    {
        name
        for mask in (*SAMPLES, KEPT, SEARCHED, IN_RUN, TILED, BLOCKS)
        for kind in KINDS
        if served(mask, kind)
        for name in used(mw.source(mask, **kind))
    }
    - RESERVED
)


def clashes(source: str, name: str) -> list[str]:
    """Functions that take a user's value and use its name for something else, too."""
    found = []
    module = {
        x.name if isinstance(x, ast.FunctionDef) else x.targets[0].id
        for x in ast.parse(source).body
        if isinstance(x, ast.FunctionDef)
        or (isinstance(x, ast.Assign) and isinstance(x.targets[0], ast.Name))
    }
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        stored = {
            x.id
            for x in ast.walk(function)
            if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)
        }
        taken = [x.arg for x in (*function.args.args, *function.args.kwonlyargs)]
        if len(set(taken)) < len(taken) or name in (stored | module) & set(taken):
            found.append(function.name)
    return found


GIVEN = [x for x in NAMES if not x.startswith("_") and x.isascii()]
# Spelled differently, as nothing else is: these three stand for all of them.
RENAMED = [x for x in GIVEN if safe_name(x) not in NAMES]
KEPT_NAMES = [x for x in GIVEN if x not in RENAMED]


def test_most_names_of_the_templates_are_spelled_differently() -> None:
    assert len(RENAMED) > 8 * len(KEPT_NAMES)
    assert not any(x[0] in "ct" and x[1:].isdigit() for x in KEPT_NAMES)
    assert not {safe_name(x) for x in RENAMED} & RESERVED


@pytest.mark.parametrize("name", [*KEPT_NAMES, "turns", "lane", "arguments"])
def test_no_name_of_the_templates_is_in_the_way(name: str) -> None:
    spelled = safe_name(name)
    param = (k <= q) & (q - k < mw.param(name, min=1))
    table = (k <= q) & (mw.table(name, ndim=2, sorted=True)[b, q] == 1)
    for mask, kinds in ((param, KINDS), (table, KINDS[:3])):
        for kind in kinds:
            source = mw.source(mask, **kind)
            compile(source, name, "exec")
            assert clashes(source, spelled) == []
    score = mw.s + mw.table(name, dtype=float)[h]
    for kind in KINDS[:3]:
        compile(mw.source(k <= q, score=score, **kind), name, "exec")
    for listed, kinds in ((SAMPLES[2], KINDS[:3]), (TILED, KINDS[:1]), (BLOCKS, KINDS[:3])):
        own = ("s_idx", "v_idx", "block_idx")
        for kind in kinds if name not in own else ():
            source = mw.source(listed & (k >= mw.param(name)), **kind)
            compile(source, name, "exec")
            assert clashes(source, spelled) == []


def test_different_names_stay_different() -> None:
    names = ["delta", "delta_", "delta__", "window", "window_", "c1", "c1_"]
    assert len({safe_name(x) for x in names}) == len(names)
