"""What is tuned, in a form that crosses process borders: text, sizes, and a file of tables."""

from __future__ import annotations

from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any
from typing import Literal
from typing import TypeAlias

import numpy as np

from maskwright.autotune.key import Layout
from maskwright.autotune.key import Op
from maskwright.autotune.key import Template
from maskwright.autotune.pack import Packed
from maskwright.autotune.record import from_plain
from maskwright.codegen.api import call_of
from maskwright.codegen.api import score_node
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon_plan import gluon_request
from maskwright.codegen.plan import Request
from maskwright.codegen.walk import Call
from maskwright.dsl import nodes as n
from maskwright.dsl.evaluate import mask_node
from maskwright.dsl.expr import Expr
from maskwright.dsl.parser import parse
from maskwright.dsl.text import to_text

Backend: TypeAlias = Literal["triton", "gluon", "interpret"]
_LONGEST = 1 << 18  # letters of a packed tensor: a file of times is read whole, and kept in git


@dataclass(frozen=True)
class Job:
    """One kernel of one mask at one size.

    Attributes:
        mask, score: as text; no score is empty.
        params: runtime integers.
        tables: file of runtime tensors (.npz); empty if there are none.
        seed: of random inputs.
        layout: what is next in memory: the rows of a head, or the heads of a token.
        packed: runtime tensors of a job that outlives the file.
    """

    mask: str
    score: str
    op: Op
    backend: Backend
    dtype: str
    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    value_dim: int
    q_offset: int
    params: dict[str, int]
    tables: str = ""
    seed: int = 0
    layout: Layout = "heads"
    packed: dict[str, Packed] = field(default_factory=dict)

    @staticmethod
    def of(
        mask: Any, score: Any, bindings: dict[str, Any], folder: Path | None, **fields: Any
    ) -> Job:
        """Of expressions and runtime values; tables are written into ``folder``."""
        params = {name: x for name, x in bindings.items() if isinstance(x, int)}
        tables = {name: _array(x) for name, x in bindings.items() if name not in params}
        path = ""
        if tables:
            assert folder is not None
            path = str(folder / "tables.npz")
            np.savez(path, **tables)
        found = score_node(score)
        texts = (to_text(mask_node(mask)), "" if found is None else to_text(found))
        return Job(*texts, params=params, tables=path, **fields)

    @property
    def template(self) -> Template:
        """Whose configurations are tried."""
        return "gluon_sm90" if self.backend == "gluon" else "triton"

    @cached_property
    def mask_node(self) -> n.Node:
        """The mask."""
        return parse(self.mask).node

    @cached_property
    def score_node(self) -> n.Node | None:
        """The score, if there is one."""
        return parse(self.score).node if self.score else None

    @property
    def score_expr(self) -> Expr | None:
        """As users write it."""
        return None if self.score_node is None else Expr(self.score_node)

    @property
    def has_tensors(self) -> bool:
        """There are runtime tensors."""
        return bool(self.tables or self.packed)

    def lasting(self) -> Job:
        """The job without its file: tensors are inside, but for those that are too large to keep."""
        found = {name: Packed.of(x) for name, x in self.arrays().items()}
        kept = {name: x for name, x in sorted(found.items()) if len(x.data) <= _LONGEST}
        return replace(self, tables="", packed=kept)

    def arrays(self) -> dict[str, Any]:
        """Runtime tensors as numpy arrays.

        Raises:
            RecordError: a packed one cannot be read.
        """
        if not self.tables:
            return {name: x.array() for name, x in self.packed.items()}
        with np.load(self.tables, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}

    @property
    def complete(self) -> bool:
        """All tensors that the mask reads are at hand: a recorded job may have lost large ones."""
        return bool(self.tables) or all(x.name in self.packed for x in n.tables(self.mask_node))

    def call(self) -> Call:
        """Sizes and runtime values of the mask, for counting tiles."""
        names = {x.name for x in n.params(self.mask_node)}
        names |= {x.name for x in n.tables(self.mask_node)}
        values = {name: x for name, x in (self.params | self.arrays()).items() if name in names}
        sizes = (self.q_len, self.kv_len, self.batch, self.heads, self.kv_heads, self.q_offset)
        return call_of(self.mask_node, *sizes, values)

    def gluon_request(
        self, config: GluonConfig | None = None, *, inside: bool = True
    ) -> tuple[Request, str]:
        """(request of the Gluon forward, why its template cannot serve it: empty if it can)."""
        return gluon_request(
            self.mask_node,
            self.score_node,
            dtype=self.dtype,
            head_dim=self.head_dim,
            value_dim=self.value_dim,
            inside=inside,
            config=config,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Any) -> Job:
        """The inverse.

        Raises:
            RecordError: a field is missing, unknown, or of another type.
        """
        return from_plain(Job, data, "job")


def _array(x: Any) -> Any:
    return x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)
