"""One answer for all ranks of a distributed job: rank 0 finds it, all check that they have the same.

Every rank makes the same calls in the same order, whether rank 0 finds an entry, searches, or
fails. A rank that went its own way would leave the others waiting for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from maskwright.dsl import nodes as n
from maskwright.dsl.errors import TuningError


def from_rank_0(make: Callable[[], str], here: str) -> str:
    """The text that rank 0 makes, on every rank.

    Args:
        make: called on rank 0 only.
        here: what must be equal everywhere: the GPU and its software.

    Raises:
        TuningError: on every rank, if ranks differ, or if rank 0 failed.
    """
    group: Any = torch.distributed
    places = _all(group, here)
    if len(set(places)) > 1:
        raise TuningError(
            "the ranks have different GPUs or software", expression=" / ".join(sorted(set(places)))
        )
    told: list[Any] = [None]
    if group.get_rank() == 0:
        told = [_made(make)]
    group.broadcast_object_list(told, src=0)
    failed, text = told[0]
    if len(set(_all(group, n.digest(text)))) > 1:
        raise TuningError("the ranks received different answers")
    if failed:
        raise TuningError(f"rank 0: {text}")
    return str(text)


def _made(make: Callable[[], str]) -> tuple[bool, str]:
    """(failed, text): a failure has to reach the others, too."""
    try:
        return False, make()
    except Exception as error:
        return True, f"{type(error).__name__}: {error}"


def _all(group: Any, mine: str) -> list[str]:
    found: list[Any] = [None] * group.get_world_size()
    group.all_gather_object(found, mine)
    return [str(x) for x in found]
