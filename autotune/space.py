"""The configurations a search may try: typed knobs, named rules, sizes that can be printed.

Knobs are those that the configurations have today. What cannot be constructed, or is refused by a
rule, is no point; how fast a point is, is not asked here.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import replace
from functools import cache
from functools import cached_property
from typing import Any
from typing import TypeAlias

from maskwright.autotune.filter import ANYTHING
from maskwright.autotune.filter import Limits
from maskwright.autotune.filter import unfit
from maskwright.autotune.key import Key
from maskwright.autotune.key import Op
from maskwright.autotune.key import Template
from maskwright.autotune.record import canonical
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.config import padded
from maskwright.codegen.configs import AnyConfig
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon_backward import GluonBackwardConfig
from maskwright.dsl import nodes as n
from maskwright.dsl.errors import LoweringError

_LEAST_PER_WARP = 16 * 16  # elements: about what one matrix instruction computes


@dataclass(frozen=True)
class Knob:
    """One choice.

    Attributes:
        values: in ascending order where they are numbers, so that neighbours are alike.
        why: what it trades.
    """

    name: str
    values: tuple[Any, ...]
    why: str

    def neighbours(self, value: Any) -> tuple[Any, ...]:
        """The values next to one."""
        place = self.values.index(value)
        return tuple(self.values[i] for i in (place - 1, place + 1) if 0 <= i < len(self.values))


@dataclass(frozen=True)
class Target:
    """What a space is searched for.

    Attributes:
        limits: what the mask and the score ask of a configuration.
    """

    key: Key
    limits: Limits = ANYTHING


Kernel: TypeAlias = KernelConfig | GluonConfig | GluonBackwardConfig
Check: TypeAlias = Callable[[Kernel, Target], bool]


@dataclass(frozen=True)
class Rule:
    """A named reason why a kernel's configuration is no point."""

    name: str
    refuses: Check


@dataclass(frozen=True)
class Report:
    """Sizes of a space: all combinations, what each rule removed (the first that did), the rest."""

    raw: int
    removed: dict[str, int]
    left: int

    def __str__(self) -> str:
        rules = "".join(f"\n  - {count:>6,}  {name}" for name, count in self.removed.items())
        return f"{self.raw:,} combinations{rules}\n  = {self.left:>6,}  points"


@dataclass(frozen=True)
class Space:
    """Configurations of one kernel.

    Attributes:
        make: a configuration from the values of the knobs.
    """

    name: str
    knobs: tuple[Knob, ...]
    rules: tuple[Rule, ...]
    make: Callable[..., Kernel]

    @cached_property
    def digest(self) -> str:
        """Hash of the knobs and the names of the rules: provenance of what was found in it."""
        knobs = [asdict(knob) for knob in self.knobs]
        return n.digest(canonical([self.name, knobs, [rule.name for rule in self.rules]]))

    def values(self, config: Kernel) -> dict[str, Any] | None:
        """The knobs that make a configuration; None if none do."""
        found = {knob.name: getattr(config, knob.name) for knob in self.knobs}
        if not all(found[knob.name] in knob.values for knob in self.knobs):
            return None
        return found if self.make(**found) == config else None  # it may differ in what is no knob

    def refusal(self, values: dict[str, Any], target: Target) -> tuple[Kernel | None, str]:
        """(configuration, name of the rule that refuses it: empty if it is a point)."""
        try:
            config = self.make(**values)
        except LoweringError as error:
            return None, f"cannot be constructed: {error.what}"
        for rule in self.rules:
            if rule.refuses(config, target):
                return config, rule.name
        return config, ""

    def points(self, target: Target) -> Iterator[Kernel]:
        """All configurations that no rule refuses, in a fixed order."""
        for values in self._combinations():
            config, refused_by = self.refusal(values, target)
            if config is not None and not refused_by:
                yield config

    def report(self, target: Target) -> Report:
        """How many there are, and why not more."""
        found = Counter(self.refusal(values, target)[1] for values in self._combinations())
        left = found.pop("", 0)
        return Report(left + found.total(), dict(sorted(found.items())), left)

    def _combinations(self) -> Iterator[dict[str, Any]]:
        names = [knob.name for knob in self.knobs]
        for values in itertools.product(*(knob.values for knob in self.knobs)):
            yield dict(zip(names, values, strict=True))


