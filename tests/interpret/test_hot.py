"""The hot path without a GPU: frozen launches run interpreted kernels, found by their addresses."""

from __future__ import annotations

import gc
import pickle
import weakref
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import maskwright as mw
from maskwright import k
from maskwright import q
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.runtime import frozen
from maskwright.runtime import gradient
from maskwright.runtime import hot
from maskwright.runtime.interpret import interpreter

WINDOW = (k <= q) & (q - k < mw.param("window", min=1, max=500))
KIND = hot.options_of(None, None, "triton")


class Named(torch.Tensor):
    """A subclass."""


class Memory:
    """Tensors by address, and kernels that take addresses."""

    def __init__(self) -> None:
        self.tensors: dict[int, torch.Tensor] = {}

    def keep(self, *tensors: torch.Tensor) -> None:
        self.tensors |= {x.data_ptr(): x for x in tensors}

    def tensor(self, x):
        if hasattr(x, "base"):
            copy = object.__new__(type(x))
            copy.__dict__.update(vars(x), base=self.tensor(x.base.data_ptr()))
            return copy
        return self.tensors.get(x, x) if type(x) is int else x

    def handle(self, kernel) -> SimpleNamespace:
        def run(gx, gy, gz, stream, function, metadata, *rest):
            with interpreter():
                kernel[gx, gy, gz](*map(self.tensor, rest[3:]))

        run.global_scratch_size = 1  # not the launcher of Triton 3.6
        return SimpleNamespace(run=run, function=0, packed_metadata=(), metadata=None)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    found = Memory()
    plain = hot.Space.new

    def new(space: hot.Space) -> torch.Tensor:
        made = plain(space).fill_(float("nan"))
        found.keep(made)
        return made

    monkeypatch.setattr(hot.Space, "new", new)
    monkeypatch.setattr(hot, "_EMPTY", None)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: -1, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _device: 0, raising=False)
    return found


def remembered(found: mw.Attention, memory: Memory, tensors, **bindings):
    """A call whose forward and backward are hot afterwards; its gradients by the checked way."""
    grad_out, grad_lse = torch.randn_like(tensors[0]), torch.randn(tensors[0].shape[:3])
    call = found.call(*tensors, bindings, backend="interpret")
    out, lse = found.forward(call)
    kernel = found._ready(call, sinks=None, interpreted=True)
    kernel.handle = memory.handle(kernel.module.forward_kernel)
    given = (*tensors, out, lse, grad_out, grad_lse)
    how = gradient.How.of(call.inside, interpreted=True, gluon=False)
    backward = gradient.ready(found, (*tensors, grad_out), call.shapes, (), how)
    for name in backward.module.OPTIONS:
        backward.handles[name] = memory.handle(getattr(backward.module, name))
    call = replace(call, backend="triton")
    for _ in range(2):  # the second call of a kind is remembered
        assert not found.hot.forward
        found.hot.remember(call, tensors, kernel, KIND)
        found.hot._keep(
            found.hot.backward,
            (hot._kind(given), KIND),
            lambda: hot.BackwardLaunch(backward, call, given[3:]),
        )
    return given


@pytest.mark.parametrize("loads", ["pointer", "descriptor"])
def test_forward_and_backward(memory: Memory, attend, loads: str) -> None:
    config = KernelConfig(16, 16, 4, 1, loads)
    found = mw.compile(WINDOW).with_config(config).with_config(BackwardConfig(config, config))
    first = attend.inputs(40, 56, heads=4, kv_heads=2)
    remembered(found, memory, first, window=9)
    for seed, window in ((1, 9), (2, 30), (3, 1)):
        tensors = attend.inputs(40, 56, heads=4, kv_heads=2, seed=seed)
        memory.keep(*tensors)
        launch = found.hot.find(tensors, {"window": window}, KIND)
        out, lse = launch(*tensors, {"window": window})
        leaves = [x.clone().requires_grad_() for x in tensors]
        wanted = found(*leaves, window=window, return_lse=True, backend="interpret")
        torch.testing.assert_close(out, wanted[0])
        torch.testing.assert_close(lse, wanted[1])
        given = (*tensors, out, lse, torch.randn_like(out), torch.randn_like(lse))
        memory.keep(*given)
        launch = found.hot.find_backward(given, {"window": window}, KIND)
        mine = launch(given, {"window": window})
        truth = torch.autograd.grad(wanted, leaves, given[5:])
        for x, y in zip(mine, truth, strict=True):
            torch.testing.assert_close(x, y)


