"""Example 01 runs, and on the prior that is known exactly it finds the picture that it is asked for."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from sds3d.testing import analytic_prior

SCRIPT = Path(__file__).parent.parent / "examples" / "01_sds_on_an_image.py"


@pytest.mark.parametrize(("name", "row"), [("red", 0), ("blue", 1)])
def test_it_finds_the_component_that_it_is_asked_for(name, row):
    prior = analytic_prior()
    distil = runpy.run_path(str(SCRIPT))["distil"]
    picture = distil(prior, name, steps=200, scale=1.0)
    truth = prior.decode(prior.means[row : row + 1])
    assert (picture - truth).abs().mean() < 0.03
    assert torch.equal(picture, distil(prior, name, steps=200, scale=1.0))


def test_it_writes_a_picture(tmp_path, monkeypatch, capsys):
    out = tmp_path / "disc.png"
    given = [str(SCRIPT), "red", "--prior", "analytic", "--steps", "30", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", given)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert capsys.readouterr().out.strip() == str(out)
    with Image.open(out) as picture:
        assert picture.size == (256, 256)
