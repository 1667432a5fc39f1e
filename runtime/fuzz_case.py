"""One random case: a mask as text, the sizes of a call, its runtime values; and how to repeat it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from dataclasses import field
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from maskwright.codegen.api import call_of
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.walk import Call
from maskwright.dsl import nodes as n
from maskwright.dsl.errors import MaskwrightError
from maskwright.dsl.parser import parse
from maskwright.runtime.fuzz_masks import draw_mask
from maskwright.runtime.fuzz_values import Shape

SCORES = (
    "s + (k - q) * 0.05",
    "softcap(s, 4.0)",
    "where(k < 8, s * 2.0, s) - h * 0.25",
    "s - absolute(q - k) * (0.01 + 0.02 * h)",
    "where((q - k) % 3 == 0, s, s - 1.5)",
    "softcap(s - (q - k) * 0.05, 4.0)",
)


@dataclass(frozen=True, eq=False)
class Case:
    """A mask and a call. ``mask`` and ``score`` are text; tables are numpy arrays.

    Attributes:
        tile: (queries, keys) of a tile, for the schedule and the kernel; None: the heuristic's.
        loads: how the kernel reads keys; only with a ``tile``.
        gradients: check the backward, too.
        data_seed: seed of query, key and value.
    """

    mask: str
    q_len: int
    kv_len: int
    q_offset: int | None = None
    batch: int = 1
    heads: int = 1
    kv_heads: int = 1
    tile: tuple[int, int] | None = None
    head_dim: int = 16
    value_dim: int | None = None
    dtype: str = "float32"
    score: str | None = None
    sinks: bool = False
    loads: str = "pointer"
    gradients: bool = True
    data_seed: int = 0
    bindings: dict[str, Any] = field(default_factory=dict)

    @property
    def node(self) -> n.Node:
        """The mask's node."""
        return parse(self.mask).node

    def call(self) -> Call:
        """Checked sizes and runtime values.

        Raises:
            MaskwrightError: if they do not fit the mask.
        """
        sizes = (self.q_len, self.kv_len, self.batch, self.heads, self.kv_heads, self.q_offset)
        return call_of(self.node, *sizes, self.bindings)

    def valid(self) -> bool:
        """The language accepts the mask, and the mask these values."""
        try:
            self.call()
        except MaskwrightError:
            return False
        return True

    def shapes(self) -> dict[str, Any]:
        """Sizes as keyword arguments of ``to_dense`` and ``explain``."""
        names = ("q_len", "kv_len", "batch", "heads", "kv_heads", "q_offset")
        return {name: getattr(self, name) for name in names}

    def options(self) -> dict[str, Any]:
        """Keyword arguments of ``maskwright.check`` besides backend and runtime values."""
        config = backward = None
        if self.tile is not None:
            stages = 2 if self.loads == "descriptor" else 1
            config = KernelConfig(*self.tile, 4, stages, self.loads)  # type: ignore[arg-type]
            backward = BackwardConfig(config, config)
        generator = torch.Generator().manual_seed(self.data_seed)
        sinks = torch.randn(self.heads, generator=generator) if self.sinks else None
        return self.shapes() | {
            "head_dim": self.head_dim,
            "value_dim": self.value_dim,
            "dtype": self.dtype,
            "score": None if self.score is None else parse(self.score),
            "sinks": sinks,
            "config": config,
            "backward": backward,
            "gradients": self.gradients,
            "seed": self.data_seed,
        }

    # -- how to repeat it -----------------------------------------------------------------------
    def snippet(self, backend: str = "auto") -> str:
        """Python that repeats the case."""
        parts = [
            f"{f.name}={_literal(getattr(self, f.name))}"
            for f in fields(self)
            if f.name in ("mask", "q_len", "kv_len") or not _is_default(self, f.name)
        ]
        arguments = ",\n    ".join(parts)
        return (
            "import numpy as np\n"
            "from maskwright.runtime.fuzz import Case, examine\n"
            f"case = Case(\n    {arguments},\n)\n"
            f'print(examine(case, "{backend}"))'
        )

    def command(self, backend: str = "auto") -> str | None:
        """The kernel's part on the command line; None if options cannot say it."""
        odd = (self.tile, self.value_dim, self.score, self.sinks or None)
        if any(x is not None for x in odd) or any(np.size(v) == 0 for v in self.bindings.values()):
            return None
        words = ["maskwright", "check", self.mask, "--q-len", self.q_len, "--kv-len", self.kv_len]
        words += ["--batch", self.batch, "--heads", self.heads, "--kv-heads", self.kv_heads]
        words += ["--head-dim", self.head_dim, "--dtype", self.dtype, "--backend", backend]
        words += ["--seed", self.data_seed]
        words += [] if self.q_offset is None else [f"--q-offset={self.q_offset}"]
        for name, value in self.bindings.items():
            words += ["--bind", f"{name}={np.asarray(value).tolist()}"]
        return shlex.join(map(str, words))


