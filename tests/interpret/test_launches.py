"""What the preparation of runtime lists launches: so many kernels, and no work of PyTorch's beside."""

from __future__ import annotations

import pytest
import torch
from listed_masks import COLUMN
from listed_masks import DIAGONAL
from listed_masks import VERTICAL_SLASH
from torch.utils._python_dispatch import TorchDispatchMode

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import kv_head
from maskwright import q
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.pipeline import compile_backward
from maskwright.codegen.pipeline import compile_forward
from maskwright.codegen.plan import Request
from maskwright.codegen.plan_backward import BackwardRequest
from maskwright.runtime.build import load

CONFIG = KernelConfig(32, 16, 4, 1)
BLOCKS = (k // 16).isin(mw.table("blocks", ndim=4)[b, h, q // 32])
TOKENS = (k // 16).isin(mw.table("topk", ndim=4)[b, kv_head, q])
LENGTHS = {"v_idx": (2, 4, 9), "s_idx": (2, 4, 5), "blocks": (2, 4, 3, 2), "topk": (2, 2, 90, 2)}
WALKS = ["query_list_tiles_kernel", "key_list_tiles_kernel"]


class Operations(TorchDispatchMode):
    """Names of the operations of PyTorch's that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class Recorded:
    """A kernel that runs nothing: its name is kept."""

    def __init__(self, name, launched):
        self.name, self.launched = name, launched

    def __getitem__(self, grid):
        assert len(grid) == 3
        assert all(x > 0 for x in grid)
        return lambda *_, **__: self.launched.append(self.name)


def launched(compiled, mask, monkeypatch):
    """Kernels that ``prepare`` launches. Memory is all that it may ask of PyTorch."""
    module, found = load(compiled, interpreted=True), []
    for name in [x for x in vars(module) if x.endswith("_kernel")]:
        monkeypatch.setattr(module, name, Recorded(name, found))
    values = {x: torch.zeros(y).int() for x, y in LENGTHS.items() if f'"{x}"' in str(mask)}
    with Operations() as operations:
        module.prepare(80, 90, 2, 4, 2, torch.device("cpu"), **values)
    assert set(operations.names) <= {"empty"}, operations.names
    return found


@pytest.mark.parametrize(
    ("mask", "kernels"),
    [
        (VERTICAL_SLASH, ["lists_kernel"]),
        ((k <= q) & COLUMN, ["lists_kernel"]),
        ((k <= q) & (DIAGONAL | (q - k < 20)), ["lists_kernel"]),
        ((k <= q) & BLOCKS, ["marks_kernel", "list_tiles_kernel"]),
        ((k <= q) & TOKENS | VERTICAL_SLASH, ["marks_kernel", "list_tiles_kernel"]),
    ],
    ids=str,
)
def test_the_forward(mask, kernels, monkeypatch):
    made = compile_forward(Request(mask.node, None, "float32", 16, 16, True, False, CONFIG))
    assert launched(made, mask, monkeypatch) == kernels


@pytest.mark.parametrize("mask", [VERTICAL_SLASH, (k <= q) & (BLOCKS | COLUMN)], ids=str)
def test_the_backward(mask, monkeypatch):
    both = BackwardConfig(CONFIG, CONFIG)
    made = compile_backward(BackwardRequest(mask.node, None, "float32", 16, 16, True, both))
    assert launched(made, mask, monkeypatch) == ["marks_kernel", *WALKS]


@pytest.mark.parametrize("mask", [VERTICAL_SLASH, (k <= q) & (BLOCKS | COLUMN)], ids=str)
def test_memory_is_not_read_before_it_is_written(mask, attend, poisoned):
    generator = torch.Generator().manual_seed(3)
    values = {
        name: torch.randint(-3, 100, LENGTHS[name], generator=generator).int()
        for name in LENGTHS
        if f'"{name}"' in str(mask)
    }
    attend.matches(attend.inputs(70, 90, batch=2, heads=4, kv_heads=2), mask, **values)
