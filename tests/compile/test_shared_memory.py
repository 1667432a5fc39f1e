"""The tuner's shared-memory formula against what Triton allocates, without a GPU."""

from __future__ import annotations

import pytest

from maskwright import h
from maskwright import k
from maskwright import patterns
from maskwright import q
from maskwright import s
from maskwright import table
from maskwright.autotune.filter import Heads
from maskwright.autotune.filter import Reads
from maskwright.autotune.filter import shared
from maskwright.autotune.filter import shared_forward
from maskwright.autotune.filter import shared_key_gradient
from maskwright.autotune.filter import shared_query_gradient
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon_backward import GluonBackwardConfig
from maskwright.codegen.pipeline import compile_backward
from maskwright.codegen.pipeline import compile_forward
from maskwright.codegen.plan import Request
from maskwright.codegen.plan_backward import BackwardRequest
from maskwright.runtime import offline
from maskwright.runtime.cross import build_gluon
from maskwright.runtime.cross import build_gluon_backward

MASK = (k <= q).node
WINDOW = ((k <= q) & (q - k < 1024)).node
DOCUMENT = patterns.document().node
SLASH = patterns.tri_shape(sink=64, window=512, last=128).node
HOPPER = ("sm_90", "pointer")
BULK = ("sm_90", "descriptor")
AMPERE = ("sm_80", "pointer")
BLACKWELL = ("sm_100", "pointer")

# (target, head size, block_m, block_n, warps, stages)
FORWARD = [
    (HOPPER, 64, 128, 64, 4, 1),
    (HOPPER, 64, 64, 64, 4, 2),
    (HOPPER, 64, 128, 128, 8, 3),
    (HOPPER, 128, 128, 64, 8, 2),
    (HOPPER, 128, 64, 32, 4, 3),
    (HOPPER, 128, 32, 32, 4, 2),
    (BULK, 64, 128, 64, 4, 3),
    (BULK, 64, 64, 32, 4, 1),
    (BULK, 128, 128, 64, 4, 2),
    (BULK, 128, 64, 64, 4, 3),
    (BULK, 128, 16, 64, 4, 2),
    (AMPERE, 64, 128, 64, 4, 3),
    (AMPERE, 64, 64, 64, 4, 1),
    (AMPERE, 128, 128, 64, 8, 2),
    (AMPERE, 128, 64, 64, 4, 3),
    (AMPERE, 128, 16, 64, 4, 2),
    (BLACKWELL, 128, 128, 64, 8, 2),
]
BACKWARD = [
    (HOPPER, 64, 64, 64, 4, 2),
    (BULK, 128, 64, 64, 4, 2),
    (AMPERE, 64, 64, 64, 4, 1),
    (AMPERE, 128, 32, 64, 4, 2),
    (BLACKWELL, 64, 128, 64, 4, 2),
]


def holds(found, allocated):
    """Exact where it says so; else a bound."""
    assert allocated == found.most if found.exact else allocated <= found.most


def forward_bytes(mask, arch, size, config, score=None):
    made = compile_forward(Request(mask, score, "bfloat16", size, size, True, False, config))
    pads = made.plan.request.pads
    return offline.build(made.plan, pads, made.source, made.name, arch, "forward_kernel")


@pytest.mark.parametrize("case", FORWARD, ids=str)
def test_the_forward(case):
    (arch, loads), size, *numbers = case
    config = KernelConfig(*numbers, loads)
    found = shared_forward(config, Heads(size, size, "bfloat16"), arch)
    # The formula follows Triton's matrix units: it must say where it is more than a bound.
    assert found.exact == (case[0] == HOPPER and config.block_m >= 64)
    holds(found, forward_bytes(MASK, arch, size, config).shared_bytes)


def test_a_mask_without_tables_does_not_matter():
    config = KernelConfig(64, 64, 4, 2)
    found = shared(config, Heads(64, 64, "bfloat16"), "sm_90", Reads.of(WINDOW))
    assert found.exact
    assert forward_bytes(WINDOW, "sm_90", 64, config).shared_bytes == found.most


@pytest.mark.parametrize("name", ["document", "vertical_slash", "bias"])
def test_tables_are_loaded_ahead(name):
    bias = table("bias", ndim=3, dtype=float)[h, q, k]
    mask = (k <= q).node if name == "bias" else getattr(patterns, name)().node
    score = (s + bias).node if name == "bias" else None
    config = KernelConfig(64, 64, 4, 2)
    found = shared(config, Heads(64, 64, "bfloat16"), "sm_90", Reads.of(mask, score))
    assert not found.exact
    holds(found, forward_bytes(mask, "sm_90", 64, config, score).shared_bytes)


@pytest.mark.parametrize("case", BACKWARD, ids=str)
def test_the_backward(case):
    (arch, loads), size, *numbers = case
    config, heads = KernelConfig(*numbers, loads), Heads(size, size, "bfloat16")
    both = BackwardConfig(config, config)
    made = compile_backward(BackwardRequest(MASK, None, "bfloat16", size, size, True, both))
    rows = min(config.block_m, config.block_n)
    formulas = (shared_query_gradient, shared_key_gradient)
    names = ("query_gradient_kernel", "key_gradient_kernel")
    for plan, name, formula in zip(made.plan.walks, names, formulas, strict=True):
        report = offline.build(plan, made.plan.pads, made.source, made.name, arch, name)
        holds(formula(config, heads, arch, rows), report.shared_bytes)


# Rings, queries and results are exact; barriers, and what partitions hand over, are a kibibyte at
# most: 216 to 656 bytes of it in 52 kernels without tables.
GLUON = [
    (MASK, 128, GluonConfig(block_n=16, consumers=3, stages=5, query_registers=True)),
    (DOCUMENT, 128, GluonConfig(stages=3, first="producer", bulk_store=True)),
    (SLASH, 128, GluonConfig(block_n=64, stages=4, first="producer", persistent=True)),
]


@pytest.mark.parametrize("case", GLUON, ids=["three", "document", "persistent"])
def test_gluon(case):
    mask, size, config = case
    report = build_gluon(mask, head_dim=size, config=config)
    found = shared(config, Heads(size, size, "bfloat16"), "sm_90", Reads.of(mask))
    assert found.most - 1024 < report.shared_bytes <= found.most


def test_the_gluon_backward():
    config = GluonBackwardConfig(stages=1, links=3, release="named")
    report = build_gluon_backward(DOCUMENT, head_dim=128, config=config)
    found = shared(config, Heads(128, 128, "bfloat16"), "sm_90", Reads.of(DOCUMENT))
    assert found.most - 1024 < report.shared_bytes <= found.most
