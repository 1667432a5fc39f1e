"""Recording a table: every configuration, failures too, a fair part of it when time is short."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maskwright.autotune.exhaustive import Plan
from maskwright.autotune.exhaustive import record
from maskwright.autotune.flat import Flat
from maskwright.autotune.outcome import NoCompiler
from maskwright.autotune.outcome import Outcome
from maskwright.autotune.space import Target
from maskwright.autotune.table import TableDevice
from maskwright.dsl.errors import TuningError


@pytest.fixture
def setting(make_table):
    """(table that plays the GPU, its points, builds)."""
    table = make_table()
    points = tuple(Flat("forward", "triton").points(Target(table.key)))
    return table, points, {x: row.build for x, row in table.by_config.items()}


def recorded(setting, plan, device=None, **options):
    table, _, builds = setting
    device = device or TableDevice(table)
    return record(table.job, plan, device.start(), device, NoCompiler(builds), **options)


def test_a_table_of_everything(setting):
    table, points, _ = setting
    found = recorded(setting, Plan(points, 1e9, rounds=5))
    assert len(found.rows) == len(points) == found.points
    failed = [x for x, row in found.by_config.items() if not row.ratio]
    assert failed
    assert {found.by_config[x].status for x in failed} == {"compile"}
    timed = [row for row in found.rows if row.ratio]
    assert {len(row.ratio) for row in timed} == {5}
    assert found.regret(found.best) == 0.0
    assert table.regret(found.best) <= 0.03
    default = found.by_config[found.config(found.default)]
    assert default.median == pytest.approx(1.0)
    assert default.ms


def test_a_sample_holds_the_default(setting):
    _, points, _ = setting
    found = recorded(setting, Plan(points, 1e9, sample=40, rounds=2))
    assert len(found.rows) == 40
    assert found.points == len(points)
    assert found.config(found.default) in found.by_config
    other = recorded(setting, Plan(points, 1e9, sample=40, rounds=2, seed=1))
    assert set(found.by_config) != set(other.by_config)


def test_a_sample_has_what_the_mask_accepts(setting):
    _, points, _ = setting
    small = {x for x in points if x.block_n < 64}
    found = recorded(setting, Plan(points, 1e9, sample=20, rounds=2, accept=small.__contains__))
    assert len(found.rows) == 20
    assert set(found.by_config) - {found.config(found.default)} < small


def test_a_table_is_gone_on_with(setting):
    _, points, _ = setting
    first = recorded(setting, Plan(points, 1e9, sample=30, rounds=2))
    second = recorded(setting, Plan(points, 1e9, sample=30, rounds=3, known=first))
    assert all(second.by_config[x] == row for x, row in first.by_config.items())
    assert len(second.rows) == 59  # the default was there
    other = replace(first, job=replace(first.job, heads=8))
    with pytest.raises(TuningError, match="for something else"):
        recorded(setting, Plan(points, 1e9, known=other))


def test_time_that_is_up_leaves_a_part(setting):
    _, points, _ = setting
    now = [0.0]

    def clock():
        now[0] += 0.01
        return now[0]

    found = recorded(setting, Plan(points, 12.0), clock=clock)
    assert 10 <= len(found.rows) < len(points)
    assert now[0] < 13.0
    assert all(row.ratio or row.status != "ok" for row in found.rows)


class Faulty(TableDevice):
    """Interrupted at some point, or at fault itself."""

    after = 20
    error: BaseException = KeyboardInterrupt()
    count = 0

    def measure(self, config, best):
        self.count += 1
        if self.count > self.after and (self.count == self.after + 1 or not self.resumes):
            raise self.error
        return super().measure(config, best)

    resumes = False


def test_an_interrupt_keeps_what_there_is(setting):
    table, points, _ = setting
    found = recorded(setting, Plan(points, 1e9), Faulty(table))
    assert len(found.rows) >= 20
    assert all(len(row.ratio) <= 1 for row in found.rows)


def test_one_mistake_of_ours_is_one_row(setting):
    table, points, _ = setting
    device = Faulty(table)
    device.error, device.resumes = TuningError("ours"), True
    found = recorded(setting, Plan(points, 1e9, rounds=1), device)
    assert [row.message for row in found.rows if row.status == "harness"] == ["ours"]
    assert Outcome("harness").measured is False
