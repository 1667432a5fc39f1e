"""Gates on the machine code of Gluon kernels, without a GPU. CI runs this with the newest Triton too.

What decides speed shows in the SASS: nothing in local memory, asynchronous products that are not
waited for one by one, registers moved from the producer to the consumers, tiles that fit.
"""

from __future__ import annotations

from typing import Any

import pytest

import maskwright as mw
from maskwright import h
from maskwright import k
from maskwright import patterns
from maskwright import q
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon import default_gluon
from maskwright.dsl.evaluate import mask_node
from maskwright.runtime.cross import build_gluon
from maskwright.runtime.cross import cross_compile

CAUSAL = k <= q
SLOPE = mw.table("slope", dtype=float)
KEPT = mw.table("kept", ndim=3, dtype=bool)[h, q // 64, k // 64]
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "causal": (CAUSAL, {}),
    "d64": (CAUSAL, {"head_dim": 64, "dtype": "float16"}),
    "d192": (CAUSAL, {"head_dim": 192, "value_dim": 128}),
    "d256": (CAUSAL, {"head_dim": 256}),
    "strided": (patterns.local_stride(block=64, local_blocks=2, stride=4), {}),
    "document": (patterns.document(), {}),
    "list": (KEPT, {}),
    "score": (CAUSAL, {"score": (mw.s + SLOPE[h] * (k - q)).node}),
    "block_list": (patterns.block_list(64, 64), {}),
    "bulk_store": (CAUSAL, {"config": GluonConfig(bulk_store=True)}),
    "producer_first": (CAUSAL, {"config": GluonConfig(first="producer")}),
}


@pytest.fixture(autouse=True)
def _empty_triton_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("name", CASES)
def test_machine_code(name):
    mask, options = CASES[name]
    report = build_gluon(mask_node(mask), **options)
    found = report.instructions
    assert (report.stack_bytes, found.get("LDL", 0)) == (0, 0), str(report)
    assert report.shared_bytes <= report.shared_limit
    head_dim = options.get("head_dim", 128)
    config = options.get("config") or default_gluon(head_dim, options.get("value_dim", head_dim))
    # Two products of a step, in pieces of 16 along what they sum over.
    pieces = config.pads(head_dim, head_dim)[0] // 16 + config.block_n // 16
    if name not in ("strided", "list", "block_list"):  # one loop, or smaller tiles
        assert found["HGMMA"] >= 2 * config.consumers * pieces
    # Each wait ends a whole product: waits for single instructions would be as many as those.
    assert found["HGMMA"] >= 4 * found["WARPGROUP.DEPBAR"]
    assert found["USETMAXREG"] > 0
    assert found["UTMALDG"] > 0


def test_estimates_of_shared_memory():
    for sizes in ((64, 64), (128, 128)):
        config = default_gluon(*sizes)
        report = build_gluon(CAUSAL.node, head_dim=sizes[0], config=config)
        estimate = config.shared_bytes(*sizes)
        assert estimate - 1024 <= report.shared_bytes <= estimate


def test_the_command_says_what_it_builds():
    (report,) = cross_compile(CAUSAL, "sm_90", backend="gluon")
    assert report.kernel == "forward"
    with pytest.raises(mw.LoweringError, match="sm_90"):
        cross_compile(CAUSAL, "sm_100", backend="gluon")
