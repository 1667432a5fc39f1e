"""Every mistake gets one clear error that shows the expression and says what to do."""

from __future__ import annotations

import builtins
import warnings

import numpy as np
import pytest
import torch

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import q
from maskwright.runtime import build

WINDOW = mw.param("window", min=1, max=50)
DOC = mw.table("doc", ndim=2)
LOCAL = (k <= q) & (q - k < WINDOW)
PACKED = (k <= q) & (DOC[b, q] == DOC[b, k])


def zeros(*shape, dtype=torch.float32, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


QUERY, KEY, VALUE = zeros(1, 4, 8, 16), zeros(1, 2, 8, 16), zeros(1, 2, 8, 16)
IDS = zeros(1, 8, dtype=torch.int32)


def call(mask=None, *, query=QUERY, key=KEY, value=VALUE, backend="reference", **options):
    return mw.attention(query, key, value, mask, backend=backend, **options)


def refused(error, make, *words):
    """``make`` raises exactly this kind of error, and the text has all these words."""
    with pytest.raises(mw.MaskwrightError) as caught:
        make()
    assert type(caught.value) is error, repr(caught.value)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


# -- what was written -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "make",
    [
        lambda: (k <= q) and (k < 3),
        lambda: (k <= q) or (k < 3),
        lambda: not (k <= q),
        lambda: k <= q < 9,
        lambda: 1 if (k <= q) else 0,
        lambda: bool(k <= q),
        lambda: [x for x in (1, 2) if (k <= q)],
    ],
)
def test_python_that_cannot_be_traced(make):
    refused(mw.MaskError, make, "in: k <= q", "a & b", "~a", "mw.where", "(lo <= x) & (x < hi)")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: k / 2, ("k / 2", "`//`")),
        (lambda: k // 0, ("k // 0", "zero")),
        (lambda: k % 0, ("k % 0", "zero")),
        (lambda: (k < q) + 1, ("k < q", "mw.where")),
        (lambda: k & 7, ("compare it first", "parentheses")),
        (lambda: k.isin([1, 2]), ("k.isin([1, 2])", "cols[b, h]")),
        (lambda: k.isin(DOC[b, q]), ("last index left out",)),
        (lambda: k.isin(DOC[b], run=0), ("run is an integer", "run=0", "run=64")),
        (lambda: k.isin(DOC[b], run=2**31), ("run is an integer", "run=64")),
        (lambda: DOC[b] < 3, ("doc", "isin(row)")),
        (lambda: DOC[b, q, k] < 3, ("2 dimension(s)", "3 index(es)", "explicitly")),
        (lambda: k < DOC, ("explicit indices", "doc[b, q]")),
        (lambda: k < torch.tensor(3), ("Tensor", "mw.param")),
        (lambda: k < [1, 2], ("list", "mw.table")),
        (lambda: list(k), ("iterated",)),
        (lambda: mw.where(k < q, k, k < 3), ("where(", "mixes")),
        (lambda: mw.by_head([0, 2], [k <= q, k < 3]), ("kinds=[0, 2]",)),
        (lambda: mw.by_head([], [k <= q]), ("kinds",)),
        (lambda: mw.by_head(DOC, [k <= q]), ("1-D",)),
        (lambda: mw.param("q"), ("'q'", "not in use")),
        (lambda: mw.param("w", min=3, max=2), ("[3, 2]",)),
        (lambda: mw.table("lambda"), ("'lambda'",)),
        (lambda: mw.table("t", ndim=0), ("1 to 6",)),
        (lambda: mw.table("t", dtype=complex), ("int, bool or float",)),
        (lambda: mw.softcap(mw.s, -1.0), ("softcap", "positive")),
        (lambda: mw.mask(lambda q, k, *, width=1: k < width)(wdth=3), ("'wdth'", "width")),
    ],
)
def test_expressions_that_mean_nothing(make, words):
    refused(mw.MaskError, make, *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask": k - q}, ("k - q", "comparison")),
        ({"mask": "k <= q"}, ("k <= q",)),
        ({"mask": mw.mask(lambda q, k: k <= q)}, ("call the factory",)),
        ({"mask": torch.ones(8, 8, dtype=torch.bool)}, ("mask expression",)),
        ({"mask": mw.s > 1}, ("s > 1", "score=")),
        ({"mask": mw.table("f", dtype=float)[k] > 0}, ('"f"', "score=")),
        ({"mask": k <= q, "score": k < q}, ("k < q", "mw.s")),
        ({"mask": k <= q, "score": k * 1.0}, ("k * 1.0", "mw.s")),
    ],
)
def test_no_mask_and_no_score(options, words):
    refused(mw.MaskError, lambda: call(**options), *words)


