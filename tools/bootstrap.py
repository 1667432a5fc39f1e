"""Create the virtual environment and install what the project needs.

Standard library only: this runs on a machine that has nothing but Python. Rules:

* a torch that the base interpreter can already import is left alone and used;
* otherwise torch comes from the package index: a fixed version where there is no GPU;
* Triton comes with torch or, if it does not, in the version the tests are written for;
* Triton 3.6's interpreter needs numpy below 2.4.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH_MIN = (2, 11)
TRITON_MIN = (3, 6)
TORCH_CPU = "torch==2.13.0"
TORCH_GPU = "torch>=2.11"
TRITON = "triton==3.6.0"
NUMPY = "numpy<2.4"


def main() -> int:
    """Run all steps; returns the exit code."""
    args = argparse.ArgumentParser(description="create the virtual environment of maskwright")
    args.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where to create it")
    venv = args.parse_args().venv.absolute()
    if sys.version_info < (3, 10):  # noqa: UP036 -- this file may be run by any Python
        print(f"maskwright needs Python 3.10 or newer; this is {sys.version.split()[0]}.")
        print("Name another interpreter: make PYTHON=python3.12 test")
        return 1
    start = time.monotonic()
    # From inside another environment a new one would see the base packages, not that one's.
    is_base = sys.prefix == sys.base_prefix
    reuse = is_base and version_of(sys.executable, "torch") >= TORCH_MIN
    create(venv, reuse=reuse)
    python = str(venv / "bin" / "python")
    if version_of(python, "torch") < TORCH_MIN:
        install(python, TORCH_GPU if has_gpu() else TORCH_CPU, NUMPY)
    if sys.platform == "linux" and version_of(python, "triton") < TRITON_MIN:
        install(python, TRITON)
    install(python, NUMPY, "--editable", f"{ROOT}[dev]")
    say(f"ready in {time.monotonic() - start:.0f} s: {venv}")
    return 0


def create(venv: Path, *, reuse: bool) -> None:
    """Create the environment, with a view of the base packages if torch is among them."""
    say(f"creating {venv}" + (" (using the torch that is already installed)" if reuse else ""))
    shutil.rmtree(venv, ignore_errors=True)
    command = [sys.executable, "-m", "venv", str(venv)]
    command += ["--system-site-packages"] if reuse else []
    if subprocess.run(command, check=False).returncode == 0:
        return
    # Debian splits ensurepip off; pip of the base interpreter can serve the environment instead.
    shutil.rmtree(venv, ignore_errors=True)
    if subprocess.run([*command, "--without-pip"], check=False).returncode or not base_pip():
        sys.exit("cannot create a virtual environment: install python3-venv (or python3-pip)")


def base_pip() -> bool:
    """Whether the base interpreter has a pip that can install into another environment."""
    return version_of(sys.executable, "pip") >= (22, 3)


def install(python: str, *what: str) -> None:
    """Install requirements into the environment of ``python``; stops on failure."""
    say("installing " + " ".join(what))
    pip = [python, "-m", "pip"]
    if version_of(python, "pip") == (0,):
        pip = [sys.executable, "-m", "pip", "--python", python]
    command = [*pip, "install", "-qq", "--disable-pip-version-check", *what]
    if code := subprocess.run(command, check=False, cwd=ROOT).returncode:
        sys.exit(f"installation failed (exit {code}): {' '.join(command)}")


def version_of(python: str, package: str) -> tuple[int, ...]:
    """Version of a package as seen by an interpreter, without importing it; (0,) if absent."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([python, "-c", code], check=False, capture_output=True, text=True)
    parts = done.stdout.strip().split("+")[0].split(".")
    numbers = [int(p) for p in parts[:2] if p.isdigit()]
    return tuple(numbers) or (0,)


def has_gpu() -> bool:
    """Whether an NVIDIA GPU is present."""
    return shutil.which("nvidia-smi") is not None or any(Path("/dev").glob("nvidia[0-9]*"))


def say(text: str) -> None:
    """One progress line."""
    print(f"[bootstrap] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
