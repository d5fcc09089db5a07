"""docs/extend.md is run, so that it cannot go stale."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from sds3d import plugins
from sds3d.core import Guidance
from sds3d.terms import Guide
from sds3d.testing import GuidanceLaws, analytic_prior

TEXT = (Path(__file__).parent.parent / "docs" / "extend.md").read_text()
MINE, _, SEEN = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Guidance]:
    """The page's first example, loaded as the command line loads it."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return plugins.load_file("./mine.py:ClassifierScore")[1]


def test_the_example_keeps_the_laws(mine: type[Guidance]) -> None:
    laws = type("Laws", (GuidanceLaws,), {"guidance": mine()})()
    names = [name for name in dir(laws) if name.startswith("test_")]
    assert len(names) >= 11
    for name in names:
        law = getattr(laws, name)
        law(**{given: analytic_prior(group=4) for given in inspect.signature(law).parameters})


def test_the_microscope_explains_it(mine: type[Guidance], tmp_path: Path) -> None:
    exec(SEEN, {"ClassifierScore": mine})
    assert (tmp_path / "seen.png").read_bytes().startswith(b"\x89PNG")


def test_the_words_that_a_recipe_keeps_are_the_page_s() -> None:
    kept = {field.name for field in fields(Guide)} - {"guidance"}
    (told,) = re.findall(r"must not be called (.*?), which a recipe keeps", TEXT, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", told)) == kept


def test_every_file_that_the_page_names_is_there() -> None:
    root = Path(__file__).parent.parent
    for name in re.findall(r"`((?:sds3d|tests|examples)/[\w./]+)`", TEXT):
        assert (root / name).exists(), name