# -- rules --------------------------------------------------------------------------------------
def _too_small_for_its_warps(config: Kernel, target: Target) -> bool:
    # Of the largest product: weights, or what they are multiplied with.
    assert isinstance(config, KernelConfig)
    p = target.key.problem
    least, most = sorted((config.rows, config.block_n))
    width = max(most, padded(min(p.head_dim, p.value_dim)))
    return least * width < _LEAST_PER_WARP * config.num_warps


def _longer_than_the_call(config: Kernel, target: Target) -> bool:
    # A bucket's own upper end: no call of it fills a longer tile.
    return config.block_m > padded(1 << target.key.bucket.q_len)


def _float32_in_bulk(config: Kernel, target: Target) -> bool:
    # IEEE products read their operands through registers: the copy engine has nothing to feed.
    return target.key.problem.dtype == "float32" and config.loads == "descriptor"


def _stores_another_width(config: Kernel, target: Target) -> bool:
    if not isinstance(config, GluonConfig) or not config.bulk_store:
        return False
    head, value = config.pads(target.key.problem.head_dim, target.key.problem.value_dim)
    return head != value


def _more_programs_than_processors(config: Kernel, target: Target) -> bool:
    # A Gluon program takes all registers of a multiprocessor: a further one would wait for its end.
    return isinstance(config, GluonConfig) and config.programs > target.key.hardware.processors


def _unfit(config: Kernel, target: Target) -> bool:
    return bool(unfit(config, target.key, target.limits))


def _unfit_queries(config: Kernel, target: Target) -> bool:
    return _unfit_beside(config, target, keys=False)


def _unfit_keys(config: Kernel, target: Target) -> bool:
    return _unfit_beside(config, target, keys=True)


def _unfit_beside(config: Kernel, target: Target, *, keys: bool) -> bool:
    """One kernel of a backward does not fit, whatever the other is; pairs are checked again."""
    assert isinstance(config, KernelConfig)
    smallest = KernelConfig(16, 16, 4, 1, config.loads)
    pair = (smallest, config) if keys else (config, smallest)
    return bool(unfit(BackwardConfig(*pair), target.key, target.limits))


_MISFIT = "does not fit the GPU, the tensors or the mask's blocks"
_UNFIT = Rule(_MISFIT, _unfit)
_TRITON_RULES = (
    Rule("fewer elements a warp than one matrix instruction", _too_small_for_its_warps),
    Rule("more queries a tile than the calls have", _longer_than_the_call),
    Rule("bulk copies of float32", _float32_in_bulk),
)

# -- spaces ---------------------------------------------------------------------------------------
_LOADS = Knob("loads", ("pointer", "descriptor"), "addresses of each thread, or the copy engine")
_WARPS = Knob("num_warps", (4, 8, 16), "registers a warp against programs a multiprocessor")

FORWARD = Space(
    "forward triton",
    (
        Knob("block_m", (16, 32, 64, 128, 256), "keys read once for more queries; registers"),
        Knob("block_n", (16, 32, 64, 128, 256), "fewer steps; more partial work at a mask's edges"),
        _WARPS,
        Knob("num_stages", (1, 2, 3, 4, 5), "loads in flight against programs a multiprocessor"),
        _LOADS,
    ),
    (*_TRITON_RULES, _UNFIT),
    KernelConfig,
)

_BACKWARD_KNOBS = (
    Knob("block_m", (16, 32, 64, 128), "queries of a tile"),
    Knob("block_n", (16, 32, 64, 128), "keys of a tile"),
    Knob("num_warps", (4, 8), "16 warps leave too few registers for two accumulators"),
    Knob("num_stages", (1, 2, 3, 4), "loads in flight against programs a multiprocessor"),
    _LOADS,
)

# The two kernels are timed apart, so their spaces add up instead of multiplying.
BACKWARD = {
    name: Space(
        f"backward triton, {name}",
        _BACKWARD_KNOBS,
        (*_TRITON_RULES, Rule(_MISFIT, refuses)),
        KernelConfig,
    )
    for name, refuses in (("queries", _unfit_queries), ("keys", _unfit_keys))
}

_HEADS = Knob("heads", (1, 2, 4, 8, 16), "lists read once for more heads; fewer queries")

# Of a whole backward, for masks with lists of few queries.
PARTS = Knob("parts", (1, 2, 4, 8, 16), "keys of many queries are done sooner; sums in float32")


