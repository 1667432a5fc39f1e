"""The two clocks behind ``timing.Measure``, and the peak memory of a call."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.timing import Call
    from benchmarks.timing import Measure

SCRATCH_BYTES = 256 * 2**20  # several times the L2 of any current GPU


def cuda_events(call: Call, count: int) -> float:
    """Time by events on the current CUDA stream: device time, unless the host cannot keep up.

    The stream is not drained first: what still runs on it (the clearing of the cache) gives the
    host its head start, so the first launch does not count as device time.
    """
    start = torch.cuda.Event(enable_timing=True)
    stop = torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(count):
        call()
    stop.record()
    stop.synchronize()
    elapsed: float = start.elapsed_time(stop)
    return elapsed


def wall_clock(call: Call, count: int) -> float:
    """Time by the host's clock, up to the end of the device's work."""
    synchronize()
    start = time.perf_counter()
    for _ in range(count):
        call()
    synchronize()
    return (time.perf_counter() - start) * 1e3


def synchronize() -> None:
    """Wait for the device, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def clock_of(device: str) -> Measure:
    """Events on a GPU, the host's clock elsewhere."""
    return cuda_events if device == "cuda" else wall_clock


def cache_clearer(device: str) -> Callable[[], None]:
    """A function that overwrites a buffer larger than the L2, so that no contestant inherits it."""
    if device != "cuda":
        return lambda: None
    scratch = torch.empty(SCRATCH_BYTES, dtype=torch.int8, device=device)

    def clear() -> None:
        scratch.zero_()

    return clear


def peak_bytes(call: Call) -> int:
    """Most device memory that one call held at a time, its result included."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del kept
    return peak