def test_query_key_and_value_may_be_one_tensor(memory: Memory, attend) -> None:
    found = mw.compile(k <= q)
    x = attend.inputs(40)[0]
    remembered(found, memory, (x, x, x))
    tensors = attend.inputs(40, seed=5)
    memory.keep(*tensors)
    out, _ = found.hot.find(tensors, {}, KIND)(*tensors, {})
    torch.testing.assert_close(out, found(*tensors, backend="interpret"))


def test_what_is_unlike_is_not_found(memory: Memory, attend) -> None:
    found = mw.compile(WINDOW)
    tensors = attend.inputs(40)
    remembered(found, memory, tensors, window=9)
    find = found.hot.find
    assert find(tensors, {"window": 9}, KIND) is not None
    for options in ((0.5, None, "triton"), (None, 0, "triton"), ([1], None, "triton")):
        assert find(tensors, {"window": 9}, hot.options_of(*options)) is None
    kinds = [hot.options_of(None, None, "auto")]
    with mw.settings.override(backend="reference"):
        kinds.append(hot.options_of(None, None, "auto"))
    assert kinds[0] != kinds[1]
    assert find(attend.inputs(41), {"window": 9}, KIND) is None
    assert find(attend.inputs(40, dtype=torch.float16), {"window": 9}, KIND) is None
    for bindings in ({}, {"window": 0}, {"window": 501}, {"window": True}, {"other": 9}):
        assert find(tensors, bindings, KIND) is None, bindings
    leaf = tensors[0].clone().requires_grad_()
    assert find((leaf, *tensors[1:]), {"window": 9}, KIND) is None
    with torch.no_grad():
        assert find((leaf, *tensors[1:]), {"window": 9}, KIND) is not None
    parameter = torch.nn.Parameter(tensors[0])
    assert find((parameter, *tensors[1:]), {"window": 9}, KIND) is None
    shifted = torch.empty(tensors[0].numel() + 1)[1:].view_as(tensors[0])
    assert find((shifted, *tensors[1:]), {"window": 9}, KIND) is None


def test_the_last_call_serves_its_like_alone(memory: Memory, attend) -> None:
    """What the check in C++ must tell apart, without the checks of the longer way."""
    tensors = attend.inputs(40)
    last = hot.Last.of(tensors, KIND, None)
    x, *rest = tensors

    def serves(first: torch.Tensor, options=KIND) -> bool:
        return last.serves((first, *rest), options)

    assert serves(x)
    assert serves(torch.zeros_like(x))
    assert not serves(x, hot.options_of(0.5, None, "triton"))
    shifted = torch.empty(x.numel() + 1)[1:].view_as(x)
    strided = torch.empty(*x.shape[:-1], 2 * x.shape[-1])[..., : x.shape[-1]]
    leaf = x.clone().requires_grad_()
    other_types = [x.double(), torch.nn.Parameter(x), x.as_subclass(Named), x.to("meta")]
    for unlike in (x[:, :, 1:], x[..., ::2], shifted, strided, leaf, *other_types):
        assert not serves(unlike), unlike.shape
    seen = []
    torch.func.vmap(lambda y: (seen.append(serves(x)), y)[1])(x)
    torch.func.grad(lambda y: (seen.append(serves(y)), y.sum())[1])(x)
    with FlopCounterMode(display=False), forward_ad.dual_level():
        seen.append(serves(x))
    with forward_ad.dual_level():
        seen.append(serves(forward_ad.make_dual(x, x)))
    with torch.autocast("cpu", torch.bfloat16):
        seen.append(serves(x))
    with FakeTensorMode():
        fake = torch.empty(x.shape)
        seen += [serves(x), serves(fake)]
    assert not any(seen), seen


def test_the_last_call_of_a_leaf_serves_without_gradients_only(memory: Memory, attend) -> None:
    tensors = [x.requires_grad_() for x in attend.inputs(40)]
    last = hot.Last.of(tensors, KIND, None)
    assert not last.serves(tensors, KIND)
    with torch.no_grad():
        assert last.serves(tensors, KIND)


