"""The source cache: content, concurrent processes, and directories that cannot be used."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from maskwright.dsl.errors import MaskwrightError
from maskwright.runtime import cache
from maskwright.runtime import settings

ROOT = Path(__file__).parents[2]
NAME = "causal_bf16_d128_fwd_0123abcd.py"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE_DIR", str(tmp_path / "cache"))
    cache._warn_once.cache_clear()
    return tmp_path / "cache"


def test_store_writes_below_the_version(folder):
    path = cache.store(NAME, "x = 1\n")
    assert path.read_text() == "x = 1\n"
    assert path.parent.parent == folder
    assert path.parent.name[0].isdigit()


def test_identical_content_is_left_alone():
    path = cache.store(NAME, "x = 1\n")
    first = path.stat()
    assert cache.store(NAME, "x = 1\n") == path
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (first.st_mtime_ns, first.st_ino)


@pytest.mark.parametrize("damage", [b"", b"x = ", b"\x00\xff\xfe"])
def test_corrupt_content_is_rewritten(damage):
    path = cache.store(NAME, "x = 1\n")
    path.write_bytes(damage)
    assert cache.store(NAME, "x = 1\n").read_text() == "x = 1\n"


@pytest.mark.parametrize("name", ["", "a/b.py", "../up.py", ".hidden.py"])
def test_names_with_directories_are_refused(name):
    with pytest.raises(MaskwrightError):
        cache.store(name, "")


def test_entries_size_and_clear():
    cache.store("a_1.py", "12345")
    cache.store("b_2.py", "123")
    assert {e.name: e.size for e in cache.entries()} == {"a_1.py": 5, "b_2.py": 3}
    assert cache.size() == 8
    assert cache.clear() == 2
    assert cache.entries() == []
    assert cache.clear() == 0


def test_clear_touches_only_our_files(folder):
    cache.store(NAME, "x")
    others = [folder / "notes.txt", folder / "mine" / "a.py", cache.directory() / "notes.txt"]
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_text("keep")
    assert cache.clear() == 1
    assert all(other.exists() for other in others)


def test_a_regular_file_in_the_way_warns_once_and_works(tmp_path, monkeypatch):
    blocker = tmp_path / "file"
    blocker.write_text("")
    monkeypatch.setenv("MASKWRIGHT_CACHE_DIR", str(blocker / "cache"))
    with pytest.warns(cache.MaskwrightWarning, match="MASKWRIGHT_CACHE_DIR"):
        path = cache.store(NAME, "x = 1\n")
    assert path.read_text() == "x = 1\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.store(NAME, "x = 1\n") == path
        assert cache.entries() == []
        assert cache.clear() == 0


def test_a_directory_in_the_place_of_the_file_warns_and_works():
    (cache.directory() / NAME).mkdir(parents=True)
    with pytest.warns(cache.MaskwrightWarning):
        path = cache.store(NAME, "x = 1\n")
    assert path.read_text() == "x = 1\n"


def test_full_disk_leaves_nothing_half_done(monkeypatch, tmp_path):
    real = cache.os.replace

    def full(source, target):
        if str(target).startswith(str(tmp_path / "cache")):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(cache.os, "replace", full)
    with pytest.warns(cache.MaskwrightWarning, match="No space left"):
        path = cache.store(NAME, "x = 1\n")
    assert path.read_text() == "x = 1\n"
    assert list(cache.directory().iterdir()) == []


def test_private_directory_goes_at_exit(tmp_path):
    (tmp_path / "file").write_text("")
    code = "from maskwright.runtime import cache; print(cache.store('a.py', 'x'))"
    done = _python(code, tmp_path / "file" / "cache")
    out, err = done.communicate()
    assert "MaskwrightWarning" in err
    assert not Path(out.strip()).parent.exists()


WRITER = """
from maskwright.runtime import cache
for i in range(150):
    name = f"k{i % 5}.py"
    text = f"# {i % 5}\\n" * 2000
    path = cache.store(name, text)
    try:
        assert path.read_text() == text
    except FileNotFoundError:
        assert CLEARING
"""


def test_many_writers_of_the_same_files(folder):
    writers = [_python("CLEARING = False" + WRITER, folder) for _ in range(3)]
    for writer in writers:
        _, err = writer.communicate(timeout=120)
        assert writer.returncode == 0, err
        assert err == ""
    assert len(cache.entries()) == 5
    assert not list(cache.directory().glob("*.tmp"))


def test_writers_beside_a_concurrent_clear(folder):
    writers = [_python("CLEARING = True" + WRITER, folder) for _ in range(2)]
    while any(w.poll() is None for w in writers):
        cache.clear()
    for writer in writers:
        _, err = writer.communicate()
        assert writer.returncode == 0, err
        assert err == ""


def test_override_moves_the_cache(tmp_path):
    with settings.override(cache_dir=tmp_path / "other"):
        assert cache.store(NAME, "x").is_relative_to(tmp_path / "other")
    assert cache.entries() == []


def _python(code: str, folder: Path) -> subprocess.Popen[str]:
    env = {"PYTHONPATH": str(ROOT), "MASKWRIGHT_CACHE_DIR": str(folder), "HOME": "/nonexistent"}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=-1, stderr=-1, text=True, cwd=ROOT
    )