@pytest.mark.parametrize(
    "mask",
    [
        (mw.param("x") < k) & (mw.table("x")[k] > 0),
        (mw.table("x", sorted=True)[q] < k) & (mw.table("x")[k] > 0),
        (mw.table("x", ndim=2)[b, q] < k) & (mw.table("x")[k] > 0),
        (mw.param("x", min=1) < k) & (mw.param("x") > q),
    ],
    ids=str,
)
def test_one_name_declared_in_two_ways(mask):
    with pytest.raises(mw.MaskwrightError, match='"x"'):
        call(mask, x=3)
    with pytest.raises(mw.MaskwrightError, match='"x"'):
        mw.to_dense(mask, 4, x=3)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "open('/etc/passwd')",
        "k.__class__",
        "k <= q and k < 3",
        "0 <= k < q",
        "(lambda: k)()",
        "[k for k in q]",
        "k << 2",
        "k ** 2 < q",
        "k < x",
        "(k < q",
        "k < 'a'",
        "eval('k')",
        "k < q; q",
        "k := 3",
        "",
        "k < 99999999999",
    ],
)
def test_text_outside_the_grammar_is_refused_and_never_run(text, monkeypatch):
    for name in ("eval", "exec", "__import__", "open"):
        plain = getattr(builtins, name)
        monkeypatch.setattr(builtins, name, _guarded(name, plain))
    with pytest.raises(mw.MaskSyntaxError) as caught:
        mw.parse(text)
    assert "fix: " in str(caught.value)


def _guarded(name, plain):
    def guard(*arguments, **options):
        assert arguments[:1] not in (("os",), ("k",), ("/etc/passwd",)), f"{name}{arguments}"
        return plain(*arguments, **options)

    return guard


# -- runtime values -------------------------------------------------------------------------------
@pytest.mark.parametrize("where", ["attention", "explain", "to_dense", "check", "draw", "prepare"])
def test_missing_and_unknown_values(where):
    runs = {
        "attention": lambda **o: call(LOCAL, **o),
        "explain": lambda **o: mw.explain(LOCAL, 8, **o),
        "to_dense": lambda **o: mw.to_dense(LOCAL, 8, **o),
        "check": lambda **o: mw.check(LOCAL, q_len=8, **o),
        "draw": lambda **o: mw.draw(LOCAL, 8, **o),
        "prepare": lambda **o: mw.prepare(LOCAL, QUERY, KEY, backend="interpret", **o),
    }
    run, shown = runs[where], "(k <= q) & (q - k < param"
    refused(mw.BindingError, lambda: run(), shown, '"window" is missing', "window=...")
    refused(mw.BindingError, lambda: run(window=3, widow=4), shown, '"widow"', "are: window")


@pytest.mark.parametrize("value", [1.5, True, "3", None, torch.tensor(3), 0, 51, 2**40])
def test_values_of_params(value):
    refused(mw.BindingError, lambda: call(LOCAL, window=value), '"window"', "in: (k <= q)", "fix: ")
    refused(mw.BindingError, lambda: mw.to_dense(LOCAL, 8, window=value), '"window"', "fix: ")


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (zeros(1, 8), "float"),
        (zeros(1, 8, dtype=torch.bool), "bool"),
        (zeros(8, dtype=torch.int32), "2 dimension(s)"),
        (zeros(1, 8, 1, dtype=torch.int32), "2 dimension(s)"),
        (zeros(1, 8, dtype=torch.int32, device="meta"), "meta"),
        ("text", "doc"),
        (None, "doc"),
        ([[0], [0, 1]], "doc"),
        (7, "2 dimension(s)"),
    ],
    ids=str,
)
def test_values_of_tables(value, word):
    refused(
        mw.BindingError, lambda: call(PACKED, doc=value), '"doc"', word, "in: (k <= q)", "fix: "
    )


