"""Shared fixtures: marks by folder, golden files, private cache directories, one-import guard."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

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
