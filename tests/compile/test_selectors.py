"""Kernels of the selectors compile to machine code without a GPU."""

from __future__ import annotations

import pytest

from maskwright.patterns.selectors import slash_kernel
from maskwright.runtime.offline import _resources

KERNELS = ("lse_kernel", "sums_kernel")


@pytest.fixture(autouse=True)
def _empty_triton_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compiled(function, dtype, arch, **sizes):
    """The kernel for aligned tensors of a head dimension of 128."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = {"query": dtype, "key": dtype}
    floats = dict.fromkeys(("lse", "columns", "diagonals"), "*fp32") | {"scale": "fp32"}
    kinds = {name: (pointers | floats).get(name, "i32") for name in function.arg_names}
    kinds |= dict.fromkeys(sizes, "constexpr")
    attrs = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(kinds.items())
        if kind.startswith("*") or name.startswith("stride_")
    }
    source = ASTSource(function, kinds, sizes, attrs)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": 8})


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("target", [("*bf16", 90), ("*fp16", 80)], ids=str)
def test_vertical_slash(name, target):
    sizes = {"HEAD_DIM": 128, "HEAD_PAD": 128, "ROWS": 64, "BLOCK": 128}
    if name == "lse_kernel":
        sizes["STEPS"] = slash_kernel.STEPS
    found = compiled(getattr(slash_kernel, name), *target, **sizes)
    registers, stack = _resources(found.asm["cubin"])
    print(name, target, registers, stack, found.metadata.shared)
    assert 0 < registers <= 255
    assert found.metadata.shared <= (227 if target[1] == 90 else 163) * 1024
    assert stack == 0
