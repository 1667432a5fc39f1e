"""Tuned configurations of Gluon kernels at dispatch: who wins under ``backend="auto"``."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import maskwright as mw
from maskwright import k
from maskwright import q
from maskwright.autotune import ask
from maskwright.autotune import lookup
from maskwright.autotune import store
from maskwright.autotune.key import Hardware
from maskwright.codegen import gluon as config
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon_backward import GluonBackwardConfig
from maskwright.codegen.gluon_plan import gluon_backward_request
from maskwright.codegen.plan_backward import BackwardRequest
from maskwright.runtime import device
from maskwright.runtime import gluon
from maskwright.runtime import settings
from maskwright.runtime import tuned
from maskwright.runtime.bind import check_tensors
from maskwright.runtime.call import Call

MASK = k <= q
H100 = Hardware("NVIDIA H100 80GB HBM3", "sm_90", 132, 232448, 50 << 20)
FAST = GluonConfig(block_n=64, stages=3, first="producer", bulk_store=True)
TRITON = KernelConfig(64, 64, 4, 3, "descriptor")


@pytest.fixture(autouse=True)
def _hopper(tmp_path, monkeypatch):
    """CPU tensors pass for tensors of an H100, up to the choice of a kernel."""
    monkeypatch.setenv("MASKWRIGHT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(device, "arch", lambda _: "sm_90")
    monkeypatch.setattr(tuned, "hardware", lambda _: H100)
    lookup.forget()
    yield
    lookup.forget()


def tensors_of(length=1024):
    return tuple(torch.zeros(1, 2, length, 128, dtype=torch.bfloat16) for _ in range(3))


@pytest.fixture
def publish(make_entry, tmp_path):
    def made(template, chosen, ms, length=1024, op="forward"):
        tensors = tensors_of(length)
        tensors += tensors[:1] if op == "backward" else ()
        shapes = check_tensors(*tensors[:3], None)
        key = tuned.key_of(MASK.node, None, op, template, tensors, shapes, True)
        assert store.publish(make_entry(key=key, config=chosen, ms=ms), tmp_path)
        lookup.forget()

    return made


def settled(attention=None, asked="auto", length=1024):
    """(backend, configuration of the Gluon kernel) of a call."""
    attention = attention or mw.compile(MASK)
    query, key, value = tensors_of(length)
    call = Call.of(attention.binder, query, key, value, {}, backend="reference")
    call = gluon.settle(attention, replace(call, backend="triton"), asked=asked)
    return call.backend, gluon.request(attention, call)[0].config


def test_nothing_known_leaves_the_default(publish):
    assert settled()[0] == ("gluon" if config.GLUON_BY_DEFAULT else "triton")
    publish("gluon_sm90", FAST, 0.5)  # alone it says nothing about the other
    assert settled()[0] == ("gluon" if config.GLUON_BY_DEFAULT else "triton")


@pytest.mark.parametrize("by_default", [False, True])
@pytest.mark.parametrize(("ms", "winner"), [(0.5, "gluon"), (0.7, "triton")])
def test_the_lower_time_wins(publish, monkeypatch, by_default, ms, winner):
    monkeypatch.setattr(config, "GLUON_BY_DEFAULT", by_default)
    publish("triton", TRITON, 0.6)
    publish("gluon_sm90", FAST, ms)
    backend, chosen = settled()
    assert backend == winner
    assert chosen == FAST
    assert settled(asked="triton")[0] == "triton"
    assert settled(length=1000)[0] == winner  # of the same bucket
    with settings.override(tune="off"):
        assert settled()[0] == ("gluon" if by_default else "triton")


def test_a_choice_is_made_once_and_anew_when_entries_are(publish, monkeypatch):
    publish("triton", TRITON, 0.6)
    publish("gluon_sm90", FAST, 0.5)
    attention, made = mw.compile(MASK), []
    key_of = tuned.key_of
    monkeypatch.setattr(tuned, "key_of", lambda *args: made.append(1) or key_of(*args))
    for _ in range(3):
        assert settled(attention)[0] == "gluon"
    assert len(made) == 2
    publish("triton", TRITON, 0.4)
    assert settled(attention)[0] == "triton"


def test_times_of_other_sizes_are_not_compared(publish):
    publish("triton", TRITON, 0.6, length=2048)
    publish("gluon_sm90", FAST, 0.5, length=2048)
    backend, chosen = settled()
    assert backend == ("gluon" if config.GLUON_BY_DEFAULT else "triton")
    assert chosen == FAST  # the nearest is still a good guess where Gluon is asked for


def test_what_a_user_fixed_comes_first(publish):
    publish("triton", TRITON, 0.6)
    publish("gluon_sm90", FAST, 0.5)
    mine = GluonConfig(block_n=128, stages=2)
    assert settled(mw.compile(MASK).with_config(mine)) == ("gluon", mine)
    assert settled(mw.compile(MASK).with_config(TRITON))[0] == "triton"


def test_gluon_by_name_takes_what_was_tuned(publish):
    assert settled(asked="gluon")[1] != FAST
    publish("gluon_sm90", FAST, 0.5)
    assert settled(asked="gluon") == ("gluon", FAST)


def test_a_configuration_for_another_mask_gives_way(monkeypatch):
    """Searching a list for every pair fits small tiles only; the nearest entry has large ones."""
    wide = GluonConfig(block_n=128, stages=2, first="producer", bulk_store=True)
    rows = mw.table("rows", ndim=2)
    listed = k.isin(rows[mw.b])
    attention = mw.compile(listed & ~(q - k).isin(rows[mw.b]))
    tensors = tensors_of()
    values = {"rows": torch.zeros((1, 4), dtype=torch.int32)}
    call = Call.of(attention.binder, *tensors, values, backend="reference")
    wanted = gluon.request(attention, call)
    monkeypatch.setattr(tuned, "gluon_config", lambda *_, **__: wide)
    assert gluon.request(attention, call) == wanted


def test_the_backward_takes_what_was_tuned(publish):
    best = GluonBackwardConfig(stages=1, links=1)
    publish("gluon_sm90", best, 0.5, op="backward")
    tensors = (*tensors_of(), tensors_of()[0])
    shapes = check_tensors(*tensors[:3], None)
    found = tuned.gluon_backward_config(mw.compile(MASK), tensors, shapes, inside=True)
    assert found == best
    plain = BackwardRequest(MASK.node, None, "bfloat16", 128, 128, True, GluonBackwardConfig(), ())
    assert gluon.backward_request(plain, None, tensors, best).config == best
    fixed = GluonBackwardConfig(stages=2, links=1)
    assert gluon.backward_request(plain, fixed, tensors, None).config == fixed
    assert gluon_backward_request(plain)[1] == ""
    misfit = GluonBackwardConfig(stages=4, links=4)
    assert gluon.backward_request(plain, None, tensors, misfit).config == GluonBackwardConfig()


@pytest.mark.parametrize(
    ("changes", "backend"),
    [
        ({}, "gluon"),
        ({"op": "backward"}, "gluon"),
        ({"dtype": "float32"}, "triton"),
        ({"q_len": 128}, "triton"),
        ({"head_dim": 256, "op": "backward"}, "triton"),
        ({"backend": "triton"}, "triton"),
    ],
)
def test_what_is_tuned_is_what_calls_take_by_default(monkeypatch, changes, backend):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(ask, "GLUON_BY_DEFAULT", True)
    assert ask.job_of(MASK, None, **({"q_len": 1024} | changes)).backend == backend
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert ask.job_of(MASK, None, q_len=1024).backend == "triton"
