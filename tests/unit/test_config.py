"""The heuristic and the guard against configurations that compute wrongly."""

from __future__ import annotations

import pytest

from maskwright.codegen.config import KernelConfig
from maskwright.codegen.config import default_config
from maskwright.codegen.config import trusted
from maskwright.dsl.errors import LoweringError


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("head_dim", [8, 40, 64, 128, 256, 512])
@pytest.mark.parametrize("copies", [True, False])
def test_the_heuristic_is_trusted(arch: str, dtype: str, head_dim: int, copies: bool) -> None:
    config = default_config(arch=arch, dtype=dtype, head_dim=head_dim, aligned=copies)
    assert trusted(config, arch, dtype, copies=copies)


def test_what_was_seen_to_be_wrong_is_not_trusted() -> None:
    one_stage = KernelConfig(64, 64, 4, 1)
    assert not trusted(one_stage, "sm_90", "float16", copies=True)
    assert not trusted(KernelConfig(128, 64, 4, 3), "sm_90", "bfloat16", copies=False)
    assert trusted(one_stage, "sm_80", "float16", copies=True)
    assert trusted(KernelConfig(32, 64, 4, 1), "sm_90", "float16", copies=False)
    assert trusted(KernelConfig(64, 64, 4, 2, "descriptor"), "sm_90", "float16", copies=False)


def test_key_tiles_divide_the_blocks_of_a_mask() -> None:
    assert default_config(head_dim=128, granule=64).block_n == 64
    assert default_config(head_dim=128, granule=96).block_n == 32
    assert default_config(head_dim=128, granule=100).block_n == 64  # nothing divides it


def test_old_and_unknown_architectures_are_refused() -> None:
    for arch in ("sm_75", "hopper"):
        with pytest.raises(LoweringError):
            default_config(arch=arch)
