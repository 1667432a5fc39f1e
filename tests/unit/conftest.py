"""A table of times that was never measured: deterministic, with cliffs, noise and failures."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest


@pytest.fixture
def make_table(make_entry: Any) -> Any:
    """A factory of tables: of the Triton forward, causal, heads of 128, 8192 long, on sm_90."""
    from maskwright import k
    from maskwright import q
    from maskwright.autotune import table as t
    from maskwright.autotune.filter import Limits
    from maskwright.autotune.flat import Flat
    from maskwright.autotune.job import Job
    from maskwright.autotune.space import Target
    from maskwright.codegen.config import default_config

    default = default_config(arch="sm_90")
    mask = k <= q
    sizes = {"batch": 1, "heads": 16, "kv_heads": 4, "q_len": 8192, "kv_len": 8192}
    sizes |= {"head_dim": 128, "value_dim": 128, "q_offset": 0}

    def made(*, noise: float = 0.01, seed: int = 0, keep: float = 1.0, time: Any = _time) -> Any:
        job = Job.of(
            mask, None, {}, None, op="forward", backend="triton", dtype="bfloat16", **sizes
        )
        key = make_entry().key
        target = Target(key, Limits.of(mask.node, None))
        points = list(Flat("forward", "triton").points(target))
        kept = [x for x in points if x == default or _draw(x, "keep", seed).random() < keep]
        unit = time(default, seed)
        rows = [_row(t.Row, x, time(x, seed) / unit, noise, seed) for x in kept]
        known = (job, key, default.to_dict(), 0.5, len(points), t.sorted_rows(rows))
        return t.Table(*known, "2026-11-22T00:00:00+00:00")

    return made


def _draw(config: Any, what: str, seed: int) -> random.Random:
    from maskwright.autotune.outcome import config_key

    return random.Random(f"{config_key(config)} {what} {seed}")


def _time(config: Any, seed: int) -> float:
    """Best near 128 x 64 with eight warps; spills and starved pipelines cost much."""
    m, n = math.log2(config.block_m), math.log2(config.block_n)
    registers = config.block_m * (128 + 2 * config.block_n) / (32 * config.num_warps)
    found = 1.0 + 0.10 * (m - 7) ** 2 + 0.07 * (n - 6) ** 2 + 0.04 * abs(config.num_stages - 3)
    found += 0.10 * (config.loads == "pointer") + max(0.0, registers / 220 - 1)
    return found * (1 + 0.03 * _draw(config, "own", seed).gauss(0, 1))


def _row(kind: Any, config: Any, ratio: float, noise: float, seed: int) -> Any:
    draw = _draw(config, "rounds", seed)
    if draw.random() < 0.03:
        return kind(config.to_dict(), "compile", "refused")
    rounds = tuple(ratio * (1 + noise * draw.gauss(0, 1)) for _ in range(9))
    times = tuple(0.5 * x for x in rounds)
    return kind(config.to_dict(), "ok", "", times, rounds, 0.004)
