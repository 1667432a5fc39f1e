"""Calls like an earlier one take the hot path: the same results, and no wrong sharing."""

from __future__ import annotations

import time

import pytest
import torch

import maskwright as mw
from maskwright import k
from maskwright import q
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

WINDOW = (k <= q) & (q - k < mw.param("window", min=1))


def inputs(length: int = 200, head_dim: int = 64, dtype: torch.dtype = torch.float16):
    return [torch.randn(1, 4, length, head_dim, device="cuda", dtype=dtype) for _ in range(3)]


@pytest.mark.parametrize("length", [100, 1000])
def test_second_call_is_hot_and_right(length: int) -> None:
    found = mw.compile(WINDOW)
    for step, window in enumerate((7, 90, 1)):
        tensors = inputs(length)
        out, lse = found(*tensors, window=window, return_lse=True)
        wanted = mw.attention(*tensors, WINDOW, window=window, sinks=torch.full((4,), -1e9).cuda())
        torch.testing.assert_close(out, wanted, atol=2e-3, rtol=2e-3)
        assert lse.shape == (1, 4, length)
        assert len(found.hot.forward) == (step > 0), step


def test_what_is_unlike_is_not_shared() -> None:
    found = mw.compile(k <= q)
    tensors = inputs(300)
    first = found(*tensors)
    for _ in range(2):
        assert torch.equal(found(*tensors), first)
    assert found.hot.forward
    assert not torch.equal(found(*tensors, scale=0.5), first)
    assert torch.equal(found(*tensors, q_offset=0), first)
    shorter = [x[:, :, :299] for x in tensors]
    torch.testing.assert_close(found(*shorter), first[:, :, :299], atol=1e-3, rtol=1e-3)
    wide = [torch.empty(1, 4, 300, 65, device="cuda", dtype=x.dtype)[..., 1:] for x in tensors]
    moved = [w.copy_(x) for w, x in zip(wide, tensors, strict=True)]
    torch.testing.assert_close(found(*moved), first, atol=1e-3, rtol=1e-3)
    assert found(*inputs(300, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_who_must_see_the_call_sees_it() -> None:
    found = mw.compile(k <= q)
    tensors = inputs(300)
    for _ in range(3):
        found(*tensors)
    leaf = tensors[0].clone().requires_grad_()
    assert found(leaf, *tensors[1:]).requires_grad
    with torch.autocast("cuda", torch.bfloat16):
        assert found(*tensors).dtype == torch.bfloat16
    with pytest.raises(mw.BindingError):
        found(*tensors, window=3)
    with pytest.raises(mw.BindingError):
        mw.compile(WINDOW)(*tensors, window=0)


def test_another_stream() -> None:
    found, tensors = mw.compile(k <= q), inputs(500)
    for _ in range(3):
        wanted = found(*tensors)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        out = found(*tensors)
    stream.synchronize()
    assert torch.equal(out, wanted)


def gradients(found, tensors, *, through_lse: bool):
    leaves = [x.clone().requires_grad_() for x in tensors]
    out, lse = found(*leaves, return_lse=True)
    loss = out.float().square().sum() + (lse.square().sum() if through_lse else 0.0)
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("length", [200, 1000])
def test_gradients_with_and_without_that_of_the_lse(length: int) -> None:
    """The same kernels serve both; the checked way, then the hot one."""
    found = mw.compile(k <= q)
    reference = mw.compile(k <= q)
    tensors = inputs(length)
    wanted = {}
    for through_lse in (True, False):
        leaves = [x.clone().requires_grad_() for x in tensors]
        out, lse = reference(*leaves, return_lse=True, backend="reference")
        loss = out.float().square().sum() + (lse.square().sum() if through_lse else 0.0)
        wanted[through_lse] = torch.autograd.grad(loss, leaves)
    for through_lse in (True, False, True, False, True, False):
        for x, y in zip(
            gradients(found, tensors, through_lse=through_lse), wanted[through_lse], strict=True
        ):
            assert float((x - y).norm() / y.norm()) < 5e-3, through_lse
    assert len(found.hot.backward) == 2


def test_nothing_of_earlier_calls_stays() -> None:
    found = mw.compile(k <= q)
    for length in (600, 700, 800, 900):
        for _ in range(3):
            gradients(found, inputs(length), through_lse=False)
    torch.cuda.synchronize()
    time.sleep(0.1)
    before = torch.cuda.memory_allocated()
    for length in (650, 750, 850, 950):
        for _ in range(3):
            gradients(found, inputs(length), through_lse=False)
    torch.cuda.synchronize()
    for _ in range(100):  # autograd's own thread lets go of a call a little later
        if torch.cuda.memory_allocated() <= before:
            break
        time.sleep(0.01)
    assert torch.cuda.memory_allocated() <= before


def test_transforms_and_settings_after_a_hot_call() -> None:
    found, tensors = mw.compile(k <= q), inputs(300)
    for _ in range(3):
        wanted = found(*tensors)
    grad = torch.func.grad(lambda x: found(x, *tensors[1:]).float().sum())(tensors[0])
    assert grad.shape == tensors[0].shape
    with mw.settings.override(backend="reference"):
        torch.testing.assert_close(found(*tensors), wanted, atol=2e-3, rtol=2e-3)


def test_expanded_keys_in_the_backward() -> None:
    found, tensors = mw.compile(k <= q), inputs(300)
    query = tensors[0].repeat(2, 1, 1, 1).requires_grad_()
    key, value = (x.expand(2, -1, -1, -1) for x in tensors[1:])
    for _ in range(3):
        (gradient,) = torch.autograd.grad(found(query, key, value).float().sum(), query)
        torch.testing.assert_close(gradient[0], gradient[1])


def test_parts_of_a_tile_of_keys_in_many_steps() -> None:
    """Their sums begin at zero in every step; no launch is kept that would not clear them."""
    kernel = KernelConfig(64, 64, 4, 2)
    mask = (k <= q) & ((k < 20) | (q - k < 100))
    shared = mw.compile(mask).with_config(BackwardConfig(kernel, kernel, parts=4))
    alone = mw.compile(mask).with_config(BackwardConfig(kernel, kernel))
    for _ in range(4):
        tensors = [x.requires_grad_() for x in inputs(2500)]
        grad = torch.randn_like(tensors[0])
        both = [torch.autograd.grad(x(*tensors), tensors, grad) for x in (shared, alone)]
        for found, wanted in zip(*both, strict=True):
            torch.testing.assert_close(found, wanted, atol=2e-3, rtol=2e-3)
    assert not shared.hot.off
    assert not shared.hot.backward
    assert alone.hot.backward
