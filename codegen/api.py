"""``source``, ``explain`` and ``draw``: the compiler's public functions. No GPU, no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.config import arch_number
from maskwright.codegen.configs import AnyConfig
from maskwright.codegen.explain import Explanation
from maskwright.codegen.explain import explain_call
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon import GluonTemplate
from maskwright.codegen.gluon_backward import GluonBackwardConfig
from maskwright.codegen.gluon_backward import default_gluon_backward
from maskwright.codegen.gluon_plan import gluon_backward_request
from maskwright.codegen.gluon_plan import gluon_request
from maskwright.codegen.pipeline import choose_backward
from maskwright.codegen.pipeline import choose_config
from maskwright.codegen.pipeline import compile_backward
from maskwright.codegen.pipeline import compile_forward
from maskwright.codegen.plan import Request
from maskwright.codegen.plan_backward import BackwardRequest
from maskwright.codegen.tables import read_by_position
from maskwright.codegen.tile import TileShape
from maskwright.codegen.walk import Call
from maskwright.dsl import nodes as n
from maskwright.dsl.errors import LoweringError
from maskwright.dsl.errors import MaskError
from maskwright.dsl.errors import ShapeError
from maskwright.dsl.evaluate import check_bindings
from maskwright.dsl.evaluate import check_sizes
from maskwright.dsl.evaluate import environment
from maskwright.dsl.evaluate import evaluate
from maskwright.dsl.evaluate import grid
from maskwright.dsl.evaluate import mask_node
from maskwright.dsl.expr import Expr
from maskwright.dsl.show import ascii_map
from maskwright.dsl.show import draw_png
from maskwright.dsl.show import tile_classes

DTYPES = ("float16", "bfloat16", "float32")
_LARGEST_DRAWING = 4096
__all__ = ["Explanation", "draw", "explain", "source"]


def source(
    mask: object,
    *,
    op: str = "forward",
    arch: str | None = None,
    dtype: str = "bfloat16",
    head_dim: int = 128,
    config: AnyConfig | None = None,
    value_dim: int | None = None,
    score: object = None,
    sinks: bool = False,
    backend: str = "triton",
) -> str:
    """The generated kernel as the text of a complete module: ``prepare`` and the op's function.

    Args:
        mask: mask expression; None is full attention.
        op: ``forward`` or ``backward``.
        arch: GPU the configuration is chosen for, e.g. ``sm_90`` (default).
        dtype: ``bfloat16``, ``float16`` or ``float32``.
        head_dim, value_dim: sizes of query/key heads and of value heads.
        config: tile sizes and the like; chosen by a heuristic if None. A ``KernelConfig`` for the
            forward, a ``BackwardConfig`` for the backward, a ``GluonConfig`` or a
            ``GluonBackwardConfig`` for Gluon kernels.
        score: score expression over ``mw.s``.
        sinks: the kernel takes one extra logit per query head.
        backend: ``triton``, or ``gluon`` for sm_90.

    Raises:
        LoweringError: for an op, dtype, size or architecture that has no kernel.

    >>> from maskwright import k, q
    >>> "keep = k <= q" in source(k <= q)
    True
    """
    _check_op(op, backend)
    name = _dtype_name(dtype)
    value_dim = head_dim if value_dim is None else value_dim
    for size in (head_dim, value_dim):
        check_head_dim(size)
    node, what = mask_node(mask), (name, head_dim, value_dim, True)
    sizes: dict[str, Any] = {
        "arch": arch or "sm_90",
        "dtype": name,
        "head_dim": head_dim,
        "value_dim": value_dim,
    }
    if backend == "gluon" or isinstance(config, GluonTemplate):
        return _gluon_source(op, node, score_node(score), config, sizes, has_sinks=sinks)
    if op == "backward":
        both = config or choose_backward(node, **sizes)
        if not isinstance(both, BackwardConfig):
            raise LoweringError("the backward has two kernels", fix="give a BackwardConfig")
        return compile_backward(BackwardRequest(node, score_node(score), *what, both)).source
    chosen = config or choose_config(node, **sizes)
    if not isinstance(chosen, KernelConfig):
        raise LoweringError("the forward has one kernel", fix="give a KernelConfig")
    return compile_forward(Request(node, score_node(score), *what, sinks, chosen)).source


def _check_op(op: str, backend: str) -> None:
    if op not in ("forward", "backward"):
        known = "decode kernels are not available in this version"
        raise LoweringError(f"no kernel for op {op!r}", fix=f'use "forward" or "backward"; {known}')
    if backend not in ("triton", "gluon"):
        raise LoweringError(f"no {op} source for backend {backend!r}", fix='backend="triton"')


def _dtype_name(dtype: object) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise LoweringError(f"no kernel for dtype {name}", fix=f"use one of {', '.join(DTYPES)}")
    return name


def _gluon_source(
    op: str,
    mask: n.Node,
    score: n.Node | None,
    config: Any,
    sizes: dict[str, Any],
    *,
    has_sinks: bool,
) -> str:
    arch = sizes.pop("arch")
    if arch_number(arch) != 90:
        raise LoweringError(f"Gluon kernels are for sm_90, not {arch}", fix='backend="triton"')
    wanted = GluonBackwardConfig if op == "backward" else GluonConfig
    if config is not None and not isinstance(config, wanted):
        fix = f"a {wanted.__name__}"
        raise LoweringError("a Gluon kernel has a configuration of its own", fix=fix)
    if op == "backward":
        gradients, reason = gluon_backward_request(
            BackwardRequest(mask, score, inside=True, config=default_gluon_backward(0, 0), **sizes),
            config,
        )
        made = None if reason else compile_backward(gradients).source
    else:
        request, reason = gluon_request(mask, score, has_sinks=has_sinks, config=config, **sizes)
        made = None if reason else compile_forward(request).source
    if made is None:
        raise LoweringError(f"no Gluon kernel: {reason}", fix='use backend="triton"')
    return made


def check_head_dim(size: int) -> None:
    """Head sizes from 1 to 512.

    Raises:
        ShapeError: otherwise.
    """
    if not 1 <= size <= 512:
        raise ShapeError(f"head_dim {size} is not supported", fix="use 1 to 512")


def score_node(score: object) -> n.Node | None:
    """Node of a score expression.

    Raises:
        MaskError: if it is not a number that depends on ``mw.s``.
    """
    if score is None:
        return None
    if not isinstance(score, Expr) or score.dtype == "bool":
        raise MaskError("score= takes a number", expression=score, fix="e.g. mw.s + slope[h] * k")
    if n.SCORE not in n.symbols(score.node):
        raise MaskError("a score expression depends on mw.s", expression=score)
    return score.node


def explain(
    mask: object,
    q_len: int,
    kv_len: int | None = None,
    *,
    batch: int = 1,
    heads: int = 1,
    kv_heads: int | None = None,
    q_offset: int | None = None,
    head_dim: int = 128,
    tile: tuple[int, int] | None = None,
    arch: str = "sm_90",
    **bindings: Any,
) -> Explanation:
    """Loop bounds, tiles, pairs and FLOPs of a mask, exact at any length.

    Args:
        mask: mask expression; None is full attention.
        q_len, kv_len, batch, heads, kv_heads, q_offset: sizes, as in ``to_dense``.
        head_dim: for the FLOPs: 4 * pairs * head_dim.
        tile: (queries, keys) of a tile; by default the heuristic's for ``arch``.
        bindings: params and tables by name.

    >>> from maskwright import k, q
    >>> explain(k <= q, q_len=1_048_576).to_dict()["pairs"]
    549756338176
    """
    node = mask_node(mask)
    call = call_of(node, q_len, kv_len, batch, heads, kv_heads, q_offset, bindings)
    if tile is None:
        config = choose_config(
            node, arch=arch, dtype="bfloat16", head_dim=head_dim, value_dim=head_dim, q_len=q_len
        )
        tile = (config.block_m, config.block_n)
    if min(tile) < 1:
        raise ShapeError(f"a tile has at least one query and one key, not {tile}", fix="(128, 64)")
    shape = TileShape(*tile, inside=inside(node, call))
    sizes = {"dtype": "bfloat16", "head_dim": head_dim, "value_dim": head_dim}
    _, reason = gluon_request(node, None, inside=shape.inside, **sizes)
    notes = (f"no Gluon kernel: {reason}",) if reason and arch_number(arch) == 90 else ()
    return explain_call(node, call, shape, head_dim, notes)


def call_of(
    node: n.Node,
    q_len: int,
    kv_len: int | None,
    batch: int,
    heads: int,
    kv_heads: int | None,
    q_offset: int | None,
    bindings: dict[str, Any],
) -> Call:
    """Checked sizes and runtime values."""
    kv_len = q_len if kv_len is None else kv_len
    kv_heads = heads if kv_heads is None else kv_heads
    check_sizes(q_len, kv_len, batch, heads, kv_heads, q_offset)
    check_bindings([node], bindings, Expr(node))
    values = environment(node, q_len, kv_len, heads, max(kv_heads, 1), bindings)
    offset = kv_len - q_len if q_offset is None else q_offset
    return Call(q_len, kv_len, offset, batch, heads, max(kv_heads, 1), values)


def inside(node: n.Node, call: Call) -> bool:
    """Positions lie in [0, kv_len) and sorted tables are read inside (see TileShape)."""
    lengths = [call.values[t.name].shape[-1] for t in n.tables(node) if t.sorted]
    long_enough = all(length >= call.kv_len for length in lengths)
    return call.inside and long_enough and read_by_position(node)


def draw(
    mask: object,
    q_len: int,
    kv_len: int | None = None,
    *,
    path: str | Path | None = None,
    batch: int = 1,
    heads: int = 1,
    kv_heads: int | None = None,
    q_offset: int | None = None,
    tile: tuple[int, int] = (64, 64),
    at: tuple[int, int] = (0, 0),
    **bindings: Any,
) -> str:
    """Picture of a mask and its tile map: a PNG or SVG at ``path``, or text.

    Args:
        tile: (queries, keys) of a tile.
        at: (batch entry, head) to draw.

    Returns:
        The path, or the text if no path is given.
    """
    node = mask_node(mask)
    call = call_of(node, q_len, kv_len, batch, heads, kv_heads, q_offset, bindings)
    if max(call.q_len, call.kv_len) > _LARGEST_DRAWING:
        raise ShapeError(
            f"a drawing shows at most {_LARGEST_DRAWING} positions",
            fix="draw a shorter sequence; explain() works at any length",
        )
    if not (0 <= at[0] < call.batch and 0 <= at[1] < call.heads):
        raise ShapeError(
            f"there is no batch entry and head {at}", fix="at=(0, 0), or give batch= and heads="
        )
    env = dict(call.values) | {"q_len": call.q_len, "kv_len": call.kv_len}
    env |= grid(
        np.arange(call.q_len) + call.q_offset,
        np.arange(call.kv_len),
        call.batch,
        call.heads,
        call.kv_heads,
    )
    shape = (call.batch, call.heads, call.q_len, call.kv_len)
    dense = np.broadcast_to(evaluate(node, env), shape)[at]
    tiles = tile_classes(dense, tile)
    if path is None:
        return ascii_map(tiles)
    draw_png(dense, tiles, tile, path, str(Expr(node)))
    return str(path)
