"""PyTorch around a call: operators, compile, export, autograd, checkpointing, autocast, transforms.

All on the CPU with the reference backend; test_gradients.py compares it with dense attention.
"""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import maskwright as mw
import maskwright.runtime.op  # registers the operators
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import q
from maskwright.codegen.config import KernelConfig

ROOT = Path(__file__).parents[2]
WINDOW = mw.param("window", min=1)
DOC = mw.table("doc", ndim=2, sorted=True)
SLOPE = mw.table("slope", dtype=float)
MASK = (k <= q) & (q - k < WINDOW) & (DOC[b, q] == DOC[b, k])
ALIBI = mw.s + SLOPE[h] * (k - q)
OPS = torch.ops.maskwright


pytestmark = pytest.mark.usefixtures("one_thread")


def inputs(
    q_len: int = 40,
    kv_len: int | None = None,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    value_dim: int = 6,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    kv_len = q_len if kv_len is None else kv_len
    shapes = [(heads, q_len, 8), (kv_heads, kv_len, 8), (kv_heads, kv_len, value_dim)]
    tensors = [torch.randn(2, *x, generator=generator).to(dtype) for x in shapes]
    return [x.requires_grad_() for x in tensors]


def documents(length: int, size: int = 9) -> Tensor:
    return torch.arange(length)[None] // torch.tensor([[size], [size + 5]])


def gradients(loss: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, tensors)


def weigh(out: Tensor, lse: Tensor | None = None) -> Tensor:
    """A loss that is no symmetric function of its inputs; infinite LSEs do not count."""
    loss = (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape).to(out)).sum()
    if lse is not None:
        loss = loss + 0.3 * torch.where(lse.isinf(), 0.0, lse).square().sum()
    return loss


def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], tolerance: float = 1e-5) -> None:
    for mine, true in zip(ours, theirs, strict=True):
        assert torch.isfinite(mine).all()
        torch.testing.assert_close(mine.double(), true.double(), atol=tolerance, rtol=1e-4)


# -- the operators --------------------------------------------------------------------------------
SLOPES = torch.tensor([0.1, 0.2, 0.3, 0.4], requires_grad=True)
CALLS = {
    "plain": (None, [], [], [], "k <= q", "", "", None, None, "auto"),
    "params and tables": (
        *(None, [5], [documents(40)], ["window", "doc"]),
        *(str(MASK), "", "", 0.3, None, "reference"),
    ),
    "score and sinks": (
        *(torch.zeros(4, requires_grad=True), [], [SLOPES], ["slope"]),
        *("k <= q", str(ALIBI), "", 0.3, 3, "auto"),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    arguments = (*inputs(), *CALLS[name])
    torch.library.opcheck(OPS.attention.default, arguments)
    plain = [x.detach() if isinstance(x, Tensor) else x for x in arguments]
    plain[5] = [x.detach() for x in plain[5]]
    out, lse = OPS.attention(*plain)
    wanted = [x.is_floating_point() for x in plain[5]]
    both = (torch.randn_like(out), torch.randn_like(lse), out, lse, wanted)
    torch.library.opcheck(OPS.attention_backward.default, (*both, *plain))
    torch.library.opcheck(OPS.attention_backward.default, (None, *both[1:], *plain))
    torch.library.opcheck(OPS.attention_backward.default, (both[0], None, *both[2:], *plain))


def test_the_operator_and_eager_autograd_agree():
    tensors, sinks = inputs(), torch.randn(4, requires_grad=True)
    static = (str(MASK), "", "", 0.3, None, "auto")
    values = ([5], [documents(40)], ["window", "doc"])
    one = OPS.attention(*tensors, sinks, *values, *static)
    options = {"scale": 0.3, "sinks": sinks, "window": 5, "doc": documents(40)}
    two = mw.attention(*tensors, MASK, return_lse=True, **options)
    assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))
    found = [gradients(weigh(*x), [*tensors, sinks]) for x in (one, two)]
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_a_dispatch_mode_sees_the_operator():
    seen = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Spy():
        mw.attention(*inputs(), k <= q)
    assert "maskwright.attention.default" in seen


