"""The order of a persistent grid's items, and for which masks a counter hands them out instead."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import maskwright as mw
from maskwright.codegen import balance
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon_plan import gluon_request
from maskwright.codegen.walk import Call
from maskwright.dsl import nodes as n
from maskwright.patterns import catalog

PERSISTENT = GluonConfig(persistent=True)


LINES = "\n".join(
    line.strip()
    for line in mw.source(mw.patterns.causal(), backend="gluon").splitlines()
    if line.strip().startswith(("item = lap", "section_id =", "place =", "tile_m =", "head = sec"))
)


class Gl:
    """What the lines of the kernel need."""

    where = staticmethod(lambda condition, yes, no: yes if condition else no)


def item_of(lap, program, programs, tiles, heads, section):
    """(number, head, tile of queries) by the lines of the generated kernel, the consumer's first."""
    names = {"lap": lap, "program": program, "programs": programs, "tiles": tiles}
    names |= {"section": section, "sections": heads // section, "gl": Gl}
    exec(LINES[: LINES.index("\n", LINES.index("head = ")) + 1], names)
    return names["item"], names["head"], names["tile_m"]


@pytest.mark.parametrize("section", [2, 3, 6])
def test_the_order_is_that_of_the_kernel(section):
    costs = np.random.default_rng(section).random((6, 5))
    programs, laps = 4, 8  # 30 items: the last lap has two
    own = np.zeros(programs)
    order = {}
    for lap, program in itertools.product(range(laps), range(programs)):
        number, head, tile = item_of(lap, program, programs, 5, 6, section)
        if number < 30:
            order[number] = costs[head, tile]
            own[program] += order[number]
    items = balance.in_order(costs, section)
    assert items.tolist() == [order[x] for x in range(30)]
    assert balance.in_turn(items, programs) == pytest.approx(own.max())


def test_as_free():
    assert balance.as_free([4, 1, 1, 1, 1], 2) == 4
    assert balance.as_free([1, 1, 1, 1, 4], 2) == 6
    assert balance.as_free([3], 5) == 3


@pytest.mark.parametrize(
    ("seq", "kv_heads", "expected"), [(8192, 8, 32), (8192, 32, 8), (32768, 8, 8), (1 << 20, 8, 4)]
)
def test_sections(seq, kv_heads, expected):
    """32 MiB hold keys and values of 64K tokens with 128 columns each."""
    call = Call(seq, seq, 0, 1, 32, kv_heads, {})
    assert balance.section(call, PERSISTENT, 256) == expected


# Measured on an H100, docs/hopper-log.md, version 18: those that gain more than it costs.
COUNTED = {"tri_shape", "shifted_group", "local_stride_query"}


@pytest.mark.parametrize(
    "entry", catalog.entries("paper", heads=32, kv_heads=8), ids=lambda x: x.name
)
def test_who_gets_a_counter(entry):
    request, _ = gluon_request(entry.mask.node, None, dtype="bfloat16", head_dim=128, value_dim=128)
    assert request.config.counter == (bool(n.tables(entry.mask.node)) or entry.name in COUNTED)


@pytest.mark.parametrize("heads", [5, 13, 32, 40])
def test_heads_of_a_mask_are_its_own(heads):
    """No head is asked for that the mask does not name."""
    even, uneven = mw.patterns.causal(), mw.patterns.tri_shape(128, 2048, 128)

    def wants(mask):
        return balance.wants_counter(mask.node, PERSISTENT, 128, 128)

    # 13 heads make 832 items: six laps, and a third of one, which the fixed order gives to the first.
    assert wants(mw.by_head([0] * heads, [even, uneven])) == (heads == 13)
    assert wants(mw.by_head([1] * heads, [even, uneven]))


def test_what_decides_late_is_not_guessed():
    sizes = mw.patterns.a_shape(mw.param("sink", min=0), mw.param("window", min=1))
    assert not balance.wants_counter(sizes.node, PERSISTENT, 128, 128)
    assert balance.wants_counter(mw.patterns.document().node, PERSISTENT, 128, 128)