def _is_default(case: Case, name: str) -> bool:
    value = getattr(case, name)
    return value == {} if name == "bindings" else bool(value == getattr(Case, name, None))


def _literal(value: Any) -> str:
    match value:
        case dict():
            return "{" + ", ".join(f"{k!r}: {_literal(v)}" for k, v in value.items()) + "}"
        case np.ndarray():
            kind = "bool" if value.dtype == bool else "np.int32"
            flat = f"np.array({value.tolist()}, {kind})"
            return flat if value.size else f"np.zeros({value.shape}, {kind})"
    return repr(value)


def draw_case(seed: int, number: int, *, gpu: bool = False) -> Case:
    """Case ``number`` of a sequence; the same for the same numbers, everywhere.

    Args:
        gpu: larger sizes, and bfloat16 too (which Triton's interpreter computes wrongly).
    """
    rng = np.random.default_rng([seed, number])
    heads, kv_heads = _pick(rng, ((1, 1), (1, 1), (2, 2), (2, 1), (4, 2), (6, 2), (3, 1), (3, 3)))
    q_len, kv_len, q_offset = _lengths(rng, 4 if gpu else 1)
    shape = Shape(int(_pick(rng, (1, 1, 1, 2, 3))), heads, q_len, kv_len)
    mask, values = draw_mask(rng, shape)
    tile = _pick(rng, ((16, 16), (16, 32), (32, 16), (32, 32), (64, 32), (32, 64), (64, 64), None))
    descriptor = tile is not None and rng.random() < 0.1
    dims = ((64, None), (128, None), (40, 24), (16, 48)) if gpu else ((16, None), (16, 24), (40, 8))
    head_dim, value_dim = (64, None) if descriptor else _pick(rng, dims)
    dtypes = ("bfloat16", "float16", "float32") if gpu else ("float32", "float32", "float16")
    return Case(
        str(mask),
        q_len,
        kv_len,
        q_offset,
        shape.batch,
        heads,
        kv_heads,
        tile,
        head_dim,
        value_dim,
        str(_pick(rng, dtypes)),
        str(_pick(rng, SCORES)) if rng.random() < 0.12 else None,
        bool(rng.random() < 0.1),
        "descriptor" if descriptor else "pointer",
        number % 2 == 0,
        number,
        values,
    )


def _pick(rng: np.random.Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def _length(rng: np.random.Generator, scale: int) -> int:
    """From 1 on; around multiples of the tile rather often."""
    roll = rng.random()
    if roll < 0.1:
        return int(rng.integers(1, 4))
    if roll < 0.45:
        return int(16 * rng.integers(1, 9) * scale + rng.integers(-1, 2))
    return int(rng.integers(1, 140 * scale))


def _lengths(rng: np.random.Generator, scale: int) -> tuple[int, int, int | None]:
    """(q_len, kv_len, q_offset): square, a chunk of a prefill, or anything."""
    kv_len = _length(rng, scale)
    roll = rng.random()
    q_len = kv_len if roll < 0.4 else _length(rng, scale)
    if 0.4 <= roll < 0.7:
        q_len, kv_len = sorted((q_len, kv_len))
    if rng.random() < 0.75:
        return q_len, kv_len, None
    return q_len, kv_len, int(rng.integers(-20, kv_len + 20))
