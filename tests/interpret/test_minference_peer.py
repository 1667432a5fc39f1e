"""The vertical-slash peer of the benchmarks in the interpreter, against its definition."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import tiled
from maskwright.runtime.interpret import interpreter

KERNELS = Path(tiled.__file__).parent / "peers" / "minference_kernel.py"


@pytest.fixture(scope="module")
def kernels():
    spec = importlib.util.spec_from_file_location("interpreted_minference_kernel", KERNELS)
    module = importlib.util.module_from_spec(spec)
    with interpreter():
        spec.loader.exec_module(module)
    return module


def lists(length, columns, diagonals, recent, heads=2, seed=0):
    """Ascending columns and descending diagonals, the nearest ``recent`` among them."""
    rng = np.random.default_rng(seed)
    found = [], []
    for _ in range(heads):
        found[0].append(np.sort(rng.permutation(length)[:columns]))
        far = rng.permutation(np.arange(recent, length))[:diagonals]
        found[1].append(np.sort(np.concatenate([np.arange(recent), far]))[::-1].copy())
    return tuple(torch.tensor(np.stack(x)[None], dtype=torch.int32) for x in found)


def dense(vertical, slash, length):
    """(heads, length, length) bool by the definition."""
    return np.stack(
        [
            tiled.rows(vertical[0, h].numpy(), slash[0, h].numpy(), np.arange(length), length)
            for h in range(vertical.shape[1])
        ]
    )


SIZES = [
    (256, 20, 3, 70),
    (256, 1, 0, 1),
    (320, 64, 40, 100),
    (200, 30, 5, 66),  # a last block that is not full
    (256, 200, 2, 0),  # without near diagonals columns are lost
]


@pytest.mark.parametrize("sizes", SIZES)
def test_attention(kernels, sizes):
    length = sizes[0]
    vertical, slash = lists(*sizes)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 2, length, 16, generator=generator)
    key, value = (torch.randn(1, 1, length, 16, generator=generator) for _ in range(2))
    with interpreter():
        out = kernels.attend(query, key, value, kernels.build(vertical, slash, length))
    keep = torch.tensor(dense(vertical, slash, length))
    scores = (query @ key.mT / 4).masked_fill(~keep, -torch.inf)
    wanted = scores.softmax(-1).nan_to_num(0.0) @ value
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sizes", SIZES[:4])
def test_it_attends_to_the_mask_and_more(sizes):
    length = sizes[0]
    vertical, slash = lists(*sizes)
    found = dense(vertical, slash, length)
    distance = np.arange(length)[:, None] - np.arange(length)
    for head in range(2):
        columns = np.isin(np.arange(length), vertical[0, head])
        exact = (distance >= 0) & (columns | np.isin(distance, slash[0, head]))
        assert not (exact & ~found[head]).any()
    assert not (found & (distance < 0)).any()


@pytest.mark.parametrize("sizes", SIZES)
def test_the_index(kernels, sizes):
    """No key twice, tiles in ascending order, and a diagonal is a band of at most 127 keys."""
    vertical, slash = lists(*sizes)
    with interpreter():
        tile_count, tile_start, column_count, column_index = kernels.build(
            *(vertical, slash), sizes[0]
        )
    for head in range(2):
        for block in range(tile_count.shape[-1]):
            tiles = tile_start[0, head, block, : tile_count[0, head, block]].numpy()
            columns = column_index[0, head, block, : column_count[0, head, block]].numpy()
            assert (np.diff(tiles) >= 64).all()
            assert (np.diff(columns) > 0).all()
            assert not np.isin(columns, (tiles[:, None] + np.arange(64)).ravel()).any()
            assert (columns < (block + 1) * 64).all()


def test_one_diagonal_is_one_tile_a_block():
    found = tiled.visited(np.array([100]), 4, 512)
    assert np.flatnonzero(found).tolist() == list(range(320 - 100 - 64, 320 - 100))
    assert np.flatnonzero(tiled.visited(np.array([100]), 1, 512)).tolist() == list(range(64))
    assert not tiled.visited(np.array([100]), 0, 512).any()
