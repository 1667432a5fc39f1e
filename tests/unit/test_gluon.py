"""Which calls Gluon kernels serve, and what is said about those that they do not. No GPU."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from triton.compiler.errors import CompilationError

import maskwright as mw
from maskwright import k
from maskwright import q
from maskwright.codegen import gluon
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.configs import Configs
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon_plan import gluon_request
from maskwright.codegen.pipeline import compile_forward
from maskwright.codegen.plan import Request
from maskwright.runtime import device
from maskwright.runtime import gluon as serving
from maskwright.runtime import gradient
from maskwright.runtime.api import Attention
from maskwright.runtime.gluon import request
from maskwright.runtime.gluon import settle

SIZES = {"dtype": "bfloat16", "head_dim": 128, "value_dim": 128}
CAUSAL = (k <= q).node
PASS_FAILED = RuntimeError("PassManager::run failed")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "float32"}, "16-bit"),
        ({"head_dim": 320}, "accumulators"),
        ({"value_dim": 20}, "16 bytes"),
        ({"config": GluonConfig(stages=4)}, "KiB"),
        ({"config": GluonConfig(bulk_store=True), "value_dim": 64}, "where queries"),
    ],
)
def test_requests_that_are_refused(changes, words):
    _, reason = gluon_request(CAUSAL, None, **SIZES | changes)
    assert words in reason
    with pytest.raises(mw.LoweringError, match=words):
        mw.source(k <= q, backend="gluon", **SIZES | changes)


def test_lists_that_are_refused():
    kept = mw.table("kept", ndim=2, dtype=bool)[q // 64, k // 64]
    assert gluon_request(kept.node, None, **SIZES)[1] == ""
    assert (
        "two consumers"
        in gluon_request(kept.node, None, **SIZES, config=GluonConfig(block_n=64, consumers=3))[1]
    )
    assert "runtime lists" in gluon_request(mw.patterns.block_list(32, 64).node, None, **SIZES)[1]
    followed, reason = gluon_request(mw.patterns.block_list(64, 64).node, None, **SIZES)
    assert (followed.config.block_n, followed.config.stages, reason) == (64, 4, "")
    three = mw.patterns.block_list(64, 64)
    for name in ("one", "two"):
        three &= (k // 64).isin(mw.table(name, ndim=3)[mw.b, mw.h])
    assert gluon_request(three.node, None, **SIZES)[1] == ""
    wide = SIZES | {"head_dim": 256, "value_dim": 256}
    assert "wide heads" in gluon_request(three.node, None, **wide)[1]
    turns = GluonConfig(block_n=64, pingpong=True)
    assert "take turns" in gluon_request(followed.mask, None, **SIZES, config=turns)[1]
    searched = (~(k // 64).isin(mw.table("left_out", ndim=2)[mw.b])).node
    request, reason = gluon_request(searched, None, **SIZES)
    assert (request.config.block_n, reason) == (64, "")
    wide = GluonConfig(block_n=128)
    assert "searching a list" in gluon_request(searched, None, **SIZES, config=wide)[1]


LISTED = mw.patterns.vertical_slash()
FIRST = {"block_n": 64, "first": "producer"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (GluonConfig(block_n=128), "64 keys"),
        (GluonConfig(block_n=64, registers=216), "four warps"),
        (GluonConfig(**FIRST), "56 registers"),
        (GluonConfig(**FIRST, consumers=3), "56 registers"),
        (GluonConfig(**FIRST, stages=1, registers=216), "two stages"),
        (GluonConfig(**FIRST, stages=3, registers=216), ""),
        (GluonConfig(**FIRST, stages=3, registers=224, persistent=True), ""),
    ],
)
def test_configurations_for_lists_of_columns(config, words):
    reason = gluon_request(LISTED.node, None, **SIZES, config=config)[1]
    assert words in reason
    assert bool(words) == bool(reason)


def test_lists_of_columns_have_a_configuration_of_their_own():
    diagonals = (k <= q) & (q - k).isin(mw.table("s_idx", ndim=3)[mw.b, mw.h])
    for mask in (LISTED, diagonals):
        request, reason = gluon_request(mask.node, None, **SIZES)
        assert not reason
        assert request.config.block_n == 64
        assert request.config.producer_registers >= 56
    assert "gathered_tiles" in mw.source(LISTED, backend="gluon")
    assert "gathered_tiles" not in mw.source(diagonals, backend="gluon")


def test_lists_of_columns_are_served(monkeypatch):
    monkeypatch.setattr(device, "arch", lambda _: "sm_90")
    lists = {x: torch.zeros(1, 2, 5, dtype=torch.int32) for x in ("v_idx", "s_idx")}
    found = Attention(LISTED)
    tensors = [torch.zeros(1, 2, 1024, 64, dtype=torch.bfloat16) for _ in range(3)]
    here = replace(found.call(*tensors, lists, backend="reference"), backend="triton")
    for asked in ("gluon", "auto"):
        assert settle(found, here, asked=asked).backend == "gluon"
    notes = mw.explain(LISTED, 256, v_idx=lists["v_idx"], s_idx=lists["s_idx"], heads=2)
    assert "Gluon" not in str(notes)


def test_a_configuration_for_lists_is_taken_by_name(monkeypatch):
    monkeypatch.setattr(device, "arch", lambda _: "sm_90")
    lists = {x: torch.zeros(1, 2, 5, dtype=torch.int32) for x in ("v_idx", "s_idx")}
    tensors = [torch.zeros(1, 2, 1024, 128, dtype=torch.bfloat16) for _ in range(3)]
    chosen = GluonConfig(**FIRST, stages=3, registers=208, persistent=True)
    found = mw.compile(LISTED).with_config(chosen)
    here = replace(found.call(*tensors, lists, backend="reference"), backend="triton")
    for asked in ("gluon", "auto"):
        assert settle(found, here, asked=asked).backend == "gluon"
    assert request(found, here)[0].config == chosen
    found = mw.compile(LISTED).with_config(GluonConfig())
    assert settle(found, here, asked="auto").backend == "triton"
    with pytest.raises(mw.DispatchError, match="64 keys at most"):
        settle(found, here, asked="gluon")


def test_what_takes_registers_for_every_pair_gets_smaller_tiles():
    bias = mw.table("bias", ndim=2, dtype=float)
    for mask, score, block_n in (
        (k <= q, None, 128),
        (k <= q, mw.s + bias[mw.b, q], 128),
        (k <= q, mw.s + bias[mw.b, k], 64),
        (k <= q, mw.s + bias[q, k], 64),
        ((q - k) % mw.param("p", min=1) == 0, None, 64),
    ):
        request, _ = gluon_request(mask.node, None if score is None else score.node, **SIZES)
        assert request.config.block_n == block_n


def test_explain_says_why():
    found = mw.explain(k <= q, 256, head_dim=320)
    assert any("no Gluon kernel: a head of 320" in x for x in found.to_dict()["reasons"])
    assert "no Gluon kernel" not in str(mw.explain(k <= q, 256))


@pytest.mark.parametrize(
    "options",
    [
        {"block_n": 48},
        {"consumers": 1},
        {"stages": 0},
        {"registers": 250},
        {"registers": 248},
        {"consumers": 3, "registers": 168},
        {"first": "nobody"},
        {"stages": 4, "consumers": 3, "pingpong": True},
        {"programs": 4},
        {"persistent": True, "programs": -1},
    ],
)
def test_configurations_that_do_not_exist(options):
    with pytest.raises(mw.LoweringError):
        GluonConfig(**options)


@pytest.mark.parametrize("consumers", [2, 3])
def test_registers_are_all_of_the_file(consumers):
    config = GluonConfig(block_n=64, consumers=consumers)
    assert config.launch_registers * 128 * (consumers + 1) <= 64 * 1024
    assert config.producer_registers >= 24
    shared = config.consumer_registers * consumers + config.producer_registers
    assert shared == config.launch_registers * (consumers + 1)


def test_configurations_as_text():
    found = Configs.of(GluonConfig(block_n=64, first="producer"), mw.KernelConfig())
    assert Configs.from_text(found.to_text()) == found


def call(found, backend="triton", dtype=torch.bfloat16, length=1024):
    """A call as if it came from a GPU."""
    tensors = [torch.zeros(1, 2, length, 64, dtype=dtype) for _ in range(3)]
    return replace(found.call(*tensors, {}, backend="reference"), backend=backend)


def test_who_serves(monkeypatch):
    monkeypatch.setattr(device, "arch", lambda _: "sm_90")
    monkeypatch.setattr(gluon, "GLUON_BY_DEFAULT", False)
    plain = Attention(k <= q)
    tuned = plain.with_config(GluonConfig(block_n=64))
    assert settle(plain, call(plain, "gluon"), asked="gluon").backend == "gluon"
    assert settle(plain, call(plain), asked="auto").backend == "triton"
    assert settle(plain, call(plain), asked="triton").backend == "triton"
    assert settle(tuned, call(tuned), asked="auto").backend == "gluon"
    assert settle(tuned, call(tuned, dtype=torch.float32), asked="auto").backend == "triton"
    assert settle(tuned, call(tuned, "reference"), asked="auto").backend == "reference"
    monkeypatch.setattr(gluon, "GLUON_BY_DEFAULT", True)
    assert settle(plain, call(plain), asked="auto").backend == "gluon"
    assert settle(plain, call(plain, length=128), asked="auto").backend == "triton"
    with pytest.raises(mw.DispatchError, match="16-bit"):
        settle(plain, call(plain, "gluon", torch.float32), asked="gluon")
    monkeypatch.setattr(device, "arch", lambda _: "sm_100")
    with pytest.raises(mw.DispatchError, match="sm_100"):
        settle(plain, call(plain, "gluon"), asked="gluon")
    assert settle(tuned, call(tuned), asked="auto").backend == "triton"


def test_tensors_that_cannot_be_copied_in_bulk(monkeypatch):
    monkeypatch.setattr(device, "arch", lambda _: "sm_90")
    found = Attention(k <= q)
    made = call(found, "gluon")
    wide = torch.zeros(1, 2, 1024, 65, dtype=torch.bfloat16)[..., 1:]
    with pytest.raises(mw.DispatchError, match="16-byte"):
        settle(found, replace(made, key=wide), asked="gluon")


class Broken:
    """A kernel that another release of Triton refuses, and one that works."""

    def __init__(self, error: Exception, attempts: list[str]) -> None:
        self.error, self.attempts = error, attempts

    def __call__(self, call, prepared):
        self.attempts.append(call.backend)
        if call.backend == "gluon":
            raise self.error
        return call.nothing()


def attempt(monkeypatch, error, *, configs=None, asked="auto", mask=k <= q):
    """Backends that were tried, and what came of it."""
    monkeypatch.setattr(device, "arch", lambda _: "sm_90")
    monkeypatch.setattr(serving, "_given_up", set())
    attempts: list[str] = []
    found = Attention(mask, configs=configs)
    monkeypatch.setattr(found, "_direct", Broken(error, attempts))
    tensors = [torch.zeros(1, 2, 1024, 64, dtype=torch.bfloat16) for _ in range(3)]
    here = replace(found.call(*tensors, {}, backend="reference"), backend="triton")
    call = settle(found, here, asked=asked)
    assert call.backend == "gluon"
    found.forward(call)
    return attempts, settle(found, here, asked="auto").backend


def test_a_kernel_that_cannot_be_built_leaves_the_mask_to_triton(monkeypatch):
    for error in (CompilationError(None, None, "no such layout"), ImportError("tma"), PASS_FAILED):
        with pytest.warns(mw.MaskwrightWarning, match="cannot be built here"):
            attempts, then = attempt(monkeypatch, error)
        assert attempts == ["gluon", "triton"]
        assert then == "triton"  # and is not tried again


def test_other_errors_are_not_hidden(monkeypatch):
    failed = CompilationError(None, None, "no such layout")
    fixed = Configs.of(GluonConfig())
    for error, options in (
        (RuntimeError("CUDA error: an illegal memory access was encountered"), {}),
        (ValueError("ours"), {}),
        (failed, {"asked": "gluon"}),
        (failed, {"configs": fixed}),
    ):
        with pytest.raises(type(error)):
            attempt(monkeypatch, error, **options)


def test_gradients_of_a_kernel_that_cannot_be_built_come_from_triton(monkeypatch):
    monkeypatch.setattr(serving, "_given_up", set())
    found, attempts = Attention(k <= q), []
    shape = (1, 2, 128, 64)
    made = (*(torch.zeros(shape) for _ in range(3)), None, torch.zeros(1, 2, 128), {})

    def run(*_, **__):
        attempts.append(serving.given_up(found, "backward"))
        if not attempts[-1]:
            raise PASS_FAILED
        return made

    plan = SimpleNamespace(walks=(), bindings=())
    kernel = SimpleNamespace(compiled=SimpleNamespace(plan=plan), run=run)
    monkeypatch.setattr(gradient, "ready", lambda *_: kernel)
    tensors = [torch.zeros(shape, dtype=torch.bfloat16) for _ in range(4)]
    options = {"values": {}, "q_offset": 0, "scale": 1.0, "interpreted": False, "sinks": None}
    inputs = (found, tensors[0], None, *tensors[:3], tensors[3], torch.zeros(1, 2, 128))
    with pytest.warns(mw.MaskwrightWarning, match="backward"):
        gradient.backward(*inputs, use_gluon=True, **options)
    assert attempts == [False, True]
    serving._given_up.clear()
    with pytest.raises(RuntimeError, match="PassManager"):
        gradient.backward(*inputs, use_gluon=False, **options)


def test_what_was_prepared_for_triton_is_nothing_for_gluon():
    """Tiles are alike, but in Gluon each consumer has a bit of its own."""
    found = Attention(LISTED)
    config = KernelConfig(128, 64, 8, 3)
    triton = Request(found.mask, None, "bfloat16", 128, 128, True, False, config)
    ours = gluon_request(found.mask, None, **SIZES)[0]
    assert triton.tile == ours.tile
    assert found._work(compile_forward(triton)) != found._work(compile_forward(ours))


def test_lists_refuse_turns():
    config = GluonConfig(**FIRST, stages=3, registers=216, pingpong=True)
    assert "cannot take turns" in gluon_request(LISTED.node, None, **SIZES, config=config)[1]


def test_ends_that_tables_give_are_compared_for_each_pair():
    """An entry may be so large that its distance from a tile overflows."""
    limit = mw.table("limit", ndim=1)[mw.h]
    for mask, words in ((LISTED & (k >= limit), False), (LISTED & (k >= 5), True)):
        source = mw.source(mask, backend="gluon")
        assert ("keep_words =" in source) == words


def test_diagonals_that_no_tile_can_meet_are_left_out():
    cols, bands = (mw.table(x, ndim=3)[mw.b, mw.h] for x in ("cols", "bands"))
    mask = k.isin(cols) | ((q - k).isin(bands) & (k < -12)) | (q - k >= 77)
    for kind in ({}, {"backend": "gluon"}):
        assert "diag_ranks" not in mw.source(mask, **kind)
