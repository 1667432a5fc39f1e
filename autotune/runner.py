"""One configuration of a job, ready to be called: through the same code as a user's call."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from typing import TypeAlias

import torch
from torch import Tensor

from maskwright.autotune.job import Job
from maskwright.autotune.shadow import compiling
from maskwright.autotune.shadow import laid_out
from maskwright.autotune.shadow import tensors as unfilled
from maskwright.codegen.configs import AnyConfig
from maskwright.codegen.configs import Configs
from maskwright.dsl.expr import Expr
from maskwright.runtime import gradient
from maskwright.runtime.api import Attention
from maskwright.runtime.bind import Shapes
from maskwright.runtime.gradient import How

Results: TypeAlias = tuple[Tensor, ...]
_ABSURD = 0x5BADBAD


@dataclass(frozen=True)
class Inputs:
    """Tensors of a call.

    Attributes:
        given: query, key, value; for a backward then out, lse and the gradient of the output.
    """

    given: tuple[Tensor, ...]
    values: dict[str, Any]

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(x.numel() * x.element_size() for x in self.given)


def draw(job: Job, device: torch.device, seed: int) -> Inputs:
    """Random tensors; a backward needs ``with_outputs``, too."""
    generator = torch.Generator(device).manual_seed(seed)
    made = [x.normal_(generator=generator) for x in unfilled(job, str(device))]
    if job.op == "backward":
        shape = (*made[0].shape[:3], job.value_dim)
        made.append(laid_out(job, shape, made[0].dtype, str(device)))
        made[3].normal_(generator=generator)
    values = {name: torch.as_tensor(x).to(device) for name, x in job.arrays().items()}
    return Inputs(tuple(made), job.params | values)


class Runner:
    """One configuration of a job.

    Args:
        config: None is what the heuristic takes.
    """

    def __init__(self, job: Job, config: AnyConfig | None) -> None:
        self.job = job
        mask, score = Expr(job.mask_node), job.score_expr
        self.attention = Attention(mask, score=score, configs=Configs.of(config))
        # The forward of a backward is the heuristic's, and of Triton: any right one will do.
        self.plain = Attention(mask, score=score)
        self.prepared: Any = None
        self.ms = 1.0  # of a call, about; until it is known, no call is short

    def __call__(self, inputs: Inputs) -> Results:
        """(out, lse), or the gradients of query, key and value."""
        return self._backward(inputs) if self.job.op == "backward" else self._forward(inputs)

    def config(self, inputs: Inputs) -> AnyConfig:
        """The configuration that calls take."""
        found: AnyConfig = self._plan(inputs).request.config
        return found

    def prepare(self, inputs: Inputs) -> None:
        """Once, outside of what is timed: layers of a model share what the device prepares."""
        if self.job.op == "forward":
            query, key, value = inputs.given
            made = self.attention.prepare(query, key, value, **self._options(), **inputs.values)
            self.prepared = made if made.arguments else None

    def outputs(self, inputs: Inputs) -> Inputs:
        """Inputs of a backward with out and lse, of the heuristic's forward."""
        query, key, value, grad = inputs.given
        options = self._options() | {"return_lse": True}
        if self.job.backend == "gluon":
            options["backend"] = "triton"
        out, lse = self.plain(query, key, value, **options, **inputs.values)
        return Inputs((query, key, value, grad, out, lse), inputs.values)

    def compile(self, inputs: Inputs) -> bool:
        """Make the kernels and launch nothing; False where only a call can make them."""
        if self.job.backend == "interpret":
            return True
        if self._reads_back(inputs):
            return False
        with compiling():
            self(inputs)
        return True

    def values(self, inputs: Inputs) -> dict[str, Any]:
        """Runtime values as kernels get them."""
        return dict(self._call(inputs).values)

    def shapes(self, inputs: Inputs) -> Shapes:
        """Sizes of the call."""
        found: Shapes = self._call(inputs).shapes
        return found

    def inside(self, inputs: Inputs) -> bool:
        """Positions lie in [0, kv_len)."""
        return bool(self._call(inputs).inside)

    def _options(self) -> dict[str, Any]:
        return {"backend": self.job.backend, "q_offset": self.job.q_offset}

    def _call(self, inputs: Inputs) -> Any:
        query, key, value = inputs.given[:3]
        return self.attention.call(query, key, value, inputs.values, **self._options())

    def _forward(self, inputs: Inputs) -> Results:
        options = self._options() | {"return_lse": True, "prepared": self.prepared}
        query, key, value = inputs.given
        out, lse = self.attention(query, key, value, **options, **inputs.values)
        return out, lse

    def _backward(self, inputs: Inputs) -> Results:
        query, key, value, grad, out, lse = inputs.given
        call = self._call(inputs)
        found = gradient.backward(
            *(self.attention, grad, None, query, key, value, out, lse),
            sinks=None,
            values=call.values,
            q_offset=self.job.q_offset,
            scale=call.scale,
            interpreted=call.backend == "interpret",
            use_gluon=call.backend == "gluon",
        )
        return found[:3]

    def _plan(self, inputs: Inputs) -> Any:
        call = self._call(inputs)
        interpreted = call.backend == "interpret"
        if self.job.op == "forward":
            return self.attention._ready(call, sinks=None, interpreted=interpreted).compiled.plan
        how = How.of(call.inside, interpreted=interpreted, gluon=call.backend == "gluon")
        tensors = inputs.given[:4]
        return gradient.ready(self.attention, tensors, call.shapes, (), how).compiled.plan

    def _reads_back(self, inputs: Inputs) -> bool:
        """The length of a list of tiles comes from the device, so nothing may be left out."""
        plan = self._plan(inputs)
        walks = (plan,) if self.job.op == "forward" else plan.walks
        return any(x.tile_list is not None for x in walks)


@contextmanager
def poisoned() -> Iterator[None]:
    """Inside, new tensors hold NaN (or an absurd integer): what a kernel does not write shows."""
    module: Any = torch
    names = ("empty", "empty_like", "empty_strided")
    plain = {name: getattr(module, name) for name in names}
    for name, make in plain.items():
        setattr(module, name, partial(_poison, make))
    try:
        yield
    finally:
        for name, make in plain.items():
            setattr(module, name, make)


def _poison(make: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    made = make(*args, **options)
    if made.device.type == "meta":
        return made
    return made.fill_(float("nan") if made.is_floating_point() else _ABSURD)
