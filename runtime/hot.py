"""The hot path: a call like an earlier one goes to its compiled kernels with one look-up.

It serves eager calls whose kernels need nothing but the tensors and params: no tables, no sinks,
no work before the kernel, not even a counter to clear. Everything else takes the checked way of
``Attention``. What makes two calls alike is in the key; what the key does not hold is asked in
``Hot.find``.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from typing import Any
from typing import TypeAlias
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from maskwright.dsl import nodes as n
from maskwright.dsl.evaluate import PARAM_LIMIT
from maskwright.runtime import settings
from maskwright.runtime.call import Call
from maskwright.runtime.frozen import Frozen
from maskwright.runtime.frozen import Slot
from maskwright.runtime.frozen import warn_slow
from maskwright.runtime.launch import Kernel

if TYPE_CHECKING:
    from maskwright.runtime.api import Attention
    from maskwright.runtime.gradient import BackwardKernel

Tensors: TypeAlias = tuple[Tensor, ...]
_MOST = 4096  # kinds of calls remembered for one mask
_DYNAMO = getattr(torch._C._dynamo, "guards", None)  # noqa: SLF001
_GUARDS: Any = getattr(_DYNAMO, "TensorGuards", None)
# What compiled graphs allocate with: half the time of torch.empty.
_EMPTY = getattr(_DYNAMO, "_empty_strided_cuda", None)


class Space:
    """Room for a new tensor like another one, on a device."""

    def __init__(self, like: Tensor, device: torch.device) -> None:
        self.what = (tuple(like.shape), like.stride(), like.dtype)
        self.device = device

    def new(self) -> Tensor:
        """A tensor that holds anything, on the current device."""
        if _EMPTY is not None:
            found: Tensor = _EMPTY(*self.what)
            return found
        shape, stride, dtype = self.what
        return torch.empty_strided(shape, stride, dtype=dtype, device=self.device)


def _shadow(x: Tensor) -> Tensor:
    """A tensor like this one without data, and an object of its own."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _slots(kernel: Any) -> dict[str, Slot]:
    return {x.text: Slot() for x in kernel.compiled.plan.bindings}


def _places(found: Sequence[object]) -> dict[int, int]:
    return {id(x): place for place, x in enumerate(found)}


class Launch:
    """The forward of one kind of call."""

    def __init__(self, kernel: Kernel, call: Call) -> None:
        tensors = [_shadow(x) for x in (call.query, call.key, call.value)]
        slots = _slots(kernel)
        options = {"scale": call.scale, "q_offset": call.shapes.q_offset}
        grid, found, out, lse = kernel.module.arguments(*tensors, **options, **slots)
        places = _places([*tensors, out, lse, *slots.values()])
        self.frozen = Frozen(kernel.handle, grid, found, places, call.query.get_device())
        self.out, self.lse = Space(out, call.query.device), Space(lse, call.query.device)
        self.params = [x.name for x in kernel.compiled.plan.bindings]

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, bindings: Mapping[str, int]
    ) -> tuple[Tensor, Tensor]:
        """(out, lse)."""
        out, lse = self.out.new(), self.lse.new()
        tensors = [query.data_ptr(), key.data_ptr(), value.data_ptr(), out.data_ptr()]
        self.frozen([*tensors, lse.data_ptr(), *[bindings[name] for name in self.params]])
        return out, lse


