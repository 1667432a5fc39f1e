"""Which backward passes Gluon kernels serve. No GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import maskwright as mw
from maskwright import k
from maskwright import q
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.configs import Configs
from maskwright.codegen.gluon_backward import GluonBackwardConfig
from maskwright.codegen.gluon_backward import default_gluon_backward
from maskwright.codegen.gluon_plan import gluon_backward_request
from maskwright.codegen.plan_backward import BackwardRequest
from maskwright.dsl import nodes as n
from maskwright.runtime import device
from maskwright.runtime import gradient
from maskwright.runtime.api import Attention
from maskwright.runtime.bind import check_tensors
from maskwright.runtime.gluon import backward_request

BIAS = mw.table("bias", dtype=float)
REQUEST = BackwardRequest(
    (k <= q).node,
    None,
    "bfloat16",
    128,
    128,
    inside=True,
    config=mw.BackwardConfig(mw.KernelConfig(), mw.KernelConfig()),
)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dtype": "float32"}, "16-bit"),
        ({"head_dim": 192}, "registers"),
        ({"value_dim": 20}, "16 bytes"),
        ({"score": (mw.s + BIAS[k]).node}, "float tables"),
        ({"score": (mw.s + BIAS[k]).node, "tables": ("bias",)}, "float tables"),
        ({"mask": mw.patterns.vertical_slash().node}, "runtime lists"),
    ],
)
def test_requests_that_are_refused(changes, words):
    assert gluon_backward_request(REQUEST)[1] == ""
    made = replace(REQUEST, **changes)
    assert words in gluon_backward_request(made)[1]
    if "tables" not in changes:
        sizes = {"dtype": made.dtype, "head_dim": made.head_dim, "value_dim": made.value_dim}
        score = None if made.score is None else mw.s + BIAS[k]
        mask = mw.patterns.vertical_slash() if "mask" in changes else k <= q
        with pytest.raises(mw.LoweringError, match=words):
            mw.source(mask, op="backward", backend="gluon", score=score, **sizes)


def test_tables_whose_gradient_nobody_wants():
    made = replace(REQUEST, score=(mw.s + BIAS[k]).node, tables=())
    assert gluon_backward_request(made)[1] == ""


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (GluonBackwardConfig(block_m=64), "narrower than a swizzle"),
        (GluonBackwardConfig(block_m=128, stages=4), "shared memory"),
    ],
)
def test_configurations_that_do_not_fit(config, words):
    made = replace(REQUEST, head_dim=64, value_dim=64)
    assert words in gluon_backward_request(made, config)[1]


@pytest.mark.parametrize(
    "options",
    [{"block_m": 32}, {"stages": 0}, {"links": 9}, {"registers": 250}, {"registers": 100}],
)
def test_configurations_that_do_not_exist(options):
    with pytest.raises(mw.LoweringError):
        GluonBackwardConfig(**options)


def test_registers_are_all_of_the_file():
    config = default_gluon_backward(128, 128)
    assert 2 * config.consumer_registers + config.producer_registers == 3 * 168
    assert config.worker_registers == [240, 24]


def test_configurations_as_text():
    found = Configs.of(GluonBackwardConfig(links=1), mw.KernelConfig())
    assert Configs.from_text(found.to_text()) == found


def test_who_serves(monkeypatch):
    tensors = [torch.zeros(1, 2, 64, 128, dtype=torch.bfloat16) for _ in range(4)]
    monkeypatch.setattr(device, "arch", lambda _: "sm_90")
    made = backward_request(REQUEST, None, tensors)
    assert made.config == default_gluon_backward(128, 128)
    fixed = GluonBackwardConfig(links=1)
    assert backward_request(REQUEST, fixed, tensors).config == fixed
    other = replace(REQUEST, dtype="float32")
    assert backward_request(other, None, tensors) == other
    with pytest.raises(mw.DispatchError, match="16-bit"):
        backward_request(other, fixed, tensors)
    shifted = torch.zeros(1, 2, 64, 129, dtype=torch.bfloat16)[..., 1:]
    assert backward_request(REQUEST, None, [*tensors[:3], shifted]) == REQUEST
    monkeypatch.setattr(device, "arch", lambda _: "sm_100")
    assert backward_request(REQUEST, None, tensors) == REQUEST


def test_one_walk_and_no_tables():
    from maskwright.codegen.plan_backward import plan_backward

    plan = plan_backward(gluon_backward_request(REQUEST)[0])
    assert plan.queries is None
    assert plan.walks == (plan.keys,)
    assert plan.tables == ()
    assert isinstance(plan.keys.request.mask, n.Node)


def test_a_fixed_triton_backward_is_kept():
    fixed = BackwardConfig(KernelConfig(64, 64, 4, 2), KernelConfig(64, 64, 4, 2))
    assert not Configs().keeps_triton_backward
    assert Configs.of(fixed).keeps_triton_backward
    assert not Configs.of(fixed, GluonBackwardConfig()).keeps_triton_backward


def test_made_kernels_keep_it_too(monkeypatch):
    """On a GPU that takes Gluon kernels, for tensors that those can serve."""
    monkeypatch.setattr(device, "arch", lambda _: "sm_90")
    monkeypatch.setattr(gradient.build, "load", lambda *_, **__: None)
    fixed = BackwardConfig(KernelConfig(64, 64, 4, 2), KernelConfig(64, 64, 4, 2))
    tensors = tuple(torch.zeros(1, 2, 1024, 64, dtype=torch.bfloat16) for _ in range(4))
    shapes = check_tensors(*tensors[:3], None)
    how = gradient.How.of(True, interpreted=False, gluon=True)
    for config, kind in ((None, GluonBackwardConfig), (fixed, BackwardConfig)):
        found = Attention(k <= q) if config is None else Attention(k <= q).with_config(config)
        made = gradient._made(found, tensors, shapes, (), how)
        assert isinstance(made.compiled.plan.request.config, kind)