@pytest.mark.parametrize("value", [np.zeros((1, 8)), np.zeros(8, int), "text", None, [[0], [0, 1]]])
def test_values_of_tables_in_numpy(value):
    refused(mw.BindingError, lambda: mw.to_dense(PACKED, 8, doc=value), '"doc"', "in: ", "fix: ")


def test_lists_and_arrays_are_fine_on_the_cpu():
    out = call(PACKED, doc=IDS)
    assert torch.equal(call(PACKED, doc=[[0] * 8]), out)
    assert torch.equal(call(PACKED, doc=np.zeros((1, 8), np.int64)), out)


# -- shapes ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"query": zeros(1, 3, 8, 16)}, ("3 query heads", "2 KV heads", "query (1, 3, 8, 16)")),
        ({"query": zeros(2, 4, 8, 16)}, ("batch", "query (2, 4, 8, 16)")),
        ({"query": zeros(1, 4, 8, 8)}, ("head_dim", "(1, 4, 8, 8)")),
        ({"value": zeros(1, 2, 9, 16)}, ("lengths", "value (1, 2, 9, 16)")),
        ({"value": zeros(1, 4, 8, 16)}, ("KV heads", "value (1, 4, 8, 16)")),
        ({"query": zeros(4, 8, 16)}, ("query", "(batch, heads, length, head_dim)", "(4, 8, 16)")),
        ({"key": KEY.numpy()}, ("key", "tensor", "ndarray")),
        ({"query": QUERY.half()}, ("one dtype", "float16", "float32")),
        ({"query": QUERY.int(), "key": KEY.int(), "value": VALUE.int()}, ("bfloat16", "int32")),
        ({"key": zeros(1, 2, 8, 16, device="meta")}, ("key is on meta", "query on cpu")),
        ({"query": zeros(1, 4, 8, 600), "key": zeros(1, 2, 8, 600)}, ("600", "1 to 512")),
        ({"mask": mw.by_head([0, 1], [k <= q, k < 3])}, ("2 heads", "by_head([0, 1]", "one kind")),
        ({"q_offset": 1.5}, ("q_offset", "int")),
        ({"sinks": zeros(3)}, ("sinks", "(4,)")),
        ({"sinks": zeros(4, dtype=torch.int32)}, ("sinks", "float")),
        ({"sinks": [0.0] * 4}, ("sinks", "tensor")),
        ({"sinks": zeros(4, device="meta")}, ("sinks is on meta",)),
        ({"scale": "big"}, ("scale",)),
    ],
)
def test_tensors_that_do_not_fit(options, words):
    options = {"mask": k <= q, **options}
    refused(mw.ShapeError, lambda: call(**options), *words)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: mw.explain(k <= q, -1), "q_len"),
        (lambda: mw.explain(k <= q, 1.5), "q_len"),
        (lambda: mw.explain(k <= q, 8, heads=3, kv_heads=2), "3 query heads"),
        (lambda: mw.explain(k <= q, 8, q_offset=0.5), "q_offset"),
        (lambda: mw.explain(k <= q, 8, tile=(0, 16)), "tile"),
        (lambda: mw.to_dense(k <= q, -1), "q_len"),
        (lambda: mw.to_dense(k <= q, 8, heads=3, kv_heads=2), "3 query heads"),
        (lambda: mw.to_dense(k <= q, 8, kv_heads=0), "KV heads"),
        (lambda: mw.draw(k <= q, 5000), "4096"),
        (lambda: mw.draw(k <= q, 8, tile=(0, 4)), "tile"),
        (lambda: mw.draw(k <= q, 8, at=(0, 3)), "head"),
        (lambda: mw.check(k <= q, dtype="int8"), "int8"),
        (lambda: mw.source(k <= q, head_dim=0), "1 to 512"),
    ],
)
def test_sizes_that_cannot_be(make, word):
    refused(mw.ShapeError, make, word)


