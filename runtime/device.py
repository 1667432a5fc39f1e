"""Facts about the GPU, and announcements made once."""

from __future__ import annotations

import warnings
from functools import lru_cache

import torch

from maskwright.dsl import nodes as n
from maskwright.dsl.errors import DispatchError
from maskwright.dsl.text import to_text
from maskwright.runtime.cache import MaskwrightWarning


@lru_cache(maxsize=32)
def arch(device: torch.device) -> str:
    """``sm_90`` and the like.

    Raises:
        DispatchError: the GPU is older than sm_80.
    """
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        raise DispatchError(
            f"{torch.cuda.get_device_name(device)} is sm_{major}{minor}; the kernels need sm_80",
            fix='use backend="reference", or a GPU from Ampere on',
        )
    return f"sm_{major}{minor}"


@lru_cache(maxsize=256)
def announce(mask: n.Node, reasons: tuple[str, ...]) -> None:
    """Say once for each mask that it takes the general path, and why."""
    warnings.warn(
        f"the tile schedule of {to_text(mask)} has no closed form ({'; '.join(reasons)}): "
        "a list of tiles is built on the device",
        MaskwrightWarning,
        stacklevel=2,
    )


def aligned(x: torch.Tensor) -> bool:
    """The bulk copy engine takes this tensor: 16-byte base and strides, nothing broadcast."""
    strides = [s * x.element_size() for s in x.stride()[:3]]
    return x.data_ptr() % 16 == 0 and all(s > 0 and s % 16 == 0 for s in strides)
