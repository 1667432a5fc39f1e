"""``maskwright demo``, whole: the main job of a machine without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from maskwright.runtime.demo import cases

ROOT = Path(__file__).parents[2]


def test_demo(tmp_path):
    command = [sys.executable, "-m", "maskwright", "demo", "--output", str(tmp_path), "--json"]
    # An empty Triton cache: compiling must work after interpreting, in one process.
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "CUDA_VISIBLE_DEVICES": ""}
    env["TRITON_CACHE_DIR"] = str(tmp_path / "triton")
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [m["name"] for m in found["masks"]] == [c.name for c in cases()]
    for mask in found["masks"]:
        assert mask["check"]["ok"]
        assert mask["build"]["registers"] > 0
        compile(Path(mask["source"]).read_text(), mask["source"], "exec")
        assert Path(mask["picture"]).read_bytes().startswith(b"\x89PNG")
    listed = {m["name"] for m in found["masks"] if not m["schedule"]["closed_form"]}
    assert listed == {"vertical_slash"}
