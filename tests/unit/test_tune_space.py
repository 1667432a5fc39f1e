"""The search space: only points that can be, defaults among them, sizes that add up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maskwright.autotune import space as s
from maskwright.autotune.entry import CONFIGS
from maskwright.autotune.filter import Limits
from maskwright.autotune.filter import unfit
from maskwright.autotune.key import Bucket
from maskwright.autotune.key import Hardware
from maskwright.codegen.config import SHARED_KIB
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.config import default_backward
from maskwright.codegen.config import default_config
from maskwright.codegen.gluon import default_gluon
from maskwright.codegen.gluon import listed_gluon
from maskwright.codegen.gluon_backward import default_gluon_backward

ARCHES = (80, 86, 89, 90, 100, 120)
SPACES = (s.FORWARD, *s.BACKWARD.values(), s.GLUON, s.GLUON_BACKWARD)


@pytest.fixture
def target(make_entry):
    def made(number=90, size=128, granule=None, **changes):
        gpu = Hardware(f"sm_{number}", f"sm_{number}", 100, SHARED_KIB[number] * 1024, 0)
        changes = {"hardware": gpu, "head_dim": size, "value_dim": size} | changes
        template = changes.get("template", "triton")
        config = CONFIGS[changes.get("op", "forward"), template]()
        return s.Target(make_entry(config=config, **changes).key, Limits(granule))

    return made


@pytest.mark.parametrize("space", SPACES, ids=lambda x: x.name)
def test_points_pass_every_rule_and_the_report_counts_them(target, space):
    where = target()
    points = list(space.points(where))
    report = space.report(where)
    assert len(points) == len(set(points)) == report.left
    assert report.raw == report.left + sum(report.removed.values())
    assert all(s._holds(space, point, where) for point in points)
    assert f"{report.left:,}  points" in str(report)


def test_sizes(target):
    """What docs/autotune.md says, for heads of 128 on sm_90."""
    where = target()
    left = {x.name: (x.report(where).raw, x.report(where).left) for x in SPACES}
    assert left == {
        "forward triton": (750, 520),
        "backward triton, queries": (256, 244),
        "backward triton, keys": (256, 244),
        "forward gluon_sm90": (57600, 10800),
        "backward gluon_sm90": (384, 108),
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("number", ARCHES)
def test_the_defaults_fit_everywhere(target, number, size, dtype):
    """The heuristic's configurations are points: a search never starts outside its space."""
    where = target(number, size, dtype=dtype)
    options = {"arch": f"sm_{number}", "head_dim": size, "dtype": dtype}
    forward, backward = default_config(**options), default_backward(**options)
    assert unfit(forward, where.key) == ""
    assert s.contains(forward, where)
    where = target(number, size, dtype=dtype, op="backward")
    assert unfit(backward, where.key) == ""
    assert s.contains(backward, where)


def test_gluon_defaults_are_points(target):
    for size in (64, 128):
        where = target(90, size, template="gluon_sm90")
        assert s.contains(default_gluon(size, size), where)
        assert s.contains(listed_gluon(size, size), where)
        where = target(90, size, template="gluon_sm90", op="backward")
        assert s.contains(default_gluon_backward(size, size), where)
    assert not list(s.GLUON.points(target(100, template="gluon_sm90")))


def test_what_rules_keep_out(target):
    bulk = KernelConfig(64, 64, 4, 2, "descriptor")
    assert s.contains(bulk, target())
    assert not s.contains(bulk, target(80))
    assert not s.contains(bulk, target(aligned=False))
    assert not s.contains(bulk, target(dtype="float32"))
    assert not s.contains(bulk, target(granule=96))
    assert not s.contains(bulk, target(bucket=Bucket(5, 13, 6, "half")))
    assert not s.contains(KernelConfig(16, 16, 16, 1), target())
    assert not s.contains(KernelConfig(32, 32, 4, 7), target())


def test_backward_pairs_load_alike_and_fit(target):
    where = target(80, op="backward")
    found = list(s.backward_points(where))
    assert found
    assert all(isinstance(x, BackwardConfig) and x.queries.loads == "pointer" for x in found)
    assert all(not unfit(x, where.key) for x in found[::97])


def test_neighbours_are_steps_of_a_knob():
    knob = s.FORWARD.knobs[0]
    assert knob.neighbours(16) == (32,)
    assert knob.neighbours(64) == (32, 128)


def test_another_space_has_another_hash():
    hashes = {space.digest for space in SPACES}
    assert len(hashes) == len(SPACES)
    smaller = replace(s.FORWARD, knobs=s.FORWARD.knobs[:-1])
    assert smaller.digest != s.FORWARD.digest
