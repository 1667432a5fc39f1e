"""Gates on the machine code of Gluon kernels, without a GPU. CI runs this with the newest Triton too.

What decides speed shows in the SASS: nothing in local memory, asynchronous products that are not
waited for one by one, registers moved from the producer to the consumers, tiles that fit.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import maskwright as mw
from maskwright import h
from maskwright import k
from maskwright import patterns
from maskwright import q
from maskwright.codegen.gluon import NAMES
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon import default_gluon
from maskwright.dsl.evaluate import mask_node
from maskwright.runtime.cross import build_gluon
from maskwright.runtime.cross import cross_compile

ROOT = Path(__file__).parents[2]
CAUSAL = k <= q
SLOPE = mw.table("slope", dtype=float)
KEPT = mw.table("kept", ndim=3, dtype=bool)[h, q // 64, k // 64]
LEFT_OUT = mw.table("left_out", ndim=4)
SEVERAL = default_gluon(128, 128)
FULL = default_gluon(128, 128, uneven=False)
ONE = replace(SEVERAL, persistent=False)
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "causal": (CAUSAL, {}),
    "d64": (CAUSAL, {"head_dim": 64, "dtype": "float16"}),
    "d192": (CAUSAL, {"head_dim": 192, "value_dim": 128}),
    "d256": (CAUSAL, {"head_dim": 256}),
    "strided": (patterns.local_stride(block=64, local_blocks=2, stride=4), {}),
    "document": (patterns.document(), {}),
    "list": (KEPT, {}),
    "score": (CAUSAL, {"score": (mw.s + SLOPE[h] * (k - q)).node}),
    "blocks_64": (patterns.block_list(64, 64), {}),
    "blocks_128": (patterns.block_list(128, 128), {}),
    "blocks_d256": (patterns.block_list(64, 64), {"head_dim": 256}),
    "searched": ((k <= q) & ~(k // 64).isin(LEFT_OUT[mw.b, h, q // 64]), {}),
    "plain": (CAUSAL, {"config": GluonConfig()}),
    "bulk_store": (CAUSAL, {"config": GluonConfig(bulk_store=True)}),
    "producer_first": (CAUSAL, {"config": GluonConfig(first="producer")}),
    "one": (CAUSAL, {"config": ONE}),
    "one_full": (None, {"config": FULL}),
    "one_pingpong": (CAUSAL, {"config": replace(ONE, pingpong=True)}),
    "one_document": (patterns.document(), {"config": ONE}),
    "one_d64": (CAUSAL, {"config": replace(ONE, stages=3), "head_dim": 64}),
    "one_d256": (CAUSAL, {"config": replace(ONE, block_n=64), "head_dim": 256}),
    "persistent_consumer_first": (CAUSAL, {"config": replace(SEVERAL, first="consumer")}),
    "persistent_stores": (CAUSAL, {"config": replace(SEVERAL, bulk_store=False)}),
    "persistent_pingpong": (CAUSAL, {"config": replace(SEVERAL, pingpong=True)}),
    "persistent_full": (None, {"config": SEVERAL}),
}
# Bytes of what is computed once for all partitions, and loaded by each once an item; the larger of
# Triton 3.6 and 3.9.
KEPT_IN_MEMORY = {
    "d64": 8,
    "d256": 40,
    "blocks_d256": 72,
    "document": 72,
    "score": 16,
    "searched": 24,
    "one_full": 24,
    "one_d64": 8,
    "one_d256": 24,
    "one_document": 16,
    "persistent_consumer_first": 24,
    "persistent_pingpong": 8,
    "persistent_full": 16,
}
LOADED_IN_LOOPS = {"document": 12, "d256": 2, "persistent_consumer_first": 1}


@pytest.mark.parametrize("name", CASES)
def test_machine_code(name):
    mask, options = CASES[name]
    report = build_gluon(mask_node(mask), **options)
    found = report.instructions
    assert report.stack_bytes <= KEPT_IN_MEMORY.get(name, 0), str(report)
    assert name in KEPT_IN_MEMORY or found.get("LDL", 0) == 0
    assert found["LDL in loops"] <= LOADED_IN_LOOPS.get(name, 0)
    assert report.shared_bytes <= report.shared_limit
    head_dim = options.get("head_dim", 128)
    config = options.get("config") or default_gluon(head_dim, options.get("value_dim", head_dim))
    # Two products of a step, in pieces of 16 along what they sum over.
    pieces = config.pads(head_dim, head_dim)[0] // 16 + config.block_n // 16
    # One loop, or smaller tiles.
    if name not in ("strided", "list", "searched"):
        assert found["HGMMA"] >= 2 * config.consumers * pieces
    # Each wait ends a whole product: waits for single instructions would be as many as those.
    assert found["HGMMA"] >= 4 * found["WARPGROUP.DEPBAR"]
    assert found["USETMAXREG"] > 0
    assert found["UTMALDG"] > 0
    # The template's own named barriers come after those that Triton gives the partitions.
    assert 0 < found["barriers of Triton"] <= NAMES.start


def test_estimates_of_shared_memory():
    for sizes, persistent in itertools.product(((64, 64), (128, 128), (256, 256)), (False, True)):
        config = replace(default_gluon(*sizes), persistent=persistent)
        report = build_gluon(CAUSAL.node, head_dim=sizes[0], config=config)
        estimate = config.shared_bytes(*sizes)
        assert estimate - 1024 <= report.shared_bytes <= estimate


def test_after_the_interpreter():
    """A launch imports Gluon; Triton's functions are patched then, and must not stay so in Gluon."""
    code = """
import torch
import maskwright as mw
from maskwright.runtime.cross import build_gluon
tensors = [torch.randn(1, 1, 20, 16) for _ in range(3)]
mw.attention(*tensors, mw.k <= mw.q, backend="interpret")
print(build_gluon((mw.k <= mw.q).node).kernel)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout == "forward\n", done.stderr[-2000:]


def test_the_command_says_what_it_builds():
    (report,) = cross_compile(CAUSAL, "sm_90", backend="gluon")
    assert report.kernel == "forward"
    with pytest.raises(mw.LoweringError, match="sm_90"):
        cross_compile(CAUSAL, "sm_100", backend="gluon")
