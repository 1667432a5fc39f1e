"""The one place where a failure becomes a line of the result instead of the end of the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from typing import TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
LIMIT = 500
ROOT = Path(__file__).parents[1]  # results do not say where the checkout lies


def attempt(work: Callable[[], T]) -> tuple[T | None, str]:
    """Result of ``work``, or None and what went wrong: one contestant never ends the others."""
    try:
        return work(), ""
    except Exception as error:
        text = f"{type(error).__name__}: {error}".replace(f"{ROOT}/", "")
        return None, text if len(text) <= LIMIT else f"{text[: LIMIT - 100]} ... {text[-90:]}"
