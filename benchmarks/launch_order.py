"""How well a launch fills a GPU: exact tile counts of each program, and greedy slots that take them.

A model, not a measurement: every tile costs the same, a program ``START`` tiles more, and slots
never wait for memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from maskwright.codegen.balance import as_free
from maskwright.codegen.listed import schedule_of
from maskwright.codegen.tile import TileShape
from maskwright.codegen.walk import Call
from maskwright.codegen.walk import counted

if TYPE_CHECKING:
    import maskwright as mw

Costs = npt.NDArray[np.int64]

SLOTS = 264  # an H100 with two programs a multiprocessor
START = 2  # tiles that the begin and the end of a program are worth


def program_costs(
    mask: mw.Expr, seq: int, heads: int, kv_heads: int, tile: tuple[int, int] = (128, 64)
) -> Costs:
    """Tiles that each program visits, (heads, query tiles); closed forms without runtime values."""
    shape = TileShape(*tile)
    schedule = schedule_of(mask.node, shape)
    call = Call(seq, seq, 0, 1, heads, kv_heads, {})
    full, partial = counted(schedule, call, shape)
    return np.asarray((full + partial)[0])


def launched(costs: Costs) -> list[int]:
    """The order of the forward kernel: the last query tiles of all heads, then those before them."""
    return [int(x) for x in costs[:, ::-1].T.ravel()]


def by_head(costs: Costs) -> list[int]:
    """All tiles of the head with most work, then of the next."""
    heads = np.argsort(-costs.sum(1), kind="stable")
    return [int(x) for x in costs[heads][:, ::-1].ravel()]


def longest_first(costs: Costs) -> list[int]:
    """What a sort of all programs gives."""
    return sorted(launched(costs), reverse=True)


def loss(order: Iterable[int], slots: int = SLOTS) -> float:
    """Time of the launch over the least possible: of all work, or of the longest program."""
    costs = [x + START for x in order]
    return as_free(costs, slots) / max(sum(costs) / slots, max(costs))
