"""Configurations that a user fixed, as one value."""

from __future__ import annotations

import json
from dataclasses import asdict
from dataclasses import dataclass
from dataclasses import replace
from typing import Any
from typing import TypeAlias

from maskwright.codegen.config import BackwardConfig
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon_backward import GluonBackwardConfig

AnyConfig: TypeAlias = KernelConfig | BackwardConfig | GluonConfig | GluonBackwardConfig


@dataclass(frozen=True)
class Configs:
    """Configurations that a user fixed; None is the heuristic's choice.

    Attributes:
        forward, backward: of the Triton kernels.
        gluon: of the Gluon forward.
        gluon_backward: of the Gluon backward, which serves calls that the Gluon forward served.
            With one of them, ``backend="auto"`` takes Gluon kernels where they can serve.
    """

    forward: KernelConfig | None = None
    backward: BackwardConfig | None = None
    gluon: GluonConfig | None = None
    gluon_backward: GluonBackwardConfig | None = None

    @staticmethod
    def of(*configs: AnyConfig | None) -> Configs:
        """Those that are given."""
        found = Configs()
        for config in configs:
            found = found if config is None else found.with_(config)
        return found

    def with_(self, config: AnyConfig) -> Configs:
        """The same, with one of them replaced."""
        match config:
            case BackwardConfig():
                return replace(self, backward=config)
            case GluonConfig():
                return replace(self, gluon=config)
            case GluonBackwardConfig():
                return replace(self, gluon_backward=config)
        return replace(self, forward=config)

    def of_kernel(self, op: str | None, backend: str | None) -> AnyConfig | None:
        """The one of ``source(op=..., backend=...)``."""
        if op == "backward":
            return self.gluon_backward if backend == "gluon" else self.backward
        return self.gluon if backend == "gluon" else self.forward

    @property
    def keeps_triton_backward(self) -> bool:
        """Only the Triton kernels of the backward are fixed, so those are wanted."""
        return self.backward is not None and self.gluon_backward is None

    def to_text(self) -> str:
        """JSON that ``from_text`` reads; empty if nothing is fixed."""
        found = {name: x for name, x in asdict(self).items() if x is not None}
        return json.dumps(found, sort_keys=True) if found else ""

    @staticmethod
    def from_text(text: str) -> Configs:
        """The inverse of ``to_text``."""
        found = json.loads(text) if text else {}
        types: dict[str, Any] = {
            "forward": KernelConfig,
            "backward": _backward,
            "gluon": GluonConfig,
            "gluon_backward": GluonBackwardConfig,
        }
        return Configs(**{name: types[name](**x) for name, x in found.items()})


def _backward(queries: dict[str, Any], keys: dict[str, Any], parts: int = 1) -> BackwardConfig:
    return BackwardConfig(KernelConfig(**queries), KernelConfig(**keys), parts)