class BackwardLaunch:
    """The backward of one kind of call."""

    def __init__(self, kernel: BackwardKernel, call: Call, given: Tensors) -> None:
        """``given``: out, lse, grad_out, and the gradient of the LSE if there is one."""
        tensors = [_shadow(x) for x in (call.query, call.key, call.value, *given)]
        slots = _slots(kernel)
        options: dict[str, Any] = {"scale": call.scale, "q_offset": call.shapes.q_offset}
        options |= {"grad_lse": tensors[6]} if len(tensors) > 6 else {}
        launches, made = kernel.module.arguments(*tensors[:6], **options, **slots)
        places = _places([*tensors, *made[:-1], *slots.values()])
        device = call.query.get_device()
        self.frozen = [
            Frozen(kernel.handles[name], grid, found, places, device)
            for name, grid, found in launches
        ]
        self.spaces = [Space(x, call.query.device) for x in made[:-1]]
        self.params = [x.name for x in kernel.compiled.plan.bindings]

    def __call__(self, tensors: Tensors, bindings: Mapping[str, int]) -> list[Tensor]:
        """Gradients of query, key and value."""
        made = [space.new() for space in self.spaces]
        params = [bindings[name] for name in self.params]
        values = [x.data_ptr() for x in (*tensors, *made)] + params
        for frozen in self.frozen:
            frozen(values)
        return made[:3]


