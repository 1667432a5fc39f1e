"""Tuned configurations in the user's cache change the next kernel, and nothing else."""

from __future__ import annotations

import warnings

import pytest
import torch

import maskwright as mw
from maskwright import k
from maskwright import q
from maskwright.autotune import lookup
from maskwright.autotune import store
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.runtime import settings
from maskwright.runtime import tuned
from maskwright.runtime.bind import check_tensors
from maskwright.runtime.cache import MaskwrightWarning

MASK = (k <= q) & (q - k < 37)
TUNED = KernelConfig(16, 64, 4, 1)
TUNED_BACKWARD = BackwardConfig(KernelConfig(16, 32, 4, 1), KernelConfig(32, 16, 4, 1))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE_DIR", str(tmp_path))
    lookup.forget()
    lookup._warn.cache_clear()
    yield
    lookup.forget()


@pytest.fixture
def publish(make_entry, tmp_path):
    """Tune by decree: keep a configuration for a call."""

    def made(tensors, config, op="forward", mask=MASK):
        shapes = check_tensors(*tensors[:3], None)
        key = tuned.key_of(mask.node, None, op, "triton", tensors, shapes, shapes.positions_inside)
        assert store.publish(make_entry(key=key, config=config), tmp_path)
        lookup.forget()

    return made


def config_of(attention):
    (kernel,) = attention._kernels.values()
    return kernel.compiled.plan.request.config


def test_an_entry_changes_the_next_forward(attend, publish):
    tensors = attend.inputs(80)
    before = mw.compile(MASK)
    attend.matches(tensors, MASK, attention=before)
    assert config_of(before) == KernelConfig(32, 32, 4, 1)
    publish(tensors, TUNED)
    after = mw.compile(MASK)
    attend.matches(tensors, MASK, attention=after)
    assert config_of(after) == TUNED
    assert "BLOCK_M = tl.constexpr(16)" in next(iter(after._kernels.values())).compiled.source
    attend.matches(tensors, MASK, attention=before)
    assert config_of(before) == KernelConfig(32, 32, 4, 1)  # kernels that were made stay


def test_what_a_user_fixed_comes_first(attend, publish):
    tensors = attend.inputs(80)
    publish(tensors, TUNED)
    fixed = mw.compile(MASK).with_config(KernelConfig(32, 16, 4, 1))
    attend.matches(tensors, MASK, attention=fixed)
    assert config_of(fixed) == KernelConfig(32, 16, 4, 1)


@pytest.mark.parametrize(("mode", "wanted"), [("off", 32), ("use", 16), ("on", 16)])
def test_the_setting(attend, publish, mode, wanted):
    tensors = attend.inputs(80)
    publish(tensors, TUNED)
    attention = mw.compile(MASK)
    with settings.override(tune=mode):
        attend.matches(tensors, MASK, attention=attention)
    assert config_of(attention).block_m == wanted


def test_lengths_of_a_bucket_share_a_kernel(attend, publish):
    publish(attend.inputs(80), TUNED)
    for length in (65, 100, 128):
        attention = mw.compile(MASK)
        attend.matches(attend.inputs(length), MASK, attention=attention)
        assert config_of(attention) == TUNED


def test_an_entry_changes_the_next_backward(attend, publish):
    from maskwright.runtime import gradient

    tensors = attend.inputs(80)
    grad_out = torch.ones_like(tensors[0])
    wanted = gradients(tensors, grad_out)
    publish((*tensors, grad_out), TUNED_BACKWARD, op="backward")
    gradient._kernels.clear()
    found = gradients(tensors, grad_out)
    (kernel,) = gradient._kernels.values()
    assert kernel.compiled.plan.request.config == TUNED_BACKWARD
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def gradients(tensors, grad_out):
    given = [x.clone().requires_grad_() for x in tensors]
    mw.compile(MASK)(*given, backend="interpret").backward(grad_out)
    return [x.grad for x in given]


def test_a_configuration_that_does_not_fit_is_ignored_once(attend, publish):
    tensors = attend.inputs(80)
    publish(tensors, KernelConfig(16, 64, 4, 1, "descriptor"))  # the interpreter counts as sm_80
    attention = mw.compile(MASK)
    with pytest.warns(MaskwrightWarning, match="no bulk copy engine"):
        attend.matches(tensors, MASK, attention=attention)
    assert config_of(attention) == KernelConfig(32, 32, 4, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", MaskwrightWarning)
        attend.matches(tensors, MASK, attention=mw.compile(MASK))


def test_prepared_work_and_call_choose_the_same_tiles(attend, publish):
    doc = mw.table("doc", ndim=2, sorted=True)
    mask = (k <= q) & (doc[mw.b, q] == doc[mw.b, k])
    tensors = attend.inputs(80)
    publish(tensors, TUNED, mask=mask)
    attention, ids = mw.compile(mask), torch.arange(80)[None] // 17
    prepared = attention.prepare(*tensors[:2], backend="interpret", doc=ids)
    attend.matches(tensors, mask, attention=attention, doc=ids, prepared=prepared)
    attend.matches(
        tensors, mask, attention=attention, doc=ids, prepared=prepared, sinks=torch.ones(2)
    )


def test_debugging_says_what_was_found(attend, publish, capsys):
    tensors = attend.inputs(80)
    publish(tensors, TUNED)
    with mw.debug("tune"):
        attend.matches(tensors, MASK, attention=mw.compile(MASK))
        assert "user: KernelConfig(block_m=16" in capsys.readouterr().err
        attend.matches(attend.inputs(80, head_dim=32), MASK, attention=mw.compile(MASK))
        assert "problem.head_dim: 16 != 32" in capsys.readouterr().err


def test_layouts_are_told_apart(attend):
    query = torch.zeros(1, 2, 64, 16)
    swapped = torch.zeros(1, 64, 2, 16).transpose(1, 2)
    keys = []
    for x in (query, swapped, torch.zeros(1, 2, 64, 17)[..., 1:]):
        shapes = check_tensors(x, x, x, None)
        keys.append(tuned.key_of(MASK.node, None, "forward", "triton", (x, x, x), shapes, True))
    assert [(x.problem.layout, x.problem.aligned) for x in keys] == [
        ("heads", True),
        ("tokens", True),
        ("heads", False),
    ]
