"""What must hold of any mask: the schedule against every pair, and the kernel against float64."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from maskwright.codegen.api import explain
from maskwright.codegen.api import inside
from maskwright.codegen.listed import derive_listed
from maskwright.codegen.listed_walk import ListedWalk
from maskwright.codegen.schedule import Schedule
from maskwright.codegen.schedule import Segment
from maskwright.codegen.schedule import derive
from maskwright.codegen.schedule import derive_row
from maskwright.codegen.sources import derive_sources
from maskwright.codegen.tile import TileShape
from maskwright.codegen.walk import Call
from maskwright.codegen.walk import count
from maskwright.codegen.walk import visits
from maskwright.dsl import nodes as n
from maskwright.dsl.evaluate import evaluate
from maskwright.dsl.evaluate import grid
from maskwright.dsl.evaluate import to_dense
from maskwright.dsl.parser import parse
from maskwright.runtime.check import check
from maskwright.runtime.fuzz_case import Case

Bools: TypeAlias = npt.NDArray[np.bool_]
Check: TypeAlias = Callable[[Case], None]
DEFAULT_TILE = (32, 32)


@dataclass(frozen=True)
class Problem:
    """What went wrong: ``kind`` is the property that does not hold, ``text`` the evidence."""

    kind: str
    text: str
    of_kernel: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


class WrongError(Exception):
    """A property does not hold."""


def first_problem(case: Case, checks: tuple[Check, ...]) -> Problem | None:
    """The first check that fails; an exception of any kind is a failure, too."""
    for run in checks:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the general path announces itself
                run(case)
        except WrongError as error:
            return Problem(*error.args)
        except Exception as error:  # a crash is what we look for
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno}"
            kernel = isinstance(run, partial) or run is check_kernel
            return Problem(type(error).__name__, f"{error} ({where})", kernel)
    return None


def _require(ok: Any, kind: str, text: str = "") -> None:
    if not np.all(ok):
        raise WrongError(kind, text)


# -- text -----------------------------------------------------------------------------------------
def check_text(case: Case) -> None:
    """The text of the mask parses back to the same mask."""
    mask = parse(case.mask)
    _require(parse(str(mask)).equals(mask), "text", "does not parse back to the same mask")
    _require(str(parse(str(mask))) == str(mask), "text", "is not stable")


# -- schedule -------------------------------------------------------------------------------------
def check_tiles(case: Case) -> None:
    """No tile wrongly skipped or full, none twice, all in range, and counts that agree."""
    call, node = case.call(), case.node
    block = case.tile or DEFAULT_TILE
    dense = dense_of(case)
    for within in {inside(node, call), False}:
        tile = TileShape(*block, inside=within)
        for tail in (True, False):
            schedule = derive(node, tile, tail=tail)
            _check_schedule(schedule, call, dense, tail=tail)
            for listed in (
                derive_listed(node, tile, tail=tail),
                derive_sources(node, tile, tail=tail),
            ):
                if listed is not None and listed.listed:
                    check_lists(listed, call, dense, tail=tail)
        tile = TileShape(*block, inside=within, transposed=True)
        exchanged = np.swapaxes(dense, 2, 3)
        _check_schedule(derive(node, tile), call, exchanged, tail=False)
        listed = derive_sources(node, tile)
        if listed is not None:
            check_lists(listed, call, exchanged, tail=False)


def dense_of(case: Case) -> Bools:
    """The oracle's mask."""
    return to_dense(parse(case.mask), **case.shapes(), **case.bindings)


