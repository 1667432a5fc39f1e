"""Compile the kernels of a call without a GPU, exactly as the call itself would.

A call is made with tensors that have no data, under a driver that only knows an architecture, and
every launch stops after compilation. So each kernel gets the signature and the alignment it will
have, and Triton's cache then holds what the process with the GPU asks for.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from maskwright.autotune.job import Job
from maskwright.autotune.outcome import Build
from maskwright.codegen.config import SHARED_KIB
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.config import arch_number
from maskwright.codegen.configs import AnyConfig
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon_backward import GluonBackwardConfig
from maskwright.codegen.gluon_plan import gluon_backward_request
from maskwright.codegen.pipeline import compile_backward
from maskwright.codegen.pipeline import compile_forward
from maskwright.codegen.plan import Request
from maskwright.codegen.plan_backward import BackwardRequest
from maskwright.dsl.errors import LoweringError
from maskwright.runtime import build
from maskwright.runtime import offline
from maskwright.runtime.bind import Binder
from maskwright.runtime.bind import Shapes

_MAIN = re.compile(r"forward_kernel|query_gradient_kernel|key_gradient_kernel|gradient_kernel")


@contextmanager
def compiling() -> Iterator[list[Any]]:
    """Inside, launches compile and stop; yields the compiled kernels as (name, kernel)."""
    from triton.runtime.jit import JITFunction

    found: list[Any] = []
    run = JITFunction.run

    def stop(self: Any, *args: Any, grid: Any, warmup: bool = True, **options: Any) -> Any:
        del warmup
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        found.append((self.fn.__name__, kernel))
        return kernel

    JITFunction.run = stop
    try:
        yield found
    finally:
        JITFunction.run = run


@dataclass(frozen=True)
class _NoGpu:
    """As much of a Triton driver as compilation asks for."""

    number: int

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.number, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


def pretend(arch: str, processors: int) -> None:
    """Let Triton compile for a GPU in this process, which must not launch anything.

    Args:
        processors: multiprocessors, which persistent kernels ask for.
    """
    import triton

    triton.runtime.driver.set_active(_NoGpu(arch_number(arch)))
    facts = SimpleNamespace(multi_processor_count=processors)
    cuda: Any = torch.cuda
    cuda.current_device = lambda: 0
    cuda.get_device_properties = lambda device=None: facts


def compile_job(job: Job, config: AnyConfig, arch: str) -> Build:
    """What the machine code of a configuration takes; ``pretend`` comes first.

    Raises:
        LoweringError: the configuration cannot serve the job.
        Exception: whatever the compiler raises.
    """
    started = time.perf_counter()
    with compiling() as found:
        try:
            _shadow(job, config)
        except (NotImplementedError, RuntimeError) as error:
            # A list of tiles is as long as the device says: nobody can know here.
            if "meta" not in str(error).lower():
                raise
    kernels = [kernel for name, kernel in found if _MAIN.fullmatch(name)]
    seconds = time.perf_counter() - started
    if not kernels:
        return Build(message="not compiled ahead", seconds=seconds)
    shared = max(int(x.metadata.shared) for x in kernels)
    limit = SHARED_KIB.get(arch_number(arch), 99) * 1024
    registers, stack = zip(*(offline.resources(x.asm["cubin"]) for x in kernels), strict=True)
    return Build(
        "ok" if shared <= limit else "infeasible",
        "" if shared <= limit else f"{shared} of {limit} bytes of shared memory",
        _code(kernels),
        *(max(registers), max(stack), shared, seconds),
    )


def _code(kernels: list[Any]) -> str:
    """Hash of instructions and launch; names of files, which differ, are no part of it."""
    found = hashlib.sha256()
    for kernel in kernels:
        data = kernel.metadata
        found.update(f"{data.shared} {data.num_warps}\n".encode())
        found.update(offline.disassembly(kernel.asm["cubin"]).encode())
    return found.hexdigest()[:16]


def _shadow(job: Job, config: AnyConfig) -> None:
    sizes = (job.batch, job.heads, job.kv_heads, job.q_len, job.kv_len, job.head_dim)
    shapes = Shapes(*sizes, job.value_dim, job.q_offset)
    nodes = (job.mask_node,) if job.score_node is None else (job.mask_node, job.score_node)
    values = job.params | {name: _meta(torch.as_tensor(x)) for name, x in job.arrays().items()}
    binder = Binder.of(nodes)
    values = binder.bind(values, torch.device("meta"), job.heads)
    inside = shapes.positions_inside and binder.sorted_inside(values, job.kv_len)
    query, key, value = tensors(job, "meta")
    if job.op == "forward":
        made = compile_forward(_forward_request(job, config, inside))
        names = {x.name: x.text for x in made.plan.bindings}
        keywords = {names[name]: x for name, x in values.items() if name in names}
        build.load(made).forward(query, key, value, q_offset=job.q_offset, **keywords)
        return
    both = compile_backward(_backward_request(job, config, inside))
    names = {x.name: x.text for x in both.plan.bindings}
    keywords = {names[name]: x for name, x in values.items() if name in names}
    shape = (*query.shape[:3], job.value_dim)
    grad = laid_out(job, shape, query.dtype, "meta")
    out = torch.empty(shape, dtype=query.dtype, device="meta")
    lse = torch.empty(query.shape[:3], dtype=torch.float32, device="meta")
    module = build.load(both)
    module.backward(*(query, key, value, out, lse, grad), q_offset=job.q_offset, **keywords)


def tensors(job: Job, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of a job, not filled."""
    dtype = getattr(torch, job.dtype)
    shapes = (
        (job.batch, job.heads, job.q_len, job.head_dim),
        (job.batch, job.kv_heads, job.kv_len, job.head_dim),
        (job.batch, job.kv_heads, job.kv_len, job.value_dim),
    )
    query, key, value = (laid_out(job, shape, dtype, device) for shape in shapes)
    return query, key, value


def laid_out(job: Job, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """A tensor of (batch, heads, length, columns), in memory as the job wants it."""
    if job.layout == "heads":
        return torch.empty(shape, dtype=dtype, device=device)
    batch, heads, length, columns = shape
    return torch.empty((batch, length, heads, columns), dtype=dtype, device=device).transpose(1, 2)


def _meta(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _forward_request(job: Job, config: AnyConfig, inside: bool) -> Request:
    if isinstance(config, GluonConfig):
        request, reason = job.gluon_request(config, inside=inside)
        if reason:
            raise LoweringError(f"no Gluon kernel: {reason}")
        return request
    assert isinstance(config, KernelConfig)
    what = (job.mask_node, job.score_node, job.dtype, job.head_dim, job.value_dim, inside)
    return Request(*what, False, config)


def _backward_request(job: Job, config: AnyConfig, inside: bool) -> BackwardRequest:
    assert isinstance(config, (BackwardConfig, GluonBackwardConfig))
    what = (job.mask_node, job.score_node, job.dtype, job.head_dim, job.value_dim, inside)
    request = BackwardRequest(*what, config, ())
    if isinstance(config, BackwardConfig):
        return request
    request, reason = gluon_backward_request(request, config)
    if reason:
        raise LoweringError(f"no Gluon kernel: {reason}")
    return request
