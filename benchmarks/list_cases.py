"""Vertical-slash lists of given sizes, and the exact count of their pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.int64]

FIRST = 30  # columns that every head lists
RECENT = 100  # diagonals that every head lists


@dataclass(frozen=True)
class Row:
    """One distribution of lists.

    Attributes:
        seq: length of queries and keys.
        columns: listed columns, the first 30 among them.
        diagonals: listed diagonals, the nearest 100 among them.
        runs: contiguous runs that the other diagonals come in; 0: scattered one by one.
    """

    seq: int
    columns: int
    diagonals: int
    runs: int

    @property
    def name(self) -> str:
        """``32768/1000/328/5``, as the command line takes it."""
        return f"{self.seq}/{self.columns}/{self.diagonals}/{self.runs}"


ROWS = (
    Row(8192, 1000, 328, 0),
    Row(8192, 1000, 328, 5),
    Row(32768, 1000, 328, 0),
    Row(32768, 1000, 328, 20),
    Row(32768, 1000, 328, 5),
    Row(32768, 1000, 6096, 5),
    Row(32768, 100, 800, 5),
    Row(32768, 3500, 100, 1),
    Row(131072, 1000, 328, 5),
    Row(131072, 1000, 6096, 20),
)


def parse(text: str) -> Row:
    """A row from ``seq/columns/diagonals/runs``.

    Raises:
        ValueError: for other text, or sizes that do not fit.
    """
    parts = text.split("/")
    if len(parts) != 4 or not all(x.isdigit() for x in parts):
        raise ValueError(f"{text}: expected seq/columns/diagonals/runs, e.g. 32768/1000/328/5")
    row = Row(*map(int, parts))
    if not (FIRST <= row.columns <= row.seq and RECENT <= row.diagonals <= row.seq):
        raise ValueError(f"{text}: at least {FIRST} columns and {RECENT} diagonals, at most seq")
    return row


def head_lists(row: Row, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Columns in ascending and diagonals in descending order, of one head."""
    others = rng.permutation(np.arange(FIRST, row.seq))[: row.columns - FIRST]
    columns = np.sort(np.concatenate([np.arange(FIRST), others]))
    far = row.diagonals - RECENT
    if row.runs:
        distances = _runs(row.seq - RECENT, far, row.runs, rng) + RECENT
    else:
        distances = rng.permutation(np.arange(RECENT, row.seq))[:far]
    diagonals = np.sort(np.concatenate([np.arange(RECENT), distances]))[::-1]
    return columns, diagonals.copy()


def _runs(size: int, count: int, runs: int, rng: np.random.Generator) -> Ints:
    """``count`` numbers below ``size`` in ``runs`` runs of about one length, none touching."""
    if count == 0:
        return np.zeros(0, np.int64)
    lengths = np.full(runs, count // runs)
    lengths[: count % runs] += 1
    # What is left between the runs, at random places.
    gaps = np.sort(rng.choice(size - count + 1, runs, replace=False))
    starts = gaps + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return np.concatenate([np.arange(x, x + n) for x, n in zip(starts, lengths, strict=True)])


def draw(row: Row, heads: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """``v_idx`` (1, heads, columns) and ``s_idx`` (1, heads, diagonals), int32, other for each head."""
    rng = np.random.default_rng(seed)
    found = [head_lists(row, rng) for _ in range(heads)]
    columns, diagonals = (np.stack([x[i] for x in found])[None] for i in (0, 1))
    return torch.tensor(columns, dtype=torch.int32), torch.tensor(diagonals, dtype=torch.int32)


def exact_pairs(columns: Ints, diagonals: Ints, seq: int) -> int:
    """Attended pairs of a head: those of each list, less those that lie in both."""
    in_both = np.searchsorted(columns, seq - diagonals)  # columns v with v + d < seq
    return int((seq - columns).sum() + (seq - diagonals).sum() - in_both.sum())


def triangle(seq: int) -> int:
    """Causal pairs."""
    return seq * (seq + 1) // 2
