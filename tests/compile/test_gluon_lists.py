"""Gates on the machine code of Gluon kernels that gather listed columns, without a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from listed_masks import COLUMN
from listed_masks import DIAGONAL
from listed_masks import TILED
from listed_masks import VERTICAL_SLASH

from maskwright import k
from maskwright import q
from maskwright.codegen.gluon import listed_gluon
from maskwright.dsl.evaluate import mask_node
from maskwright.runtime.cross import build_gluon

ONE = replace(listed_gluon(128, 128), persistent=False, counter=False)
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "lists": (VERTICAL_SLASH, {}),
    "d64": (VERTICAL_SLASH, {"head_dim": 64, "dtype": "float16"}),
    "d192": (VERTICAL_SLASH, {"head_dim": 192, "value_dim": 128}),
    "d256": (VERTICAL_SLASH, {"head_dim": 256}),
    "window": ((k <= q) & (COLUMN | DIAGONAL | (q - k < 1024) | (k < 64)), {}),
    "columns": ((k <= q) & COLUMN, {}),
    "pairs": ((k <= q) & ((COLUMN & (q - k < 50)) | (DIAGONAL & (k > 20)) | (q - k < 3)), {}),
    "one": (VERTICAL_SLASH, {"config": ONE}),
    "tiled": (TILED[64], {}),
    "tiled_d256": (TILED[64], {"head_dim": 256}),
}
# Bytes of what is computed once for all partitions; the larger of Triton 3.6 and 3.9. None of it is
# read in a loop over tiles.
KEPT_IN_MEMORY = {"lists": 24, "d192": 8, "d256": 64, "window": 56, "pairs": 96, "one": 8}
KEPT_IN_MEMORY |= {"tiled": 24, "tiled_d256": 64}
LOADED_IN_LOOPS = {"d256": 2, "tiled_d256": 2}  # Triton 3.9; none with 3.6


@pytest.mark.parametrize("name", CASES)
def test_machine_code(name):
    mask, options = CASES[name]
    report = build_gluon(mask_node(mask), **options)
    found = report.instructions
    assert report.stack_bytes <= KEPT_IN_MEMORY.get(name, 0), str(report)
    assert found["LDL in loops"] <= LOADED_IN_LOOPS.get(name, 0)
    assert report.shared_bytes <= report.shared_limit
    assert found["USETMAXREG"] > 0
    # Rows of keys and values are copied 16 bytes at a time.
    assert found["LDGSTS"] == found["LDGSTS.E.BYPASS.128"] > 0
    # Each wait ends a whole product.
    assert found["HGMMA"] >= 4 * found["WARPGROUP.DEPBAR"]
