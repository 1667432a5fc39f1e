"""Random masks of all node kinds against the oracle; the same masks in every run.

For longer than here: ``maskwright check --random 10000 --seconds 600``.
"""

from __future__ import annotations

import pytest

from maskwright.runtime.fuzz import checks_for
from maskwright.runtime.fuzz import draw_case
from maskwright.runtime.fuzz import failure_of
from maskwright.runtime.fuzz_checks import SCHEDULE_CHECKS

SEED = 20
SCHEDULE_CHUNKS, SCHEDULE_CASES = 24, 25  # 600 masks
KERNEL_CHUNKS, KERNEL_CASES = 16, 5  # 80 masks


@pytest.mark.parametrize("chunk", range(SCHEDULE_CHUNKS))
def test_schedules_are_sound_and_disjoint(chunk):
    for number in range(chunk * SCHEDULE_CASES, (chunk + 1) * SCHEDULE_CASES):
        failure = failure_of(draw_case(SEED, number), SCHEDULE_CHECKS, number)
        assert failure is None, str(failure)


@pytest.mark.parametrize("chunk", range(KERNEL_CHUNKS))
def test_kernels_match_float64_in_the_interpreter(chunk):
    checks = checks_for("interpret")
    for number in range(chunk * KERNEL_CASES, (chunk + 1) * KERNEL_CASES):
        case = draw_case(SEED + 1, number)
        failure = failure_of(case, checks, number, "interpret")
        assert failure is None, str(failure)
