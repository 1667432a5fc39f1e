"""The heuristic, and padding."""

from __future__ import annotations

import pytest

import maskwright as mw
from maskwright import k
from maskwright import q
from maskwright.codegen.config import default_config
from maskwright.codegen.config import padded_heads
from maskwright.dsl.errors import LoweringError


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
@pytest.mark.parametrize("aligned", [True, False])
def test_descriptors_only_where_they_work(arch: str, aligned: bool) -> None:
    config = default_config(arch=arch, head_dim=128, aligned=aligned)
    assert (config.loads == "descriptor") == (aligned and arch == "sm_90")


def test_narrow_values_are_padded_beside_wider_keys() -> None:
    """What ptxas 12.8 gets wrong (docs/forward-log.md)."""
    assert padded_heads(40, 24, "bfloat16", 64) == (64, 64)
    assert padded_heads(16, 64, "bfloat16", 64) == (64, 64)
    assert padded_heads(40, 96, "bfloat16", 64) == (64, 128)
    assert padded_heads(32, 32, "float16", 128) == (32, 32)  # alike
    assert padded_heads(40, 24, "bfloat16", 32) == (64, 32)  # no asynchronous matrix instructions
    assert padded_heads(40, 24, "float32", 64) == (64, 32)


def test_key_tiles_divide_the_blocks_of_a_mask() -> None:
    assert default_config(head_dim=128, granule=64).block_n == 64
    assert default_config(head_dim=128, granule=96).block_n == 32
    assert default_config(head_dim=128, granule=100).block_n == 64  # nothing divides it


def test_old_and_unknown_architectures_are_refused() -> None:
    for arch in ("sm_75", "hopper"):
        with pytest.raises(LoweringError):
            default_config(arch=arch)


def test_masks_strided_in_queries_keep_closed_forms_in_the_backward() -> None:
    for text in ("(q // 48) % 2 == 0", "q % 96 < 48", "(q - k < 64) | ((q // 16) % 5 == 0)"):
        mask = (k <= q) & mw.parse(text)
        assert "tile_list" not in mw.source(mask, op="backward", arch="sm_90"), text
