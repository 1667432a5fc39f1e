"""Shared fixtures: marks by folder, golden files, private cache directories, one-import guard."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
FOLDERS = ("dsl", "codegen", "autotune", "runtime", "patterns")
MARKED = ("unit", "golden", "property", "interpret", "compile", "gpu", "slow")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="write the golden files instead of comparing"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """tests/<mark>/... carries that mark; GPU tests skip with a reason where there is none."""
    for item in items:
        parts = item.path.relative_to(TESTS).parts if TESTS in item.path.parents else ()
        if parts and parts[0] in MARKED:
            item.add_marker(parts[0])
        if "golden" in getattr(item, "fixturenames", ()):
            item.add_marker("golden")
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU; torch sees none"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session", autouse=True)
def _one_name_a_module() -> Iterator[None]:
    """One name, one module object: `dsl.x` beside `maskwright.dsl.x` would double every class."""
    yield
    doubled = [name for name in sys.modules if name.split(".")[0] in FOLDERS]
    assert not doubled, f"imported under a bare name: {doubled}; import them from maskwright"


@pytest.fixture(autouse=True)
def _private_settings(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests use one cache directory a worker, never the user's, and no variable of the shell."""
    for name in ("DEBUG", "TUNE", "STRICT", "BACKEND", "VERIFY"):
        monkeypatch.delenv(f"MASKWRIGHT_{name}", raising=False)
    monkeypatch.setenv("MASKWRIGHT_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads of small tensors wait for each other longer than they work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Golden(str):
    """Text of a golden file; ``==`` compares, or writes under ``--update-golden``."""

    __slots__ = ("path", "update")
    path: Path
    update: bool

    def __eq__(self, other: object) -> bool:
        if self.update and isinstance(other, str):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(other)
            return True
        if not self.path.exists():
            pytest.fail(f"no golden file {self.path.name}; write it with: make golden")
        return str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """``assert text == golden`` compares with ``tests/golden/<test file>/<test name>.txt``."""
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in request.node.name)
    path = TESTS / "golden" / request.path.stem / f"{name.strip('-')}.txt"
    text = Golden(path.read_text() if path.exists() else "")
    text.path = path
    text.update = bool(request.config.getoption("--update-golden"))
    return text


@pytest.fixture
def make_entry() -> Any:
    """A factory of tuned configurations: of a mask, with parts of the key or the entry replaced."""
    from maskwright import k
    from maskwright import q
    from maskwright.autotune import entry as e
    from maskwright.autotune import key as t
    from maskwright.codegen.config import KernelConfig

    parts = {
        "bucket": t.Bucket(13, 13, 6, "half"),
        "hardware": t.Hardware("NVIDIA H100 80GB HBM3", "sm_90", 132, 232448, 52428800),
        "software": t.Software("3.6.0", "12.8", "0123456789abcdef"),
    }
    fixed = {"op": "forward", "template": "triton", "dtype": "bfloat16", "layout": "heads"}
    fixed |= {"head_dim": 128, "value_dim": 128, "group": 4, "aligned": True, "inside": True}

    def made(mask: Any = k <= q, *, key: Any = None, config: Any = None, **changes: Any) -> Any:
        names = {
            "ms": 0.742,
            "ratio": 0.9,
            "spread": 0.01,
            "date": "2026-11-22",
            "kind": "measured",
        }
        names |= {x: changes.pop(x) for x in (*names, *parts) if x in changes}
        found = {x: names.get(x, part) for x, part in parts.items()}
        key = key or t.Key(t.Problem.of(mask.node, None, **(fixed | changes)), **found)
        result = e.Result(names["ms"], names["ratio"], names["spread"], 9, 1740, 551.0)
        rest = ("0a1b", "570.0", "2.11.0", "0.1.0", 60.0, 80, "space")
        source = e.Provenance(names["kind"], names["date"], *rest)
        checks = e.Checks(0.0011, 0.01, ("1x32x8192x128",))
        config = config or KernelConfig(64, 64, 4, 3, "descriptor")
        return e.Entry(key, config, result, source, checks, failed={"compile": 3, "spill": 6})

    return made
