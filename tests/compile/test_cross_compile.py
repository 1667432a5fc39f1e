"""Kernels compile to machine code without a GPU. CI runs this file with the newest Triton too."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import maskwright as mw
from maskwright import MaskwrightError
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import kv_head
from maskwright import patterns
from maskwright import q
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.pipeline import choose_backward
from maskwright.codegen.pipeline import choose_config
from maskwright.codegen.pipeline import compile_backward
from maskwright.codegen.pipeline import compile_forward
from maskwright.codegen.plan import Request
from maskwright.codegen.plan_backward import BackwardRequest
from maskwright.runtime.cli import main
from maskwright.runtime.cross import cross_compile
from maskwright.runtime.offline import build

MASKS = {
    "full": patterns.full(),
    "a_shape": patterns.a_shape(sink=64, window=1024),
    "strided": patterns.local_stride(block=64, local_blocks=2, stride=4),
    "anchor": patterns.anchor_document(),
    "vertical_slash": patterns.vertical_slash(),
    "tiled": patterns.vertical_slash(tiled=64),
    "block_list": patterns.block_list(64, 64),
}
TOPK, PAGES = mw.table("topk", ndim=4), mw.table("pages", ndim=2)
KEPT = mw.table("kept", ndim=3, dtype=bool)[h, q // 64, k // 64]
SELECTED = (k <= q) & (k // 64).isin(TOPK[b, kv_head, q])
TOKEN = (k <= q) & ((q - k < 512) | (k // 64).isin(TOPK[b, kv_head, q]))


@pytest.mark.parametrize("name", MASKS)
def test_a_kernel_of_every_kind(name):
    (report,) = cross_compile(MASKS[name], "sm_90")
    assert 0 < report.registers <= 255
    assert 0 < report.shared_bytes <= report.shared_limit
    assert report.cubin_bytes > 0


@pytest.mark.parametrize("name", MASKS)
def test_the_backward_of_every_kind(name):
    for report in cross_compile(MASKS[name], "sm_90", op="backward"):
        assert 0 < report.registers <= 255
        assert 0 < report.shared_bytes <= report.shared_limit


@pytest.mark.parametrize("arch", ["sm_80", "sm_100"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_targets(arch, dtype):
    for op in ("forward", "backward"):
        for report in cross_compile(patterns.causal(), arch, op=op, dtype=dtype, head_dim=64):
            assert report.arch == arch
            assert report.shared_bytes <= report.shared_limit


def test_runtime_lists_keep_their_registers():
    masks = (
        patterns.vertical_slash(),
        patterns.vertical_slash(tiled=64),
        patterns.vertical_slash() | patterns.a_shape(64, 1024),
        patterns.block_list(64, 64),
        TOKEN,
        (k // 16).isin(PAGES[b]),
    )
    for mask in masks:
        (report,) = cross_compile(mask, "sm_90")
        assert report.stack_bytes == 0, str(report)


@pytest.mark.parametrize("group", [1, 4, 16])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_lists_of_every_token_of_a_group(arch, group):
    mask = TOKEN.node
    sizes = {"dtype": "bfloat16", "head_dim": 128, "value_dim": 128}
    config = choose_config(mask, arch=arch, group=group, **sizes)
    assert config.heads == group
    made = compile_forward(Request(mask, None, *sizes.values(), True, False, config))
    report = build(
        made.plan, made.plan.request.pads, made.source, made.name, arch, "forward_kernel"
    )
    assert report.stack_bytes <= (16 if arch == "sm_80" else 0), str(report)
    assert report.shared_bytes <= report.shared_limit


@pytest.mark.parametrize(
    "mask",
    [k <= q, (k <= q) & (k * q % 3 == 0), (k <= q) & ((k < 20) | (q - k < 300)), KEPT],
    ids=["causal", "general", "sinks", "kept"],
)
@pytest.mark.parametrize("loads", ["pointer", "descriptor"])
def test_parts_of_every_kind_of_loop(mask, loads):
    kernel = KernelConfig(64, 64, 4, 2, loads)
    request = ("bfloat16", 64, 64, True, BackwardConfig(kernel, kernel, parts=4))
    made = compile_backward(BackwardRequest(mask.node, None, *request))
    build(made.plan.keys, made.plan.pads, made.source, made.name, "sm_90", "key_gradient_kernel")


@pytest.mark.parametrize(("block_m", "in_bulk"), [(16, False), (32, True)])
def test_the_copy_engine_gets_whole_steps(block_m, in_bulk):
    """A slot of 16 statistics is 64 bytes, and it writes at multiples of 128 (Triton 3.6 does not look)."""
    keys = KernelConfig(block_m, 64, 4, 4, "descriptor")
    both = BackwardConfig(replace(keys, block_m=64), keys)
    made = compile_backward(BackwardRequest((k <= q).node, None, "bfloat16", 64, 64, True, both))
    _, _, kernel = made.source.partition("def key_gradient_kernel")
    assert ("lse.load(" in kernel) == in_bulk
    assert ("tl.load(lse_head" in kernel) != in_bulk
    build(made.plan.keys, made.plan.pads, made.source, made.name, "sm_90", "key_gradient_kernel")


@pytest.mark.parametrize(("group", "parts"), [(4, 1), (16, 16)])
@pytest.mark.parametrize(
    ("arch", "head_dim"), [("sm_80", 128), ("sm_90", 64), ("sm_90", 128), ("sm_100", 128)]
)
def test_gradients_of_lists_of_every_token_of_a_group(arch, head_dim, group, parts):
    sizes = {"dtype": "bfloat16", "head_dim": head_dim, "value_dim": head_dim}
    mask = SELECTED.node
    both = replace(choose_backward(mask, arch=arch, group=group, **sizes), parts=parts)
    assert {both.queries.heads, both.keys.heads} == {group}
    made = compile_backward(BackwardRequest(mask, None, *sizes.values(), True, both))
    kernels = ("query_gradient_kernel", "key_gradient_kernel")
    for plan, kernel in zip(made.plan.walks, kernels, strict=True):
        report = build(plan, made.plan.pads, made.source, made.name, arch, kernel)
        assert report.shared_bytes <= report.shared_limit
        # Two accumulators of 128 columns fill the registers: what is spilled lies outside the loops.
        assert report.stack_bytes <= (0 if head_dim == 64 else 96), str(report)
        assert report.instructions["LDL in loops"] <= 2, str(report)


@pytest.mark.parametrize("tiled", [None, 64, 256])
@pytest.mark.parametrize("block", [(128, 64), (16, 64)], ids=str)
def test_the_preparation_of_runtime_lists(block, tiled):
    node = patterns.vertical_slash(tiled=tiled).node
    config = KernelConfig(*block, 4, 2)
    made = compile_forward(Request(node, None, "bfloat16", 64, 64, True, False, config))
    pads = made.plan.request.pads
    report = build(made.plan, pads, made.source, made.name, "sm_90", "lists_kernel")
    assert (report.stack_bytes, report.registers > 0) == (0, True), str(report)


@pytest.mark.parametrize(("tiled", "kept"), [(None, 0), (64, 8)])
def test_the_preparation_of_listed_tiles(tiled, kept):
    """``kept``: bytes of what is computed once, before loops."""
    config = KernelConfig(128, 64, 4, 2)
    node = (TOKEN | patterns.vertical_slash(tiled=tiled)).node
    made = compile_forward(Request(node, None, "bfloat16", 64, 64, True, False, config))
    first = made.plan
    kernels = [(first, "marks_kernel", made)]
    kernels += [(first, "list_tiles_kernel", made)]
    both = BackwardConfig(KernelConfig(64, 64, 4, 2), KernelConfig(64, 64, 4, 2))
    back = compile_backward(BackwardRequest(node, None, "bfloat16", 64, 64, True, both))
    names = ("query_list_tiles_kernel", "key_list_tiles_kernel")
    kernels += [(x, name, back) for x, name in zip(back.plan.walks, names, strict=True)]
    for plan, kernel, module in kernels:
        report = build(plan, plan.request.pads, module.source, module.name, "sm_90", kernel)
        assert (report.stack_bytes <= kept, report.registers > 0) == (True, True), str(report)


def test_the_causal_backward_keeps_its_registers():
    for report in cross_compile(patterns.causal(), "sm_90", op="backward"):
        assert report.stack_bytes <= 160, str(report)  # loops without spills


def test_matrix_units_are_used():
    for arch, unit in (("sm_90", "HGMMA"), ("sm_80", "HMMA")):
        (report,) = cross_compile(patterns.causal(), arch)
        assert report.instructions.get(unit, 0) > 0


@pytest.mark.parametrize("arch", ["sm_70", "90", "gfx942"])
def test_unknown_targets_are_refused(arch):
    with pytest.raises(MaskwrightError, match="sm_"):
        cross_compile(patterns.causal(), arch)


def test_the_build_command(capsys):
    assert main(["build", "causal", "--arch", "sm_90", "--head-dim", "64", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["builds"]
    assert [b["arch"] for b in found] == ["sm_90"]
    assert {"registers", "stack_bytes", "shared_bytes", "cubin_bytes", "seconds"} <= set(found[0])
    assert main(["build", "causal", "--arch", "sm_90", "--arch", "sm_80"]) == 0
    assert "registers" in capsys.readouterr().out
