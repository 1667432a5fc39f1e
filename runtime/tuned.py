"""Tuned configurations for calls: the key of a call, and the look-up of what was tuned for it.

Asked only where a kernel is made, never for a call like an earlier one.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING
from typing import Any
from typing import cast

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
from maskwright.autotune.lookup import EXACT
from maskwright.autotune.lookup import Choice
from maskwright.codegen.config import SHARED_KIB
from maskwright.codegen.sources import members_of
from maskwright.dsl import nodes as n
from maskwright.runtime import device
from maskwright.runtime import settings
from maskwright.runtime.bind import DTYPES
from maskwright.runtime.bind import Shapes

if TYPE_CHECKING:
    from maskwright.codegen.config import BackwardConfig
    from maskwright.codegen.config import KernelConfig
    from maskwright.codegen.gluon import GluonConfig
    from maskwright.codegen.gluon_backward import GluonBackwardConfig
    from maskwright.runtime.api import Attention

Tensors = tuple[Tensor, ...]
_MOST_CHOICES = 4096  # kinds of calls remembered for one mask
_TEMPLATES: tuple[Template, ...] = ("triton", "gluon_sm90")
_INTERPRETER = Hardware("interpreter", "sm_80", 1, SHARED_KIB[80] * 1024, 0)


def forward_config(
    found: Attention, tensors: Tensors, shapes: Shapes, *, inside: bool
) -> KernelConfig | None:
    """What was tuned for the Triton forward of a call; None leaves it to the heuristic.

    Args:
        tensors: query, key and value.
    """
    choice = choose(found, "forward", "triton", tensors, shapes, inside)
    return None if choice is None else cast("KernelConfig", choice.config)


def backward_config(
    found: Attention, tensors: Tensors, shapes: Shapes, *, inside: bool
) -> BackwardConfig | None:
    """Likewise for the Triton backward; ``tensors`` end with the gradient of the output."""
    choice = choose(found, "backward", "triton", tensors, shapes, inside)
    return None if choice is None else cast("BackwardConfig", choice.config)


def gluon_config(
    found: Attention, tensors: Tensors, shapes: Shapes, *, inside: bool
) -> GluonConfig | None:
    """Likewise for the Gluon forward."""
    choice = choose(found, "forward", "gluon_sm90", tensors, shapes, inside)
    return None if choice is None else cast("GluonConfig", choice.config)


def gluon_backward_config(
    found: Attention, tensors: Tensors, shapes: Shapes, *, inside: bool
) -> GluonBackwardConfig | None:
    """Likewise for the Gluon backward."""
    choice = choose(found, "backward", "gluon_sm90", tensors, shapes, inside)
    return None if choice is None else cast("GluonBackwardConfig", choice.config)


def prefers_gluon(
    found: Attention, tensors: Tensors, shapes: Shapes, *, inside: bool
) -> bool | None:
    """The Gluon forward was measured to be faster than the Triton one; None if nobody knows.

    Only entries for exactly this key count: times of other sizes say nothing about each other.
    """
    times = []
    for template in _TEMPLATES:
        choice = choose(found, "forward", template, tensors, shapes, inside)
        if choice is None or choice.origin not in EXACT:
            return None
        times.append(choice.entry.result.ms)
    return times[1] < times[0]


def choose(
    found: Attention, op: Op, template: Template, tensors: Tensors, shapes: Shapes, inside: bool
) -> Choice | None:
    """What was tuned for a kernel of a call, and where that comes from."""
    current = settings.current()
    if current.tune == "off":
        return None
    where = tensors[0].device
    versions, gpu = software(template), hardware(where)
    places = (current.cache_dir, versions, gpu.folder, gpu.arch if where.type == "cuda" else "")
    index = lookup.index(*places, read=not _capturing(where))
    searching = current.tune == "on" and where.type == "cuda" and not _capturing(where)
    if index is None or not (index or searching):
        return None
    # Not every call takes the hot path, and making a key takes longer than the rest of a call.
    kind = (op, template, searching, where, shapes, inside, *[_kind(x) for x in tensors])
    earlier = found.choices.get(kind)
    if earlier is not None and earlier[0] is index:
        return cast("Choice | None", earlier[1])
    key = key_of(found.mask, found.score, op, template, tensors, shapes, inside)
    limits = Limits.of(found.mask, found.score)
    choice = index.find(key, lambda x: unfit(x, key, limits))
    known = choice is not None and choice.origin in EXACT
    if searching and not known and _search(found, key, shapes):
        index = lookup.index(*places) or index
        choice = index.find(key, lambda x: unfit(x, key, limits))
    if choice is not None and choice.origin == "model" and _lists(found.mask):
        choice = None  # no mask that follows lists was asked when it was made for any mask
    if "tune" in current.debug:
        told = index.why_not(key) if choice is None else choice.told(key)
        print(f"--- maskwright tune ---\n{key.name}: {told}", file=sys.stderr)
    if len(found.choices) >= _MOST_CHOICES:
        found.choices.clear()
    found.choices[kind] = index, choice
    return choice


def _lists(mask: n.Node) -> bool:
    return bool(members_of(mask))


def _kind(x: Tensor) -> tuple[Any, ...]:
    """What a key takes from a tensor."""
    return x.dtype, x.stride(), x.data_ptr() % 16


def _search(found: Attention, key: Key, shapes: Shapes) -> bool:
    """``MASKWRIGHT_TUNE=on``: search what is missing, once; True if there is an entry now.

    Not where runtime values decide (nobody says here which are typical), not for tensors that a
    job cannot repeat, and never in one of many ranks: each would choose for itself.
    """
    from maskwright.autotune import missing

    return missing.search(found.mask, found.score, key, shapes)


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
    return Key(problem, bucket, hardware(tensors[0].device), software(template))


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
def software(template: Template) -> Software:
    """What turns a configuration into machine code, here."""
    return Software.of(template, torch.version.cuda)


def _heads_of_a_token(query: Tensor) -> bool:
    """Next to a row in memory are other heads of the same token."""
    return query.shape[1] > 1 and query.stride(1) < query.stride(2)


def _capturing(where: torch.device) -> bool:
    """A CUDA graph is being recorded: nothing but launches belongs there."""
    return where.type == "cuda" and torch.cuda.is_current_stream_capturing()
