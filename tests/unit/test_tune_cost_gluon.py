"""The cost model of the Gluon kernels: in the obvious ways; recorded tables are in the replays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from maskwright import k
from maskwright import patterns
from maskwright import q
from maskwright.autotune import table as t
from maskwright.autotune.cost import Work
from maskwright.autotune.cost_gluon import seconds
from maskwright.autotune.filter import Heads
from maskwright.autotune.filter import Limits
from maskwright.autotune.flat import Flat
from maskwright.autotune.seeds import by_cost
from maskwright.autotune.space import Target
from maskwright.codegen.api import call_of
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon_backward import GluonBackwardConfig

FORWARD = GluonConfig(persistent=True)
BACKWARD = GluonBackwardConfig()
TABLES = Path(__file__).parents[1] / "tune" / "tables"


def cost_of(config, mask=k <= q, length=8192, heads=32, head_dim=128):
    call = call_of(mask.node, length, length, 1, heads, heads // 4, None, {})
    return seconds(Work(mask.node, call, Heads(head_dim, head_dim, "bfloat16")))(config)


@pytest.mark.parametrize("config", [FORWARD, BACKWARD], ids=["forward", "backward"])
def test_more_work_takes_longer(config):
    alone = cost_of(config)
    assert 1.6 < cost_of(config, patterns.full()) / alone < 2.1
    assert 3.0 < cost_of(config, length=16384) / alone < 4.1
    assert 1.8 < cost_of(config, heads=64) / alone < 2.1
    assert cost_of(config, (k <= q) & (q - k < 1024)) < 0.4 * alone
    assert cost_of(config, head_dim=64) < alone


@pytest.mark.parametrize("config", [FORWARD, BACKWARD], ids=["forward", "backward"])
def test_partial_tiles_cost_more(config):
    mask = (k <= q) & (q - k < 300)
    assert cost_of(config, mask & (k * 3 + q != 77) & (k * 5 + q != 78)) > cost_of(config, mask)


@pytest.mark.parametrize("config", [FORWARD, BACKWARD], ids=["forward", "backward"])
def test_a_ring_of_one_hides_no_copies(config):
    assert cost_of(replace(config, stages=1)) > 1.3 * cost_of(config)
    assert cost_of(replace(config, stages=3)) == cost_of(config)


def test_half_the_programs_take_twice_as_long():
    assert 1.9 < cost_of(replace(FORWARD, programs=66)) / cost_of(FORWARD) < 2.1


def test_missing_registers_cost():
    assert cost_of(replace(FORWARD, registers=152)) > 2 * cost_of(FORWARD)
    assert cost_of(replace(FORWARD, registers=152), head_dim=64) < 1.7 * cost_of(
        FORWARD, head_dim=64
    )
    assert cost_of(replace(BACKWARD, registers=160)) > 2 * cost_of(BACKWARD)
    kept = replace(FORWARD, query_registers=True, registers=208)
    assert cost_of(kept) > cost_of(replace(kept, query_registers=False))


def test_registers_of_tiles_of_128_queries():
    """As recorded: 224 spill more than 208; heads of 128 do not fit at all."""

    def of(registers, head_dim=64):
        config = replace(BACKWARD, block_m=128, registers=registers)
        return cost_of(config, head_dim=head_dim)

    assert of(240) < of(208) < of(232) < of(224) < of(160)
    assert of(216) in (of(208), of(224))  # between two that are known
    assert of(240, 128) > 2.5 * cost_of(BACKWARD)


def test_without_a_closed_form_nothing_is_counted():
    mask = patterns.vertical_slash()
    call = call_of((k <= q).node, 1024, 1024, 1, 4, 1, None, {})
    assert seconds(Work(mask.node, call, Heads(128, 128, "bfloat16")))(FORWARD) == 0.0


@pytest.fixture(params=["h100_causal_gluon", "h100_causal_backward_gluon"])
def setting(request):
    """(job, space, target, default, times) of a recorded table."""
    table = t.Table.read(TABLES / f"{request.param}.json.gz")
    target = Target(table.key, Limits.of(table.job.mask_node, None))
    return table.job, Flat.of(table.job), target, table.config(table.default), table


def test_its_first_choices_of_the_whole_space(setting):
    """What it cannot tell apart is as the default has it."""
    *where, default, table = setting
    found = by_cost(*where, default)
    assert found[0] == default
    assert table.regret(found[0]) <= 0.02
    tiles = [(x.block_m, x.block_n) for x in found]
    assert len(set(tiles)) == len(tiles)


def test_a_mask_that_refuses_is_not_asked_for_ever(setting):
    *where, default, _ = setting
    asked = []
    found = by_cost(*where, default, lambda x: asked.append(x) or x.block_m != default.block_m)
    assert default.block_m not in {x.block_m for x in found}
    assert 0 < len(asked) <= 50
