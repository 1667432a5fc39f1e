"""Kernels of the selectors, and of the benchmarks' vertical-slash peer, compile to machine code without a GPU."""

from __future__ import annotations

import pytest

from benchmarks.peers import minference_kernel as peer
from maskwright.patterns.selectors import slash_kernel
from maskwright.runtime.offline import resources

KERNELS = ("lse_kernel", "sums_kernel")


FLOATS = dict.fromkeys(("lse", "columns", "diagonals"), "*fp32") | {"scale": "fp32"}
LISTS = ("vertical", "slash", "tile_count", "tile_start", "column_count", "column_index")


def compiled(function, dtype, arch, num_warps=8, **sizes):
    """The kernel for aligned tensors."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    known = dict.fromkeys(("query", "key", "value", "out"), dtype) | FLOATS
    known |= dict.fromkeys(LISTS, "*i32")
    kinds = {name: known.get(name, "i32") for name in function.arg_names}
    kinds |= dict.fromkeys(sizes, "constexpr")
    attrs = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(kinds.items())
        if kind.startswith("*") or name.startswith("stride_")
    }
    source = ASTSource(function, kinds, sizes, attrs)
    return triton.compile(
        source, target=GPUTarget("cuda", arch, 32), options={"num_warps": num_warps}
    )


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("target", [("*bf16", 90), ("*fp16", 80)], ids=str)
def test_vertical_slash(name, target):
    sizes = {"HEAD_DIM": 128, "HEAD_PAD": 128, "ROWS": 64, "BLOCK": 128}
    if name == "lse_kernel":
        sizes["STEPS"] = slash_kernel.STEPS
    found = compiled(getattr(slash_kernel, name), *target, **sizes)
    registers, stack = resources(found.asm["cubin"])
    assert 0 < registers <= 255
    assert found.metadata.shared <= (227 if target[1] == 90 else 163) * 1024
    assert stack == 0


def test_the_peer():
    build = compiled(peer.build_kernel, "*bf16", 90, 1, ROWS=64, KEYS=64, LANES=32)
    attend = compiled(peer.attend_kernel, "*bf16", 90, 4, DIM=128, ROWS=64, KEYS=64)
    for found in (build, attend):
        registers, stack = resources(found.asm["cubin"])
        assert 0 < registers <= 255
        assert stack == 0
