"""The plan of the backward: two walks, one that keeps queries and one that keeps keys."""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace

from maskwright.codegen.config import WGMMA_ROWS
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.config import padded_heads
from maskwright.codegen.emit import safe_name
from maskwright.codegen.gluon_backward import GluonBackwardConfig
from maskwright.codegen.plan import Binding
from maskwright.codegen.plan import Request
from maskwright.codegen.plan import WalkPlan
from maskwright.codegen.plan import check_heads
from maskwright.codegen.plan import plan_walk
from maskwright.codegen.sources import derive_sources
from maskwright.dsl import nodes as n


@dataclass(frozen=True)
class BackwardRequest:
    """What backward kernels are generated for; see ``Request``.

    Attributes:
        tables: float tables of the score that get a gradient; None for all.
    """

    mask: n.Node
    score: n.Node | None
    dtype: str
    head_dim: int
    value_dim: int
    inside: bool
    config: BackwardConfig | GluonBackwardConfig
    tables: tuple[str, ...] | None = None

    def of(self, config: KernelConfig | GluonBackwardConfig) -> Request:
        """The request of one kernel. Sinks are in the LSE already."""
        return Request(
            self.mask,
            self.score,
            self.dtype,
            self.head_dim,
            self.value_dim,
            self.inside,
            False,
            config,
        )


@dataclass(frozen=True)
class BackwardPlan:
    """The backward kernels.

    Attributes:
        queries: keeps queries, walks over keys: gradient of queries and of float tables. None if
            the other kernel computes those of queries, too.
        keys: keeps keys, walks over queries: gradients of keys and values.
        pads: columns of key tiles and of value tiles.
    """

    request: BackwardRequest
    queries: WalkPlan | None
    keys: WalkPlan
    pads: tuple[int, int]

    @property
    def bindings(self) -> tuple[Binding, ...]:
        """Runtime values, the same for all kernels."""
        return self.keys.bindings

    @property
    def walks(self) -> tuple[WalkPlan, ...]:
        """Those of all kernels."""
        return (self.keys,) if self.queries is None else (self.queries, self.keys)

    @property
    def tables(self) -> tuple[str, ...]:
        """Kernel names of the float tables that get a gradient."""
        found = () if self.queries is None else self.queries.table_gradients
        return tuple(dict.fromkeys(x.table for x in found))

    @property
    def adds_up(self) -> bool:
        """Several programs add to zeros that every call makes."""
        return isinstance(self.request.config, BackwardConfig) and self.request.config.parts > 1

    @property
    def prepares(self) -> bool:
        """Work on the device precedes the kernels."""
        lists = any(x.sorted_list for x in self.bindings)
        return lists or any(x.prepares for x in self.walks)


def plan_backward(request: BackwardRequest) -> BackwardPlan:
    """Decide the backward kernels for a request.

    Raises:
        LoweringError: several heads in a tile, and the mask or the score differs between them.
    """
    if isinstance(request.config, GluonBackwardConfig):
        return _one_kernel(request, request.config)
    queries, keys = request.of(request.config.queries), request.of(request.config.keys)
    shapes = (keys.transposed_tile, queries.tile)
    # Both follow the lists or neither: they read the same bits.
    lists = all(derive_sources(request.mask, x) is not None for x in shapes)
    walk = plan_walk(keys, keys.transposed_tile, gradients=True, lists=lists)
    first = plan_walk(queries, queries.tile, gradients=True, lists=lists)
    for each in (first, walk):
        check_heads(each)
    names = None if request.tables is None else set(map(safe_name, request.tables))
    wanted = (x for x in first.table_gradients if names is None or x.table in names)
    return BackwardPlan(
        request,
        replace(first, table_gradients=tuple(wanted)),
        replace(walk, table_gradients=()),  # one of the two kernels adds them
        padded_heads(request.head_dim, request.value_dim, request.dtype, WGMMA_ROWS),
    )


def _one_kernel(request: BackwardRequest, config: GluonBackwardConfig) -> BackwardPlan:
    keys = request.of(config)
    walk = plan_walk(keys, keys.transposed_tile, gradients=True)
    return BackwardPlan(request, None, replace(walk, table_gradients=()), keys.pads)
