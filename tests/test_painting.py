"""Regions over a mesh's texture: drawn as they are looked up, painted or found, and edits that stay inside."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from small_run import prior

from sds3d import exporting, painting
from sds3d.cameras import orbit
from sds3d.cli import cli
from sds3d.core import Background, Condition, Step
from sds3d.diffusion import diffuse
from sds3d.export import export
from sds3d.export import video as turntable_video
from sds3d.export.textures import to_png
from sds3d.guidance.sds import Sds
from sds3d.opening import opened
from sds3d.priors.attention import attended, changed
from sds3d.priors.network import open_folder
from sds3d.prompts import Prompts
from sds3d.record import RunFolder
from sds3d.regions import Texels
from sds3d.renderers.raster import Raster
from sds3d.renderers.splats import Splats
from sds3d.representations.mesh import icosphere, logits_of
from sds3d.representations.start import Blob
from sds3d.representations.texture import TexturedMesh, unwrap
from sds3d.terms import Term
from sds3d.watchers import png

S = 64
WHITE = Background(torch.ones(4, 3))
CAMERAS = orbit([0, 90, 180, 270], 10.0, 32)
TINY = ("--steps", "4", "--quiet", "--set", "stages.edit.cameras.size=16", "--set", "exports=[]",
        "--set", "stages.edit.optimise.offsets=0")  # fmt: skip


@pytest.fixture(scope="module")
def ball() -> TexturedMesh:
    """A smooth ball, whose colours are red at the front and fall to 0.2 at the back."""
    mesh = icosphere(2, 0.6)
    red = 0.5 + mesh.vertices[:, :1] / 2
    with torch.no_grad():
        mesh.colour_logits.copy_(logits_of(torch.cat([red, 0.3 + 0 * red, 0.3 + 0 * red], dim=1)))
    return unwrap(mesh, S)


def region(folder: Path, values: torch.Tensor) -> Texels:
    (folder / "region.npy").write_bytes(painting.saved(values))
    return Texels(str(folder / "region.npy"))


# ---- a region of a texture -------------------------------------------------------------------------------------------


def test_a_region_is_drawn_as_the_texture_is(ball: TexturedMesh, tmp_path: Path) -> None:
    """One that holds a channel of the texture shows what the rasteriser shows, but for the mixing at the outline."""
    out = Raster()(ball, CAMERAS, WHITE)
    seen = region(tmp_path, ball.albedo_logits.detach().sigmoid()[..., 0]).seen(CAMERAS, out)
    assert out.uv is not None
    hit = out.uv[..., :1] >= 0
    inner = -torch.nn.functional.max_pool2d(-hit.movedim(-1, 1).float(), 3, 1, 1).movedim(1, -1) > 0
    assert inner.sum() > 500
    torch.testing.assert_close(seen[inner], out.rgb[..., :1][inner], rtol=0, atol=2e-6)
    assert not seen[~hit].any()


def test_what_has_no_texture_or_file_is_named(ball: TexturedMesh, tmp_path: Path) -> None:
    out = Raster()(icosphere(1), CAMERAS, WHITE)
    with pytest.raises(ValueError, match="a mesh with textures"):
        region(tmp_path, torch.ones(4, 4)).seen(CAMERAS, out)
    with pytest.raises(ValueError, match=r"grid \[R, R\]"):
        region(tmp_path, torch.ones(4, 4, 4)).seen(CAMERAS, Raster()(ball, CAMERAS, WHITE))
    with pytest.raises(ValueError, match="There is no file"):
        Texels(str(tmp_path / "none.npy")).seen(CAMERAS, out)


def test_texels_know_their_place_and_lend_it_to_those_between_the_charts(ball: TexturedMesh) -> None:
    at, places = painting.places(ball)
    away = places.norm(dim=-1)
    assert (away > 0.55).all() and (away <= 0.6 + 1e-6).all()  # within the flat triangles of the ball
    picture = painting.spread(at, places[:, 2])
    assert picture.shape == (painting.SIDE,) * 2
    torch.testing.assert_close(picture.flatten()[at], places[:, 2])
    assert set(picture.unique().tolist()) <= set(places[:, 2].tolist())


# ---- where a word is read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pixel", "views", "latent"])
def test_what_all_words_are_read_adds_up_to_one(folders, name: str) -> None:
    model = open_folder(folders[name])
    z = model.encode(torch.rand(4, 16, 16, 3, generator=torch.Generator().manual_seed(0)))
    x, text = diffuse(model, z, Step(0), (0.5, 0.5)), model.text(["a red cube"]).expand(4, -1, -1)
    condition = model.condition(text, CAMERAS)
    length = text.shape[1]
    parts = [attended(model, x, condition, torch.arange(length) == k) for k in range(length)]
    torch.testing.assert_close(sum(parts), torch.ones_like(parts[0]))
    assert all((part > 0).all() for part in parts)
    before = model.predict({"cond": x.ask({"cond": condition}, "cond")["cond"]})["cond"]
    attended(model, x, condition, torch.arange(length) == 1)
    assert torch.equal(before, model.predict(x.ask({"cond": Condition(text, condition.camera)}, "cond"))["cond"])


def test_the_words_of_an_edit_are_those_that_the_source_lacks(folders) -> None:
    model = open_folder(folders["pixel"])
    marked = changed(model, "a red cube on top", "a blue cube")
    tokens = model.reader.tokenizer.convert_ids_to_tokens(model.reader.numbers("a red cube on top")[0][marked].tolist())
    assert tokens == ["red</w>", "on</w>", "top</w>"]
    assert not changed(model, "a cube", "a red cube").any()


def test_without_words_of_its_own_or_an_attention_nothing_is_told(folders) -> None:
    model = open_folder(folders["pixel"])
    grey = Background(torch.full((4, 3), 0.5), ("red",) * 4)
    image = torch.rand(4, 16, 16, 3, generator=torch.Generator().manual_seed(0))

    def told(prior, after: str, before: str):
        term = Term("edit", Sds(), prior, Prompts(after, source=before, name_background=False))
        return painting.attention(term, CAMERAS, grey, image, (0.5,), Step(0))

    read = told(model, "a red cube", "a blue cube")
    assert read is not None and read.shape == (4, 16, 16, 1) and (read > 0).all()
    assert told(model, "a cube", "a red cube") is None
    assert told(prior(), "red", "blue") is None


# ---- edits -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def asset(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ball: TexturedMesh) -> Path:
    """The ball as a file in an empty working folder, where every prior is the analytic one."""
    monkeypatch.setattr("sds3d.priors.catalogue.open_prior", lambda name, device: prior(4))
    monkeypatch.setattr(turntable_video, "FRAMES", 4)
    monkeypatch.chdir(tmp_path)
    return export("glb", ball, tmp_path, Raster(), {"prompt": "a red sphere"}).path


def edit(asset: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["edit", str(asset), "make it blue", *TINY, "--json", *arguments])


def edited(asset: Path, *arguments: str) -> tuple[Path, TexturedMesh, TexturedMesh]:
    """The run's folder, and the mesh before and after."""
    done = edit(asset, *arguments)
    assert done.exit_code == 0, done.output
    folder = Path(json.loads(done.stdout)["folder"])
    with contextlib.closing(RunFolder(folder)):
        after = exporting.open_run(folder, "cpu").outcome.rep
    before = opened(folder / "source.glb")
    assert isinstance(before, TexturedMesh) and isinstance(after, TexturedMesh)
    return folder, before, after