def test_transforms_and_copies_go_the_checked_way(memory: Memory, attend) -> None:
    found = mw.compile(k <= q)
    tensors = attend.inputs(40)
    remembered(found, memory, tensors)

    def loss(x):
        return found(x, *tensors[1:], backend="reference").square().sum()

    leaf = tensors[0].clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(torch.func.grad(loss)(tensors[0]), leaf.grad)
    _, pull = torch.func.vjp(loss, tensors[0])
    with torch.no_grad():
        torch.testing.assert_close(pull(torch.tensor(1.0))[0], leaf.grad)
    for copy in (deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert not copy.hot.forward
        torch.testing.assert_close(copy(*tensors), found(*tensors))


@pytest.mark.parametrize("loads", ["pointer", "descriptor"])
def test_what_is_kept_holds_no_tensor(memory: Memory, attend, loads: str) -> None:
    config = KernelConfig(16, 16, 4, 1, loads)
    found = mw.compile(k <= q).with_config(config).with_config(BackwardConfig(config, config))
    given = remembered(found, memory, attend.inputs(40))
    references = [weakref.ref(x) for x in given]
    assert found.hot.forward
    assert found.hot.backward
    del given
    gc.collect()
    assert not any(x() is not None for x in references)


def test_a_row_without_keys_adds_nothing_even_to_nan(attend) -> None:
    tensors = [x.requires_grad_() for x in attend.inputs(32)]
    for backend in ("interpret", "reference"):
        _, lse = mw.attention(*tensors, (k <= q) & (q >= 4), return_lse=True, backend=backend)
        loss = torch.logaddexp(lse, torch.full_like(lse, float("-inf"))).sum()
        for found in torch.autograd.grad(loss, tensors):
            assert not found.isnan().any(), backend


def test_masks_with_tables_are_not_remembered(memory: Memory, attend) -> None:
    found = mw.compile(mw.patterns.document())
    tensors = attend.inputs(40)
    doc_id = torch.zeros(1, 40, dtype=torch.int32)
    call = found.call(*tensors, {"doc_id": doc_id}, backend="interpret")
    kernel = found._ready(call, sinks=None, interpreted=True)
    found.hot.remember(replace(call, backend="triton"), tensors, kernel, KIND)
    assert not found.hot.forward


def test_arguments_laid_out_for_the_launcher_in_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor becomes a map, its shape and its strides; maps are encoded once an address."""
    from triton.backends.nvidia import driver
    from triton.tools.tensor_descriptor import TensorDescriptor

    launched, encoded = [], []

    def encode(descriptor, meta):
        encoded.append((descriptor.base.data_ptr(), meta))
        return [f"map {descriptor.base.data_ptr()}", *descriptor.shape, *descriptor.strides]

    monkeypatch.setattr(frozen, "_launcher", lambda _handle: lambda *x: launched.append(x))
    monkeypatch.setattr(driver, "make_tensordesc_arg", encode)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _device: 7, raising=False)
    x, out, window = torch.zeros(4, 16), torch.zeros(4, 16), frozen.Slot()
    described = TensorDescriptor(x, [4, 16], [16, 1], [4, 16])
    run = SimpleNamespace(launch_cooperative_grid=False, launch_pdl=False)
    handle = SimpleNamespace(
        run=run,
        function="f",
        packed_metadata=(4, 1, 0),
        metadata=SimpleNamespace(tensordesc_meta=[{"swizzle": 1}]),
    )
    places = {id(x): 0, id(out): 1, id(window): 2}
    launch = frozen.Frozen(handle, (8, 2, 1), [described, out, 5, window, 0.5], places, 0)
    encoded.clear()
    for values in ((1024, 2048, 9), (1024, 4096, 10), (512, 2048, 11)):
        launch(values)
    prefix = (8, 2, 1, 7, "f", False, False, None, None, (4, 1, 0), None, None, None)
    assert launched == [
        (*prefix, "map 1024", 4, 16, 16, 1, 2048, 5, 9, 0.5),
        (*prefix, "map 1024", 4, 16, 16, 1, 4096, 5, 10, 0.5),
        (*prefix, "map 512", 4, 16, 16, 1, 2048, 5, 11, 0.5),
    ]
    assert [address for address, _ in encoded] == [1024, 512]
