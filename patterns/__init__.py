"""Named masks: each function returns an expression, with its formula in the docstring.

>>> from maskwright import patterns
>>> str(patterns.a_shape(sink=64, window=1024) & ~patterns.local_stride(64, 16, 8))[:47]
'(k <= q) & ((k < 64) | (q - k < 1024)) & ~((k <'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING
from typing import Any

from maskwright.patterns.basic import causal
from maskwright.patterns.basic import full
from maskwright.patterns.basic import prefix_lm
from maskwright.patterns.basic import prefix_lm_document
from maskwright.patterns.block import block_causal
from maskwright.patterns.block import block_list
from maskwright.patterns.block import local_stride
from maskwright.patterns.block import shifted_group
from maskwright.patterns.documents import anchor_document
from maskwright.patterns.documents import causal_blockwise
from maskwright.patterns.documents import document
from maskwright.patterns.documents import frame_causal
from maskwright.patterns.documents import share_question
from maskwright.patterns.slash import vertical_slash
from maskwright.patterns.trees import tree
from maskwright.patterns.window import a_shape
from maskwright.patterns.window import chunk_anchored_a_shape
from maskwright.patterns.window import dilated_window
from maskwright.patterns.window import global_window
from maskwright.patterns.window import sliding_window
from maskwright.patterns.window import tri_shape

if TYPE_CHECKING:
    from maskwright.patterns import selectors as selectors

__all__ = [
    "a_shape",
    "anchor_document",
    "block_causal",
    "block_list",
    "causal",
    "causal_blockwise",
    "chunk_anchored_a_shape",
    "dilated_window",
    "document",
    "frame_causal",
    "full",
    "global_window",
    "local_stride",
    "prefix_lm",
    "prefix_lm_document",
    "share_question",
    "shifted_group",
    "sliding_window",
    "tree",
    "tri_shape",
    "vertical_slash",
]


def __getattr__(name: str) -> Any:
    if name != "selectors":  # not a pattern, and it imports torch
        raise AttributeError(f"module 'maskwright.patterns' has no attribute {name!r}")
    return importlib.import_module("maskwright.patterns.selectors")
