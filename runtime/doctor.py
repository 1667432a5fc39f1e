"""``maskwright doctor``: what is installed, what works here, and what does not and why."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from typing import Any

import maskwright
from maskwright.dsl.errors import MaskwrightError
from maskwright.runtime import cache
from maskwright.runtime import settings

PACKAGES = ("torch", "triton", "numpy", "sympy", "jinja2", "optuna", "rich", "matplotlib")
NUMPY_NEEDS_TRITON = ((2, 4), (3, 7))  # numpy 2.4 and up needs Triton 3.7 and up to interpret
OLDEST_GPU = (8, 0)


def examine() -> dict[str, Any]:
    """Everything there is to know, as plain data."""
    versions = {name: version(name) for name in PACKAGES}
    gpus = _gpus() if versions["torch"] else []
    return {
        "maskwright": maskwright.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "gpus": gpus,
        "cache": _cache(),
        "settings": _settings(),
        "backends": backends(versions, gpus),
    }


def version(package: str) -> str | None:
    """Installed version of a package, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def backends(versions: Mapping[str, str | None], gpus: list[dict[str, Any]]) -> dict[str, str]:
    """Backend -> ``"yes"``, or why it cannot be used."""
    triton = _reason_triton(versions, gpus)
    return {
        "triton": triton or "yes",
        "interpret": _reason_interpret(versions) or "yes",
        "reference": "yes" if versions["torch"] else "no: torch is not installed",
        "gluon": triton or _reason_gluon(gpus) or "yes",
    }


def _reason_triton(versions: Mapping[str, str | None], gpus: list[dict[str, Any]]) -> str:
    if not versions["triton"]:
        return "no: triton is not installed"
    if not gpus:
        return "no: torch sees no CUDA GPU"
    if max(tuple(g["capability"]) for g in gpus) < OLDEST_GPU:
        return "no: needs a GPU of compute capability 8.0 or newer"
    return ""


def _reason_gluon(gpus: list[dict[str, Any]]) -> str:
    hopper = any(tuple(g["capability"]) == (9, 0) for g in gpus)
    return "" if hopper else "no: its kernels are for compute capability 9.0"


def _reason_interpret(versions: Mapping[str, str | None]) -> str:
    triton, numpy = versions["triton"], versions["numpy"]
    if not triton:
        return "no: triton is not installed"
    new_numpy, new_triton = NUMPY_NEEDS_TRITON
    if numpy and _numbers(numpy) >= new_numpy and _numbers(triton) < new_triton:
        return f"no: the interpreter of triton {triton} needs numpy < 2.4 (pip install 'numpy<2.4')"
    return ""


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split("+")[0].split(".")
    return tuple(int(p) for p in parts[:2] if p.isdigit())


def _gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        found.append(
            {
                "name": facts.name,
                "capability": [facts.major, facts.minor],
                "memory_gib": round(facts.total_memory / 2**30, 1),
            }
        )
    return found


def _cache() -> dict[str, Any]:
    try:
        where = cache.directory()
    except MaskwrightError as error:
        return {"usable": f"no: {error.what}"}
    return {
        "directory": str(where),
        "files": len(cache.entries()),
        "bytes": cache.size(),
        "usable": _usable(where),
    }


def _usable(where: os.PathLike[str]) -> str:
    """Whether files can be written there; creates nothing."""
    path = os.path.abspath(where)
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        return f"no: {path} is not a directory"
    return "yes" if os.access(path, os.W_OK | os.X_OK) else f"no: {path} cannot be written"


def _settings() -> dict[str, str]:
    try:
        now = settings.current()
    except MaskwrightError as error:
        return {"error": error.what}
    shown = {name: getattr(now, name) for name in settings.FIELDS}
    shown["debug"] = ",".join(sorted(now.debug)) or "none"
    return {name: str(value) for name, value in shown.items()}


def flat(found: Mapping[str, Any]) -> dict[str, object]:
    """``examine()`` as lines for a person."""
    gpus = [f"{g['name']}, sm_{''.join(map(str, g['capability']))}" for g in found["gpus"]]
    lines: dict[str, object] = {
        "maskwright": found["maskwright"],
        "python": f"{found['python']} ({sys.executable})",
        "platform": found["platform"],
    }
    lines |= {name: text or "not installed" for name, text in found["packages"].items()}
    lines |= {"gpu": "; ".join(gpus) or "none"}
    for group in ("cache", "settings", "backends"):
        lines |= {f"{group}.{name}": value for name, value in found[group].items()}
    return lines
