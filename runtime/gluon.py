"""Which calls the Gluon kernels serve: those on sm_90 that their templates can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from maskwright.codegen import gluon as config
from maskwright.codegen.gluon_backward import GluonBackwardConfig
from maskwright.codegen.gluon_plan import gluon_backward_request
from maskwright.codegen.gluon_plan import gluon_request
from maskwright.codegen.plan import Request
from maskwright.codegen.plan_backward import BackwardRequest
from maskwright.dsl.errors import DispatchError
from maskwright.dsl.expr import Expr
from maskwright.runtime import device
from maskwright.runtime.bind import DTYPES
from maskwright.runtime.call import Call

if TYPE_CHECKING:
    from maskwright.runtime.api import Attention

_SMALL = 512  # up to here one tile of queries wastes more than its kernel gains


def settle(found: Attention, call: Call, *, asked: str) -> Call:
    """The call with its backend decided.

    Args:
        asked: ``gluon``; ``auto``, which takes Gluon where it is the default, or where it has a
            configuration; or anything else, which is left alone.

    Raises:
        DispatchError: Gluon was asked for by name and cannot serve the call.
    """
    fixed = found.configs.gluon or found.configs.gluon_backward
    wanted = config.GLUON_BY_DEFAULT or fixed is not None
    if call.empty or not (asked == "gluon" or (asked == "auto" and wanted)):
        return call
    if asked == "auto" and (call.backend != "triton" or not _worth(found, call)):
        return call
    _, reason = request(found, call)
    if not reason:
        return replace(call, backend="gluon")
    if asked == "auto":
        return call
    raise DispatchError(
        f"no Gluon kernel: {reason}", expression=Expr(found.mask), fix='use backend="triton"'
    )


def _worth(found: Attention, call: Call) -> bool:
    """Long enough for tiles of 128 queries; who gives a configuration knows better."""
    fixed = found.configs.gluon or found.configs.gluon_backward
    return fixed is not None or call.shapes.q_len > _SMALL


def request(found: Attention, call: Call) -> tuple[Request, str]:
    """(request of the kernel, why it cannot serve this call: empty if it can)."""
    s = call.shapes
    made, reason = gluon_request(
        found.mask,
        found.score,
        dtype=DTYPES[call.query.dtype],
        head_dim=s.head_dim,
        value_dim=s.value_dim,
        inside=call.inside,
        has_sinks=call.sinks is not None,
        config=found.configs.gluon,
    )
    return made, _unfit_tensors(call.query, call.key, call.value) or reason


def backward_request(
    request: BackwardRequest, config: GluonBackwardConfig | None, tensors: Sequence[Tensor]
) -> BackwardRequest:
    """The request of the Gluon kernel if it can serve, else the one given.

    Args:
        config: if one is fixed.
        tensors: query, key, value and the gradient of the output.

    Raises:
        DispatchError: a configuration is fixed, and its kernel cannot serve.
    """
    made, reason = gluon_backward_request(request, config)
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
