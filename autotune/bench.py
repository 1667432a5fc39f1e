"""What the process that owns the GPU does: check a candidate's numbers, then its time.

Times are taken in turn with the default configuration and told as a ratio: the clock of a GPU drifts
by percents within seconds, and drift cancels. Inputs rotate through more than the L2 holds.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from maskwright.autotune.density import tiles
from maskwright.autotune.entry import CONFIGS
from maskwright.autotune.job import Job
from maskwright.autotune.outcome import Facts
from maskwright.autotune.outcome import Outcome
from maskwright.autotune.outcome import Race
from maskwright.autotune.outcome import Start
from maskwright.autotune.runner import Inputs
from maskwright.autotune.runner import Runner
from maskwright.autotune.runner import draw
from maskwright.autotune.runner import poisoned
from maskwright.autotune.truth import Setting
from maskwright.autotune.truth import Truth
from maskwright.autotune.truth import lse_error
from maskwright.autotune.truth import row_error
from maskwright.autotune.truth import truth_of
from maskwright.codegen.configs import AnyConfig
from maskwright.codegen.tile import TileShape
from maskwright.dsl.errors import TuningError
from maskwright.runtime import tuned

_WARM_MS = 200.0  # of work, until the clock has risen
_TURN_MS, _TURNS = 5.0, 4  # of a candidate, and of the default beside it
_LONG_TURN_MS = 10.0  # in a race
_MOST_CALLS = 1000
_GRAPH_MS = 0.2  # below it the host's launches would be timed, so calls are recorded in a graph
_OF_L2, _MOST_SETS, _MOST_BYTES = 3, 16, 4 << 30
SLOW = 2.0  # times the best: not worth more than three launches
# Error of a row from which numbers are wrong whatever the default's are, and below which they are
# right: multiples of what the dtypes round to.
WRONG = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.25}
RIGHT = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
_LSE = 1e-3


class Bench:
    """A job on a device: inputs, reference, and configurations that were made ready."""

    def __init__(self, job: Job, say: Callable[[str], None] = lambda phase: None) -> None:
        self.job, self.say = job, say
        self.cuda = job.backend != "interpret"
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.runners: dict[AnyConfig, Runner] = {}
        self.turns = 0

    # -- readiness ----------------------------------------------------------------------------
    def start(self) -> Start:
        """Draw the first inputs, and say what they call for; nothing is compiled yet.

        Raises:
            TuningError: no kernel of the template can serve them.
        """
        default, given = Runner(self.job, None), draw(self.job, self.device, self.job.seed)
        self.default = default.config(given)
        if type(self.default) is not CONFIGS[self.job.op, self.job.template]:
            raise TuningError("no Gluon kernel can serve this", fix='backend="triton"')
        self.key = tuned.key_of(
            *(self.job.mask_node, self.job.score_node, self.job.op, self.job.template),
            *(given.given[:4], default.shapes(given), default.inside(given)),
        )
        self.runners[self.default] = default
        return Start(self.key, self.default)

    def ready(self) -> Facts:
        """Make the rest: all inputs, the reference, the default; and say what there is.

        Raises:
            TuningError: the default configuration is wrong.
        """
        default = self.runners[self.default]
        first = self._inputs(default, self.job.seed)
        self.sets = [first, *(self._inputs(default, self.job.seed + i) for i in self._more(first))]
        self.truth = self._truth(default, first)
        default.prepare(first)
        self.error, self.lse = self._errors(default, first, self.truth)
        limit = WRONG[self.job.dtype]
        if not (self.error <= limit and self.lse <= limit):
            raise TuningError(
                f"the default configuration is wrong by {max(self.error, self.lse):.2g} of a row",
                expression=self.default,
                fix="maskwright check MASK",
            )
        self.ms = default.ms = self._warm(default)
        facts: dict[str, Any] = {"flops": self._flops(), "torch": torch.__version__} | self._card()
        return Facts(self.key, self.default, self.ms, self.error, **facts)

    def _inputs(self, runner: Runner, seed: int) -> Inputs:
        made = draw(self.job, self.device, seed)
        return runner.outputs(made) if self.job.op == "backward" else made

    def _more(self, first: Inputs) -> range:
        """Seeds of further inputs, so that none is still in the L2 when its turn comes."""
        if not self.cuda:
            return range(1, 2)
        cache = getattr(torch.cuda.get_device_properties(self.device), "L2_cache_size", 50 << 20)
        count = max(2, -(-_OF_L2 * cache // first.nbytes))
        return range(1, max(1, min(count, _MOST_SETS, _MOST_BYTES // first.nbytes)))

    def _truth(self, runner: Runner, inputs: Inputs) -> Truth:
        nodes, values = (self.job.mask_node, self.job.score_node), runner.values(inputs)
        setting = Setting(*nodes, values, self.job.q_offset)
        grad, out = inputs.given[3:5] if self.job.op == "backward" else (None, None)
        return truth_of(setting, inputs.given, grad, out)

    def _warm(self, default: Runner) -> float:
        once = max(1e-3, self._time(default, 1))
        count = max(3, min(_MOST_CALLS, int(_WARM_MS / once))) if self.cuda else 1
        return self._time(default, count)

    def _flops(self) -> float:
        """4 for each attended pair and column of a head, 2.5 times that backwards."""
        call = self.job.call()
        counts = tiles(self.job.mask_node, call, TileShape(1, 1, call.inside))
        if counts is None:
            return 0.0
        pairs = float((counts.full + counts.partial).mean((0, 1)).sum())
        columns = self.job.head_dim + self.job.value_dim
        each = 5.0 if self.job.op == "backward" else 2.0
        return each * pairs * columns * self.job.batch * self.job.heads

    def _card(self) -> dict[str, str]:
        if not self.cuda:
            return {}
        found: Any = torch.cuda.get_device_properties(self.device)
        uuid = hashlib.sha256(str(getattr(found, "uuid", "")).encode()).hexdigest()[:8]
        return {"gpu": uuid, "driver": _driver()}

    # -- one candidate --------------------------------------------------------------------------
    def measure(self, config: AnyConfig, best: float) -> Outcome:
        """Numbers first, then a few launches, then times in turn with the default."""
        first = self.sets[0]
        runner = self.runners.get(config) or Runner(self.job, config)
        if runner.compile(first):
            self.say("run")
        runner.prepare(first)
        error, lse = self._errors(runner, first, self.truth)
        self.say("run")
        wrong = self._wrong(error, lse, (self.error, self.lse))
        if wrong:
            return Outcome("wrong", error=_finite(error), message=wrong)
        self.runners[config] = runner
        once = runner.ms = min(self._time(runner, 1) for _ in range(3))
        if once > SLOW * best * self.ms:
            return Outcome("slow", once, once / self.ms, error)
        default, pairs = self.runners[self.default], []
        for turn in range(_TURNS):
            order = (default, runner) if turn % 2 else (runner, default)
            times = [self._time(x, self._count(x.ms)) for x in order]
            pairs.append((times[0], times[1]) if turn % 2 else (times[1], times[0]))
        self.ms = default.ms = statistics.median(x for x, _ in pairs)
        ms = runner.ms = statistics.median(x for _, x in pairs)
        return Outcome("ok", ms, statistics.median(y / x for x, y in pairs), error)

    def race(self, configs: Sequence[AnyConfig], rounds: int) -> Race:
        """All in turn, in another order each round."""
        runners = [self.runners[x] for x in configs]
        counts = [self._count(x.ms, _LONG_TURN_MS) for x in runners]
        times, clocks = [], []
        self.turns += rounds  # a race that comes in pieces goes on where it was
        for turn in range(self.turns - rounds, self.turns):
            found = [0.0] * len(runners)
            for step in range(len(runners)):
                i = (step + turn) % len(runners)
                i = len(runners) - 1 - i if turn % 2 else i
                found[i] = self._time(runners[i], counts[i])
            times.append(tuple(found))
            clocks.append(_clock() if self.cuda else 0)
        return Race(tuple(times), tuple(clocks))

    def fresh_error(self, config: AnyConfig, seed: int) -> str:
        """What is wrong on inputs never seen before; empty if nothing is.

        The default is measured on the same inputs: the worst row of some is off by more than that
        of others, whoever computes it.
        """
        default = self.runners[self.default]
        inputs = self._inputs(default, seed)
        truth = self._truth(default, inputs)
        runners = [Runner(self.job, x) for x in (config, None)]
        for runner in runners:
            runner.prepare(inputs)
        (error, lse), accepted = (self._errors(x, inputs, truth) for x in runners)
        if not all(x <= WRONG[self.job.dtype] for x in accepted):
            return f"the default configuration is wrong by {max(accepted):.2g} of a row"
        return self._wrong(error, lse, accepted)

    def _errors(self, runner: Runner, inputs: Inputs, truth: Truth) -> tuple[float, float]:
        """Errors of (results, LSE)."""
        with poisoned(), torch.no_grad():
            found = runner(inputs)
        if self.job.op == "backward":
            pairs = zip(found, truth.gradients, strict=True)
            errors = [row_error(x, right) for x, right in pairs]
            return max(errors, key=_finite), 0.0
        out, lse = found
        error = row_error(out[:, :, truth.rows], truth.out)
        if bool(out.isnan().any()):  # rows that were left out of the truth count, too
            error = float("nan")
        return error, lse_error(lse[:, :, truth.rows], truth.lse)

    def _wrong(self, error: float, lse: float, accepted: tuple[float, float]) -> str:
        """Of errors twice as large as those of the default on the same inputs."""
        limit = max(2 * accepted[0], RIGHT[self.job.dtype])
        if not error <= limit:
            return f"a row is off by {error:.2g} of itself, at most {limit:.2g} is right"
        if not lse <= max(2 * accepted[1], _LSE):
            return f"the log-sum-exp of a row is off by {lse:.2g}"
        return ""

    # -- the clock ------------------------------------------------------------------------------
    def _count(self, once: float, turn_ms: float = _TURN_MS) -> int:
        if not self.cuda:
            return 1
        return max(1, min(_MOST_CALLS, round(turn_ms / max(once, 1e-4))))

    def _time(self, runner: Runner, count: int) -> float:
        """Milliseconds of a call, over ``count`` of them back to back."""
        calls = partial(self._calls, runner)
        with torch.no_grad():
            if not self.cuda:
                started = time.perf_counter()
                calls(count)
                return (time.perf_counter() - started) * 1e3 / count
            calls(2)  # the second one goes the short way from then on
            if runner.ms < _GRAPH_MS:
                return _graph_ms(calls, count)
            return _events_ms(calls, count)

    def _calls(self, runner: Runner, count: int) -> None:
        sets = self.sets
        for i in range(count):
            runner(sets[i % len(sets)])


def _events_ms(calls: Callable[[int], None], count: int) -> float:
    event: Any = torch.cuda.Event
    start, stop = event(enable_timing=True), event(enable_timing=True)
    start.record()
    calls(count)
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / count


def _graph_ms(calls: Callable[[int], None], count: int) -> float:
    """As one graph, so that only the device's time counts."""
    graph: Any = torch.cuda.CUDAGraph()
    cuda: Any = torch.cuda
    stream = cuda.Stream()
    torch.cuda.synchronize()
    # Not ``torch.cuda.graph``: it collects garbage each time, for longer than all the calls take.
    with torch.cuda.stream(stream):
        graph.capture_begin()
        calls(count)
        graph.capture_end()
    torch.cuda.synchronize()
    graph.replay()
    return _events_ms(lambda _: graph.replay(), 1) / count


def _clock() -> int:
    """MHz of the multiprocessors; 0 where nobody can say."""
    try:
        return int(torch.cuda.clock_rate())
    except Exception:
        return 0


def _driver() -> str:
    try:
        with open("/proc/driver/nvidia/version") as file:
            words = file.readline().split()
        return next((x for x in words if x[:1].isdigit() and "." in x), "")
    except OSError:
        return ""


def _finite(error: float) -> float:
    """An error that can be compared, and written as JSON."""
    return error if error == error and error != float("inf") else 1e9