# -- no data --------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["fake", "meta"])
def test_shapes_without_data(kind, monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr("maskwright.runtime.reference.attention", never)
    monkeypatch.setattr("maskwright.runtime.reference.backward", never)
    with FakeTensorMode() if kind == "fake" else torch.device("meta"):
        query = torch.randn(2, 30, 4, 8, dtype=torch.bfloat16).transpose(1, 2)
        key, value = (torch.randn(2, 2, 50, d, dtype=torch.bfloat16) for d in (8, 6))
        tensors = [x.detach().requires_grad_() for x in (query, key, value)]
        doc = torch.zeros(2, 50, dtype=torch.int64)
        out, lse = mw.attention(*tensors, MASK, window=3, doc=doc, return_lse=True)
        found = gradients(out.sum() + lse.sum(), tensors)
    assert (out.shape, out.dtype, out.stride()) == (
        *((2, 4, 30, 6), torch.bfloat16),
        (720, 180, 6, 1),
    )
    assert (lse.shape, lse.dtype) == ((2, 4, 30), torch.float32)
    assert [x.stride() for x in found] == [x.stride() for x in tensors]
    assert out.device.type == ("meta" if kind == "meta" else "cpu")


def test_mistakes_are_found_without_data():
    with torch.device("meta"):
        query, key, value = (x.detach() for x in inputs())
        query, key, value = (torch.empty_like(x, device="meta") for x in (query, key, value))
        with pytest.raises(mw.ShapeError, match="lengths"):
            mw.attention(query, key, value[:, :, :-1], k <= q)
        with pytest.raises(mw.BindingError, match="window"):
            mw.attention(query, key, value, MASK, doc=torch.zeros(2, 40, dtype=torch.int64))
        with pytest.raises(mw.BindingError, match="dimension"):
            mw.attention(query, key, value, MASK, window=1, doc=torch.zeros(40, dtype=torch.int64))
        with pytest.raises(mw.DispatchError, match="unknown backend"):
            mw.attention(query, key, value, k <= q, backend="no")


# -- torch.compile --------------------------------------------------------------------------------
class Block(nn.Module):
    """A transformer block around ``mw.attention`` or a compiled mask."""

    def __init__(self, attend=None, *, heads: int = 4, kv_heads: int = 2, size: int = 32) -> None:
        super().__init__()
        self.attend, self.heads, self.kv_heads = attend, heads, kv_heads
        self.head_dim = size // heads
        self.norm = nn.LayerNorm(size)
        self.project = nn.Linear(size, (heads + 2 * kv_heads) * self.head_dim)
        self.out, self.mlp = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, x: Tensor, window: int, doc: Tensor) -> Tensor:
        heads = self.project(self.norm(x)).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        parts = heads.split([self.heads, self.kv_heads, self.kv_heads], 1)
        if self.attend is None:
            mixed = mw.attention(*parts, MASK, window=window, doc=doc)
        else:
            mixed = self.attend(*parts, window=window, doc=doc)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + torch.nn.functional.gelu(self.mlp(x))


@pytest.fixture
def counter():
    torch._dynamo.reset()
    return CompileCounterWithBackend("aot_eager")


@pytest.fixture
def block(request):
    torch.manual_seed(0)
    return Block(mw.compile(MASK) if getattr(request, "param", None) == "object" else None)


def steps(block: nn.Module, run: nn.Module, count: int, *, lengths: bool) -> None:
    """Forward and backward with new values each time, compared with eager."""
    for i in range(count):
        length = 24 + (i % 7 if lengths else 0)
        given = (torch.randn(2, length, 32), 2 + i % 13, documents(length, 3 + i % 5))
        results = []
        for module in (block, run):
            out = module(*given)
            results.append((out, *gradients(weigh(out), list(block.parameters()))))
        same(results[1], results[0], 1e-4)


@pytest.mark.parametrize("block", ["function", "object"], indirect=True)
def test_new_values_and_lengths_never_recompile(block, counter):
    """At most what automatic dynamic shapes need: static, a symbolic int, symbolic lengths."""
    run = torch.compile(block, backend=counter, fullgraph=True)
    steps(block, run, 3, lengths=False)
    steps(block, run, 5, lengths=True)
    settled = counter.frame_count
    assert settled <= 3
    steps(block, run, 100, lengths=True)
    assert counter.frame_count == settled


