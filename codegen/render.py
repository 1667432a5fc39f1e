"""Plan to source text, through Jinja templates."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import jinja2

from maskwright.codegen.describe import backward_header
from maskwright.codegen.describe import header
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.plan import Request
from maskwright.codegen.plan import WalkPlan
from maskwright.codegen.plan_backward import BackwardPlan

_TEMPLATES = Path(__file__).parent / "templates"


@lru_cache(maxsize=2)
def _environment(target: str) -> jinja2.Environment:
    """Templates of a target; what it does not have is as for Triton."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([_TEMPLATES / target, _TEMPLATES / "triton"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (the output is Python, not HTML)
    )
    environment.globals["tile_mask"] = _tile_mask
    return environment


def _tile_mask(start: str, lane: str, limit: str, dims: str, size: str) -> str:
    """Mask arguments of a load: rows beyond ``limit``, columns beyond ``size``, where given."""
    parts = [f"({start} + {lane}[:, None] < {limit})"] if limit else []
    parts += [f"({dims}[None, :] < {size})"] if size else []
    return f", mask={' & '.join(parts)}, other=0.0" if parts else ""


def render_forward(plan: WalkPlan) -> str:
    """Source of a complete module: kernels, ``prepare`` and ``forward``."""
    request = plan.request
    gluon = isinstance(request.config, GluonConfig)
    return _render(
        "gluon_sm90" if gluon else "triton",
        "forward.py.jinja",
        p=plan,
        c=request.config,
        d=_dimensions(request, request.pads),
        header=header(plan),
        imports="" if gluon else _imports(request),
        helpers=plan.helpers | (frozenset() if gluon else plan.prepare_helpers),
        bm="BLOCK_M",
        bn="BLOCK_N",
        prefix="",
    )


def render_backward(plan: BackwardPlan) -> str:
    """Source of a complete module: kernels, ``prepare`` and ``backward``."""
    request = plan.keys.request
    gluon = plan.queries is None
    used = (x.helpers | (frozenset() if gluon else x.prepare_helpers) for x in plan.walks)
    return _render(
        "gluon_sm90" if gluon else "triton",
        "backward.py.jinja",
        plan=plan,
        p=plan.keys,
        c=request.config,
        d=_dimensions(request, plan.pads),
        header=backward_header(plan),
        imports="" if gluon else _imports(request),
        helpers=frozenset().union(*used),
        bm="KEY_M",
        bn="KEY_N",
        prefix="key_",
    )


def _render(target: str, template: str, **context: object) -> str:
    return tidy(_environment(target).get_template(template).render(**context))


def _imports(request: Request) -> str:
    lines = ["import torch", "import triton", "import triton.language as tl"]
    if request.config.loads == "descriptor":
        lines.append("from triton.tools.tensor_descriptor import TensorDescriptor")
    return "\n".join(lines) + "\n"


def _dimensions(request: Request, pads: tuple[int, int]) -> SimpleNamespace:
    return SimpleNamespace(
        head_dim=request.head_dim,
        head_pad=pads[0],
        value_dim=request.value_dim,
        value_pad=pads[1],
        descriptors=request.config.loads == "descriptor",
        precision=', input_precision="ieee"' if request.dtype == "float32" else "",
    )


def tidy(text: str) -> str:
    """No trailing blanks, no stray blank lines, two blank lines between functions."""
    kept: list[str] = []
    blank = quoted = False
    for raw in text.splitlines():
        line = raw.rstrip()
        if not line:
            blank = True
            continue
        if blank and kept and _may_follow_blank(kept[-1], line):
            after_function = kept[-1][0].isspace() and not line[0].isspace() and not quoted
            kept += ["", ""] if after_function or line.startswith(("@", "def ")) else [""]
        quoted ^= line.startswith('"""')
        kept.append(line)
        blank = False
    return "\n".join(kept) + "\n"


def _may_follow_blank(before: str, line: str) -> bool:
    """Blank lines separate paragraphs; they do not open or close a block or a list."""
    return not before.endswith((":", ",", "(")) and not line.strip().startswith((")", "*prepared"))
