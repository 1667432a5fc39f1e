"""Settings: parsing, overrides, and the generated page."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import pytest

from maskwright.dsl.errors import MaskwrightError
from maskwright.runtime import settings

ROOT = Path(__file__).parents[2]


def test_defaults(monkeypatch):
    for name in settings.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    now = settings.current()
    assert now.cache_dir == Path("/somewhere/maskwright")
    assert (now.debug, now.tune, now.strict) == (frozenset(), "use", False)
    assert (now.backend, now.verify) == ("auto", False)


def test_relative_cache_home_is_ignored(monkeypatch):
    monkeypatch.delenv("MASKWRIGHT_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/someone")
    assert settings.current().cache_dir == Path("/home/someone/.cache/maskwright")


def test_environment_is_read_at_every_call(monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_STRICT", "1")
    assert settings.current().strict
    monkeypatch.setenv("MASKWRIGHT_STRICT", "0")
    assert not settings.current().strict
    monkeypatch.setenv("MASKWRIGHT_DEBUG", " plan, Source ,")
    assert settings.current().debug == {"plan", "source"}
    monkeypatch.setenv("MASKWRIGHT_DEBUG", "")
    assert settings.current().debug == frozenset()


def test_same_environment_gives_the_same_object():
    assert settings.current() is settings.current()


@pytest.mark.parametrize(
    ("variable", "value", "hint"),
    [
        ("MASKWRIGHT_STRICT", "perhaps", "0 or 1"),
        ("MASKWRIGHT_TUNE", "always", "off, use, on"),
        ("MASKWRIGHT_BACKEND", "cuda", "auto, gluon, triton"),
        ("MASKWRIGHT_DEBUG", "plan,ast", "ptx"),
    ],
)
def test_bad_variables_name_themselves(monkeypatch, variable, value, hint):
    monkeypatch.setenv(variable, value)
    with pytest.raises(MaskwrightError) as error:
        settings.current()
    assert variable in str(error.value)
    assert hint in str(error.value)


def test_override_nests_and_restores():
    before = settings.current()
    with settings.override(strict=True, backend="interpret"):
        with settings.override(strict=False) as inner:
            assert (inner.strict, inner.backend) == (False, "interpret")
        assert settings.current().strict
    assert settings.current() == before


def test_override_wins_over_a_bad_variable(monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_TUNE", "nonsense")
    with settings.override(tune="off") as now:
        assert now.tune == "off"


def test_override_refuses_unknown_names_and_values():
    with pytest.raises(MaskwrightError, match="no setting 'speed'"), settings.override(speed=1):
        pass
    with pytest.raises(MaskwrightError, match="cannot be 3"), settings.override(backend=3):
        pass
    with pytest.raises(MaskwrightError, match="a path"), settings.override(cache_dir=""):
        pass


def test_override_is_of_one_thread():
    seen = []
    with settings.override(strict=True):
        worker = threading.Thread(target=lambda: seen.append(settings.current().strict))
        worker.start()
        worker.join()
    assert seen == [False]


def test_debug_adds_topics():
    with settings.debug("plan"), settings.debug("source", "mask") as now:
        assert now.debug == {"plan", "source", "mask"}
    with pytest.raises(MaskwrightError, match="'asm'"), settings.debug("asm"):
        pass


def test_every_field_has_a_variable_and_a_doc():
    for field, variable in zip(
        dataclasses.fields(settings.Settings), settings.VARIABLES, strict=True
    ):
        assert variable == f"MASKWRIGHT_{field.name.upper()}"
        assert field.metadata["doc"].endswith(".")


def test_docs_page_is_not_stale():
    page = ROOT / "docs" / "settings.md"
    assert page.read_text() == settings.docs_table(), "write it again with: make docs"
