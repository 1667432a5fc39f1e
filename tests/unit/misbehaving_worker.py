"""A worker for tests: it does what the ``num_stages`` of a configuration asks for.

Run as a program. 1: as it should. 2: hang. 3: end. 4: crash. 5: garbage. 6: eat memory. 7: hang in a
grandchild. 8: crash once (a file tells). 9: a sticky error. 10: raise. 11: wrong numbers.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from maskwright.autotune.serve import serve

OK, HANG, END, CRASH, GARBAGE, EAT, GRANDCHILD, ONCE, STICKY, RAISE, WRONG = range(1, 12)
HOARD = []


def misbehave(stages: int) -> None:
    marker = Path(os.environ["MISBEHAVING"])
    match stages:
        case 2:
            time.sleep(60)
        case 3:
            sys.exit(3)
        case 4:
            os.kill(os.getpid(), signal.SIGSEGV)
        case 5:
            os.write(int(os.environ["ANSWERS"]), b"this is no answer\n")
        case 6:
            HOARD.append(bytearray(300 << 20))
            time.sleep(60)
        case 7:
            with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
                marker.write_text(str(child.pid))
                child.wait()
        case 8:
            if not marker.exists():
                marker.write_text("crashed")
                os.kill(os.getpid(), signal.SIGKILL)
        case 10:
            raise RuntimeError("raised")


def compile_one(request):
    config = request["config"]
    misbehave(config["num_stages"])
    return {"build": {**BUILD, "code": str(config["block_m"])}}


def measure(request):
    SAY({"phase": "run"})
    stages = request["config"]["num_stages"]
    misbehave(stages)
    status = {STICKY: "sticky", WRONG: "wrong"}.get(stages, "ok")
    return {"outcome": OUTCOME | {"status": status, "ms": 1.0, "ratio": 0.5}}


def race(request):
    line = [float(x["block_m"]) for x in request["configs"]]
    return {"race": {"rounds": [line] * request["rounds"], "clocks": [0] * request["rounds"]}}


def identify(request):
    gpu = os.environ.get("GPU")
    return {"gpu": gpu} if gpu else {"nothing": True}


def opened(request):
    print("what is printed goes elsewhere")
    facts = told()
    return {"start": {x: facts[x] for x in ("key", "default")}} if facts else {"open": True}


def ready(request):
    facts = told()
    return {"facts": facts} if facts["ms"] else {"nothing": True}


def told():
    return json.loads(os.environ.get("FACTS", "null"))


BUILD = {"status": "ok", "message": "", "registers": 1, "stack": 0, "shared": 0, "seconds": 0.1}
OUTCOME = {"error": 0.0, "message": "", "twin": False}
SAY = None


def handlers(say):
    global SAY
    SAY = say
    return {
        "identify": identify,
        "open": opened,
        "ready": ready,
        "compile": compile_one,
        "measure": measure,
        "race": race,
        "forget": lambda request: {"free": True},
    }


if __name__ == "__main__":
    # ``serve`` takes a copy of stdout; one more, for garbage.
    os.environ["ANSWERS"] = str(os.dup(1))
    sys.exit(serve(handlers))
