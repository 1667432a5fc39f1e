"""Where a search begins: what is known of similar calls, what the cost model says, small and safe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import TypeAlias

from maskwright.autotune import cost
from maskwright.autotune import cost_gluon
from maskwright.autotune.cost import Work
from maskwright.autotune.entry import Entry
from maskwright.autotune.filter import Heads
from maskwright.autotune.flat import Flat
from maskwright.autotune.job import Job
from maskwright.autotune.key import Key
from maskwright.autotune.lookup import distance
from maskwright.autotune.rates import gpu_of
from maskwright.autotune.space import Target
from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.configs import AnyConfig

_NEIGHBOURS, _BY_COST, _STEPS = 4, 4, 4
_TRIES = 4  # of a tile shape, until one is accepted: asking a mask takes milliseconds
Accept: TypeAlias = Callable[[AnyConfig], bool]


def _anything(config: AnyConfig) -> bool:
    return True


def seeds(
    job: Job,
    space: Flat,
    target: Target,
    default: AnyConfig,
    entries: Iterable[Entry],
    accept: Accept = _anything,
    liked: Sequence[AnyConfig] | None = None,
) -> tuple[AnyConfig, ...]:
    """First candidates, the most promising first; only points of the space that are accepted.

    Args:
        liked: what ``by_cost`` says, if that is known.
    """
    found = [default, *_known(target.key, entries)]
    if liked is None:
        liked = by_cost(job, space, target, default, accept)
    found += [x for x in liked if accept(x)][:_BY_COST]
    found += _spread([x for x in space.neighbours(default, target) if accept(x)], _STEPS)
    found += _safe(job)
    points = dict.fromkeys(x for x in found if _is_point(x, space, target) and accept(x))
    return tuple(points)


def by_cost(
    job: Job, space: Flat, target: Target, default: AnyConfig, accept: Accept = _anything
) -> list[AnyConfig]:
    """Points by the cost model, one a tile shape; none where nothing can be counted.

    What the model cannot tell apart is tried as the default has it.
    """
    if space.together:  # nobody counts what lists hold
        return []
    tiles: dict[tuple[int, ...], AnyConfig] = {}
    tries: Counter[tuple[int, ...]] = Counter()
    usual = space.values(default) or {}

    def unusual(config: AnyConfig) -> int:
        return sum(usual.get(name) != x for name, x in (space.values(config) or {}).items())

    for config in ordered(job, sorted(space.points(target), key=unusual), target):
        tile = _tiles(config)
        tries[tile] += 1
        if tile not in tiles and tries[tile] <= _TRIES and accept(config):
            tiles[tile] = config
    return list(tiles.values())


def ordered(job: Job, points: Iterable[AnyConfig], target: Target) -> list[AnyConfig]:
    """Points by the cost model, the cheapest first; none where nothing can be counted."""
    if not job.complete:
        return []
    found = list(points)
    heads = Heads(job.head_dim, job.value_dim, job.dtype)
    work, gpu = Work(job.mask_node, job.call(), heads), gpu_of(target.key.hardware)
    model: Any = cost if job.template == "triton" else cost_gluon
    order = sorted(found, key=model.seconds(work, gpu))
    return [] if order == found else order  # nothing could be counted


def _tiles(config: AnyConfig) -> tuple[int, ...]:
    parts = (config.queries, config.keys) if isinstance(config, BackwardConfig) else (config,)
    return tuple(size for part in parts for size in (part.block_m, part.block_n))


def _known(key: Key, entries: Iterable[Entry]) -> list[AnyConfig]:
    """Configurations of the nearest entries, for other sizes or masks as dense."""
    near = []
    for entry in entries:
        steps = distance(key, entry.key)
        if steps is not None:
            near.append((steps, entry.key.canonical, entry))
    return [entry.config for *_, entry in sorted(near, key=lambda x: x[:2])[:_NEIGHBOURS]]


def _spread(configs: list[AnyConfig], most: int) -> list[AnyConfig]:
    """Some of them, from all along the list."""
    return configs[:: max(1, -(-len(configs) // most))]


def _safe(job: Job) -> list[AnyConfig]:
    if job.template != "triton":
        return []
    small = KernelConfig(64, 32, 4, 1)
    return [BackwardConfig(small, small) if job.op == "backward" else small]


def _is_point(config: AnyConfig, space: Flat, target: Target) -> bool:
    values = space.values(config)
    return values is not None and space.config(values, target)[0] is not None