def test_dynamic_compiles_once(block, counter):
    run = torch.compile(block, backend=counter, fullgraph=True, dynamic=True)
    steps(block, run, 30, lengths=True)
    # torch counts an empty graph beside that of the block.
    assert len([x for x in counter.graphs if len(x.graph.nodes)]) == 1


def test_new_tables_of_one_shape_compile_once(block, counter):
    run = torch.compile(block, backend=counter, fullgraph=True)
    for i in range(10):
        run(torch.randn(2, 24, 32), 5, documents(24, 3 + i))
    assert counter.frame_count == 1


def test_inductor(block):
    torch._dynamo.reset()
    run = torch.compile(block, fullgraph=True)
    try:
        steps(block, run, 2, lengths=False)
    except torch._inductor.exc.InductorError as error:  # no C++ compiler on this machine
        pytest.skip(f"inductor cannot compile here: {str(error)[:60]}")


def test_all_options_in_a_graph(counter):
    def run(query, key, value, sinks, slope, scale, q_offset):
        return mw.attention(
            *(query, key, value, k <= q),
            score=ALIBI,
            slope=slope,
            sinks=sinks,
            scale=scale,
            q_offset=q_offset,
            return_lse=True,
        )

    compiled = torch.compile(run, backend=counter, fullgraph=True)
    sinks, slope = (torch.randn(4, requires_grad=True) for _ in range(2))
    for i in range(4):
        given = (*inputs(20, 30), sinks, slope, 0.1 + i / 7, i)
        one, two = run(*given), compiled(*given)
        assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))
        found = [gradients(weigh(*x), list(given[:5])) for x in (one, two)]
        assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_a_mask_made_inside_the_compiled_function(counter):
    def run(query, key, value):
        mask = (k <= q) & (q - k < 7) & mw.patterns.sliding_window(5)
        return mw.attention(query, key, value, mask, score=mw.softcap(mw.s, 3.0))

    tensors = inputs()
    assert torch.equal(torch.compile(run, backend=counter, fullgraph=True)(*tensors), run(*tensors))


def test_another_mask_is_another_graph(counter):
    def run(mask, *tensors):
        return mw.attention(*tensors, mask)

    compiled, tensors = torch.compile(run, backend=counter, fullgraph=True), inputs()
    for mask in (k <= q, k >= q, k <= q + 1, (k <= q) & (k > 3), k <= q):
        assert torch.equal(compiled(mask, *tensors), run(mask, *tensors))


def test_a_fixed_configuration_in_a_graph(counter):
    attend, tensors = mw.compile(k <= q).with_config(KernelConfig(32, 32, 4, 2)), inputs()
    compiled = torch.compile(attend, backend=counter, fullgraph=True)
    assert torch.equal(compiled(*tensors), attend(*tensors))
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("bindings", "words"),
    [
        ({"window": 3}, 'runtime value "doc" is missing'),
        ({"window": 3, "doc": torch.zeros(2, 40), "wndow": 1}, 'unknown argument "wndow"'),
        ({"window": 3, "doc": torch.zeros(2, 40)}, "is declared int"),
        ({"window": True, "doc": documents(40)}, "needs a Python int"),
    ],
)
def test_mistakes_in_a_graph_say_what_they_are(counter, bindings, words):
    compiled = torch.compile(mw.attention, backend=counter, fullgraph=True)
    with pytest.raises(Exception, match=words):
        compiled(*inputs(), MASK, **bindings)


def test_a_wrong_value_in_a_graph_is_refused_when_it_comes(counter):
    compiled = torch.compile(mw.attention, backend=counter, fullgraph=True, dynamic=True)
    tensors, doc = inputs(), documents(40)
    compiled(*tensors, MASK, window=3, doc=doc)
    with pytest.raises(mw.BindingError, match="promised range"):
        compiled(*tensors, MASK, window=0, doc=doc)


