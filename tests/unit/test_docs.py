"""README and docs/ are true: generated text, examples, doctests, names and links.

A fenced block that follows a comment such as ``<!-- schedule: k <= q -->`` is generated; ``make
golden TESTS=tests/unit/test_docs.py`` writes these blocks and the README's picture anew.
"""

from __future__ import annotations

import doctest
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import maskwright as mw
from maskwright import patterns
from maskwright.codegen.describe import schedule_lines
from maskwright.codegen.schedule import derive
from maskwright.codegen.tile import TileShape

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
TRAINING = ROOT / "examples" / "train_lm.py"  # slow; test_training.py runs it in short
EXAMPLES = sorted(set((ROOT / "examples").glob("*.py")) - {TRAINING})
PICTURE = ROOT / "docs" / "img" / "a_shape.png"
LARGEST_PICTURE = 60_000
BLOCK = re.compile(
    r"<!-- (schedule|transposed|scalars|bounds|loops|explain): (.+?) -->\n```\w*\n(.*?)```",
    re.DOTALL,
)
LENGTH = 131072  # of explained calls
CUT = "        ...\n"


def page_id(page: Path) -> str:
    return page.name


# -- generated blocks -----------------------------------------------------------------------------
def generated(kind: str, text: str) -> str:
    """What a block of this kind shows for a mask."""
    mask = mw.parse(text)
    match kind:
        case "explain":
            return f"{mw.explain(mask, q_len=LENGTH)}\n"
        case "schedule":
            return "\n".join(schedule_of(mw.source(mask))) + "\n"
        case "transposed":
            tile = TileShape(64, 64, transposed=True)
            return "\n".join(schedule_lines(derive(mask.node, tile))) + "\n"
        case "scalars":
            return between(mw.source(mask), "    # Positions of the tile's", "    row = tile_m")
        case "bounds":
            return between(mw.source(mask), "    bounds_row = bounds", "    row = tile_m")
    return loops_of(mw.source(mask))


def schedule_of(source: str) -> Iterator[str]:
    """The schedule in the header of a generated module."""
    inside = False
    for line in source.splitlines():
        if inside and not line.startswith("    "):
            return
        if inside:
            yield line[4:]
        inside = inside or line.startswith("schedule (")


def between(source: str, first: str, end: str) -> str:
    """The text of ``forward_kernel`` from one line up to another."""
    kernel = source[source.index("def forward_kernel") :]
    return kernel[kernel.index(first) : kernel.index(end)].rstrip() + "\n"


def loops_of(source: str) -> str:
    """The full loop, and the partial one as far as it differs."""
    last = '        scores = tl.where(keep, scores, float("-inf"))\n'
    full = between(source, "    # Full tiles", "    # Partial tiles")
    partial = between(source, "    # Partial tiles", last)
    return f"{full}\n{partial}{last}{CUT}"


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(kind, mask, text) of the generated blocks of a page."""
    return [(m[1], m[2], m[3]) for m in BLOCK.finditer(page.read_text())]


@pytest.mark.golden
@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_generated_blocks(page, request):
    if request.config.getoption("--update-golden"):
        write_blocks(page)
    for kind, mask, text in blocks(page):
        assert text == generated(kind, mask), f"{page.name}, {kind}: {mask}"


def write_blocks(page: Path) -> None:
    def anew(found: re.Match[str]) -> str:
        return found[0].removesuffix(f"{found[3]}```") + generated(found[1], found[2]) + "```"

    page.write_text(BLOCK.sub(anew, page.read_text()))
    if page == README:
        draw_picture()


def draw_picture() -> None:
    """The README's picture, as its command makes it, with fewer colours to keep it small."""
    from PIL import Image

    mw.draw(readme_mask(), 4096, tile=(128, 64), path=PICTURE)
    Image.open(PICTURE).convert("RGB").quantize(32).save(PICTURE, optimize=True)


def readme_mask() -> mw.Expr:
    """The mask of the README's example."""
    line = next(x for x in example_of_readme().splitlines() if x.startswith("mask = "))
    return mw.parse(line.removeprefix("mask = ").partition("#")[0].strip())


def test_the_readme_shows_the_kernel_of_its_example():
    shown = {kind: (mask, text) for kind, mask, text in blocks(README)}
    source = mw.source(readme_mask())
    assert mw.parse(shown["explain"][0]).equals(readme_mask())
    assert mw.parse(shown["loops"][0]).equals(readme_mask())
    pieces = shown["loops"][1].removesuffix(CUT)
    assert pieces in source
    assert "for step in" in pieces
    assert "keep = " in pieces


def test_the_picture_is_small():
    assert PICTURE.read_bytes()[:4] == b"\x89PNG"
    assert PICTURE.stat().st_size < LARGEST_PICTURE
    assert "(docs/img/a_shape.png)" in README.read_text()


# -- examples -------------------------------------------------------------------------------------
def example_of_readme() -> str:
    """The first Python block."""
    return README.read_text().split("```python\n")[1].split("```")[0]


def test_the_readme_example_runs(capsys):
    pytest.importorskip("torch")
    code = example_of_readme()
    assert len(code.splitlines()) == 12
    values: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), values)  # noqa: S102
    printed = capsys.readouterr().out
    text = next(text for kind, _, text in blocks(README) if kind == "explain")
    assert text in printed
    assert "def forward_kernel(" in printed
    assert values["out"].shape == values["query"].shape


@pytest.mark.parametrize("path", EXAMPLES, ids=page_id)
def test_examples_run(path, capsys):
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_doctests(page):
    test = doctest.DocTestParser().get_doctest(sessions(page), {}, page.name, str(page), 0)
    said: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
    doctest.DocTestRunner(optionflags=flags).run(test, out=said.append)
    assert not said, "".join(said)


def sessions(page: Path) -> str:
    """The page's ``pycon`` blocks; other lines are blank, so that line numbers are right."""
    kept, inside = [], False
    for line in page.read_text().splitlines():
        inside = line.startswith("```pycon") or (inside and not line.startswith("```"))
        kept.append(line if inside and not line.startswith("```") else "")
    return "\n".join(kept) + "\n"


# -- names, links, paths --------------------------------------------------------------------------
def test_every_public_name_is_documented():
    text = README.read_text() + (ROOT / "docs" / "dsl.md").read_text()
    words = set(re.findall(r"\w+", text))
    assert not set(mw.__all__) - words
    assert not set(patterns.__all__) - words


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in t]
    missing = [t for t in targets if not (page.parent / t.partition("#")[0]).exists()]
    anchors = [t for t in targets if "#" in t and t.partition("#")[2] not in headings(page, t)]
    assert not missing + anchors


def headings(page: Path, target: str) -> set[str]:
    """Anchors of the page that a link names."""
    name = target.partition("#")[0]
    text = (page.parent / name if name else page).read_text()
    found = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in found}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_exist(page):
    from maskwright.runtime.cli import parser

    commands = set(parser()._subparsers._group_actions[0].choices)
    used = set(
        re.findall(r"^(?:\$ )?(?:MASKWRIGHT_\w+=\S+ )*maskwright (\w+)", code(page), re.MULTILINE)
    )
    used |= set(re.findall(r"`maskwright (\w+)", page.read_text()))
    assert used <= commands
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", code(page), re.MULTILINE)) <= targets


def code(page: Path) -> str:
    """The fenced blocks of a page."""
    return "\n".join(re.findall(r"```\w*\n(.*?)```", page.read_text(), flags=re.DOTALL))
