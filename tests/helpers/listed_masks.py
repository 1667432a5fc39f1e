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
TILED = {size: mw.patterns.vertical_slash(tiled=size) for size in (16, 64)}
# Pages by their first key, and runs of diagonals that no tiles share.
RUNS = (k <= q) & (k.isin(COLS[b, h], run=12) | (q - k).isin(BANDS[b, h], run=5))
FOLLOWED = {"exact": VERTICAL_SLASH, "tiled16": TILED[16], "tiled64": TILED[64], "runs": RUNS}
BESIDE_STATIC = (
    (k <= q) & COLUMN,
    (k <= q) & DIAGONAL,
    COLUMN | DIAGONAL,
    (k <= q) & (COLUMN | DIAGONAL | (q - k < 20) | (k < 5)),
    (k <= q) & ((COLUMN & (q - k < 50)) | (DIAGONAL & (k > 20)) | (q - k < 3)),
    (k <= q) & COLUMN & DIAGONAL,
    (k <= q) & (COLUMN | (q - k + 3).isin(BANDS[b, h])),
    (k <= q) & (k.isin(COLS[b, h], run=9) & (q - k < 50) | (q // 32 * 32 - k).isin(BANDS[b, h])),
    COLUMN | (q // 64 * 64 - k + 20).isin(BANDS[b, h], run=33),
    (k <= q) & (k.isin(COLS[b, kv_head]) | (q - k).isin(BANDS[b, 0])),
    mw.by_head([0, 1], [(k <= q) & (COLUMN | DIAGONAL), (k <= q) & (q - k < 30)]),
    (k <= q) & ((q // 40 == k // 40) | COLUMN | DIAGONAL),
)
