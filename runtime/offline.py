"""Compile a generated kernel to machine code with no GPU, and read what it takes."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
import time
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from maskwright.codegen.config import SHARED_KIB
from maskwright.codegen.config import KernelConfig
from maskwright.codegen.config import arch_number
from maskwright.codegen.gluon import ROWS
from maskwright.codegen.gluon import GluonConfig
from maskwright.codegen.gluon import GluonTemplate
from maskwright.codegen.gluon_backward import GluonBackwardConfig
from maskwright.codegen.plan import WalkPlan
from maskwright.dsl.errors import LoweringError
from maskwright.runtime import cache

_POINTERS = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}
_TABLES = {"int": "*i32", "bool": "*u8", "float": "*fp32"}


@dataclass(frozen=True)
class BuildReport:
    """Resources of a kernel on one architecture.

    Attributes:
        kernel: its name in the module, without ``_kernel``.
        registers: per thread.
        stack_bytes: local memory per thread; spills show here.
        shared_bytes: shared memory of a program.
        instructions: counts of the SASS instructions that matter.
    """

    arch: str
    kernel: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    shared_limit: int
    num_warps: int
    cubin_bytes: int
    seconds: float
    instructions: dict[str, int]

    @property
    def spills(self) -> bool:
        """Registers went to local memory."""
        return self.stack_bytes > 0 or self.instructions.get("LDL", 0) > 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"spills": self.spills}

    def __str__(self) -> str:
        spills = f"SPILLS {self.stack_bytes} bytes" if self.spills else "no spills"
        return (
            f"{self.arch}: {self.kernel}, {self.registers} registers, {spills}, "
            f"{self.shared_bytes / 1024:.0f} of {self.shared_limit / 1024:.0f} KiB shared, "
            f"{self.num_warps} warps, cubin {self.cubin_bytes / 1024:.0f} KiB, {self.seconds:.1f} s"
        )


def build(
    plan: WalkPlan, pads: tuple[int, int], source: str, name: str, arch: str, kernel: str
) -> BuildReport:
    """Compile one kernel of a module for ``arch``.

    Args:
        plan: of the kernel.
        pads: columns of its tiles of keys and of values.
        source, name: of the module.

    Raises:
        LoweringError: if the architecture is unknown or the compiler refuses.
    """
    import triton
    from triton.backends.compiler import GPUTarget

    number = arch_number(arch)
    module = _load(cache.store(f"{name}.py", source), name)
    config = plan.request.config
    function = getattr(module, kernel)
    signature, attrs = _signature(plan, pads, function.arg_names, module)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    if isinstance(config, GluonTemplate):
        options = module.OPTIONS.get(kernel, module.OPTIONS)
    started = time.perf_counter()
    try:
        compiled = triton.compile(
            _ast_source(config)(function, signature, {}, attrs),
            target=GPUTarget("cuda", number, 32),
            options=options,
        )
    except Exception as error:
        raise LoweringError(f"{arch}: the Triton compiler refused: {error}") from error
    seconds = time.perf_counter() - started
    cubin = compiled.asm["cubin"]
    registers, stack = resources(cubin)
    limit = SHARED_KIB.get(number, 99) * 1024
    return BuildReport(
        arch,
        kernel.removesuffix("_kernel"),
        registers,
        stack,
        compiled.metadata.shared,
        limit,
        compiled.metadata.num_warps,
        len(cubin),
        seconds,
        _instructions(cubin),
    )


def _ast_source(config: object) -> Any:
    if isinstance(config, GluonTemplate):
        from triton.experimental.gluon._runtime import GluonASTSource

        return GluonASTSource
    from triton.compiler import ASTSource

    return ASTSource


def _load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"maskwright_offline_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _signature(
    plan: WalkPlan, pads: tuple[int, int], names: list[str], module: ModuleType
) -> tuple[dict[str, str], dict[Any, Any]]:
    """Types of a kernel's arguments, with the alignment a real call has."""
    types = {name: _type(name, plan, pads) for name in names}
    config = plan.request.config
    if isinstance(config, GluonTemplate):
        # A descriptor of Gluon's has a layout of shared memory in its type.
        for name, layout in _LAYOUTS.items():
            if types.get(name, "").startswith("tensordesc"):
                types[name] = types[name].replace(">", f",{getattr(module, layout)!r}>")
        if isinstance(config, GluonConfig) and config.bulk_store:
            types["out"] = types["query"]
    attrs: dict[Any, Any] = {}
    for i, (name, kind) in enumerate(types.items()):
        if kind.startswith("*") or name.startswith("stride_"):
            attrs[i,] = [["tt.divisibility", 16]]
    return types, attrs


