"""The cost model's layout of warps against Triton's own, without a GPU."""

from __future__ import annotations

import math
import re

import pytest
import triton

from maskwright import k
from maskwright import q
from maskwright.autotune.cost import computed
from maskwright.autotune.cost import forward_step
from maskwright.autotune.filter import Heads
from maskwright.autotune.rates import GPUS
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.pipeline import compile_forward
from maskwright.codegen.plan import Request
from maskwright.runtime import offline

MASK = (k <= q).node
DOT = re.compile(r"(?:warp_group_dot|tt\.dot) .*-> tensor<(\d+)x(\d+)xf32, (#\w+)>")
LAYOUT = re.compile(
    r"^(#\w+) = .*nvidia_mma<.*warpsPerCTA = \[(\d+), (\d+)\].*Shape = \[(\d+), (\d+)", re.MULTILINE
)


CASES = [("sm_90", 128, 64, w, 2) for w in (4, 16)]
CASES += [("sm_90", 64, 64, 8, 2), ("sm_90", 32, 64, 4, 2), ("sm_90", 32, 64, 16, 2)]
CASES += [("sm_80", 128, 64, 4, 2), ("sm_80", 128, 32, 16, 2), ("sm_80", 64, 64, 8, 2)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scores_that_warps_repeat(case, monkeypatch, tmp_path):
    arch, *numbers = case
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    texts, compiler = [], triton.compile

    def compile_(*args, **options):
        found = compiler(*args, **options)
        texts.append(found.asm["ttgir"])
        return found

    monkeypatch.setattr(triton, "compile", compile_)
    config = KernelConfig(*numbers)
    made = compile_forward(Request(MASK, None, "bfloat16", 128, 128, True, False, config))
    pads = made.plan.request.pads
    offline.build(made.plan, pads, made.source, made.name, arch, "forward_kernel")
    layouts = {x[1]: tuple(int(y) for y in x.groups()[1:]) for x in LAYOUT.finditer(texts[0])}
    scores = next(x for x in DOT.finditer(texts[0]) if int(x[2]) == config.block_n)
    rows, columns, high, wide = layouts[scores[3]]
    # A warp takes 16 rows of a warp-group's instruction, and the piece of a single warp's is 16 x 8.
    taken = max(config.block_m, rows * high) * max(config.block_n, columns * wide)
    step = forward_step(config, Heads(128, 128, "bfloat16"))
    assert math.prod(computed(step, GPUS[arch])) == taken