def test_prepared_work_of_another_mask_is_refused():
    other = mw.prepare(k <= q, QUERY, KEY, backend="interpret")
    with pytest.raises(mw.ShapeError, match="prepare"):
        call(PACKED, doc=IDS, backend="interpret", prepared=other)


# -- devices and versions -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "cuda"}, ("'cuda'", "auto, gluon, triton, interpret, reference")),
        ({"backend": "triton"}, ("GPU", "reference")),
        ({"backend": "gluon"}, ("gluon", "GPU", "reference")),
    ],
)
def test_backends_that_cannot_serve(options, words):
    refused(mw.DispatchError, lambda: call(k <= q, **options), *words)


def test_bfloat16_is_not_interpreted():
    tensors = {"query": QUERY.bfloat16(), "key": KEY.bfloat16(), "value": VALUE.bfloat16()}
    refused(
        mw.DispatchError,
        lambda: call(k <= q, backend="interpret", **tensors),
        "bfloat16",
        "float16",
    )


def test_a_gpu_that_is_too_old(monkeypatch):
    from maskwright.runtime import device

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Tesla T4")
    make = lambda: device.arch.__wrapped__(torch.device("cuda", 0))  # noqa: E731
    refused(mw.DispatchError, make, "Tesla T4", "sm_75", "sm_80", "reference")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"arch": "sm_75"}, "sm_80"),
        ({"arch": "hopper"}, "sm_90"),
        ({"op": "decode"}, "forward"),
        ({"op": "sideways"}, "sideways"),
        ({"dtype": "int8"}, "bfloat16"),
    ],
)
def test_kernels_that_cannot_be(options, word):
    refused(mw.LoweringError, lambda: mw.source(k <= q, **options), word, "fix: ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="tunes")
def test_the_tuner_says_what_it_needs():
    refused(mw.TuningError, lambda: mw.tune(k <= q, q_len=64), "k <= q", "GPU", "fix: ")


# -- nothing half-done stays behind ---------------------------------------------------------------
def test_a_refused_call_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE_DIR", str(tmp_path / "cache"))
    before = build.loaded()
    for options in ({}, {"window": 0}, {"window": 3, "more": 1}, {"window": 3, "sinks": zeros(3)}):
        with pytest.raises(mw.MaskwrightError):
            call(LOCAL, backend="interpret", **options)
    assert build.loaded() == before
    assert not (tmp_path / "cache").exists()
    assert call(LOCAL, backend="interpret", window=3).shape == QUERY.shape


def test_a_cache_that_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("MASKWRIGHT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    masks = [(k <= q) & (q - k < 9 + i) for i in range(2)]
    with pytest.warns(mw.MaskwrightWarning, match="MASKWRIGHT_CACHE_DIR") as seen:
        outs = [call(mask, backend="interpret") for mask in masks]
    assert len([w for w in seen if "cannot be used" in str(w.message)]) == 1
    assert all(torch.isfinite(out).all() for out in outs)


def test_a_corrupt_cache_entry_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE_DIR", str(tmp_path))
    mask = (k <= q) & (q - k < 77) & (h >= 0)
    tensors = (QUERY, KEY, VALUE)
    wanted = mw.compile(mask)(*tensors, backend="interpret")
    (entry,) = tmp_path.rglob("*_fwd_*.py")
    good = entry.read_text()
    entry.write_text("raise RuntimeError('corrupt')")
    build._modules.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", mw.MaskwrightWarning)
        assert torch.equal(mw.compile(mask)(*tensors, backend="interpret"), wanted)
    assert entry.read_text() == good


def test_every_error_is_one_of_ours():
    kinds = [x for x in vars(mw).values() if isinstance(x, type) and issubclass(x, Exception)]
    assert all(issubclass(x, (mw.MaskwrightError, Warning)) for x in kinds)
