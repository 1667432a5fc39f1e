"""Calls of Gluon kernels with all numbers of tiles: run by test_gluon.py, in a process of its own.

A mistake in a protocol of barriers does not fail: it waits forever. So each group of calls runs in
a child with a time limit, and says what it is about to do before it does it.

    python tests/gpu/gluon_child.py GROUP
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

import maskwright as mw
from maskwright import h
from maskwright import k
from maskwright import q
from maskwright.codegen.gluon import GluonConfig

SINK, WINDOW = mw.param("sink", min=0), mw.param("window", min=0)
A_SHAPE = (k <= q) & ((k < SINK) | (q - k < WINDOW))
KEPT = mw.table("kept", ndim=3, dtype=bool)[h, q // 64, k // 64]
HEADS = mw.by_head([0, 1, 2, 3], [k < 0, k <= q, k < 200, (k <= q) & (q - k < WINDOW)])
STRIDED = mw.patterns.local_stride(block=64, local_blocks=2, stride=4)

SIZES = [(1, 1), (64, 64), (130, 130), (128, 256), (300, 500), (512, 512), (700, 1030)]
LONGER = [(200, 77), (400, 130)]  # queries before the first key: rows and tiles without keys
VALUES = [(0, 0), (0, 1), (1, 0), (64, 1), (64, 300), (5, 1000), (0, 128), (200, 0)]

FASTEST: dict[str, Any] = {"first": "producer", "bulk_store": True}
CONFIGS = {
    "one_stage": GluonConfig(block_n=128, stages=1),
    "two_stages": GluonConfig(block_n=128, stages=2),
    "three_stages": GluonConfig(block_n=64, stages=3),
    "four_stages": GluonConfig(block_n=32, stages=4),
    "three_consumers": GluonConfig(block_n=64, consumers=3, stages=2),
    "producer_first": GluonConfig(block_n=128, first="producer", bulk_store=True),
    "producer_first_one_stage": GluonConfig(block_n=64, stages=1, first="producer"),
    "pingpong": GluonConfig(block_n=128, pingpong=True, first="producer"),
    "pingpong_three": GluonConfig(block_n=64, consumers=3, stages=1, pingpong=True),
    "query_registers": GluonConfig(block_n=128, query_registers=True, **FASTEST),
    "several": GluonConfig(block_n=128, persistent=True, programs=3, **FASTEST),
    "several_one_program": GluonConfig(block_n=64, stages=1, persistent=True, programs=1),
    "several_plain": GluonConfig(block_n=64, stages=3, persistent=True, programs=5),
    "counted": GluonConfig(block_n=128, persistent=True, programs=3, counter=True, **FASTEST),
    "counted_one_stage": GluonConfig(
        block_n=64, stages=1, persistent=True, programs=5, counter=True
    ),
    "counted_three": GluonConfig(
        block_n=64, consumers=3, persistent=True, programs=2, counter=True, **FASTEST
    ),
    "several_pingpong": GluonConfig(
        block_n=128, persistent=True, programs=2, pingpong=True, **FASTEST
    ),
}
# Few programs, so that each computes many items, of all lengths, one after the other.
SEVERAL = GluonConfig(block_n=64, stages=2, persistent=True, programs=7, **FASTEST)
# A producer with registers to gather rows.
GATHERING: dict[str, Any] = {"first": "producer", "registers": 216}
COLUMNS = (
    None,
    GluonConfig(block_n=32, stages=2, **GATHERING),
    GluonConfig(block_n=64, stages=3, persistent=True, programs=5, bulk_store=True, **GATHERING),
    GluonConfig(block_n=64, consumers=3, stages=4, first="producer", registers=152),
    GluonConfig(
        block_n=64,
        stages=3,
        persistent=True,
        programs=5,
        counter=True,
        bulk_store=True,
        **GATHERING,
    ),
)
DTYPES = ("bfloat16", "float16")
EMPTY = torch.empty
GROUPS = (
    *(*CONFIGS, "lists", "several_lists", "others", "several_others"),
    *("columns", "columns_of_heads"),
)


def of_config(config: GluonConfig) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Every number of tiles, kinds of tiles that are missing first, in the middle and last."""
    for heads, sizes in ((4, SIZES), (4, LONGER), (1, SIZES[:4])):
        for q_len, kv_len in sizes:
            for sink, window in VALUES:
                lengths = {"q_len": q_len, "kv_len": kv_len, "heads": heads}
                yield A_SHAPE, lengths | {"sink": sink, "window": window, "config": config}


def lists(*configs: GluonConfig) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Lists of tiles: none, all, one at either end, and at random."""
    generator = torch.Generator().manual_seed(0)
    tables = [torch.zeros(4, 16, 16), torch.ones(4, 16, 16), torch.eye(16).expand(4, 16, 16)]
    first, last = torch.zeros(4, 16, 16), torch.zeros(4, 16, 16)
    first[..., 0], last[:, :, 7] = 1, 1
    tables += [first, last, (torch.rand(4, 16, 16, generator=generator) < 0.3).float()]
    for config in configs:
        for table in tables:
            for q_len, kv_len in ((512, 512), (300, 1000), (1, 60)):
                lengths = {"q_len": q_len, "kv_len": kv_len, "head_dim": 64}
                yield KEPT, lengths | {"kept": table.bool().contiguous(), "config": config}


def others(config: GluonConfig | None) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Heads without any tile beside heads with many; strides; no partial tile; no tile at all."""
    for mask in (HEADS, STRIDED, None, k < 0):
        for q_len, kv_len in (*SIZES, *(LONGER if mask is not STRIDED else [])):
            values = {"window": 100} if mask is HEADS else {}
            yield mask, {"q_len": q_len, "kv_len": kv_len, "config": config} | values


