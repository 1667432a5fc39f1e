"""Runtime lists of blocks in the Gluon kernels: in a simulator, no GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from simulated_gradients import worst
from simulated_lists import BATCH
from simulated_lists import HEADS
from simulated_lists import compiled
from simulated_lists import run

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import kv_head
from maskwright import q
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon_backward import GluonBackwardConfig

NEAR, FOR_ALL = mw.table("near", ndim=4), mw.table("for_all", ndim=3)
OF_64 = (k // 64).isin(NEAR[b, h, q // 64])
OF_ALL = (k // 64).isin(FOR_ALL[b, h])
# And how many parts of a tile of 128 queries have lists of their own.
MASKS = {
    "64": ((k <= q) & OF_64, 2),
    "64, not causal": (OF_64, 2),
    "128 x 128": ((k <= q) & (k // 128).isin(NEAR[b, h, q // 128]), 1),
    "64 x 128": ((k <= q) & (k // 128).isin(NEAR[b, h, q // 64]), 2),
    "blocks from 57 on": ((k <= q) & (k // 64).isin(NEAR[b, h, (q + 7) // 64]), 2),
    "96": ((k <= q) & (k // 64).isin(NEAR[b, h, q // 96]), 1),
    "runs": ((k <= q) & (k // 64).isin(NEAR[b, h, q // 64], run=2), 2),
    "of KV heads": ((k <= q) & (k // 64).isin(NEAR[b, kv_head, q // 64]), 2),
    "beside a window": ((k <= q) & ((q - k < 40) | OF_64), 1),
    "both": ((k <= q) & OF_64 & OF_ALL, 2),
    "either": (OF_64 | OF_ALL, 2),
    "for all queries": ((k <= q) & OF_ALL, 1),
}
FIRST = {"block_n": 64, "first": "producer"}
CONFIGS = {
    "default": None,
    "one_stage": GluonConfig(block_n=64, stages=1),
    "four_stages": GluonConfig(stages=4, **FIRST),
    "counter": GluonConfig(stages=3, persistent=True, programs=2, counter=True, **FIRST),
    "three_consumers": GluonConfig(block_n=32, consumers=3, stages=2, persistent=True, programs=1),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(
    seed: int, top: int, kv_len: int, batch: int = BATCH, heads: int = HEADS
) -> dict[str, np.ndarray]:
    """Blocks in any order, doubles, padding, out of range; none for some blocks of queries."""
    rng = np.random.default_rng(seed)
    last = kv_len // 64 + 2
    near = rng.integers(-2, last, (batch, heads, 8, top))
    near[:, :, rng.integers(0, 8, 2)] = -1
    for_all = rng.integers(-2, last, (batch, heads, 2))
    return {"near": near.astype(np.int32), "for_all": for_all.astype(np.int32)}


def wanted(mask: mw.Expr, lists: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: x for name, x in lists.items() if f'"{name}"' in str(mask)}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", MASKS)
def test_random_lists(name, config):
    """Consumers have other lists, or the same; some of them and some programs have no tile."""
    mask, parts = MASKS[name]
    assert compiled(mask, config=config).plan.parts == parts or config == CONFIGS["three_consumers"]
    for seed, (q_len, kv_len, top) in enumerate([(200, 333, 1), (1, 300, 3), (260, 260, 3)]):
        report = run(mask, q_len, kv_len, config=config, **wanted(mask, drawn(seed, top, kv_len)))
        assert report.ok, f"{q_len} {kv_len} {report}"


@pytest.mark.parametrize("offset", [-100, 0, 41, 130])
def test_queries_between_two_lists(offset):
    """The queries of a consumer begin inside a block: two lists tell which tiles it computes."""
    mask = (k <= q) & OF_64 if offset >= 0 else (k <= q) & (k // 64).isin(NEAR[b, h, q // 64 + 2])
    report = run(mask, 150, 280, q_offset=offset, **wanted(mask, drawn(3, 2, 280)))
    assert report.ok, str(report)


@pytest.mark.parametrize("row", ["", "low", "high"])
def test_more_lists_than_a_word_has_bits(row):
    """And what is wrong if all are read from the first row of words."""
    mask, q_len, config = MASKS["64"][0], 2250, CONFIGS["counter"]
    lists = np.random.default_rng(5).integers(-1, 5, (BATCH, HEADS, q_len // 64 + 2, 1))
    place = f"bits_0_{row}_row ="
    change = (f"{place} (bits_0_{row} >> 5) * bits_0_words", f"{place} 0") if row else None
    values = {"near": lists.astype(np.int32), "change": change}
    assert run(mask, q_len, 290, q_offset=30, config=config, **values).ok is not bool(row)


def test_consumers_that_have_the_same_lists_take_turns():
    mask, turns = MASKS["128 x 128"][0], GluonConfig(block_n=64, stages=3, pingpong=True)
    for seed in range(2):
        assert run(mask, 200, 333, config=turns, **wanted(mask, drawn(seed, 3, 333))).ok


def test_scores_sinks_and_head_sizes():
    mask, score = MASKS["64"][0], mw.softcap(mw.s, 20.0) + 0.01 * (k - q)
    sinks = torch.linspace(-1, 1, HEADS)
    lists = wanted(mask, drawn(4, 2, 190))
    for sizes in ((64, 64), (96, 40), (128, 128), (256, 256)):
        assert run(mask, 180, 190, score=score, sinks=sinks, sizes=sizes, **lists).ok


# -- gradients ------------------------------------------------------------------------------------
OF_128 = (k // 128).isin(NEAR[b, h, q // 128])
FOR_128 = (k // 128).isin(NEAR[b, h, (q + 7) // 64])
GRADIENTS = {
    "128 x 128": (k <= q) & OF_128,
    "128 x 128, not causal": OF_128,
    "64 x 128, from 57 on": (k <= q) & FOR_128,
    "96 x 128": (k <= q) & (k // 128).isin(NEAR[b, h, q // 96]),
    "64 x 256": (k <= q) & (k // 256).isin(NEAR[b, kv_head, q // 64]),
    "beside a window": (k <= q) & ((q - k < 40) | FOR_128),
    "both": (k <= q) & OF_128 & (k // 128).isin(FOR_ALL[b, h]),
}


@pytest.mark.parametrize(
    ("name", "width"), [*((x, 128) for x in GRADIENTS), ("96 x 128", 64), ("beside a window", 64)]
)
def test_gradients(name, width):
    """Tiles of 64 queries, which have two lists at most, and of 128; the end of keys within."""
    config = GluonBackwardConfig(64 if width == 128 else 128, 2, 2)
    for seed, (q_len, kv_len) in enumerate([(200, 333), (1, 130)]):
        lists = drawn(seed, 2, kv_len // 2, batch=2, heads=4)
        values = wanted(GRADIENTS[name], lists)
        found = worst(GRADIENTS[name], q_len, kv_len, config=config, sizes=(width, width), **values)
        assert found is not None
        assert found < 3e-3


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        ("where(place == low, first, last)", "where(place == low, last, first)"),
        ("query_high = query_low + KEY_M - 1", "query_high = query_low"),
        ("gl.minimum(gl.maximum(step, 0), listed_partial)", "0"),
    ],
)
def test_wrong_gradients_are_found(line, instead):
    mask = GRADIENTS["64 x 128, from 57 on"]
    lists = wanted(mask, drawn(2, 2, 130, batch=2, heads=4))
    assert worst(mask, 200, 260, change=(line, instead), **lists) > 1e-2


# -- the simulator finds what it is there for -----------------------------------------------------
# What one consumer leaves out, and in which list it looks.
WRONG = [
    ("weights = packed(nothing)", "pass"),
    ("bits_0_low_bit = bits_0_low & 31", "bits_0_low_bit = (bits_0_low + 1) & 31"),
    ("mine_0 |= gl.load(bits_0_here + bits_0_high_row", "mine_0 |= 0 * gl.load(bits_0_here"),
    ("            coming = tile_n\n", ""),
    ("keep = ((k <= q) & listed_0)", "keep = listed_0"),
    ("keep = ((k <= q) & listed_0)", "keep = k <= q"),
]


@pytest.mark.parametrize(("line", "instead"), WRONG)
def test_wrong_numbers_are_found(line, instead):
    mask, config = MASKS["blocks from 57 on"][0], CONFIGS["four_stages"]
    lists = [wanted(mask, drawn(seed, 2, 330)) for seed in range(3)]
    made = (run(mask, 330, 330, config=config, change=(line, instead), **x) for x in lists)
    assert not all(x.ok for x in made)
