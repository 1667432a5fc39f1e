"""Tuned configurations for calls: the key of a call, and the look-up of what was tuned for it.

Asked only where a kernel is made, never for a call like an earlier one.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING
from typing import Any

import torch
from torch import Tensor

from maskwright.autotune import lookup
from maskwright.autotune.density import density_class
from maskwright.autotune.filter import Limits
from maskwright.autotune.filter import unfit
from maskwright.autotune.key import Bucket
from maskwright.autotune.key import Hardware
from maskwright.autotune.key import Key
from maskwright.autotune.key import Op
from maskwright.autotune.key import Problem
from maskwright.autotune.key import Software
from maskwright.autotune.key import Template
from maskwright.codegen.config import SHARED_KIB
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.dsl import nodes as n
from maskwright.runtime import device
from maskwright.runtime import settings
from maskwright.runtime.bind import DTYPES
from maskwright.runtime.bind import Shapes

if TYPE_CHECKING:
    from maskwright.runtime.api import Attention

Tensors = tuple[Tensor, ...]
_INTERPRETER = Hardware("interpreter", "sm_80", 1, SHARED_KIB[80] * 1024, 0)


def forward_config(
    found: Attention, tensors: Tensors, shapes: Shapes, *, inside: bool
) -> KernelConfig | None:
    """What was tuned for the Triton forward of a call; None leaves it to the heuristic.

    Args:
        tensors: query, key and value.
    """
    config = _config(found, "forward", tensors, shapes, inside)
    return config if isinstance(config, KernelConfig) else None


def backward_config(
    found: Attention, tensors: Tensors, shapes: Shapes, *, inside: bool
) -> BackwardConfig | None:
    """Likewise for the Triton backward; ``tensors`` end with the gradient of the output."""
    config = _config(found, "backward", tensors, shapes, inside)
    return config if isinstance(config, BackwardConfig) else None


def _config(found: Attention, op: Op, tensors: Tensors, shapes: Shapes, inside: bool) -> Any:
    current = settings.current()
    if current.tune == "off":
        return None
    where = tensors[0].device
    software, gpu = _software("triton"), hardware(where)
    index = lookup.index(current.cache_dir, software, gpu.folder, read=not _capturing(where))
    if not index:
        return None
    key = key_of(found.mask, found.score, op, "triton", tensors, shapes, inside)
    choice = index.find(key, lambda x: unfit(x, key, Limits.of(found.mask, found.score)))
    if "tune" in current.debug:
        told = index.why_not(key) if choice is None else f"{choice.origin}: {choice.config}"
        print(f"--- maskwright tune ---\n{key.name}: {told}", file=sys.stderr)
    return None if choice is None else choice.config


def key_of(
    mask: n.Node,
    score: n.Node | None,
    op: Op,
    template: Template,
    tensors: Tensors,
    shapes: Shapes,
    inside: bool,
) -> Key:
    """The key of a call."""
    problem = Problem.of(
        mask,
        score,
        op=op,
        template=template,
        dtype=DTYPES[tensors[0].dtype],
        head_dim=shapes.head_dim,
        value_dim=shapes.value_dim,
        group=shapes.heads // shapes.kv_heads,
        layout="tokens" if _heads_of_a_token(tensors[0]) else "heads",
        aligned=all(device.aligned(x) for x in tensors),
        inside=inside,
    )
    bucket = Bucket.of(shapes.q_len, shapes.kv_len, shapes.batch * shapes.heads, "runtime")
    density = density_class(mask, bucket.q_len, bucket.kv_len, shapes.heads)
    bucket = Bucket(bucket.q_len, bucket.kv_len, bucket.programs, density)
    return Key(problem, bucket, hardware(tensors[0].device), _software(template))


@lru_cache(maxsize=32)
def hardware(where: torch.device) -> Hardware:
    """The GPU of a device; Triton's interpreter counts as one of its own."""
    if where.type != "cuda":
        return _INTERPRETER
    found: Any = torch.cuda.get_device_properties(where)
    arch = device.arch(where)
    limit = SHARED_KIB.get(int(arch[3:]), 99) * 1024
    return Hardware(
        found.name,
        arch,
        found.multi_processor_count,
        getattr(found, "shared_memory_per_block_optin", limit),
        getattr(found, "L2_cache_size", 0),
    )


@lru_cache(maxsize=2)
def _software(template: Template) -> Software:
    return Software.of(template, torch.version.cuda)


def _heads_of_a_token(query: Tensor) -> bool:
    """Next to a row in memory are other heads of the same token."""
    return query.shape[1] > 1 and query.stride(1) < query.stride(2)


def _capturing(where: torch.device) -> bool:
    """A CUDA graph is being recorded: nothing but launches belongs there."""
    return where.type == "cuda" and torch.cuda.is_current_stream_capturing()
