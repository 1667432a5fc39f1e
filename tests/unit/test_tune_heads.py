"""Heads that share a tile, and parts of the backward, as knobs: for which masks, which points."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from dataclasses import replace

import pytest

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import kv_head
from maskwright import q
from maskwright import s
from maskwright.autotune import space as spaces
from maskwright.autotune.chance import proposer_of
from maskwright.autotune.commands import config_text
from maskwright.autotune.entry import Checks
from maskwright.autotune.entry import Entry
from maskwright.autotune.filter import Limits
from maskwright.autotune.filter import unfit
from maskwright.autotune.flat import Flat
from maskwright.autotune.job import Job
from maskwright.autotune.key import Hardware
from maskwright.autotune.outcome import NoCompiler
from maskwright.autotune.outcome import Outcome
from maskwright.autotune.outcome import Race
from maskwright.autotune.search import Budget
from maskwright.autotune.search import Study
from maskwright.autotune.search import search
from maskwright.autotune.seeds import seeds
from maskwright.codegen.config import SHARED_KIB
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.pipeline import choose_backward
from maskwright.codegen.pipeline import choose_config

TOPK = mw.table("topk", ndim=4)
TOKEN = (k <= q) & (k // 64).isin(TOPK[b, kv_head, q])
SLOPES = mw.table("slopes", ndim=1, dtype=float)
OPS = ("forward", "backward")
PACKED = BackwardConfig(KernelConfig(4, 64, 4, 2, heads=16), KernelConfig(2, 64, 4, 2, heads=16), 4)


@dataclass(frozen=True)
class Case:
    """A kernel of a mask, as the tuner sees it."""

    job: Job
    target: spaces.Target
    default: KernelConfig | BackwardConfig

    @property
    def flat(self):
        return Flat.of(self.job)


@pytest.fixture
def case(make_entry):
    def made(op="forward", group=16, size=128, number=90, mask=TOKEN, score=None):
        sizes = {"op": op, "dtype": "bfloat16", "head_dim": size, "value_dim": size}
        lengths = {"q_len": 8192, "kv_len": 8192, "q_offset": 0}
        counts = {"batch": 1, "heads": 2 * group, "kv_heads": 2}
        job = Job.of(mask, score, {}, None, backend="triton", **sizes, **lengths, **counts)
        gpu = Hardware(f"sm_{number}", f"sm_{number}", 100, SHARED_KIB[number] * 1024, 0)
        choose = choose_config if op == "forward" else choose_backward
        what = {name: x for name, x in sizes.items() if name != "op"}
        what |= {"score": job.score_node, "arch": f"sm_{number}", "group": group}
        default = choose(job.mask_node, **what)
        key = make_entry(mask, config=default, hardware=gpu, group=group, **sizes).key
        target = spaces.Target(key, Limits.of(job.mask_node, job.score_node))
        return Case(job, target, default)

    return made


def kernels(config):
    return (config.queries, config.keys) if isinstance(config, BackwardConfig) else (config,)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("mask", "score"),
    [
        (k <= q, None),
        ((k <= q) & (k // 64).isin(TOPK[b, kv_head, q // 64]), None),
    ],
    ids=["static", "lists of blocks"],
)
def test_other_masks_have_the_space_they_had(case, op, mask, score):
    found = case(op, mask=mask, score=score)
    assert found.flat == Flat(op, "triton")
    assert not {"heads", "rows", "parts"} & {x.name for x in found.flat.knobs}
    assert found.flat.values(found.default) is not None
    shared = KernelConfig(4, 64, 4, 2, heads=16)
    config = shared if op == "forward" else BackwardConfig(shared, shared)
    assert found.flat.values(config) is None
    if op == "backward":
        assert found.flat.values(replace(found.default, parts=2)) is None


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("mask", "score"),
    [((k <= q) & (k // 64).isin(TOPK[b, h, q]), None), (TOKEN, s - SLOPES[h] * (q - k))],
    ids=["lists by head", "score by head"],
)
def test_heads_that_differ_have_tiles_of_their_own(case, op, mask, score):
    """Parts of a backward they have."""
    found = case(op, mask=mask, score=score)
    assert found.flat == Flat(op, "triton", 1)
    parts = {"parts"} if op == "backward" else set()
    assert {"heads", "rows", "parts"} & {x.name for x in found.flat.knobs} == parts
    assert found.flat.values(found.default) is not None
    shared = KernelConfig(4, 64, 4, 2, heads=16)
    config = shared if op == "forward" else BackwardConfig(shared, shared)
    assert found.flat.values(config) is None


def test_digests_of_ordinary_spaces_stay():
    """They name the journals of searches that were cut short."""
    digests = [Flat(op, x).digest for op in OPS for x in ("triton", "gluon_sm90")]
    assert digests == [
        *("23183f659f939bd6", "0ac79e670ad11264"),
        *("cb96a3b81e94b09f", "f4c384637236eb44"),
    ]
    assert len({Flat("backward", "triton", x).digest for x in (0, 1, 2, 16)}) == 4


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("number", [80, 90])
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("group", [1, 4, 6, 16])
def test_the_default_is_a_point(case, op, number, size, group):
    found = case(op, group, size, number)
    values = found.flat.values(found.default)
    assert values is not None
    assert found.flat.config(values, found.target) == (found.default, "")
    assert spaces.contains(found.default, found.target)
    assert {x.heads for x in kernels(found.default)} == {math.gcd(group, 16)}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("group", [4, 6])
def test_proposals_divide_the_group(case, op, group):
    found = case(op, group)
    flat, proposer = found.flat, proposer_of("tpe", found.flat.knobs, None, 0)
    proposer.seed(flat.values(found.default))
    asked = [proposer.ask().values for _ in range(60)]
    assert {group % values["heads"] for values in asked} == {0}
    assert len({values["heads"] for values in asked}) > 1
    made = [(flat.config(values, found.target)[0], values) for values in asked]
    assert made[0][0] == found.default
    points = [(config, values) for config, values in made if config is not None]
    assert len(points) >= 10
    assert all(flat.values(config) == values for config, values in points)
    assert all(16 <= x.rows <= 256 for config, _ in points for x in kernels(config))
    if op == "backward":
        assert len({config.parts for config, _ in points}) > 1


def test_a_group_that_no_two_heads_divide_has_parts_only(case):
    assert case("forward", 3).flat.spaces == Flat("forward", "triton").spaces
    names = [x.name for x in case("backward", 3).flat.knobs]
    assert names == [*(x.name for x in Flat("backward", "triton").knobs), "parts"]


def test_points_and_the_report(case):
    found = case("forward")
    (space,) = found.flat.spaces
    points, report = list(found.flat.points(found.target)), space.report(found.target)
    assert len(points) == len(set(points)) == report.left == 1005
    assert report.raw == 5 * 750
    assert "several heads in a tile take pointer loads" in str(report)
    assert {x.heads for x in points} == {1, 2, 4, 8, 16}
    alone = {x for x in points if x.heads == 1}
    assert alone == set(Flat("forward", "triton").points(found.target))


def test_points_of_the_backward(case):
    found = case("backward", 2)
    points = list(itertools.islice(found.flat.points(found.target), 0, None, 173))
    assert all(x.queries.heads == x.keys.heads for x in points)
    assert all(not unfit(x, found.target.key, found.target.limits) for x in points[::10])
    assert {x.parts for x in points} == {1, 2, 4, 8, 16}
    assert all(spaces.contains(x, found.target) for x in points[::10])
    assert all(found.flat.values(x) is not None for x in points)


def test_kernels_of_a_backward_share_as_many_heads(case):
    found = case("backward")
    assert found.flat.values(PACKED) is not None
    mixed = replace(PACKED, keys=KernelConfig(4, 64, 4, 2, heads=8))
    assert found.flat.values(mixed) is None
    assert not spaces.contains(mixed, found.target)
    assert not spaces.contains(replace(PACKED, parts=3), found.target)
    assert found.flat.values(replace(PACKED, parts=3)) is None


@pytest.mark.parametrize("op", OPS)
def test_neighbours_keep_the_tile_or_the_heads(case, op):
    found = case(op, 4)
    near = found.flat.neighbours(found.default, found.target)
    mine = kernels(found.default)[0]
    other = [x for x in near if kernels(x)[0].heads != mine.heads]
    assert {kernels(x)[0].heads for x in other} == {2}
    assert [kernels(x)[0].rows for x in other] == [mine.rows]
    if op == "backward":
        assert Counter(x.parts for x in near)[8] == 1


@pytest.mark.parametrize("op", OPS)
def test_seeds(case, op):
    found = case(op)
    first = seeds(found.job, found.flat, found.target, found.default, ())
    assert first[0] == found.default
    assert len(first) >= 4
    assert all(spaces.contains(x, found.target) for x in first)


def test_entries_and_short_texts(case, make_entry):
    entry = make_entry(TOKEN, config=PACKED, op="backward", group=16)
    assert Entry.from_text(entry.to_text()).config == PACKED
    assert config_text(PACKED) == "4x16x64 w4 s2 poin + 2x16x64 w4 s2 poin, 4 parts"


class Invented:
    """Times that rise with the parts, and are best with four heads."""

    def __init__(self, default):
        self.default = default

    def ready(self):
        """Nobody asks for what it says."""

    def ratio(self, config):
        def time(x):
            heads = abs(math.log2(x.queries.heads) - 2)
            return 1 + 0.2 * heads + 0.1 * abs(math.log2(x.keys.rows) - 5) + math.log2(x.parts) / 10

        return time(config) / time(self.default)

    def measure(self, config, best):
        return Outcome("ok", self.ratio(config), self.ratio(config), 0.004)

    def race(self, configs, rounds):
        return Race((tuple(map(self.ratio, configs)),) * rounds, (0,) * rounds)

    def verify(self, config):
        return True, Checks(0.001, 0.01, ("a shape",)), ""


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_finds_other_heads_and_parts(case, sampler):
    found = case("backward")
    flat, device = found.flat, Invented(found.default)
    first = seeds(found.job, flat, found.target, found.default, ())
    study = Study(flat, found.target, found.default, first, Budget(1e9, 60))
    done = search(study, device, NoCompiler(), proposer_of(sampler, flat.knobs, None, 0))
    winner = done.winner.config
    assert device.ratio(winner) < 0.8
    assert winner.parts < found.default.parts
    assert spaces.contains(winner, found.target)
