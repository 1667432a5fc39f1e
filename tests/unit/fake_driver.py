"""A process of a GPU for tests of the farm: what it does with a key depends on the key's length.

Run as a program. It appends its pid to $LOG.pids, and "<gpu> <name> <length>" to the file $LOG when it begins a key.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from maskwright.autotune.serve import serve

QUICK, LONG, END, FAIL, BUSY, HANG, NOTE = range(1, 8)
GPU = os.environ["CUDA_VISIBLE_DEVICES"]
LOG = Path(os.environ["LOG"])


def opened(request):
    fault = os.environ.get(f"FAULT_{GPU}", "")
    if fault == "raise":
        raise RuntimeError("no such GPU")
    if fault == "hang":
        time.sleep(60)
    if fault == "end":
        sys.exit("it ends")
    return {"hardware": {"name": fault or "H100", "workers": request["run"]["workers"]}}


def tune(request):
    item = request["item"]
    with LOG.with_suffix(".pids").open("a") as file:
        file.write(f"{os.getpid()}\n")
    begun = f"{GPU} {item['name']} {item['q_len']}\n"
    seen = LOG.read_text() if LOG.exists() else ""
    with LOG.open("a") as file:
        file.write(begun)
    again = f" {item['name']} {item['q_len']}\n" in seen
    SAY({"line": "under way"})
    match item["q_len"]:
        case 2:
            time.sleep(2.0)
        case 3:
            os.kill(os.getpid(), signal.SIGKILL)
        case 4:
            return {"failed": "no configuration is right"}
        case 5 if not again:
            return {"busy": "another process tunes this"}
        case 6:
            time.sleep(60)
        case 7:
            SAY({"note": "a warning"})
    return {"result": item | {"ms": 0.5, "ratio": 0.9, "reason": "time", "gpu": GPU, "wrong": []}}


SAY = None


def handlers(say):
    global SAY
    SAY = say
    return {"open": opened, "tune": tune}


if __name__ == "__main__":
    sys.exit(serve(handlers))
