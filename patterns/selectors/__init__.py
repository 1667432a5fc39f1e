"""Selectors: functions that read queries and keys and return the runtime lists of a pattern.

``selector(query, key, ...)`` returns bindings, so ``attention(query, key, value, pattern, **found)``.
This package imports torch; ``import maskwright`` and ``maskwright.patterns`` do not import it.
"""

from __future__ import annotations

from maskwright.patterns.selectors.blocks import block_top_k
from maskwright.patterns.selectors.candidates import CANDIDATES
from maskwright.patterns.selectors.candidates import AShape
from maskwright.patterns.selectors.candidates import BlockList
from maskwright.patterns.selectors.candidates import Causal
from maskwright.patterns.selectors.candidates import VerticalSlash
from maskwright.patterns.selectors.layers import read
from maskwright.patterns.selectors.layers import write
from maskwright.patterns.selectors.nsa import nsa_blocks
from maskwright.patterns.selectors.pages import columns_of_pages
from maskwright.patterns.selectors.pages import delta_pages
from maskwright.patterns.selectors.pages import page_mask
from maskwright.patterns.selectors.pages import quest_pages
from maskwright.patterns.selectors.search import Head
from maskwright.patterns.selectors.search import lists_of
from maskwright.patterns.selectors.search import mask_of
from maskwright.patterns.selectors.search import search
from maskwright.patterns.selectors.slash import vertical_slash

__all__ = [
    "CANDIDATES",
    "AShape",
    "BlockList",
    "Causal",
    "Head",
    "VerticalSlash",
    "block_top_k",
    "columns_of_pages",
    "delta_pages",
    "lists_of",
    "mask_of",
    "nsa_blocks",
    "page_mask",
    "quest_pages",
    "read",
    "search",
    "vertical_slash",
    "write",
]
