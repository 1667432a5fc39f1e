"""Facts that belong to a measurement: GPU, driver, versions, clocks. Reads only, sets nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata

READINGS = (
    "clocks.sm",
    "clocks.mem",
    "temperature.gpu",
    "power.draw",
)
REASONS = ("clocks_event_reasons.active",)  # its own query: older drivers do not know the name
PACKAGES = ("torch", "triton", "maskwright")


def query(fields: tuple[str, ...]) -> dict[str, str]:
    """``nvidia-smi --query-gpu`` of the first visible GPU; empty where there is none."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
    command = ["nvidia-smi", "-i", first, f"--query-gpu={','.join(fields)}"]
    command.append("--format=csv,noheader,nounits")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")]
    return dict(zip(fields, values, strict=False))


def snapshot() -> dict[str, str]:
    """SM and memory clock (MHz), temperature (C), power (W), throttle bits, right now."""
    return query(READINGS) | query(REASONS)


def environment() -> dict[str, str]:
    """GPU, driver and the versions of everything that was measured."""
    found = query(("name", "driver_version"))
    return {
        "gpu": found.get("name", "none"),
        "driver": found.get("driver_version", "none"),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed" if package != "maskwright" else _source_version()


def _source_version() -> str:
    """maskwright run from its source tree has no installed metadata."""
    import maskwright

    return f"{getattr(maskwright, '__version__', '0')} (source tree)"


def slug(name: str) -> str:
    """``NVIDIA H100 80GB HBM3`` -> ``nvidia_h100_80gb_hbm3``."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "unknown"