def several_others() -> Iterator[tuple[Any, dict[str, Any]]]:
    """The same from a persistent grid, and heads so large that there is one slot of queries."""
    yield from others(SEVERAL)
    for sizes, bulk_store in itertools.product(((256, 256), (192, 128), (64, 64)), (False, True)):
        if bulk_store and sizes[0] != sizes[1]:
            continue
        config = replace(SEVERAL, bulk_store=bulk_store, counter=bulk_store)
        for (q_len, kv_len), mask in itertools.product([*SIZES, *LONGER], (k <= q, k < 0, None)):
            lengths = {"q_len": q_len, "kv_len": kv_len, "config": config}
            yield mask, lengths | {"head_dim": sizes[0], "value_dim": sizes[1]}


def entries(count: int, length: int, generator: torch.Generator) -> torch.Tensor:
    """Lists of B 2 and 4 heads: any order, doubles, out of range, few or none of a head."""
    shape = (2, 4, count)
    found = torch.randint(-9, length + 9, shape, generator=generator, dtype=torch.int32)
    found[0, 1, count // 2 :] = -1
    found[1, 2] = -1
    found[1, 3] = found[1, 3] % 40  # every entry several times
    found[0, 0, :2] = torch.tensor([-(2**31), 2**31 - 1], dtype=torch.int32)[:count]
    return found


def columns() -> Iterator[tuple[Any, dict[str, Any]]]:
    """Listed columns and diagonals, from none to more than there are; alone and beside others."""
    generator = torch.Generator().manual_seed(0)
    listed = mw.patterns.vertical_slash()
    general = k.isin(mw.table("v_idx", ndim=3)[mw.b, h]) | (q - k < 30)
    for config, (q_len, kv_len) in itertools.product(COLUMNS, (*SIZES, *LONGER)):
        for counts in ((0, 0), (0, 3), (1, 0), (64, 0), (200, 2), (900, 0), (40, 100)):
            first, second = (entries(n, kv_len, generator) for n in counts)
            given = {"q_len": q_len, "kv_len": kv_len, "batch": 2, "config": config}
            yield listed, given | {"v_idx": first, "s_idx": second}
            if counts[1] == 0:
                yield general, given | {"v_idx": first}


def columns_of_heads() -> Iterator[tuple[Any, dict[str, Any]]]:
    """Heads of many sizes and numbers, and lists that all heads of a batch entry share."""
    generator = torch.Generator().manual_seed(1)
    listed = mw.patterns.vertical_slash()
    shared = (k <= q) & k.isin(mw.table("v_idx", ndim=3)[mw.b, 1])
    sizes = ((64, 64), (128, 128), (192, 128), (256, 256), (80, 40), (8, 8))
    for (head_dim, value_dim), kv_heads in itertools.product(sizes, (1, 2, 4)):
        heads = {"head_dim": head_dim, "value_dim": value_dim, "kv_heads": kv_heads, "batch": 2}
        for (q_len, kv_len), dtype in zip(((300, 500), (400, 130)), DTYPES, strict=True):
            first, second = (entries(n, kv_len, generator) for n in (150, 3))
            given = heads | {"q_len": q_len, "kv_len": kv_len, "dtype": dtype, "v_idx": first}
            yield listed, given | {"s_idx": second}
            yield shared, given


def poisoned(*sizes: Any, **options: Any) -> torch.Tensor:
    """What ``torch.empty`` may give: nothing that is right if it is read, or left as it is."""
    found = EMPTY(*sizes, **options)
    return found.fill_(float("nan") if found.is_floating_point() else 2**30)


def main(group: str) -> None:
    """Run a group of calls and compare each with float64."""
    torch.empty = poisoned  # type: ignore[assignment]
    match group:
        case "lists":
            cases = lists(GluonConfig(block_n=64, stages=2), GluonConfig(block_n=128, stages=3))
        case "several_lists":
            cases = lists(SEVERAL)
        case "others":
            cases = others(None)
        case "several_others":
            cases = several_others()
        case "columns":
            cases = columns()
        case "columns_of_heads":
            cases = columns_of_heads()
        case _:
            cases = of_config(CONFIGS[group])
    shown: Any = None
    count = 0
    for count, (mask, options) in enumerate(cases, 1):
        given = {"heads": 4, "head_dim": 128, "dtype": "bfloat16"} | options
        given.setdefault("kv_heads", max(given["heads"] // 2, 1))
        kind = (str(mask), given["q_len"], given["kv_len"], given["heads"], given.get("config"))
        if kind != shown:
            print(*kind, flush=True)
            shown = kind
        report = mw.check(mask, backend="gluon", gradients=False, seed=count, **given)
        assert report.ok, f"{report} {options}"
    print(f"{count} calls are right")


if __name__ == "__main__":
    main(sys.argv[1])
