"""What an adapter is: one contestant, its limits, and how to call it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from benchmarks.cases import Case
    from benchmarks.cases import Tensors

PLAIN = ("full", "causal")


@dataclass(frozen=True)
class Prepared:
    """A contestant ready for one case.

    Attributes:
        call: one forward pass; returns (B, Hq, S, D), views allowed. It is differentiable where
            ``case.training`` asks for it: ``tensors`` are then leaves that require gradients.
        setup: what must be computed again whenever the mask changes, timed apart; None if nothing
            is, or if ``call`` does it itself.
    """

    call: Callable[[], Tensor]
    setup: Callable[[], object] | None = None


class Peer(Protocol):
    """One contestant."""

    @property
    def name(self) -> str:
        """Key in results and on the command line."""
        ...

    def available(self) -> str | None:
        """Why it cannot run here, or None."""
        ...

    def supports(self, case: Case) -> str | None:
        """Why it cannot run this case, or None."""
        ...

    def prepare(self, case: Case, tensors: Tensors) -> Prepared:
        """Bind one case; may compile."""
        ...


def only_plain(case: Case) -> str | None:
    """For contestants that know no mask but causal."""
    return None if case.name in PLAIN else "no mask but causal"


def no_flash_attn_4() -> str | None:
    """Why FlashAttention-4's kernels cannot run here, or None."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0):
        return "needs a GPU of compute capability 9.0 or more"
    try:
        import flash_attn.cute  # noqa: F401
    except (ImportError, OSError) as error:
        return f"flash-attn-4 does not import: {error}"
    return None