_FIXED = {"lse": "*fp32", "delta": "*fp32", "sinks": "*fp32", "scale": "fp32", "bounds": "*i32"}
_FIXED |= {"counter": "*i32", "tile_list": "*i32", "list_starts": "*i64", "list_partial": "*i32"}
_FIXED |= dict.fromkeys(("listed", "listed_tiles", "listed_rows", "listed_end"), "*i32")
_BITS = re.compile(r"bits_\d+")
_LAYOUTS = {"query": "QUERY_LAYOUT", "key": "KEY_LAYOUT", "value": "VALUE_LAYOUT"}
_LAYOUTS |= {"grad_out": "GRAD_LAYOUT", "query_sums": "SUMS_LAYOUT"}
_LAYOUTS |= {"lse": "ROW_LAYOUT", "delta": "ROW_LAYOUT"}
# Tiles that each consumer has a part of.
_OF_A_CONSUMER: dict[type, tuple[str, ...]] = {
    GluonConfig: ("query",),
    GluonBackwardConfig: ("key", "value"),
}
_RESULTS = ("out", "grad_query", "grad_key", "grad_value")


def _type(name: str, plan: WalkPlan, pads: tuple[int, int]) -> str:
    config, element = plan.request.config, _POINTERS[plan.request.dtype]
    bulk = config.loads == "descriptor"
    in_bulk = isinstance(config, KernelConfig) and config.statistics_in_bulk
    match name:
        case "query" | "key" | "value" | "grad_out":
            length = config.block_m if name in ("query", "grad_out") else config.block_n
            if name in _OF_A_CONSUMER.get(type(config), ()):
                length = ROWS
            size = pads[name in ("value", "grad_out")]
            return f"tensordesc<{element[1:]}[1, 1, {length}, {size}]>" if bulk else element
        case "key_data" | "value_data":
            return element
        case "lse" | "delta" if isinstance(config, GluonBackwardConfig):
            return f"tensordesc<fp32[{config.block_m}]>"
        case "lse" | "delta" if plan.backward and in_bulk:
            return f"tensordesc<fp32[1, 1, {config.block_m}]>"
        case "query_sums" if isinstance(config, GluonBackwardConfig):
            return f"tensordesc<fp32[1, 1, {ROWS}, {config.part_dims(pads[0])}]>"
    if name in _RESULTS:
        return element
    if name in _FIXED or _BITS.fullmatch(name):
        return _FIXED.get(name, "*i32")
    for x in plan.bindings:
        if name in (x.text, f"{x.text}_sorted") and x.ndim:
            return _TABLES[x.dtype]
        if name == f"grad_{x.text}":
            return "*fp32"
    return "i32"


def _tool(name: str) -> str:
    import triton

    found = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not found.exists():
        raise LoweringError(f"{name} is missing from the triton package")
    return str(found)


def _run(tool: str, *options: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(  # noqa: S603
            [_tool(tool), *options, file.name], capture_output=True, text=True, check=False
        )
    return done.stdout


def resources(cubin: bytes) -> tuple[int, int]:
    """(registers, stack bytes) from cuobjdump."""
    text = _run("cuobjdump", "--dump-resource-usage", cubin=cubin)
    found = re.search(r"REG:(\d+)\s+STACK:(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def disassembly(cubin: bytes) -> str:
    """The SASS of a kernel."""
    return _run("nvdisasm", "-c", cubin=cubin)


def _instructions(cubin: bytes) -> dict[str, int]:
    """How often the instructions that decide speed occur in the SASS."""
    text = disassembly(cubin)
    names = (
        *("HGMMA", "HMMA", "UTMALDG", "LDGSTS", "LDL", "STL", "MUFU.EX2", "WARPGROUP.DEPBAR"),
        *("USETMAXREG", "BAR.SYNC", "SHFL", "LDGSTS.E.BYPASS.128"),
    )
    found = {name: text.count(name) for name in names if name in text}
    # Without a count, or of one partition: those of Triton, not of a template.
    barriers = re.findall(r"BAR\.SYNC\S* 0x([0-9a-f]+)(?:, 0x80)? ;", text)
    return found | {
        "LDL in loops": _loads_in_loops(text.splitlines()),
        "barriers of Triton": 1 + max((int(x, 16) for x in barriers), default=-1),
    }


def _loads_in_loops(lines: list[str]) -> int:
    """Loads of spilled registers in the loops over tiles: with products and exponentials.

    What waits for a barrier jumps back from the end of a kernel; only the shortest of the loops
    that overlap counts.
    """
    labels = {x.split(":")[0]: i for i, x in enumerate(lines) if x.startswith(".L_x_")}
    jumps = ((re.search(r"BRA.*`\((\.L_x_\d+)\)", x), i) for i, x in enumerate(lines))
    loops = [(labels.get(x[1], len(lines)), i) for x, i in jumps if x]
    taken: list[tuple[int, int]] = []
    for first, last in sorted(loops, key=lambda x: x[1] - x[0]):
        text = "".join(lines[first:last])
        apart = all(last < x or y < first for x, y in taken)
        if apart and "HGMMA" in text and "MUFU.EX2" in text:
            taken.append((first, last))
    return sum("LDL" in x for first, last in taken for x in lines[first:last])