@dataclass(frozen=True)
class Last:
    """The launch that served last: for the next call, a check in C++ is enough.

    Attributes:
        check: PyTorch's own, of the guards of compiled graphs: type, dtype, device, sizes, strides,
            ``requires_grad``, and what dispatch keys are active in this thread.
    """

    check: Callable[..., bool]
    options: tuple[Any, ...]
    launch: Launch
    differentiable: bool

    @staticmethod
    def of(tensors: Tensors, options: tuple[Any, ...], launch: Launch) -> Last | None:
        """None for a PyTorch without such a check."""
        if _GUARDS is None:
            return None
        sizes = [list(x.shape) for x in tensors]
        strides = [list(x.stride()) for x in tensors]
        try:
            found = _GUARDS(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
        except (TypeError, SystemError):
            return None
        return Last(found.check, options, launch, any(x.requires_grad for x in tensors))

    def serves(self, tensors: Tensors, options: tuple[Any, ...]) -> bool:
        """The call is like the last one, and nobody must see it."""
        query, key, value = tensors
        return (
            self.options == options
            and self.check(query, key, value)
            and not (query.data_ptr() | key.data_ptr() | value.data_ptr()) & 15
            and not torch._C._len_torch_dispatch_stack()  # noqa: SLF001
            and query.get_device() == torch._C._cuda_getDevice()  # noqa: SLF001
            and forward_ad._current_level < 0  # noqa: SLF001
            and not (self.differentiable and torch.is_grad_enabled())
        )


class Hot:
    """The launches of one mask and score, by kind of call."""

    def __init__(self, params: tuple[n.Param, ...], *, tables: bool) -> None:
        self.ranges = [(p.name, *_range(p)) for p in params]
        self.off = tables  # tables need the checked way
        self.seen: set[Any] = set()
        self.forward: dict[Any, Launch] = {}
        self.last: Last | None = None
        self.backward: dict[Any, BackwardLaunch] = {}

    def find(
        self, tensors: Tensors, bindings: Mapping[str, Any], options: tuple[Any, ...]
    ) -> Launch | None:
        """The launch of a call like an earlier one, if nothing but the kernel is wanted."""
        if not self.forward or not self._bound(bindings):
            return None
        last = self.last
        if last is not None and last.serves(tensors, options):
            return last.launch
        if not _plain(tensors):
            return None
        launch = _get(self.forward, (_kind(tensors), options))
        self.last = None if launch is None else Last.of(tensors, options, launch)
        return launch

    def remember(self, call: Call, given: Tensors, kernel: Kernel, options: Any) -> None:
        """Keep the launch of a call that has just been made, if it is simple enough."""
        if kernel.prepares or kernel.counts:
            return
        if self._simple(call, given) and _plain(given) and call.scale >= 0:
            self._keep(self.forward, (_kind(given), options), partial(Launch, kernel, call))

    def find_backward(
        self, tensors: Tensors, bindings: Mapping[str, Any], options: tuple[Any, ...]
    ) -> BackwardLaunch | None:
        """Likewise; ``tensors`` are query, key, value, out, lse, grad_out, perhaps grad_lse."""
        if not self.backward or not _plain(tensors) or not self._bound(bindings):
            return None
        return _get(self.backward, (_kind(tensors), options))

    def remember_backward(
        self, found: Attention, call: Call, given: Tensors, options: tuple[Any, ...]
    ) -> None:
        """Keep the backward launches of a call that has just been made."""
        from maskwright.runtime.gradient import How
        from maskwright.runtime.gradient import ready

        readable = all(x.stride(-1) == 1 and 0 not in x.stride() for x in given)
        rows = all(x.is_contiguous() and x.dtype == torch.float32 for x in (given[4], *given[6:]))
        rows &= all(torch.empty_like(x, device="meta").stride(-1) == 1 for x in given[:3])
        simple = self._simple(call, given[:3]) and not call.empty
        if not (simple and readable and rows and _plain(given)):
            return
        tensors = (*given[:3], given[5])
        how = How.of(call.inside, interpreted=False, gluon=call.backend == "gluon")
        kernel = ready(found, tensors, call.shapes, (), how)
        if not (kernel.compiled.plan.prepares or kernel.compiled.plan.adds_up):
            make = partial(BackwardLaunch, kernel, call, given[3:])
            self._keep(self.backward, (_kind(given), options), make)

    def _keep(self, launches: dict[Any, Any], kind: Any, make: Callable[[], Any]) -> None:
        """At the second call of a kind: many are made once.

        The hot path rests on what a Triton version does inside; without it, all still works.
        """
        if kind not in self.seen:
            if len(self.seen) >= _MOST:
                self.seen.clear()
            self.seen.add(kind)
            return
        if len(launches) >= _MOST:
            launches.clear()
            self.last = None
        try:
            launches[kind] = make()
        except Exception as error:
            warn_slow(error)
            self.off = True  # not again

    def _simple(self, call: Call, given: Tensors) -> bool:
        alike = all(x is y for x, y in zip(given, (call.query, call.key, call.value), strict=True))
        return alike and not self.off and call.sinks is None and call.backend in ("triton", "gluon")

    def _bound(self, bindings: Mapping[str, Any]) -> bool:
        """Every param has an int in its range, and there is nothing else."""
        if len(bindings) != len(self.ranges):
            return False
        for name, low, high in self.ranges:
            value = bindings.get(name)
            if type(value) is not int or not low <= value <= high:
                return False
        return True


def options_of(scale: Any, q_offset: Any, backend: str) -> tuple[Any, ...]:
    """What makes calls alike besides their tensors and params."""
    chosen = settings.asked_backend() if backend == "auto" else backend
    return scale, q_offset, type(q_offset), chosen


L = TypeVar("L")


def _get(launches: dict[Any, L], kind: Any) -> L | None:
    try:
        return launches.get(kind)
    except TypeError:  # an option that cannot be a key: the checked way says what is wrong
        return None


def _kind(tensors: Tensors) -> tuple[Any, ...]:
    """What makes tensors alike: everything but their data and their address."""
    return tuple([(x.shape, x.stride(), x.dtype, x.get_device()) for x in tensors])


def _plain(tensors: Tensors) -> bool:
    """Aligned tensors of the current GPU, and nobody who must see the call."""
    # These first: wrapped tensors may have no address.
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():  # noqa: SLF001
        return False
    for x in tensors:
        if type(x) is not Tensor or x.data_ptr() & 15:
            return False
    query, key, value = tensors[:3]
    return (
        query.get_device() == torch._C._cuda_getDevice()  # noqa: SLF001
        and not (
            torch.is_grad_enabled()
            and (query.requires_grad or key.requires_grad or value.requires_grad)
        )
        and forward_ad._current_level < 0  # noqa: SLF001
    )


def _range(p: n.Param) -> tuple[int, int]:
    low = -PARAM_LIMIT if p.min is None else max(p.min, -PARAM_LIMIT)
    high = PARAM_LIMIT if p.max is None else min(p.max, PARAM_LIMIT)
    return low, high