@cache
def with_heads(space: Space, most: int) -> Space:
    """A space of Triton kernels whose tiles several heads share, up to ``most``.

    Its tiles have rows instead of queries (a row is a query of a head), so that another number of
    heads is a tile of the same size.
    """
    rows, *others = space.knobs
    heads = replace(_HEADS, values=tuple(x for x in _HEADS.values if x <= most))
    return replace(space, knobs=(replace(rows, name="rows"), *others, heads), make=_of_rows)


def _of_rows(rows: int, heads: int, **others: Any) -> KernelConfig:
    return KernelConfig(rows // heads, heads=heads, **others)


GLUON = Space(
    "forward gluon_sm90",
    (
        Knob("block_n", (16, 32, 64, 128, 256), "fewer steps; more partial work at a mask's edges"),
        Knob("consumers", (2, 3), "warp-groups; three leave 160 registers each"),
        Knob("stages", (1, 2, 3, 4, 5), "tiles in flight"),
        Knob("registers", (0, 152, 208, 216, 224, 232), "of a consumer; 0 is the most there are"),
        Knob("first", ("producer", "consumer"), "who runs in the warps a program starts with"),
        Knob("bulk_store", (False, True), "results through shared memory and the copy engine"),
        Knob("persistent", (False, True), "ends of programs overlap; a second tile of queries"),
        Knob("programs", (0, 64, 128), "of a persistent grid; 0 is one a multiprocessor"),
        Knob("counter", (False, True), "even shares where lengths differ; one number to clear"),
        Knob("pingpong", (False, True), "consumers take turns at the matrix units"),
        Knob("query_registers", (False, True), "less is read from shared memory; registers"),
    ),
    (
        Rule("results are wider or narrower than queries", _stores_another_width),
        Rule("more programs than multiprocessors", _more_programs_than_processors),
        _UNFIT,
    ),
    GluonConfig,
)

GLUON_BACKWARD = Space(
    "backward gluon_sm90",
    (
        Knob("block_m", (64, 128), "queries of a tile"),
        Knob("stages", (1, 2, 3, 4), "tiles in flight"),
        Knob("links", (1, 2, 3, 4), "how far consumers may run apart"),
        Knob(
            "registers", (160, 184, 208, 224, 232, 240), "of a consumer; the producer has the rest"
        ),
        Knob("release", ("barrier", "named"), "slots handed back in one instruction; registers"),
    ),
    (_UNFIT,),
    GluonBackwardConfig,
)


def backward_points(target: Target, together: int = 0) -> Iterator[BackwardConfig]:
    """Those of the Triton backward: both kernels load alike, share heads alike, and fit.

    Args:
        together: as in ``space_of``.
    """
    queries, keys = (
        [x for x in space.points(target) if isinstance(x, KernelConfig)]
        for space in space_of("backward", "triton", together)
    )
    parts = PARTS.values if together else (1,)
    for first, second in itertools.product(queries, keys):
        alike = (first.loads, first.heads) == (second.loads, second.heads)
        if alike and not unfit(BackwardConfig(first, second), target.key, target.limits):
            yield from (BackwardConfig(first, second, x) for x in parts)


def contains(config: AnyConfig, target: Target) -> bool:
    """A configuration is a point of the space of its kernel, for these calls.

    One with several heads in a tile, or several parts, is asked as of a mask that takes them.
    """
    match config:
        case BackwardConfig(queries, keys):
            both = zip(space_of("backward", "triton", queries.heads), (queries, keys), strict=True)
            alike = queries.heads == keys.heads and config.parts in PARTS.values
            fits = not unfit(config, target.key, target.limits)
            return alike and fits and all(_holds(space, x, target) for space, x in both)
        case KernelConfig():
            return _holds(space_of("forward", "triton", config.heads)[0], config, target)
        case GluonConfig():
            return _holds(GLUON, config, target)
    return _holds(GLUON_BACKWARD, config, target)


def space_of(op: Op, template: Template, together: int = 0) -> tuple[Space, ...]:
    """The spaces of a problem: one a kernel.

    Args:
        together: most heads in a tile, see ``codegen.pipeline.heads_together``.
    """
    if template == "gluon_sm90":
        return (GLUON if op == "forward" else GLUON_BACKWARD,)
    found = (FORWARD,) if op == "forward" else tuple(BACKWARD.values())
    return tuple(with_heads(x, together) for x in found) if together > 1 else found


def _holds(space: Space, config: Kernel, target: Target) -> bool:
    values = space.values(config)
    return values is not None and not space.refusal(values, target)[1]
