"""PyTorch around the triton backend: CUDA graphs, ``torch.compile``, checkpointing, gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import q

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

WINDOW = mw.param("window", min=1)
CLOSED = (k <= q) & ((k < 16) | (q - k < WINDOW))
DOC = mw.table("doc", ndim=2, sorted=True)
SLOPE = mw.table("slope", dtype=float)
IN_DOCUMENT = (k <= q) & (DOC[b, q] == DOC[b, k])
ALIBI = mw.s + SLOPE[h] * (k - q)
TOLERANCE = 1.5e-2  # bfloat16, relative, as in maskwright.runtime.check


def inputs(
    length: int = 300, *, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> list[Tensor]:
    generator = torch.Generator("cuda").manual_seed(seed)
    shapes = [(2, 4, length, 64), (2, 2, length, 64), (2, 2, length, 64)]
    made = [torch.randn(x, generator=generator, device="cuda") for x in shapes]
    return [x.to(dtype).requires_grad_() for x in made]


def close(ours: Tensor, theirs: Tensor) -> None:
    assert torch.isfinite(ours).all()
    error = (ours.double() - theirs.double()).norm() / theirs.double().norm().clamp_min(1e-30)
    assert float(error) < TOLERANCE


def backward(out: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    weight = torch.linspace(-1, 1, out.numel(), device="cuda").reshape(out.shape).to(out)
    return torch.autograd.grad(out, tensors, weight)


# -- CUDA graphs ----------------------------------------------------------------------------------
def capture(
    run: Callable[[], tuple[Tensor, ...]],
) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    """The graph of a function and its outputs, after runs on a side stream that compile all."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph, outputs


def refill(tensors: list[Tensor], seed: int) -> None:
    with torch.no_grad():
        for x, y in zip(tensors, inputs(tensors[0].shape[2], seed=seed), strict=True):
            x.copy_(y)


def test_a_forward_in_a_cuda_graph() -> None:
    tensors = [x.detach() for x in inputs()]
    graph, (out, lse) = capture(
        lambda: mw.attention(*tensors, CLOSED, window=50, return_lse=True, backend="triton")
    )
    for seed in (1, 2):
        refill(tensors, seed)
        out.fill_(float("nan"))
        graph.replay()
        wanted = mw.attention(*tensors, CLOSED, window=50, return_lse=True, backend="triton")
        assert torch.equal(out, wanted[0])
        assert torch.equal(lse, wanted[1])


def test_forward_and_backward_in_a_cuda_graph() -> None:
    tensors = inputs()

    def run() -> tuple[Tensor, ...]:
        out = mw.attention(*tensors, CLOSED, window=50, backend="triton")
        return out, *backward(out, tensors)

    graph, outputs = capture(run)
    for seed in (1, 2):
        refill(tensors, seed)
        graph.replay()
        found = [x.clone() for x in outputs]
        for mine, true in zip(found, run(), strict=True):
            close(mine, true)


# -- torch.compile --------------------------------------------------------------------------------
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_with_inductor(dynamic: bool | None) -> None:
    torch._dynamo.reset()

    def run(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
        return mw.attention(2 * query, key, value, CLOSED, window=window).sin()

    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic)
    for i, length in enumerate((256, 256, 300, 333, 512)):
        tensors = inputs(length, seed=i)
        ours, theirs = (f(*tensors, 20 + i) for f in (compiled, run))
        close(ours, theirs)
        pairs = zip(backward(ours, tensors), backward(theirs, tensors), strict=True)
        for mine, true in pairs:
            close(mine, true)


def test_compiled_with_cuda_graphs() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *x: mw.attention(*x, CLOSED, window=50) * 2, mode="reduce-overhead", fullgraph=True
    )
    for seed in range(5):
        torch.compiler.cudagraph_mark_step_begin()
        tensors = [x.detach() for x in inputs(seed=seed)]
        close(compiled(*tensors), mw.attention(*tensors, CLOSED, window=50) * 2)


# -- gradients ------------------------------------------------------------------------------------
CASES = {
    "closed form": (CLOSED, None, {"window": 50}),
    "documents": (IN_DOCUMENT, None, {}),
    "alibi": (k <= q, ALIBI, {}),
    "empty rows": ((k <= q) & (q % 7 > 2), mw.softcap(mw.s, 5.0), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_reference(name: str) -> None:
    mask, score, values = CASES[name]
    tensors = inputs()
    extra = [torch.randn(4, device="cuda", requires_grad=True)]
    values = dict(values)
    if name == "documents":
        values["doc"] = (torch.arange(300, device="cuda") // 77).expand(2, -1).contiguous()
    if name == "alibi":
        extra.append(torch.rand(4, device="cuda").requires_grad_())
        values["slope"] = extra[1]
    every, found = [*tensors, *extra], []
    for backend in ("triton", "reference"):
        options = {"sinks": extra[0], "return_lse": True, "backend": backend}
        out, lse = mw.attention(*tensors, mask, score=score, **options, **values)
        loss = (out * torch.linspace(-1, 1, 64, device="cuda")).sum() + 0.1 * lse.square().sum()
        found.append(torch.autograd.grad(loss, every))
    for mine, true in zip(*found, strict=True):
        close(mine, true)


def test_checkpointing() -> None:
    tensors = inputs()

    def run(*x: Tensor) -> Tensor:
        return mw.attention(*x, CLOSED, window=50)

    plain = backward(run(*tensors), tensors)
    for reentrant in (False, True):
        leaves = [x.detach().requires_grad_() for x in tensors]
        out = checkpoint(run, *leaves, use_reentrant=reentrant)
        out.backward(torch.linspace(-1, 1, out.numel(), device="cuda").reshape(out.shape).to(out))
        for mine, true in zip(leaves, plain, strict=True):
            assert mine.grad is not None
            close(mine.grad, true)


def test_autocast() -> None:
    tensors = inputs(dtype=torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        out = mw.attention(*tensors, k <= q)
    assert out.dtype == torch.bfloat16
    assert all(x.dtype == torch.float32 for x in backward(out, tensors))
