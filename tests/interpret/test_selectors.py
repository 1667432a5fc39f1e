"""Kernels of the selectors in the interpreter, against the torch reference."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import maskwright as mw
from maskwright.patterns import selectors
from maskwright.patterns.selectors import slash
from maskwright.runtime.interpret import interpreter


@pytest.fixture(scope="module")
def kernels():
    """The module of the kernels, its functions interpreted."""
    path = Path(slash.__file__).with_name("slash_kernel.py")
    spec = importlib.util.spec_from_file_location("interpreted_slash_kernel", path)
    module = importlib.util.module_from_spec(spec)
    with interpreter():
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("q_len", "kv_len", "heads", "kv_heads", "dim", "last"),
    [
        (300, 300, 4, 2, 16, 64),
        (40, 200, 2, 1, 24, 64),  # fewer queries than rows; padded heads
        (70, 30, 2, 2, 16, 64),  # queries without a key
        (1, 500, 2, 2, 16, 64),
        (64, 128, 2, 2, 16, 10),
        (200, 1100, 2, 1, 16, 64),  # more than one program of the first pass
    ],
)
def test_sums(kernels, q_len, kv_len, heads, kv_heads, dim, last):
    generator = torch.Generator().manual_seed(q_len)
    query = torch.randn(2, q_len, heads, dim, generator=generator).transpose(1, 2)
    key = torch.randn(2, kv_heads, kv_len, dim, generator=generator)
    with interpreter():
        found = kernels.triton_sums(query, key, last, 0.3)
    for ours, wanted in zip(found, slash.torch_sums(query, key, last, 0.3), strict=True):
        assert ours.is_contiguous()
        torch.testing.assert_close(ours, wanted, atol=5e-6, rtol=1e-4)


def test_more_queries_than_rows_are_refused(kernels):
    with pytest.raises(mw.ShapeError, match="64"):
        kernels.triton_sums(torch.zeros(1, 1, 80, 16), torch.zeros(1, 1, 80, 16), 65, 1.0)


def test_a_selected_mask_is_attended(attend):
    """From queries and keys to the lists, and through the generated kernel."""
    query, key, value = attend.inputs(90, 140, heads=4, kv_heads=2)
    found = selectors.vertical_slash(query, key, [40, 0, 30, 20], 25, first=4, recent=6)
    attend.matches((query, key, value), mw.patterns.vertical_slash(), **found)


def test_pages_are_gathered(attend, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_STRICT", "1")  # as columns they need no tile list
    query, key, value = attend.inputs(1, 140, heads=4, kv_heads=2)
    pages = selectors.quest_pages(query, key, 3)["pages"]
    lists = selectors.columns_of_pages(pages, 16, 140, heads=4)
    attend.matches((query, key, value), mw.patterns.vertical_slash(), **lists)
