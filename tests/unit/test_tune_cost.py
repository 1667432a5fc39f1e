"""The cost model: it orders as an H100 did, and in the obvious ways."""

from __future__ import annotations

import math

import numpy as np
import pytest

from maskwright import h
from maskwright import k
from maskwright import patterns
from maskwright import q
from maskwright.autotune import cost
from maskwright.autotune.cost import Work
from maskwright.autotune.cost import forward_cost
from maskwright.autotune.cost import ranked
from maskwright.autotune.filter import Heads
from maskwright.autotune.key import Hardware
from maskwright.autotune.rates import GPUS
from maskwright.autotune.rates import gpu_of
from maskwright.codegen.api import call_of
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig

HEADS = Heads(128, 128, "bfloat16")
NONE = math.nan

# The tile sweep of docs/forward-log.md (H100, 32 heads on 8, D 128): TFLOP/s at 8192 and at 32768.
CONFIGS = [
    KernelConfig(128, 64, 4, 2, "descriptor"),
    KernelConfig(64, 64, 4, 3, "descriptor"),
    KernelConfig(128, 128, 8, 3, "descriptor"),
    KernelConfig(128, 64, 8, 3, "descriptor"),
    KernelConfig(64, 32, 4, 4, "descriptor"),
]
MEASURED = {
    ("full", 8192): (546, 517, 490, 463, 398),
    ("full", 32768): (521, 422, 518, 491, 374),
    ("causal", 8192): (527, 522, 476, 455, 399),
    ("causal", 32768): (481, 468, 493, 483, 402),
    ("window", 32768): (371, 426, 338, 335, 330),
    ("a_shape", 8192): (463, 465, 420, 401, 345),
    ("a_shape", 32768): (459, 472, 403, 403, 355),
    ("strided", 32768): (428, 455, NONE, 387, 356),
}
MASKS = {
    "full": patterns.full(),
    "causal": k <= q,
    "window": (k <= q) & (q - k < 1024),
    "a_shape": patterns.a_shape(sink=128, window=2048),
    "strided": (k <= q) & ((q - k < 1024) | ((k // 64 + h) % 16 == 0)),
}


def work(mask, length, heads=32):
    call = call_of(mask.node, length, length, 1, heads, max(1, heads // 4), None, {})
    return Work(mask.node, call, HEADS)


def seconds(mask, length=8192, config=CONFIGS[0], heads=32):
    return forward_cost(config, work(mask, length, heads)).seconds


def spearman(x, y):
    def rank(values):
        return np.array([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values])

    return float(np.corrcoef(rank(np.array(x)), rank(np.array(y)))[0, 1])


def test_it_orders_as_measured():
    """Goal 16: of five configurations, for each mask and length; the mean over the table.

    The model's constants were fitted to this table, so this keeps the fit; it is no forecast.
    """
    found = []
    for (name, length), speeds in MEASURED.items():
        pairs = [
            (-seconds(MASKS[name], length, config), speed)
            for config, speed in zip(CONFIGS, speeds, strict=True)
            if not math.isnan(speed)
        ]
        found.append(spearman(*zip(*pairs, strict=True)))
    assert np.mean(found) >= 0.6
    assert min(found) >= 0.3


def test_its_first_choice_is_near_the_best():
    for (name, length), speeds in MEASURED.items():
        order = ranked(CONFIGS, work(MASKS[name], length))
        good = [c for c, x in zip(CONFIGS, speeds, strict=True) if x >= 0.85 * np.nanmax(speeds)]
        assert order[0] in good


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_more_work_takes_longer(config):
    causal = MASKS["causal"]
    lengths = [seconds(causal, n, config) for n in (1024, 2048, 8192, 32768)]
    assert lengths == sorted(lengths)
    many = [seconds(causal, 8192, config, heads) for heads in (4, 8, 32, 128)]
    assert many == sorted(many)
    windows = [seconds((k <= q) & (q - k < n), 8192, config) for n in (128, 512, 2048, 8192)]
    assert windows == sorted(windows)
    assert seconds(MASKS["window"], 8192, config) < seconds(causal, 8192, config)
    assert seconds(causal, 8192, config) < seconds(MASKS["full"], 8192, config)


def test_partial_tiles_cost_more():
    found = forward_cost(CONFIGS[0], work(MASKS["causal"], 8192))
    assert found.partial > found.full


def test_spills_cost():
    spilling, fitting = KernelConfig(128, 128, 4, 2), KernelConfig(128, 128, 8, 2)
    assert seconds(MASKS["full"], 8192, spilling) > 1.5 * seconds(MASKS["full"], 8192, fitting)


@pytest.mark.parametrize("tile", [(128, 64), (64, 64), (32, 64), (16, 16)], ids=str)
def test_warps_that_repeat_work_do_not_help(tile):
    """More warps than a tile has parts for: 16 rows each, or 8 keys of tiles under 64 rows."""
    few, many = KernelConfig(*tile, 4, 2), KernelConfig(*tile, 16, 2)
    assert seconds(MASKS["full"], 8192, few) < seconds(MASKS["full"], 8192, many)


def test_a_pipeline_helps():
    one, two = KernelConfig(128, 64, 8, 1), KernelConfig(128, 64, 8, 2)
    assert seconds(MASKS["full"], 8192, one) > seconds(MASKS["full"], 8192, two)


# -- backward: compared with nothing, so only what must be so -------------------------------------
BACKWARD = [
    BackwardConfig(),
    BackwardConfig(KernelConfig(128, 64, 8, 2), KernelConfig(32, 64, 4, 2)),
    BackwardConfig(KernelConfig(32, 32, 4, 1), KernelConfig(32, 32, 4, 1)),
]


@pytest.mark.parametrize("gpu", GPUS.values(), ids=list(GPUS))
@pytest.mark.parametrize("config", BACKWARD, ids=["64", "128", "32"])
def test_more_work_takes_longer_backwards(config, gpu):
    def time(mask, length, heads=32):
        return cost.seconds(work(mask, length, heads), gpu)(config)

    lengths = [time(MASKS["causal"], n) for n in (1024, 2048, 8192, 32768)]
    assert lengths == sorted(lengths)
    assert time(MASKS["window"], 8192) < time(MASKS["causal"], 8192) < time(MASKS["full"], 8192)
    assert time(MASKS["full"], 8192, 8) < time(MASKS["full"], 8192, 32)


def test_both_kernels_of_a_backward_count():
    call = work(MASKS["causal"], 8192)
    time = cost.seconds(call)
    first, second = BACKWARD[:2]
    mixed = BackwardConfig(first.queries, second.keys)
    queries = cost.query_gradient_cost(first.queries, call).seconds
    assert time(mixed) == pytest.approx(queries + cost.key_gradient_cost(second.keys, call).seconds)
    # Seven products instead of two, and no accumulator that is scaled.
    assert 2 < time(first) / seconds(MASKS["causal"], config=KernelConfig(64, 64, 4, 2)) < 6


def test_keys_and_queries_change_places():
    """A mask that is full is the same, turned: only the products of the two kernels differ."""
    call = work(MASKS["full"], 8192)
    queries = cost.query_gradient_cost(KernelConfig(64, 64, 4, 2), call)
    keys = cost.key_gradient_cost(KernelConfig(64, 64, 4, 2), call)
    assert 1.1 < keys.seconds / queries.seconds < 2.5


def test_spills_of_a_backward_cost():
    spilling = BackwardConfig(KernelConfig(128, 128, 4, 2), KernelConfig(128, 128, 4, 2))
    time = cost.seconds(work(MASKS["full"], 8192))
    assert time(spilling) > 1.5 * time(BACKWARD[0])


# -- other GPUs -----------------------------------------------------------------------------------
def test_a_gpu_takes_the_figures_of_its_architecture():
    laptop = Hardware("some laptop", "sm_86", 20, 99 << 10, 0)
    found = gpu_of(laptop)
    assert (found.products, found.processors) == (GPUS["sm_86"].products, 20)
    assert gpu_of(Hardware("x", "sm_120", 170, 99 << 10, 0)).units == "warps"
    assert gpu_of(Hardware("x", "sm_103", 148, 227 << 10, 0)).units == "tensor memory"


@pytest.mark.parametrize("gpu", GPUS.values(), ids=list(GPUS))
def test_no_gpu_is_faster_than_its_matrix_units(gpu):
    pairs = 32 * 8192 * 8192
    least = 4 * pairs * 128 / (gpu.products * gpu.processors * gpu.clock)
    found = forward_cost(KernelConfig(128, 64, 8, 2), work(MASKS["full"], 8192), gpu)
    assert least < found.seconds < 6 * least


def test_without_a_closed_form_there_is_no_estimate():
    mask = (q * k) % 7 == 0
    assert forward_cost(CONFIGS[0], work(mask, 1024)) is None
    assert ranked(CONFIGS, work(mask, 1024)) == CONFIGS
