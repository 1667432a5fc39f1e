"""Which configuration serves a call: user's cache, shipped, nearest bucket, untuned, or none.

Files are read once into an ``Index``; a query that was asked before is one look-up in a dictionary.
Optuna and the search are not loaded here.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from collections.abc import Iterable
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import replace
from pathlib import Path
from typing import Literal
from typing import TypeAlias

from maskwright.autotune import store
from maskwright.autotune.entry import KINDS
from maskwright.autotune.entry import Entry
from maskwright.autotune.key import Key
from maskwright.autotune.key import Problem
from maskwright.autotune.key import Software
from maskwright.codegen.configs import AnyConfig
from maskwright.runtime.cache import MaskwrightWarning

Origin: TypeAlias = Literal["user", "shipped", "nearest", "model"]
EXACT = ("user", "shipped")  # measured for exactly this key
Unfit: TypeAlias = Callable[[AnyConfig], str]  # why a configuration cannot serve; empty if it can
_MOST = 4096  # answers remembered
_ANY = Software("", "", "")
ANY_MASK = "any"  # in the key of a choice that was made for no mask in particular

# How far the nearest bucket may be, in steps of a factor of 2. Beyond, the heuristic knows better.
FARTHEST_LENGTH = 2
FARTHEST_PROGRAMS = 4
_SHORT = 7  # log2: up to 64 rows the tile of queries follows their number


@dataclass(frozen=True)
class Choice:
    """A configuration and where it comes from."""

    config: AnyConfig
    origin: Origin
    entry: Entry

    def told(self, key: Key) -> str:
        """For people: where it comes from, how sure that is, what has changed since."""
        mine, theirs = asdict(key.software), asdict(self.entry.key.software)
        flags = [f"other {name}" for name in mine if mine[name] != theirs[name]]
        if self.entry.provenance.kind != "measured":
            flags.insert(0, self.entry.provenance.kind)
        sure = f" ({', '.join(flags)})" if flags else ""
        return f"{self.origin}{sure}: {self.config}"


class Index:
    """Entries in memory. Safe to share between threads: answers are only ever added.

    Args:
        user: entries of the user's cache for this software: they answer for exactly their key.
        shipped: entries of the package. They answer whatever the versions of the software: a
            configuration tuned with another Triton is still a better guess than none.
        untuned: choices of the package for an architecture that nobody measured on. They answer
            last, for any length and GPU of it.
    """

    def __init__(
        self,
        user: Iterable[Entry],
        shipped: Iterable[Entry] = (),
        untuned: Iterable[Entry] = (),
    ) -> None:
        self.user = {entry.key: entry for entry in user}
        self.shipped = whatever_software(shipped)
        self.untuned = {_untuned(entry.key, entry.key.problem.mask): entry for entry in untuned}
        self.answers: dict[Key, Choice | None] = {}

    def __bool__(self) -> bool:
        """Whether there is anything to find."""
        return bool(self.user or self.shipped or self.untuned)

    def find(self, key: Key, unfit: Unfit = lambda config: "") -> Choice | None:
        """The choice for a key, or None: then the heuristic decides.

        Args:
            unfit: says why a configuration cannot serve; a tuned one is then ignored, with one
                warning if it was meant for this key. Asked once a key.
        """
        try:
            return self.answers[key]
        except KeyError:
            if len(self.answers) >= _MOST:
                self.answers.clear()
            found = self.answers[key] = self._search(key, unfit)
            return found

    def _search(self, key: Key, unfit: Unfit) -> Choice | None:
        exact: list[tuple[Origin, Entry | None]] = [
            ("user", self.user.get(key)),
            ("shipped", self.shipped.get(any_software(key))),
        ]
        for origin, entry in exact:
            if entry is None:
                continue
            reason = unfit(entry.config)
            if not reason:
                return Choice(entry.config, origin, entry)
            _warn(
                f"the {origin} configuration {entry.key.name} does not fit and is ignored: {reason}"
            )
        for entry in self._nearest(key):
            if not unfit(entry.config):
                return Choice(entry.config, "nearest", entry)
        return self._model(key, unfit)

    def _model(self, key: Key, unfit: Unfit) -> Choice | None:
        """What was chosen without a measurement: for the mask, or for all of them."""
        if key.problem.score or key.bucket.q_len < _SHORT:
            return None
        for mask in (key.problem.mask, ANY_MASK):
            entry = self.untuned.get(_untuned(key, mask))
            if entry is not None and not unfit(entry.config):
                return Choice(entry.config, "model", entry)
        return None

    def why_not(self, key: Key) -> str:
        """The entry whose key differs in the fewest fields, and in which."""
        differences = [
            (entry.key.difference(key), entry.key.name)
            for entry in (*self.user.values(), *self.shipped.values(), *self.untuned.values())
        ]
        if not differences:
            return "nothing is kept"
        lines, name = min(differences, key=lambda x: (len(x[0]), x[1]))
        return "\n  ".join([f"closest is {name}, which differs:", *lines])

    def _nearest(self, key: Key) -> list[Entry]:
        """Entries for other sizes, or for another mask as dense; the nearest first."""
        found = []
        mine = (x for x in self.user.values() if x.key.software == key.software)
        for entry in (*mine, *self.shipped.values()):
            rank = distance(key, entry.key)
            if rank is not None:
                found.append((rank, entry.key.canonical, entry))
        return [entry for *_, entry in sorted(found, key=lambda x: x[:2])]


def distance(key: Key, other: Key) -> tuple[int, ...] | None:
    """How far an entry for ``other`` is from ``key``; None if it says nothing about it.

    The same mask counts as nearer than another one, equal density as nearer than another, then the
    same group and dtype; then the sum of the steps between the buckets. Another mask must be as
    dense, and its density known; for Gluon kernels it is not asked: their heuristic goes by the kind
    of the mask (blocks, tables, lists), which density does not tell. From 65 queries on the other
    dtype of 16 bits is near, and another group of query heads, unless runtime values decide: lists
    of every token have tiles of as many heads as the group has.
    """
    mine, theirs = key.bucket, other.bucket
    if _alike(key) != _alike(other):
        return None
    same_mask = key.problem.mask == other.problem.mask
    same_density = mine.density == theirs.density
    dense_alike = same_density and mine.density != "runtime"
    if not same_mask and not (dense_alike and key.problem.template == "triton"):
        return None
    same_group = key.problem.group == other.problem.group
    same_kind = same_group and key.problem.dtype == other.problem.dtype
    if not same_kind and min(mine.q_len, theirs.q_len) < _SHORT:
        return None
    if not same_group and "runtime" in (mine.density, theirs.density):
        return None
    q_steps, kv_steps = abs(mine.q_len - theirs.q_len), abs(mine.kv_len - theirs.kv_len)
    programs = abs(mine.programs - theirs.programs)
    if max(q_steps, kv_steps) > FARTHEST_LENGTH or programs > FARTHEST_PROGRAMS:
        return None
    if q_steps and min(mine.q_len, theirs.q_len) < _SHORT:
        return None
    return (not same_mask, not same_density, not same_kind, q_steps + kv_steps + programs)


def whatever_software(entries: Iterable[Entry]) -> dict[Key, Entry]:
    """One entry a key without its software: the most trusted kind, then the latest."""

    def rank(entry: Entry) -> tuple[int, str, str]:
        source = entry.provenance
        return KINDS.index(source.kind), source.date, entry.digest

    return {any_software(entry.key): entry for entry in sorted(entries, key=rank)}


def any_software(key: Key) -> Key:
    """The key without the versions of the software."""
    return replace(key, software=_ANY)


def _untuned(key: Key, mask: str) -> tuple[object, ...]:
    """What a choice that nobody measured depends on."""
    p = key.problem
    return key.hardware.arch, p.op, p.template, p.dtype, p.head_dim, p.value_dim, mask


def _alike(key: Key) -> tuple[object, ...]:
    """What must be equal, whatever the sizes, the mask, the group, and which 16 bits."""
    dtype = "16 bits" if key.problem.dtype in ("float16", "bfloat16") else key.problem.dtype
    problem: Problem = replace(key.problem, mask="", slug="", group=0, dtype=dtype)
    return problem, key.hardware, key.policy


# -- the index of this process ------------------------------------------------------------------
_indices: dict[tuple[Path, Software, str, str], Index] = {}
_lock = threading.Lock()


def index(
    cache_dir: Path, software: Software, gpu: str, arch: str = "", *, read: bool = True
) -> Index | None:
    """The entries that may serve on a GPU, read from disk at first use.

    Args:
        gpu: folder of its shipped entries.
        arch: whose untuned choices may serve, too; none if empty.
        read: False where files must not be touched: None unless they were read before.
    """
    where = (cache_dir, software, gpu, arch)
    found = _indices.get(where)
    if found is not None or not read:
        return found
    with _lock:
        if where not in _indices:
            entries = store.user_entries(cache_dir, software)
            shipped = store.shipped_entries(gpu)
            _indices[where] = Index(entries, shipped, store.untuned_entries(arch))
    return _indices[where]


def forget() -> None:
    """Read the files again at the next look-up; kernels made before keep their configuration."""
    with _lock:
        _indices.clear()


@functools.cache
def _warn(text: str) -> None:
    warnings.warn(text, MaskwrightWarning, stacklevel=4)
