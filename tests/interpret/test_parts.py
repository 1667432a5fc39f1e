"""Several programs that share out the queries of a tile of keys: gradients, shares, determinism."""

from __future__ import annotations

import itertools
from dataclasses import replace

import checked
import numpy as np
import pytest
import torch

import maskwright as mw
from maskwright import b
from maskwright import k
from maskwright import kv_head
from maskwright import patterns
from maskwright import q
from maskwright import s
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.dsl.errors import LoweringError
from maskwright.runtime import gradient

TOPK = mw.table("topk", ndim=4)
TOKEN = (k <= q) & (k // 16).isin(TOPK[b, kv_head, q])
SMALL = BackwardConfig(KernelConfig(16, 16, 4, 1), KernelConfig(16, 16, 4, 1), parts=3)
PACKED = BackwardConfig(
    KernelConfig(4, 16, 4, 1, heads=4), KernelConfig(4, 16, 4, 1, heads=4), parts=4
)
DOCUMENTS = np.repeat([[0, 1, 2]], [260, 10, 30], axis=1).astype(np.int32)


def lists(length):
    """The first block for all tokens, two others at random."""
    found = np.random.default_rng(0).integers(-1, length // 16 + 1, (1, 2, length, 3))
    found[..., 0] = 0
    return found.astype(np.int32)


def check(mask, q_len, kv_len, backward=SMALL, **options):
    options = {"group": 2, "kv_heads": 1, "backward": backward} | options
    checked.agrees(mask, q_len, kv_len, **options)


@pytest.mark.parametrize("sizes", [(1, 1), (100, 77), (270, 300), (350, 350)])
def test_static_masks(sizes):
    """Tiles of queries: none, fewer than a share, one share and a part of the next, many."""
    check((k <= q) & ((k < 20) | (q - k < 100)), *sizes)


@pytest.mark.parametrize(
    ("mask", "values"),
    [
        (patterns.document(), {"doc_id": DOCUMENTS}),
        (patterns.local_stride(block=16, local_blocks=2, stride=3), {}),
        (mw.by_head([0, 1], [k <= q, (k <= q) & (q - k < 40)]), {}),
        (k <= 4 * q, {}),
        ((k <= q) & (k * q % 3 != 1), {}),
    ],
    ids=["documents", "strides", "heads", "rows", "general"],
)
def test_all_kinds_of_loops(mask, values):
    check(mask, 300, 300, **values)


def test_scores_sinks_and_head_sizes():
    sinks = torch.linspace(-1, 1, 2)
    check(k <= q, 290, 300, score=20.0 * mw.tanh(s / 20.0), sinks=sinks, head_dim=24, value_dim=40)


@pytest.mark.parametrize("group", [8])
def test_lists_of_every_token(group):
    check(TOKEN, 100, 100, PACKED, group=group, kv_heads=2, topk=lists(100))


def test_shares_hold_every_tile_once():
    """From the generated helper: disjoint, in order, complete; few tiles stay together."""
    text = mw.source(k <= q, op="backward", config=SMALL)
    body = text.split("def share_of(tiles, part, member):")[1].split("\n\n")[0]
    for tiles in (0, 1, 15, 16, 17, 48, 49, 1000):
        found = [_share(body, tiles, part, SMALL.parts) for part in range(SMALL.parts)]
        assert found[0][0] == 0
        assert found[-1][1] == tiles
        assert all(mine[1] == other[0] for mine, other in itertools.pairwise(found))
        lengths = [end - first for first, end in found]
        assert lengths[0] >= min(tiles, 16)
        assert max(lengths) == max(-(-tiles // SMALL.parts), min(tiles, 16))


def _share(body, tiles, part, parts):
    class Tl:
        maximum, minimum = staticmethod(max), staticmethod(min)

    values = {"tl": Tl, "tiles": tiles, "part": part, "member": 0}
    values |= {"KEY_PARTS": parts, "KEY_SHARE": 16}
    lines = [x.strip() for x in body.split('"""')[2].splitlines() if x.strip()]
    exec("\n".join(lines[:-1]), values)
    return eval(lines[-1].removeprefix("return "), values)


def test_programs_that_ask_for_a_fixed_order_have_one_part():
    x = torch.randn(1, 2, 300, 16, requires_grad=True)
    attend = mw.compile(k <= q).with_config(SMALL)
    parts = []
    for fixed in (False, True):
        torch.use_deterministic_algorithms(fixed)
        try:
            attend(x, x, x, backend="interpret").sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
        parts.append({kernel.compiled.plan.request.config.parts for kernel in _made(attend)})
    assert parts == [{3}, {1, 3}]


def _made(attend):
    return [x for key, x in gradient._kernels.items() if key[0][2] == attend.configs]


@pytest.mark.parametrize("parts", [0, 65, True, 2.5, "3"])
def test_absurd_numbers_are_refused(parts):
    with pytest.raises(LoweringError, match="parts is an int from 1 to 64"):
        replace(SMALL, parts=parts)