def test_a_painted_edit_moves_no_texel_that_the_paint_leaves_black(asset: Path) -> None:
    mesh = opened(asset)
    assert isinstance(mesh, TexturedMesh)
    at, places = painting.places(mesh)
    mask = painting.spread(at, (places[:, 0] > 0.1).float())
    Path("mask.png").write_bytes(to_png(mask[..., None]))
    folder, before, after = edited(asset, "--region", "mask.png")
    assert np.load(folder / "source.region.npy").shape == mask.shape
    moved = (after.albedo_logits != before.albedo_logits).any(dim=-1)
    # Of each texel of the texture the brightest paint within two of its own, beyond which no reading reaches.
    wide = torch.nn.functional.max_pool2d(mask[None], 2 * (2 * painting.SIDE // S) + 1, 1, 2 * painting.SIDE // S)
    near = torch.nn.functional.max_pool2d(wide, painting.SIDE // S)[0] > 0
    assert moved[near].any() and not moved[~near].any() and (~near).float().mean() > 0.2
    assert torch.equal(before.vertices, after.vertices)


def test_a_region_is_found_on_the_surface_and_can_be_painted_over(asset: Path) -> None:
    folder, *_ = edited(asset, "--region", "surface")
    found = np.load(folder / "source.region.npy")
    assert found.shape == (painting.SIDE,) * 2 and found.min() >= 0 and found.max() == 1
    again = np.frombuffer(painting.painted(folder / "source.region.png"), np.uint8)  # a file of the same region
    Path("again.npy").write_bytes(again.tobytes())
    np.testing.assert_allclose(np.load("again.npy"), found, atol=0.5 / 255 + 1e-6)
    facts = json.loads((folder / "run.json").read_text())
    assert facts["recipe"]["stages"]["edit"]["guidance"]["edit"]["region"]["kind"] == "texels"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "There is no file mask.png"),
        (b"a picture", "is a square PNG over the mesh's texture, but mask.png .* cannot be read"),
        (png(torch.ones(1, 4, 8, 3)), "but mask.png .* not square: 8 x 4"),
        (to_png(torch.zeros(8, 8, 1)), "black all over"),
    ],
)
def test_other_pictures_are_refused_in_a_sentence(asset: Path, data: bytes | None, said: str) -> None:
    if data is not None:
        Path("mask.png").write_bytes(data)
    refused = edit(asset, "--region", "mask.png")
    assert refused.exit_code == 2 and len(refused.stderr.splitlines()) == 1
    assert re.search(said, refused.stderr), refused.stderr
    assert not Path("runs").exists()


def test_splats_and_colours_at_vertices_have_no_texture_to_paint(asset: Path, tmp_path: Path) -> None:
    Path("mask.png").write_bytes(to_png(torch.ones(8, 8, 1)))
    splat = export("ply", Blob(20)(None, Step(0)), tmp_path, Splats(), {"prompt": "a red sphere"}).path
    for file, kind in ((splat, "Gaussians"), (asset, "Mesh")):
        if kind == "Mesh":
            file = export("ply-mesh", icosphere(1), tmp_path, Raster(), {"prompt": "a red sphere"}).path
        refused = edit(file, "--region", "mask.png")
        assert refused.exit_code == 2 and f"not {kind}" in refused.stderr, refused.output
    refused = edit(splat, "--region", "surface")
    assert refused.exit_code == 2 and "not Gaussians" in refused.stderr
