"""What all tests of machine code share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _empty_triton_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
