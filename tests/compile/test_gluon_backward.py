"""Gates on the machine code of the Gluon backward, without a GPU; see test_gluon.py."""

from __future__ import annotations

from typing import Any

import pytest

from maskwright import k
from maskwright import patterns
from maskwright import q
from maskwright.codegen.gluon_backward import GluonBackwardConfig
from maskwright.codegen.gluon_backward import default_gluon_backward
from maskwright.dsl.evaluate import mask_node
from maskwright.runtime.cross import build_gluon_backward
from maskwright.runtime.cross import cross_compile

CAUSAL = k <= q
# Mask, sizes, and bytes of stack a thread: what ptxas of Triton 3.6 and of the newest keeps in
# local memory. Most is read once a loop of queries, not once a step.
CASES: dict[str, tuple[Any, dict[str, Any], tuple[int, int]]] = {
    "causal": (CAUSAL, {}, (64, 256)),
    "d64": (CAUSAL, {"head_dim": 64, "dtype": "float16"}, (304, 384)),
    "d128_64": (CAUSAL, {"value_dim": 64}, (32, 128)),
    "window": (CAUSAL & (q - k < 1024), {}, (96, 288)),
    "named": (CAUSAL, {"config": GluonBackwardConfig(release="named")}, (128, 384)),
    "document": (patterns.document(), {}, (288, 512)),
}


@pytest.mark.parametrize("name", CASES)
def test_machine_code(name):
    import triton

    mask, options, bounds = CASES[name]
    report = build_gluon_backward(mask_node(mask), **options)
    found = report.instructions
    assert report.stack_bytes <= bounds[not triton.__version__.startswith("3.6.")], str(report)
    assert report.shared_bytes <= report.shared_limit
    sizes = options.get("head_dim", 128), options.get("value_dim", options.get("head_dim", 128))
    config = options.get("config") or default_gluon_backward(*sizes)
    head, value = (x // 16 for x in config.pads(*sizes))
    steps = config.block_m // 16
    # Scores and their gradient, gradients of keys and values, and a part of that of queries from
    # each consumer's keys; in two loops, of two consumers.
    assert found["HGMMA"] == 4 * (head + value + 2 * steps + 2 * 4)
    # Each wait ends whole products: waits for single instructions would be as many as those.
    assert found["HGMMA"] >= 4 * found["WARPGROUP.DEPBAR"]
    assert found["USETMAXREG"] > 0
    assert found["UTMALDG"] > 0


def test_estimates_of_shared_memory():
    for size in (64, 128):
        config = default_gluon_backward(size, size)
        report = build_gluon_backward(CAUSAL.node, head_dim=size, config=config)
        estimate = config.shared_bytes(size, size)
        assert estimate - 1024 <= report.shared_bytes <= estimate


def test_the_command_builds_it():
    (report,) = cross_compile(CAUSAL, "sm_90", op="backward", backend="gluon")
    assert report.kernel == "gradient"
