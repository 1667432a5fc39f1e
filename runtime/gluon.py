"""Which calls the Gluon kernels serve: those on sm_90 that their templates can."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from typing import Literal
from typing import TypeAlias

from torch import Tensor

from maskwright.codegen import gluon as config
from maskwright.codegen.gluon_backward import GluonBackwardConfig
from maskwright.codegen.gluon_plan import gluon_backward_request
from maskwright.codegen.gluon_plan import gluon_request
from maskwright.codegen.plan import Request
from maskwright.codegen.plan_backward import BackwardRequest
from maskwright.dsl import nodes as n
from maskwright.dsl.errors import DispatchError
from maskwright.dsl.expr import Expr
from maskwright.runtime import device
from maskwright.runtime import tuned
from maskwright.runtime.bind import DTYPES
from maskwright.runtime.cache import MaskwrightWarning
from maskwright.runtime.call import Call

if TYPE_CHECKING:
    from maskwright.runtime.api import Attention

Op: TypeAlias = Literal["forward", "backward"]

_given_up: set[tuple[Op, n.Node, n.Node | None]] = set()

SMALL = 512  # up to here one tile of 128 queries wastes more than its kernel gains


def settle(found: Attention, call: Call, *, asked: str) -> Call:
    """The call with its backend decided.

    Args:
        asked: ``gluon``; ``auto``, which takes Gluon where it has a configuration, where it was
            measured to be faster, or where it is the default; anything else is left alone.

    Raises:
        DispatchError: Gluon was asked for by name and cannot serve the call.
    """
    if call.empty or asked not in ("gluon", "auto"):
        return call
    if asked == "auto" and not (call.backend == "triton" and _wanted(found, call)):
        return call
    _, reason = request(found, call)
    if not reason:
        return replace(call, backend="gluon", chosen=asked == "auto")
    if asked == "auto":
        return call
    raise DispatchError(
        f"no Gluon kernel: {reason}", expression=Expr(found.mask), fix='use backend="triton"'
    )


def _wanted(found: Attention, call: Call) -> bool:
    """``auto`` prefers Gluon: who gives a configuration knows best, then who measured both."""
    fixed = found.configs
    if fixed.gluon or fixed.gluon_backward:
        return True
    if fixed.forward is not None or device.arch(call.query.device) != "sm_90":
        return False
    if given_up(found, "forward"):
        return False
    tensors = (call.query, call.key, call.value)
    known = tuned.prefers_gluon(found, tensors, call.shapes, inside=call.inside)
    return config.GLUON_BY_DEFAULT and call.shapes.q_len > SMALL if known is None else known


def gives_up(found: Attention, op: Op, error: Exception) -> bool:
    """Whether Triton kernels shall serve from now on, because a Gluon kernel could not be built.

    Gluon is young: a release of Triton may refuse what the one before took. A configuration that
    somebody gave is never dropped, and what a kernel does once it runs is never hidden.
    """
    fixed = found.configs.gluon if op == "forward" else found.configs.gluon_backward
    if fixed is not None or not _could_not_be_built(error):
        return False
    _given_up.add((op, found.mask, found.score))
    text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
    warnings.warn(
        f"the Gluon {op} of {Expr(found.mask)} cannot be built here, so Triton's serves: {text}",
        MaskwrightWarning,
        stacklevel=3,
    )
    return True


def given_up(found: Attention, op: Op) -> bool:
    """A Gluon kernel of this mask could not be built in this process."""
    return (op, found.mask, found.score) in _given_up


def _could_not_be_built(error: Exception) -> bool:
    from triton.errors import TritonError

    if isinstance(error, RuntimeError):  # how a pass of the compiler fails
        return "PassManager" in str(error)
    return isinstance(error, (TritonError, ImportError, AttributeError))


def request(found: Attention, call: Call) -> tuple[Request, str]:
    """(request of the kernel, why it cannot serve this call: empty if it can)."""
    s = call.shapes
    tensors = (call.query, call.key, call.value)
    unfit = _unfit_tensors(*tensors)
    fixed = found.configs.gluon
    best = None if fixed or unfit else tuned.gluon_config(found, tensors, s, inside=call.inside)

    def make(chosen: config.GluonConfig | None) -> tuple[Request, str]:
        return gluon_request(
            found.mask,
            found.score,
            dtype=DTYPES[call.query.dtype],
            head_dim=s.head_dim,
            value_dim=s.value_dim,
            inside=call.inside,
            has_sinks=call.sinks is not None,
            config=chosen,
        )

    made, reason = make(fixed or best)
    if reason and best is not None:  # it was tuned for another mask
        made, reason = make(None)
    return made, unfit or reason


def backward_request(
    request: BackwardRequest,
    config: GluonBackwardConfig | None,
    tensors: Sequence[Tensor],
    best: GluonBackwardConfig | None = None,
) -> BackwardRequest:
    """The request of the Gluon kernel if it can serve, else the one given.

    Args:
        config: if one is fixed.
        tensors: query, key, value and the gradient of the output.
        best: if one was tuned.

    Raises:
        DispatchError: a configuration is fixed, and its kernel cannot serve.
    """
    made, reason = gluon_backward_request(request, config or best)
    if reason and best is not None and config is None:
        made, reason = gluon_backward_request(request, None)
    reason = _unfit_tensors(*tensors) or reason
    if reason and config is not None:
        raise DispatchError(f"no Gluon kernel: {reason}", expression=Expr(request.mask))
    return request if reason else made


def _unfit_tensors(*tensors: Tensor) -> str:
    arch = device.arch(tensors[0].device)
    if arch != "sm_90":
        return f"its kernels are for sm_90, and this GPU is {arch}"
    if not all(device.aligned(x) for x in tensors):
        return "the copy engine needs 16-byte bases and strides, and nothing broadcast"
    return ""
