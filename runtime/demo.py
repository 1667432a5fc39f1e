"""``maskwright demo``: four masks, from expression to checked kernels.

Each mask is printed, its schedule derived, its kernel written and compared with the definition (on
the GPU, or in Triton's interpreter), cross-compiled, and drawn. Everything is left in one folder.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import maskwright
from maskwright import patterns
from maskwright.dsl.errors import MaskwrightError
from maskwright.dsl.expr import Expr
from maskwright.runtime import cli_render as render
from maskwright.runtime.cli_mask import MaskArgument
from maskwright.runtime.cli_mask import Shape
from maskwright.runtime.cli_mask import read_bindings

EXPLAINED = 4096  # length of the printed schedule
DRAWN = 1024
DRAWN_TILE = (32, 32)
STEPS = ("schedule", "kernel", "check", "compile", "picture")


@dataclass(frozen=True)
class Case:
    """One mask of the demonstration."""

    name: str
    title: str
    mask: Expr


@dataclass(frozen=True)
class Device:
    """Where kernels are checked, and at which size."""

    backend: str
    dtype: str
    q_len: int
    head_dim: int
    text: str


def cases() -> list[Case]:
    """The four masks."""
    stride = patterns.local_stride(block=64, local_blocks=2, stride=4, step=1)
    return [
        Case("a_shape", "A-shape: sink and window", patterns.a_shape(sink=64, window=256)),
        Case("vertical_slash", "vertical-slash: runtime lists", patterns.vertical_slash()),
        Case("local_stride", "strided: local and every 4th block", stride),
        Case("anchor_document", "anchor: packed documents", patterns.anchor_document()),
    ]


def run(output: Path, *, arch: str = "sm_90", as_json: bool = False) -> int:
    """Run the demonstration; returns 0 if every kernel agrees with the definition.

    Args:
        output: folder for sources and pictures; created if need be.
        arch: architecture to cross-compile for.
        as_json: print one JSON document instead of text.
    """
    start = time.monotonic()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MaskwrightError(f"cannot create {output}: {error.strerror}") from error
    device = _device()
    todo = cases()
    results = []
    with render.progress(len(todo) * len(STEPS), quiet=as_json) as steps:
        for case in todo:
            result, text = _one(case, output, arch, device, steps)
            results.append(result)
            if not as_json:
                print(text, flush=True)
    seconds = time.monotonic() - start
    if as_json:
        render.print_json({"device": device.text, "seconds": seconds, "masks": results})
    else:
        _summary(results, arch, device, output, seconds)
    return 0 if all(r["check"]["ok"] for r in results) else 1


def _device() -> Device:
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return Device("triton", "bfloat16", 2048, 128, f"on {name}")
    return Device("interpret", "float32", 200, 32, "in Triton's interpreter (no GPU here)")


def _one(
    case: Case, output: Path, arch: str, device: Device, steps: render.Steps
) -> tuple[dict[str, Any], str]:
    """All steps of one mask: (result, text for a person)."""
    from maskwright.runtime.cross import cross_compile

    steps.step(f"{case.name}: deriving the schedule")
    explained = maskwright.explain(case.mask, **_arguments(case, EXPLAINED))
    steps.step(f"{case.name}: writing the kernel")
    source = maskwright.source(case.mask, arch=arch)
    (output / f"{case.name}.py").write_text(source)
    steps.step(f"{case.name}: checking ({device.backend})")
    report = maskwright.check(
        case.mask,
        head_dim=device.head_dim,
        dtype=device.dtype,
        backend=device.backend,
        **_arguments(case, device.q_len, heads=2),
    )
    steps.step(f"{case.name}: compiling for {arch}")
    built = cross_compile(case.mask, arch)[0].to_dict()
    steps.step(f"{case.name}: drawing")
    picture = output / f"{case.name}.png"
    maskwright.draw(case.mask, path=picture, tile=DRAWN_TILE, **_arguments(case, DRAWN))
    result = {
        "name": case.name,
        "mask": str(case.mask),
        "schedule": explained.to_dict(),
        "check": report.to_dict() | {"ok": report.ok},
        "build": built,
        "source": str(output / f"{case.name}.py"),
        "picture": str(picture),
    }
    return result, f"\n{case.title}\n{'-' * len(case.title)}\n{explained}\n\n{report}\n"


def _arguments(case: Case, length: int, heads: int = 1) -> dict[str, Any]:
    """Sizes of a call and example data for its runtime tensors."""
    shape = Shape(batch=1, heads=heads, kv_heads=1, q_len=length, kv_len=length)
    argument = MaskArgument(case.mask, case.name, case.name)
    bindings, _ = read_bindings(argument, [], shape, seed=0)
    return vars(shape) | bindings


def _summary(
    results: list[dict[str, Any]], arch: str, device: Device, output: Path, seconds: float
) -> None:
    rows = []
    for result in results:
        built, found = result["build"], result["schedule"]
        kind = "closed form" if found["closed_form"] else "tile list"
        kind = "runtime lists" if found["listed"] else kind
        verdict = "agrees" if result["check"]["ok"] else "DIFFERS"
        resources = [built.get(key) for key in ("registers", "stack_bytes", "shared_bytes")]
        rows.append([result["name"], kind, float(found["density"]), verdict, *resources])
    columns = ["mask", "schedule", f"density at {EXPLAINED}", "kernel", "registers"]
    render.print_table(
        [*columns, "stack bytes", "shared bytes"], rows, f"checked {device.text}; built for {arch}"
    )
    print(f"\n{output}/ holds each kernel's source and a picture of its mask and tiles.")
    print(f"Done in {seconds:.0f} s. Next: maskwright --help")
