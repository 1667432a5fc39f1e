"""Plan to source text, through Jinja templates."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import jinja2

from maskwright.codegen.describe import header
from maskwright.codegen.plan import ForwardPlan

_TEMPLATES = Path(__file__).parent / "templates" / "triton"


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (the output is Python, not HTML)
    )
    environment.globals["key_mask"] = _key_mask
    return environment


def _key_mask(edge: bool, padded: bool, limit: str) -> str:
    """Mask arguments of a key or value load: rows beyond kv_len, columns beyond the head."""
    parts = ["(start_n + lane[:, None] < kv_len)"] if edge else []
    dims = "dims" if limit == "HEAD_DIM" else "value_dims"
    parts += [f"({dims}[None, :] < {limit})"] if padded else []
    return f", mask={' & '.join(parts)}, other=0.0" if parts else ""


def render_forward(plan: ForwardPlan) -> str:
    """Source of a complete module: kernels, ``prepare`` and ``forward``."""
    request = plan.request
    descriptors = request.config.loads == "descriptor"
    imports = ["import torch", "import triton", "import triton.language as tl"]
    if descriptors:
        imports.append("from triton.tools.tensor_descriptor import TensorDescriptor")
    dims = SimpleNamespace(
        head_dim=request.head_dim,
        head_pad=request.head_pad,
        value_dim=request.value_dim,
        value_pad=request.value_pad,
        descriptors=descriptors,
        precision=', input_precision="ieee"' if request.dtype == "float32" else "",
    )
    text = (
        _environment()
        .get_template("forward.py.jinja")
        .render(
            p=plan,
            c=request.config,
            d=dims,
            header=header(plan),
            imports="\n".join(imports) + "\n",
            helpers=plan.helpers,
        )
    )
    return tidy(text)


def tidy(text: str) -> str:
    """No trailing blanks, no stray blank lines, two blank lines between functions."""
    kept: list[str] = []
    blank = False
    for raw in text.splitlines():
        line = raw.rstrip()
        if not line:
            blank = True
            continue
        if blank and kept and _may_follow_blank(kept[-1], line):
            top = line.startswith(("@", "def ")) or not kept[-1].startswith(("BLOCK", "import"))
            kept += ["", ""] if top and not line[0].isspace() and len(kept) > 2 else [""]
        kept.append(line)
        blank = False
    return "\n".join(kept) + "\n"


def _may_follow_blank(before: str, line: str) -> bool:
    """Blank lines separate paragraphs; they do not open or close a block or a list."""
    return not before.endswith((":", ",", "(")) and not line.strip().startswith((")", "*prepared"))
