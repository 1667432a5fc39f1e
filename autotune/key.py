"""What a tuned configuration is for: problem, bucket of sizes, GPU, compiler, way of measuring.

Every field matters: two calls share a configuration exactly if their keys are equal. What a field
leaves out on purpose is said at the field.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import fields
from functools import cached_property
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any
from typing import Literal
from typing import TypeAlias
from typing import get_args

import maskwright.codegen.render
from maskwright.autotune.record import canonical
from maskwright.autotune.record import from_plain
from maskwright.codegen.describe import SOURCE_FORMAT
from maskwright.codegen.pipeline import slug
from maskwright.dsl import nodes as n

Op: TypeAlias = Literal["forward", "backward"]
Template: TypeAlias = Literal["triton", "gluon_sm90"]
Layout: TypeAlias = Literal["heads", "tokens"]
Density: TypeAlias = Literal["dense", "half", "sparse", "thin", "ragged", "runtime"]
DENSITIES: tuple[Density, ...] = get_args(Density)

_SHORT = {"bfloat16": "bf16", "float16": "f16", "float32": "f32", "forward": "fwd"}
_SHORT["backward"] = "bwd"
_LEAST_LENGTH = 4  # log2 of the smallest tile
_MOST_PROGRAMS = 8  # log2: beyond, every GPU is full many times over


@dataclass(frozen=True)
class Problem:
    """What is computed, but for its sizes.

    Attributes:
        mask: structural hash; runtime values are no part of it, since they must not change kernels.
        slug: a few letters of the mask, for people.
        score: structural hash of the score expression; empty without one.
        template: whose configuration it is.
        group: query heads of a KV head.
        layout: what is next in memory: the rows of a head, or the heads of a token.
        aligned: the bulk copy engine can describe the tensors.
        inside: positions lie in [0, kv_len); else a kernel has more comparisons.

    Sinks are left out: one number a program, and ``prepare`` must choose the same tiles without it.
    """

    mask: str
    slug: str
    score: str
    op: Op
    template: Template
    dtype: str
    head_dim: int
    value_dim: int
    group: int
    layout: Layout
    aligned: bool
    inside: bool

    @staticmethod
    def of(mask: n.Node, score: n.Node | None, **fields: Any) -> Problem:
        """With the hashes of a mask and a score."""
        hashed = "" if score is None else n.structure(score)
        return Problem(n.structure(mask), slug(mask), hashed, **fields)


@dataclass(frozen=True)
class Bucket:
    """Sizes that share a configuration: logarithms to base 2, rounded up.

    Attributes:
        q_len, kv_len: of the lengths, at least 16.
        programs: of batch x query heads, in steps of 4x, at most 256: it only decides how the last
            programs fill the GPU.
        density: what share of tiles is visited; ``runtime`` if runtime values decide.
    """

    q_len: int
    kv_len: int
    programs: int
    density: Density

    @staticmethod
    def of(q_len: int, kv_len: int, programs: int, density: Density) -> Bucket:
        """The bucket of some sizes."""
        return Bucket(
            max(_LEAST_LENGTH, ceil_log2(q_len)),
            max(_LEAST_LENGTH, ceil_log2(kv_len)),
            min(_MOST_PROGRAMS, ceil_log2(programs) + ceil_log2(programs) % 2),
            density,
        )


@dataclass(frozen=True)
class Hardware:
    """The GPU. Its power limit is provenance: it changes times, hardly the order of configurations."""

    name: str
    arch: str
    processors: int
    shared_bytes: int
    l2_bytes: int

    @property
    def folder(self) -> str:
        """The name as part of a path: ``nvidia_h100_80gb_hbm3``."""
        words = "".join(c if c.isalnum() else " " for c in self.name.lower()).split()
        return "_".join(words) or "unknown"


@dataclass(frozen=True)
class Software:
    """What turns a configuration into machine code; names the directory of user entries.

    Attributes:
        triton: version; ptxas comes with it.
        cuda: major.minor of torch's CUDA; empty for a CPU build.
        templates: hash of the templates of one target.
    """

    triton: str
    cuda: str
    templates: str

    @staticmethod
    def of(template: Template, cuda: str | None) -> Software:
        """Of this process."""
        return Software(_triton(), cuda or "", templates_hash(template))

    @cached_property
    def digest(self) -> str:
        """A directory name."""
        return n.digest(canonical(asdict(self)))


@dataclass(frozen=True)
class Policy:
    """How times were taken: a winner in a graph need not win when launched one by one."""

    timing: Literal["graph", "eager"] = "graph"
    cold_l2: bool = True
    tolerance: str = "default"
    float_flags: str = ""


@dataclass(frozen=True)
class Key:
    """Everything that a configuration depends on.

    The hash of the search space is not part of it but of an entry's provenance: a new knob must
    not make every entry a miss (they stay valid points).
    """

    problem: Problem
    bucket: Bucket
    hardware: Hardware
    software: Software
    policy: Policy = Policy()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Any) -> Key:
        """The inverse.

        Raises:
            RecordError: a field is missing, unknown, or of another type.
        """
        return from_plain(Key, data, "key")

    @cached_property
    def canonical(self) -> str:
        """Equal keys, equal text; in any process."""
        return canonical(self.to_dict())

    @cached_property
    def digest(self) -> str:
        """16 digits of it."""
        return n.digest(self.canonical)

    @cached_property
    def _hash(self) -> int:
        parts = (self.problem, self.bucket, self.hardware, self.software, self.policy)
        return hash(parts)

    def __hash__(self) -> int:
        # Computed once: a key is looked up more often than it is made.
        return self._hash

    @property
    def name(self) -> str:
        """Readable and unique: a file name without its ending."""
        p = self.problem
        words = (p.slug, _SHORT.get(p.dtype, p.dtype), f"d{p.head_dim}", _SHORT[p.op])
        return "_".join((*words, self.digest[:8]))

    def difference(self, other: Key) -> list[str]:
        """Fields that differ, one a line: ``bucket.q_len: 13 != 14``."""
        lines = []
        for part in fields(self):
            mine, theirs = getattr(self, part.name), getattr(other, part.name)
            lines += [
                f"{part.name}.{f.name}: {getattr(mine, f.name)!r} != {getattr(theirs, f.name)!r}"
                for f in fields(mine)
                if getattr(mine, f.name) != getattr(theirs, f.name)
            ]
        return lines


def ceil_log2(size: int) -> int:
    """The smallest power of two that holds ``size``, as its logarithm."""
    return max(0, math.ceil(size) - 1).bit_length()


@lru_cache(maxsize=1)
def _triton() -> str:
    """Version of the installed Triton, without loading it."""
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return ""


@lru_cache(maxsize=2)
def templates_hash(template: Template) -> str:
    """Of the templates of a target; what it does not have comes from those of Triton."""
    root = Path(maskwright.codegen.render.__file__).parent / "templates"
    folders = ("triton",) if template == "triton" else ("triton", template)
    files = [path for folder in folders for path in sorted((root / folder).glob("*.jinja"))]
    texts = [f"{path.parent.name}/{path.name}\n{path.read_text()}" for path in files]
    return n.digest("\n".join([str(SOURCE_FORMAT), *texts]))
