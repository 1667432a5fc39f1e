"""The tuner's GPU worker, with kernels that break the GPU in the place of some configurations.

Run as a program. Of the Triton forward: 16 warps read at an address that does not exist, five
stages never end.
"""

from __future__ import annotations

import sys

import torch
import triton
import triton.language as tl

from maskwright.autotune import gpu_worker
from maskwright.autotune import runner
from maskwright.autotune.serve import serve


@triton.jit
def illegal_kernel(x):
    # Far beyond everything that is mapped.
    tl.store(x + (1 << 46), 1.0)


@triton.jit
def endless_kernel(x):
    value = tl.load(x, volatile=True)
    while value < 1.0:
        value = tl.load(x, volatile=True)
    tl.store(x, value)


def faulty(self, inputs):
    config = self.attention.configs.forward
    zero = torch.zeros(1, device="cuda")
    if config is not None and config.num_warps == 16:
        illegal_kernel[(1,)](zero)
        torch.cuda.synchronize()
    if config is not None and config.num_stages == 5:
        endless_kernel[(1,)](zero)
        torch.cuda.synchronize()
    return plain(self, inputs)


if __name__ == "__main__":
    plain, runner.Runner.__call__ = runner.Runner.__call__, faulty
    runner.Runner.compile = lambda self, inputs: True  # faults belong to the run
    sys.exit(serve(gpu_worker.handlers))
