import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sds3d.export import glb_morph

EXAMPLE = Path(__file__).parent.parent / "examples" / "03_a_head_and_its_faces.py"


def test_the_head_example_makes_a_file_and_a_sheet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLE))
    made = glb_morph.decode({"head.glb": (tmp_path / "head.glb").read_bytes()})
    assert len(made.shapes) == 51
    assert [clip.name for clip in made.clips] == ["expressions"]
    sheet = np.asarray(Image.open(tmp_path / "faces.png"))
    assert sheet.shape == (768, 1536, 3)
    face, back = (
        sheet[262:, :250],
        sheet[262:, -250:],
    )  # a few pixels in from the other pictures, which shrinking mixes in
    assert face.any()
    assert not back.any(), "from behind the control is empty"
