"""Kernels in Triton's interpreter against dense float64 attention."""

from __future__ import annotations

from typing import Any

import maskwright as mw


def agrees(mask: Any, q_len: int, kv_len: int, *, group: int, **options: Any) -> Any:
    """``mw.check`` of two KV heads of size 16 in float32, unless ``options`` say otherwise."""
    sizes = {"kv_heads": 2, "head_dim": 16, "dtype": "float32"} | options
    sizes |= {"heads": group * sizes["kv_heads"], "backend": "interpret"}
    report = mw.check(mask, q_len=q_len, kv_len=kv_len, **sizes)
    assert report.ok, str(report)
    return report
