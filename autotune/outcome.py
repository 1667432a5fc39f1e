"""What workers answer, and the two small interfaces behind which they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import Literal
from typing import Protocol
from typing import TypeAlias

from maskwright.autotune.entry import CONFIGS
from maskwright.autotune.entry import Checks
from maskwright.autotune.entry import read_config
from maskwright.autotune.key import Hardware
from maskwright.autotune.key import Key
from maskwright.autotune.key import Op
from maskwright.autotune.key import Template
from maskwright.autotune.record import canonical
from maskwright.codegen.configs import AnyConfig

# ok: measured; slow: right, and timed too shortly for more than that; the others are failures:
# infeasible: does not fit the GPU; compile: no machine code; wrong: numbers; timeout: never ends;
# sticky: takes the process that owns the GPU with it; harness: our own mistake.
Status: TypeAlias = Literal[
    "ok", "slow", "infeasible", "compile", "wrong", "timeout", "sticky", "harness"
]
Measured = ("ok", "slow")


@dataclass(frozen=True)
class Build:
    """What a compiler without a GPU said about a configuration.

    Attributes:
        status: ``ok``, ``infeasible``, ``compile`` or ``timeout``.
        code: hash of the machine code; empty if unknown. Equal code has equal times.
        stack: bytes of a thread's local memory: spilled registers.
        seconds: it took.
    """

    status: Status = "ok"
    message: str = ""
    code: str = ""
    registers: int = 0
    stack: int = 0
    shared: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """One candidate, tried.

    Attributes:
        ms: time of a call.
        ratio: of its time to that of the default configuration, taken in turn; lower is better.
        error: largest error of a row, in units of the row.
        twin: another candidate with the same machine code was measured, this one was not.
    """

    status: Status
    ms: float = 0.0
    ratio: float = 0.0
    error: float = 0.0
    message: str = ""
    twin: bool = False

    @property
    def measured(self) -> bool:
        """There is a time."""
        return self.status in Measured


@dataclass(frozen=True)
class Start:
    """What is known before anything was compiled, and enough to begin with that.

    Attributes:
        default: configuration that the heuristic takes, which every time is compared with.
    """

    key: Key
    default: AnyConfig


@dataclass(frozen=True)
class Facts:
    """What a worker that is ready says about its GPU and the job.

    Attributes:
        default: as in ``Start``.
        error: of the default, as in ``Outcome``.
        flops: of a call; 0 if nobody counted.
        gpu: hash of the card's identity.
    """

    key: Key
    default: AnyConfig
    ms: float
    error: float
    flops: float = 0.0
    gpu: str = ""
    driver: str = ""
    torch: str = ""


@dataclass(frozen=True)
class Race:
    """Times of several configurations, taken in turn.

    Attributes:
        rounds: milliseconds by round, then in the order of the configurations.
        clocks: MHz of the multiprocessors in each round; 0 if unknown.
    """

    rounds: tuple[tuple[float, ...], ...]
    clocks: tuple[int, ...]


class Device(Protocol):
    """Who measures: a process that owns a GPU, a recorded table, or a fake with faults."""

    def start(self) -> Start:
        """Begin: there are inputs, and it is known what they call for."""

    def ready(self) -> Facts:
        """Get ready for the rest: reference, default. Compilers work meanwhile; once is enough."""

    def measure(self, config: AnyConfig, best: float) -> Outcome:
        """Check and time one candidate; ``best`` is the lowest ratio so far."""

    def race(self, configs: Sequence[AnyConfig], rounds: int) -> Race:
        """Times in turn; all of the configurations were measured before."""

    def verify(self, config: AnyConfig) -> tuple[bool, Checks, str]:
        """(right on fresh inputs, how far off, what is wrong)."""

    def close(self) -> None:
        """Let go of everything."""


class Compiler(Protocol):
    """Who compiles ahead.

    Attributes:
        gpu: what for; known before anything is submitted.
    """

    gpu: Hardware | None

    @property
    def room(self) -> int:
        """How many more configurations can be submitted before it pays to wait."""

    def submit(self, config: AnyConfig) -> None:
        """Begin with one."""

    def take(self, timeout: float) -> list[tuple[AnyConfig, Build]]:
        """Those that are done; waits for the first."""

    def close(self) -> None:
        """Let go of everything."""


class NoCompiler:
    """Nothing is compiled ahead: the device compiles what it measures."""

    def __init__(self, builds: dict[AnyConfig, Build] | None = None) -> None:
        self.gpu: Hardware | None = None
        self.builds = builds or {}
        self.given: list[AnyConfig] = []

    @property
    def room(self) -> int:
        """One at a time: the next proposal then knows what came of this one."""
        return 1 - len(self.given)

    def submit(self, config: AnyConfig) -> None:
        """See ``Compiler``."""
        self.given.append(config)

    def take(self, timeout: float) -> list[tuple[AnyConfig, Build]]:
        """See ``Compiler``."""
        del timeout
        done, self.given = self.given, []
        return [(config, self.builds.get(config, Build())) for config in done]

    def close(self) -> None:
        """See ``Compiler``."""


def config_key(config: AnyConfig) -> str:
    """Equal configurations, equal text."""
    return canonical(config.to_dict())


def config_from(op: Op, template: Template, data: Any) -> AnyConfig:
    """The inverse of ``to_dict``.

    Raises:
        RecordError: it is no configuration of that kernel.
    """
    found: AnyConfig = read_config(CONFIGS[op, template], data, "config")
    return found