def test_prepared_work_cannot_be_part_of_a_graph(counter):
    tensors = inputs()
    prepared = mw.prepare(k <= q, *tensors[:2], backend="interpret")
    compiled = torch.compile(mw.attention, backend=counter, fullgraph=True)
    with pytest.raises(Exception, match="prepared="):
        compiled(*tensors, k <= q, prepared=prepared)


# -- torch.export ---------------------------------------------------------------------------------
def exported() -> tuple[Block, tuple, io.BytesIO]:
    torch.manual_seed(0)
    block, given = Block(), (torch.randn(2, 24, 32), 5, documents(24))
    length = torch.export.Dim("length", min=2)
    shapes = {"x": {1: length}, "window": None, "doc": {1: length}}
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(block, given, dynamic_shapes=shapes), buffer)
    return block, given, buffer


def test_export_round_trip():
    block, given, buffer = exported()
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    assert torch.equal(loaded(*given), block(*given))
    longer = (torch.randn(2, 40, 32), 5, documents(40))
    assert torch.equal(loaded(*longer), block(*longer))


def test_an_exported_program_runs_in_another_process(tmp_path):
    block, given, buffer = exported()
    (tmp_path / "program.pt2").write_bytes(buffer.getvalue())
    torch.save((given, block(*given)), tmp_path / "data.pt")
    code = (
        "import torch, maskwright.runtime.op\n"
        "given, wanted = torch.load('data.pt')\n"
        "program = torch.export.load('program.pt2').module()\n"
        "assert torch.equal(program(*given), wanted)\n"
    )
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# -- autocast, checkpointing, transforms ----------------------------------------------------------
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_casts_as_sdpa(compiled, counter):
    tensors, sinks = inputs(value_dim=8), torch.zeros(4, requires_grad=True)

    def run(*x):
        return mw.attention(*x, k <= q, sinks=sinks)

    call = torch.compile(run, backend=counter, fullgraph=True) if compiled else run
    with torch.autocast("cpu", torch.bfloat16):
        out = call(*tensors)
        theirs = torch.nn.functional.scaled_dot_product_attention(*tensors, enable_gqa=True)
    assert out.dtype == theirs.dtype == torch.bfloat16
    assert torch.equal(out, run(*(x.bfloat16() for x in tensors)))
    found = gradients(out.float().sum(), [*tensors, sinks])
    assert all(x.dtype == torch.float32 for x in found)
    assert call(*tensors).dtype == torch.float32


def test_autocast_takes_tensors_of_two_dtypes():
    query, key, value = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        assert mw.attention(query, key.bfloat16(), value, k <= q).dtype == torch.bfloat16


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_activation_checkpointing(reentrant, compiled, block, counter):
    if reentrant and compiled:
        pytest.skip("torch.compile follows the other kind only")

    def run(x):
        return checkpoint(block, x, 5, documents(24), use_reentrant=reentrant)

    x = torch.randn(2, 24, 32, requires_grad=True)
    call = torch.compile(run, backend=counter) if compiled else run
    every = [x, *block.parameters()]
    plain = gradients(weigh(block(x, 5, documents(24))), every)
    for y in every:
        y.grad = None
    weigh(call(x)).backward()
    same(tuple(y.grad for y in every), plain)


def test_func_grad():
    query, key, value = (x.detach() for x in inputs())

    def loss(query, key, value):
        return weigh(*mw.attention(query, key, value, k <= q, return_lse=True))

    found = torch.func.grad(loss, argnums=(0, 1, 2))(query, key, value)
    tensors = inputs()
    assert all(
        torch.equal(x, y) for x, y in zip(found, gradients(loss(*tensors), tensors), strict=True)
    )
    with pytest.raises(mw.DispatchError, match="no second derivative"):
        torch.func.grad(lambda x: torch.func.grad(loss)(x, key, value).sum())(query)


def test_func_vmap_is_refused():
    query, key, value = (x.detach() for x in inputs())
    with pytest.raises(mw.DispatchError, match="vmapped"):
        torch.func.vmap(lambda x: mw.attention(x, key, value, k <= q))(torch.stack([query, query]))
