"""Random runtime tensors for the catalogue: seeded, int32, shaped as the patterns document them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Bindings: TypeAlias = dict[str, npt.NDArray[Any] | int]
Rng: TypeAlias = np.random.Generator


@dataclass(frozen=True)
class Call:
    """The sizes of one attention call."""

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int


Maker: TypeAlias = Callable[[Call, Rng], Bindings]


def nothing(call: Call, rng: Rng) -> Bindings:
    """No runtime values."""
    del call, rng
    return {}


def scalars(**values: int) -> Maker:
    """Fixed values of parameters."""
    return lambda _call, _rng: dict(values)


def documents(mean: int, name: str = "doc_id") -> Maker:
    """Contiguous ids from 0, random lengths from 1 to twice the mean."""
    return lambda call, rng: {name: _ids(call, rng, mean)}


def anchored(mean: int) -> Maker:
    """Documents of which number 0 is the first token alone."""

    def make(call: Call, rng: Rng) -> Bindings:
        ids = _ids(call, rng, mean) + 1
        ids[:, 0] = 0
        return {"doc_id": ids.astype(np.int32)}

    return make


def interleaved(mean: int) -> Maker:
    """Documents cut into two pieces each, and the pieces shuffled: ids in any order."""

    def make(call: Call, rng: Rng) -> Bindings:
        pieces = _ids(call, rng, mean)
        rows = [rng.permutation(int(row[-1]) + 1)[row] // 2 for row in pieces]
        return {"doc_id": np.stack(rows).astype(np.int32)}

    return make


def prefix(longest: int | None = None) -> Maker:
    """A prefix length for each batch entry, up to ``longest`` or the whole sequence."""

    def make(call: Call, rng: Rng) -> Bindings:
        top = call.kv_len if longest is None else min(longest, call.kv_len)
        return {"prefix_len": rng.integers(max(1, top // 4), top + 1, call.batch, dtype=np.int32)}

    return make


def document_prefix(mean: int) -> Maker:
    """Documents, the start of each position's document, and prefix lengths."""

    def make(call: Call, rng: Rng) -> Bindings:
        ids = _ids(call, rng, mean)
        return {"doc_id": ids, "doc_start": _starts(ids), **prefix(mean)(call, rng)}

    return make


def token_tree(nodes: int) -> Maker:
    """A random tree over the last ``nodes`` positions; every node is its own ancestor."""

    def make(call: Call, rng: Rng) -> Bindings:
        count = min(nodes, call.kv_len)
        return {
            "prefix_len": np.full(call.batch, call.kv_len - count, np.int32),
            "ancestor": np.stack([_ancestors(count, rng) for _ in range(call.batch)]),
        }

    return make


def columns_and_diagonals(columns: int, diagonals: int, run: int) -> Maker:
    """Lists for each query head: forced first columns and recent diagonals, the rest random.

    Diagonals come in runs, as in measured attention; scattered ones would touch every tile.
    """

    def make(call: Call, rng: Rng) -> Bindings:
        return {
            "v_idx": _index_lists(call, rng, columns, forced=columns // 8),
            "s_idx": _index_lists(call, rng, diagonals, forced=diagonals // 4, run=run),
        }

    return make


def block_lists(block_q: int, block_k: int, top: int) -> Maker:
    """For each query block its own key block and random earlier ones; some entries are padding."""

    def make(call: Call, rng: Rng) -> Bindings:
        rows = np.arange(-(-call.kv_len // block_q))
        last = np.minimum((rows + 1) * block_q - 1, call.kv_len - 1) // block_k
        shape = (call.batch, call.heads, len(rows), top)
        index = rng.integers(0, last[:, None] + 1, shape, dtype=np.int32)
        index[rng.random(shape) < 0.125] = -1
        index[..., 0] = last
        return {"block_idx": index}

    return make


def _ids(call: Call, rng: Rng, mean: int) -> npt.NDArray[np.int32]:
    # kv_len random lengths are more than enough to cover a row.
    ends = np.cumsum(rng.integers(1, 2 * mean, (call.batch, call.kv_len)), axis=1)
    rows = [np.searchsorted(row, np.arange(call.kv_len), side="right") for row in ends]
    return np.stack(rows).astype(np.int32)


def _starts(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    first = np.diff(ids, axis=1, prepend=-1) != 0
    here = np.where(first, np.arange(ids.shape[1]), 0)
    return np.maximum.accumulate(here, axis=1).astype(np.int32)


def _ancestors(count: int, rng: Rng) -> npt.NDArray[np.bool_]:
    matrix = np.eye(count, dtype=bool)
    for node in range(1, count):
        matrix[node] |= matrix[rng.integers(max(0, node - 8), node)]
    return matrix


def _index_lists(
    call: Call, rng: Rng, count: int, forced: int, run: int = 1
) -> npt.NDArray[np.int32]:
    """Per head ``forced`` first indices, then random runs, then padding."""
    count = min(count, call.kv_len)
    lists = np.full((call.batch, call.heads, count), -1, np.int32)
    for row in lists.reshape(-1, count):
        used = int(rng.integers(max(1, count * 3 // 4), count + 1))
        starts = rng.permutation(-(-call.kv_len // run))[: -(-used // run)] * run
        index = (starts[:, None] + np.arange(run)).ravel()
        index = np.concatenate([np.arange(min(forced, used)), index[index < call.kv_len]])[:used]
        row[: len(index)] = index
    return lists