def tiles_of(dense: Bools, tile: TileShape, *, tail: bool) -> tuple[Bools, Bools]:
    """(tiles with an attended pair, tiles that are attended everywhere), by brute force.

    With ``tail`` the keys beyond kv_len count as pairs that nobody attends.
    """
    batch, heads, q_len, kv_len = dense.shape
    rows, columns = -(-q_len // tile.block_m), -(-kv_len // tile.block_n)
    shape = (batch, heads, rows, tile.block_m, columns, tile.block_n)
    padded = np.zeros((batch, heads, rows * tile.block_m, columns * tile.block_n), bool)
    padded[:, :, :q_len, :kv_len] = dense
    real = np.zeros(padded.shape, bool)
    real[:, :, :q_len, : None if tail else kv_len] = True
    some: Bools = np.any(padded.reshape(shape), (3, 5))
    every: Bools = np.all((padded | ~real).reshape(shape), (3, 5))
    return some, every


def _check_schedule(schedule: Schedule, call: Call, dense: Bools, *, tail: bool) -> None:
    tile, end = schedule.tile, call.kv_tiles(schedule.tile)
    env = call.env(tile, np.arange(call.q_tiles(tile)))
    some, every = tiles_of(dense, tile, tail=tail)
    where = f"tile {tile}, tail {tail}"
    _check_bounds((*schedule.partial, *schedule.full, *schedule.visit), env, end, where)
    visit = visits(schedule.visit, env, end)
    full = visits(schedule.full, env, end)
    _require(visit <= 1, "candidate tile twice", where)
    _require((visit > 0) | ~some, "tile wrongly left out", where)
    _require((full == 0) | every, "tile wrongly full", where)
    if not schedule.closed:
        return
    both = visits(schedule.partial, env, end) + full
    _require(both <= 1, "tile visited twice", where)
    _require((both > 0) | ~some, "tile wrongly skipped", where)
    counted = count(schedule.partial, env) + count(schedule.full, env)
    _require(both.sum(-1) == counted, "count of tiles differs from the visits", where)


def check_lists(schedule: Schedule, call: Call, dense: Bools, *, tail: bool) -> None:
    """Runtime lists: each attended pair lies in one visited tile or in one gathered column."""
    tile, walk = schedule.tile, ListedWalk(schedule, call)
    numbers = np.arange(call.q_tiles(tile))
    some, every = tiles_of(dense, tile, tail=tail)
    where = f"lists, tile {tile}, tail {tail}"
    _check_bounds(schedule.walked, call.env(tile, numbers), call.kv_tiles(tile), where)
    met = walk.meets(numbers)
    visited = met.full + met.partial
    _require(visited <= 1, "tile visited twice", where)
    _require((met.full == 0) | every, "tile wrongly full", where)
    _require((visited == 0) | ~met.gathered, "column of a visited tile gathered", where)
    _require((visited > 0) | met.gathered | ~some, "tile wrongly skipped", where)
    seen = np.repeat(np.repeat(visited > 0, tile.block_m, 2), tile.block_n, 3)
    left = dense & ~seen[:, :, : dense.shape[2], : dense.shape[3]]
    listed = walk.flags()[..., None, : dense.shape[3]]
    _require(~left | listed, "pair outside the visited tiles is in no listed column", where)


def _check_bounds(segments: tuple[Segment, ...], env: Any, end: int, where: str) -> None:
    """Kernels and lists step through ``hi - lo`` tiles of [0, end): lo <= hi always."""
    for segment in segments:
        lo, hi = evaluate(segment.lo, env), evaluate(segment.hi, env)
        _require(lo <= hi, "segment of negative length", where)
        _require((lo >= hi) | ((lo >= 0) & (hi <= end)), "segment beyond the keys", where)


def check_counts(case: Case) -> None:
    """Attended pairs, empty rows and tiles of ``explain`` against every pair."""
    call, dense, tile = case.call(), dense_of(case), case.tile or DEFAULT_TILE
    keys = dense.sum(-1)
    row = derive_row(case.node)
    if row.closed and _sorted_reads_inside(case, call):
        found = count(row.visit, call.env(row.tile, np.arange(call.q_len)))
        _require(np.broadcast_to(found, keys.shape) == keys, "keys of a row", "derive_row")
    told = explain(parse(case.mask), **case.shapes(), tile=tile, **case.bindings).to_dict()
    _require(told["pairs"] == keys.sum(), "pairs of explain", f"{told['pairs']} for {keys.sum()}")
    _require(told["empty_rows"] == (keys == 0).sum(), "empty rows of explain")
    some, every = tiles_of(dense, TileShape(*tile), tail=False)
    tiles = told["tiles"]
    _require(tiles["full"] <= every.sum(), "full tiles of explain", str(tiles))
    if not told["listed"]:  # else columns of other tiles are gathered
        _require(tiles["skipped"] <= (~some).sum(), "skipped tiles of explain", str(tiles))
    _require(sum(tiles.values()) == some.size, "tiles of explain do not add up", str(tiles))


def _sorted_reads_inside(case: Case, call: Call) -> bool:
    """Every pair reads sorted tables inside: a row's keys are countable only then."""
    env = dict(call.values) | {"q_len": call.q_len, "kv_len": call.kv_len}
    rows = np.arange(call.q_len) + call.q_offset
    env |= grid(rows, np.arange(call.kv_len), call.batch, call.heads, call.kv_heads)
    for x in n.walk(case.node):
        if isinstance(x, n.Read) and x.table.sorted:
            place = evaluate(x.index[-1], env)
            end = min(call.kv_len, call.values[x.table.name].shape[-1])
            if not np.all((place >= 0) & (place < end)):
                return False
    return True


# -- kernel ---------------------------------------------------------------------------------------
def check_kernel(case: Case, backend: str = "auto") -> None:
    """Output and LSE of a backend against float64 with the dense mask."""
    report = check(parse(case.mask), **case.options(), backend=backend, **case.bindings)
    if not report.ok:
        found = f"out {report.out_error:.2e}, lse {report.lse_error:.2e}, {report.gradients}"
        raise WrongError(f"wrong result of {report.backend}", found, True)


SCHEDULE_CHECKS: tuple[Check, ...] = (check_text, check_tiles, check_counts)
