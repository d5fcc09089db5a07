import runpy
from pathlib import Path

import pytest
from small_run import prior

from sds3d.export.ply import read_ply

EXAMPLE = Path(__file__).parent.parent / "examples" / "02_python_api.py"


def test_the_python_example_makes_an_asset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sds3d.priors.catalogue.open_prior", lambda name: prior(4, ("cube", "cone")))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLE))
    assert len(read_ply(tmp_path / "asset.ply")) >= 1000


def test_the_python_example_has_about_twenty_lines() -> None:
    code = EXAMPLE.read_text().partition('"""\n')[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 22
