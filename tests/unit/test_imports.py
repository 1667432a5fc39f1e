"""What imports what: light imports, one direction, one name for each module."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import maskwright

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "triton", "optuna", "sympy", "matplotlib", "rich", "jinja2")

# folder -> folders of this project it may import from
ALLOWED = {
    "dsl": {"dsl"},
    "patterns": {"dsl", "patterns"},
    "codegen": {"dsl", "codegen"},
    "autotune": {"dsl", "codegen", "patterns", "runtime", "autotune"},
}
NO_GPU = ("dsl", "patterns", "codegen")
SELECTORS = ROOT / "patterns" / "selectors"  # they compute; nothing imports them unasked


def imports(path: Path) -> set[str]:
    """Modules imported anywhere in a file, outside ``if TYPE_CHECKING``."""
    found: set[str] = set()
    stack: list[ast.AST] = [ast.parse(path.read_text())]
    while stack:
        match stack.pop():
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.Import(names=names):
                found |= {a.name for a in names}
            case ast.ImportFrom(module=str(module), names=names):
                found |= {f"{module}.{a.name}" for a in names}
            case node:
                stack.extend(ast.iter_child_nodes(node))
    return found


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("name", ["maskwright", "maskwright.patterns", "maskwright.codegen.api"])
def test_import_is_light(name):
    allowed = () if name == "maskwright" else ("sympy", "jinja2")
    banned = [m for m in HEAVY if m not in allowed]
    code = f"import sys, {name}; print([m for m in {banned} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("folder", ALLOWED)
def test_import_direction(folder):
    for path in files(folder):
        for module in imports(path):
            parts = module.split(".")
            if parts[0] == "maskwright" and len(parts) > 1:
                assert parts[1] in ALLOWED[folder] | {"__version__"}, f"{path} imports {module}"


@pytest.mark.parametrize("folder", NO_GPU)
def test_no_torch_and_no_triton_before_the_runtime(folder):
    for path in files(folder):
        if SELECTORS in path.parents:
            continue
        heavy = {m.split(".")[0] for m in imports(path)} & {"torch", "triton"}
        assert not heavy, f"{path} imports {heavy}"


def test_no_bare_folder_names():
    folders = {*ALLOWED, "runtime"}
    for folder in (*folders, "tests", "benchmarks", "maskwright"):
        for path in files(folder):
            bare = {m for m in imports(path) if m.split(".")[0] in folders}
            assert not bare, f"{path} imports {bare}: write maskwright.{bare.pop()}"


def test_every_public_name_resolves():
    for name in maskwright.__all__:
        assert getattr(maskwright, name) is not None
    assert set(maskwright.__all__) <= set(dir(maskwright))


def test_selectors_come_when_they_are_asked_for():
    pytest.importorskip("torch")
    assert maskwright.patterns.selectors.vertical_slash is not maskwright.patterns.vertical_slash
    with pytest.raises(AttributeError, match="no attribute 'selector'"):
        _ = maskwright.patterns.selector


def test_unknown_names_raise():
    with pytest.raises(AttributeError, match="no attribute 'attentoin'"):
        _ = maskwright.attentoin


def test_a_checkout_without_links_says_how_to_fix_it(tmp_path):
    package = tmp_path / "maskwright"
    package.mkdir()
    (package / "__init__.py").write_text((ROOT / "maskwright" / "__init__.py").read_text())
    (package / "dsl").write_text("../dsl")
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import sys; sys.path.insert(0, '.'); import maskwright"]
        if sys.version_info >= (3, 11)
        else [sys.executable, "-c", "import maskwright"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": ""},
        check=False,
    )
    assert "core.symlinks" in done.stderr


def test_links_are_relative_and_complete():
    for folder in (*ALLOWED, "runtime"):
        link = ROOT / "maskwright" / folder
        assert link.is_symlink()
        assert link.readlink() == Path("..") / folder


def test_versions_agree():
    text = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{maskwright.__version__}"' in text
