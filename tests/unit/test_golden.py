"""Schedules and generated kernels, as text. After a wanted change of the generated text:

    make golden

or ``python -m pytest -m golden --update-golden``; then read the diff.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import maskwright as mw
from maskwright.codegen.describe import schedule_lines
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.listed import schedule_of
from maskwright.codegen.pipeline import choose_config
from maskwright.codegen.schedule import derive
from maskwright.codegen.tile import TileShape
from maskwright.patterns.catalog import entry

ROOT = Path(__file__).parents[2]
HEADS, KV_HEADS = 8, 2
NAMES = (
    "causal",
    "a_shape",
    "a_shape_runtime",
    "dilated_window",
    "document",
    "local_stride",
    "shifted_group",
    "per_head",
    "vertical_slash",
)


def catalogue_entry(name):
    return entry(name, "paper", heads=HEADS, kv_heads=KV_HEADS)


@pytest.mark.parametrize("name", NAMES)
def test_schedule(name, golden):
    mask = catalogue_entry(name).mask
    config = choose_config(mask.node, arch="sm_90", dtype="bfloat16", head_dim=128, value_dim=128)
    tile = TileShape(config.block_m, config.block_n)
    lines = [
        str(mask),
        f"tile {tile.block_m} x {tile.block_n}",
        *schedule_lines(schedule_of(mask.node, tile)),
    ]
    assert "\n".join(lines) + "\n" == golden


@pytest.mark.parametrize("name", NAMES)
def test_transposed_schedule(name, golden):
    tile = TileShape(64, 64, transposed=True)
    lines = schedule_lines(derive(catalogue_entry(name).mask.node, tile))
    assert "\n".join(lines) + "\n" == golden


@pytest.mark.parametrize("name", ["causal", "document", "local_stride", "vertical_slash"])
def test_backward_source(name, golden):
    assert mw.source(catalogue_entry(name).mask, op="backward", arch="sm_90") == golden


@pytest.mark.parametrize("name", NAMES)
def test_source(name, golden):
    assert mw.source(catalogue_entry(name).mask, arch="sm_90", dtype="bfloat16") == golden


@pytest.mark.parametrize(
    "name", ["causal", "a_shape", "document", "local_stride", "vertical_slash", "block_list"]
)
def test_gluon_source(name, golden):
    assert mw.source(catalogue_entry(name).mask, backend="gluon") == golden


@pytest.mark.parametrize("name", ["causal", "document"])
def test_gluon_backward_source(name, golden):
    mask = catalogue_entry(name).mask
    assert mw.source(mask, op="backward", backend="gluon") == golden


def test_gluon_source_of_several_items(golden):
    config = GluonConfig(first="producer", bulk_store=True, persistent=True, pingpong=True)
    assert mw.source(mw.k <= mw.q, backend="gluon", config=config) == golden


def test_gluon_source_with_score_and_sinks(golden):
    slope = mw.table("slope", dtype=float)
    score = mw.softcap(mw.s, 30.0) + slope[mw.h] * (mw.k - mw.q)
    kept = mw.table("kept", ndim=3, dtype=bool)[mw.h, mw.q // 64, mw.k // 64]
    sizes = {"dtype": "float16", "head_dim": 80, "value_dim": 40}
    assert mw.source(kept, backend="gluon", score=score, sinks=True, **sizes) == golden


def test_source_with_score_and_sinks(golden):
    slope = mw.table("slope", dtype=float)
    score = mw.softcap(mw.s, 30.0) + slope[mw.h] * (mw.k - mw.q)
    mask = catalogue_entry("a_shape").mask
    text = mw.source(
        mask, arch="sm_80", dtype="float16", head_dim=80, value_dim=40, score=score, sinks=True
    )
    assert text == golden


# -- the same text everywhere ---------------------------------------------------------------------
PRINT_ALL = """
import json, sys
import maskwright as mw
from maskwright.patterns.catalog import entries
found = entries("small", heads=4, kv_heads=2)
if sys.argv[1] == "reversed":
    found.reverse()
json.dump({e.name: mw.source(e.mask, arch="sm_90") for e in found}, sys.stdout)
"""


def sources_of_a_process(seed, order):
    done = subprocess.run(
        [sys.executable, "-c", PRINT_ALL, order],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    return json.loads(done.stdout)


def test_the_source_depends_on_the_mask_alone():
    """Not on hash seeds, nor on what the process compiled before."""
    first = sources_of_a_process("0", "in order")
    second = sources_of_a_process("4242", "reversed")
    assert {name for name in first if first[name] != second[name]} == set()
