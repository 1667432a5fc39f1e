"""The process that tunes the catalogue on one GPU: its parent hands it one key after another."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Mapping
from typing import Any
from typing import NoReturn

from maskwright.autotune.catalog_run import CatalogRun
from maskwright.autotune.catalog_run import Item
from maskwright.autotune.gpu_device import identify
from maskwright.autotune.gpu_turn import BusyError
from maskwright.autotune.record import from_plain
from maskwright.autotune.serve import Handler
from maskwright.autotune.serve import Say
from maskwright.autotune.serve import serve
from maskwright.autotune.spares import Spares
from maskwright.dsl.errors import TuningError


class FarmWorker:
    """Answers ``open`` (a ``CatalogRun``), then ``tune`` (an ``Item``)."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.spares = Spares()  # they end with this process

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Once, before the rest; says which kind of GPU is here.

        Raises:
            TuningError: there is none.
        """
        self.run = from_plain(CatalogRun, request["run"])
        if self.run.backend == "interpret":
            return {"hardware": {}}
        return {"hardware": identify()["hardware"]}

    def tune(self, request: dict[str, Any]) -> dict[str, Any]:
        """One key, and whatever becomes of it."""
        item = from_plain(Item, request["item"])
        try:
            found = self.run.tune(item, quiet=False, tell=self._tell, spares=self.spares)
            return {"result": found}
        except BusyError as error:
            return {"busy": error.what}
        except TuningError as error:
            return {"failed": error.what}

    def _tell(self, text: str) -> None:
        self.say({"line": text})


def handlers(say: Say) -> Mapping[str, Handler]:
    """What ``serve`` takes."""
    # Nobody reads this process's stderr while it lives.
    warnings.showwarning = lambda message, *_args, **_kwargs: say({"note": str(message)})
    signal.signal(signal.SIGTERM, _leave)
    worker = FarmWorker(say)
    return {"open": worker.open, "tune": worker.tune}


def _leave(*_: object) -> NoReturn:
    """On the way out children are ended, and temporary files removed."""
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(serve(handlers))
