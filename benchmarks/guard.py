"""The one place where a failure becomes a line of the result instead of the end of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
LIMIT = 500


def attempt(work: Callable[[], T]) -> tuple[T | None, str]:
    """Result of ``work``, or None and what went wrong: one contestant never ends the others."""
    try:
        return work(), ""
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        return None, text if len(text) <= LIMIT else f"{text[: LIMIT - 100]} ... {text[-90:]}"
