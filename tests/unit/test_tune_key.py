"""Keys of tuned configurations: every field counts, sizes share, text is stable."""

from __future__ import annotations

import json
from dataclasses import fields
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import maskwright as mw
from maskwright import h
from maskwright import k
from maskwright import patterns
from maskwright import q
from maskwright.autotune.density import density_class
from maskwright.autotune.key import DENSITIES
from maskwright.autotune.key import Bucket
from maskwright.autotune.key import Hardware
from maskwright.autotune.key import Key
from maskwright.autotune.key import Layout
from maskwright.autotune.key import Op
from maskwright.autotune.key import Policy
from maskwright.autotune.key import Problem
from maskwright.autotune.key import Software
from maskwright.autotune.key import Template
from maskwright.autotune.key import ceil_log2
from maskwright.autotune.record import RecordError

WORDS = st.text(st.characters(codec="utf-8"), max_size=12)
SIZES = st.integers(1, 2**20)
PROBLEMS = st.builds(
    Problem,
    *(WORDS, WORDS, WORDS, st.sampled_from(get_args(Op)), st.sampled_from(get_args(Template))),
    *(WORDS, SIZES, SIZES, SIZES, st.sampled_from(get_args(Layout)), st.booleans(), st.booleans()),
)
KEYS = st.builds(
    Key,
    PROBLEMS,
    st.builds(Bucket, SIZES, SIZES, SIZES, st.sampled_from(DENSITIES)),
    st.builds(Hardware, WORDS, WORDS, SIZES, SIZES, SIZES),
    st.builds(Software, WORDS, WORDS, WORDS),
    st.builds(Policy, st.sampled_from(["graph", "eager"]), st.booleans(), WORDS, WORDS),
)
OTHERS = {"op": get_args(Op), "template": get_args(Template), "layout": get_args(Layout)}
OTHERS |= {"density": DENSITIES, "timing": ("graph", "eager")}


@given(KEYS)
def test_json_and_back(key):
    text = json.dumps(key.to_dict())
    again = Key.from_dict(json.loads(text))
    assert again == key
    assert (again.digest, hash(again), again.canonical) == (key.digest, hash(key), key.canonical)
    assert key.difference(again) == []


@given(KEYS)
def test_every_field_makes_another_key(key):
    for part in fields(key):
        old = getattr(key, part.name)
        for f in fields(old):
            other = replace(key, **{part.name: replace(old, **{f.name: changed(old, f.name)})})
            assert other != key
            assert other.digest != key.digest
            assert other.name != key.name
            assert [x.split(":")[0] for x in key.difference(other)] == [f"{part.name}.{f.name}"]


def changed(record, name):
    value = getattr(record, name)
    if name in OTHERS:
        return next(x for x in OTHERS[name] if x != value)
    return not value if isinstance(value, bool) else value + ("x" if isinstance(value, str) else 1)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("bucket", "q_len"), "13"),
        (("bucket", "density"), "medium"),
        (("problem", "aligned"), 1),
        (("hardware", "name"), None),
        (("software",), []),
    ],
)
def test_wrong_types_are_refused(make_entry, path, value):
    data = json.loads(json.dumps(make_entry().key.to_dict()))
    place = data
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(RecordError, match=path[-1]):
        Key.from_dict(data)


def test_missing_and_unknown_fields_are_refused(make_entry):
    data = make_entry().key.to_dict()
    del data["bucket"]["kv_len"]
    with pytest.raises(RecordError, match="kv_len"):
        Key.from_dict(data)
    with pytest.raises(RecordError, match="colour"):
        Key.from_dict(make_entry().key.to_dict() | {"colour": 1})


@pytest.mark.parametrize(("size", "wanted"), [(1, 0), (2, 1), (3, 2), (8192, 13), (8193, 14)])
def test_buckets_round_up(size, wanted):
    assert ceil_log2(size) == wanted
    assert 1 << wanted >= size


def test_two_hundred_shapes_share_forty_keys(make_entry):
    """Goal 20. Training and prefill as published: lengths not only powers of two, several batches."""
    mask = (k <= q) & (q - k < 4096)
    lengths = [512, 1000, 1024, 1536, 2048, 3000, 4096, 5000, 6144, 8192]
    lengths += [10000, 12288, 16384, 20000, 24576, 32768, 49152, 65536, 100000, 131072]
    batches = [
        (1, 16),
        (1, 28),
        (1, 32),
        (2, 32),
        (3, 32),
        (4, 32),
        (1, 40),
        (2, 40),
        (1, 64),
        (8, 32),
    ]
    shapes = [(b, heads, n) for b, heads in batches for n in lengths]
    assert len(set(shapes)) == 200
    keys = set()
    for b, heads, length in shapes:
        bucket = Bucket.of(length, length, b * heads, "runtime")
        density = density_class(mask.node, bucket.q_len, bucket.kv_len)
        keys.add(make_entry(mask, bucket=replace(bucket, density=density)).key)
    assert len(keys) <= 40


@pytest.mark.parametrize(
    ("mask", "length", "wanted"),
    [
        (patterns.full(), 13, "dense"),
        (k <= q, 13, "half"),
        ((k <= q) & (q - k < 1024), 13, "sparse"),
        ((k <= q) & (q - k < 1024), 17, "thin"),
        ((k <= q) & (q - k < 32), 13, "ragged"),
        (patterns.document(), 13, "runtime"),
        ((k <= q) & (q - k < mw.param("window")), 13, "runtime"),
        ((q * k) % 7 == 0, 13, "runtime"),
        (mw.by_head([0, 1], [k <= q, (k <= q) & (h < 1)]), 13, "sparse"),
    ],
)
def test_density_classes(mask, length, wanted):
    assert density_class(mask.node, length, length, 2) == wanted


def test_golden_keys(make_entry, golden):
    """Twelve keys: a change here is a change of what stored configurations are found."""
    h200 = Hardware("NVIDIA H200", "sm_90", 132, 232448, 62914560)
    window = (k <= q) & (q - k < 1024)
    made = [
        make_entry(),
        make_entry(head_dim=64, value_dim=64),
        make_entry(head_dim=192, value_dim=128),
        make_entry(window),
        make_entry(patterns.document(), bucket=Bucket(13, 13, 6, "runtime")),
        make_entry(patterns.full(), bucket=Bucket(15, 15, 6, "dense")),
        make_entry(dtype="float16", group=1),
        make_entry(layout="tokens", aligned=False),
        make_entry(inside=False, bucket=Bucket(4, 17, 6, "thin")),
        make_entry(hardware=h200),
        make_entry(software=Software("3.9.0", "13.0", "fedcba9876543210")),
        make_entry(window, hardware=h200, bucket=Bucket(17, 17, 8, "thin")),
    ]
    keys = [entry.key for entry in made]
    assert len(set(keys)) == 12
    assert "".join(f"{x.name}\n{x.digest}\n{x.canonical}\n\n" for x in keys) == golden
