"""Masks with runtime lists of columns and diagonals, alone and beside static parts."""

from __future__ import annotations

import maskwright as mw
from maskwright import b
from maskwright import h
from maskwright import k
from maskwright import kv_head
from maskwright import q

COLS, BANDS = mw.table("v_idx", ndim=3), mw.table("s_idx", ndim=3)
COLUMN, DIAGONAL = k.isin(COLS[b, h]), (q - k).isin(BANDS[b, h])
VERTICAL_SLASH = mw.patterns.vertical_slash()
BESIDE_STATIC = (
    (k <= q) & COLUMN,
    (k <= q) & DIAGONAL,
    COLUMN | DIAGONAL,
    (k <= q) & (COLUMN | DIAGONAL | (q - k < 20) | (k < 5)),
    (k <= q) & ((COLUMN & (q - k < 50)) | (DIAGONAL & (k > 20)) | (q - k < 3)),
    (k <= q) & COLUMN & DIAGONAL,
    (k <= q) & (COLUMN | (q - k + 3).isin(BANDS[b, h])),
    (k <= q) & (k.isin(COLS[b, kv_head]) | (q - k).isin(BANDS[b, 0])),
    mw.by_head([0, 1], [(k <= q) & (COLUMN | DIAGONAL), (k <= q) & (q - k < 30)]),
    (k <= q) & ((q // 40 == k // 40) | COLUMN | DIAGONAL),
)
