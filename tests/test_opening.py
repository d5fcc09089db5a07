"""Runs that begin with the user's own asset: what comes in, as what, where, and how large."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from sds3d import plugins, recipes
from sds3d.cameras import orbit
from sds3d.cli import cli
from sds3d.core import Background, Representation, Step
from sds3d.export import export
from sds3d.exporting import open_run
from sds3d.generate import Request, plan
from sds3d.opening import RADIUS, File, opened
from sds3d.playroom.measures import iou
from sds3d.renderers.raster import Raster
from sds3d.renderers.splats import Splats
from sds3d.representations.gaussians import Gaussians
from sds3d.representations.mesh import Mesh, icosphere
from sds3d.representations.surfels import surfels
from sds3d.representations.texture import TexturedMesh, unwrap

pytest.importorskip("fast_simplification")
pytest.importorskip("xatlas")


def ball(radius: float = 0.7, at: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Mesh:
    """A ball whose colours are its places."""
    unit = icosphere(3).vertices.detach()
    colours = ((unit + 1) / 2).clamp(0.02, 0.98).logit()
    return Mesh(radius * unit + torch.tensor(at), icosphere(3).faces, colours)


def drawn(rep: Representation):
    cameras = orbit([10.0, 130.0, 250.0], 20.0, 48)
    renderer = Splats() if isinstance(rep, Gaussians) else Raster()
    with torch.no_grad():
        return renderer(rep, cameras, Background(torch.ones(3, 3)))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("assets")
    mesh = ball()
    made = {
        "splat": ("ply", surfels(mesh, 3000, Step(0)), Splats()),
        "mesh": ("glb", mesh, Raster()),
        "texture": ("glb", unwrap(mesh, 128), Raster()),
        "large": ("glb", ball(7.0, (20.0, 0.0, 3.0)), Raster()),
    }
    cameras = orbit([0.0, 90.0], 15.0, 32)
    paths = {}
    for name, (kind, rep, renderer) in made.items():
        (root / name).mkdir()
        if name == "large":  # too far away for the views that an export is checked in
            module = __import__("sds3d.export.glb", fromlist=["encode"])
            content = module.encode(rep, renderer, {}, "asset.glb")["asset.glb"]
            paths[name] = root / name / "asset.glb"
            paths[name].write_bytes(content)
        else:
            paths[name] = export(kind, rep, root / name, renderer, cameras=cameras).path
    return paths


CLASSES = {"gaussians": Gaussians, "mesh": Mesh, "texture": TexturedMesh}


@pytest.mark.parametrize("into", CLASSES)
@pytest.mark.parametrize("name", ["splat", "mesh", "texture"])
def test_any_asset_becomes_any_representation(files, name, into):
    """It has the class that the stage optimises, and looks like the ball that all of them were made of."""
    start = File(str(files[name]), into, count=3000, texels=128)
    rep = start(None, Step(0))
    assert type(rep) is CLASSES[into] and type(start.blank(None)) is CLASSES[into]
    true, out = drawn(ball()), drawn(rep)
    assert iou(out.alpha, true.alpha).min() > 0.85  # splats are wider than their mesh by a pixel
    middle = slice(18, 30)
    assert (out.rgb - true.rgb)[:, middle, middle].abs().mean() < 0.05


def test_what_is_kept_is_kept_to_the_last_bit(files):
    """No conversion, no change: the file's own class comes in as the file holds it."""
    from sds3d.export import read

    for name, into in (("splat", "gaussians"), ("mesh", "mesh"), ("texture", "texture")):
        there, here = read(files[name]).state(), File(str(files[name]), into)(None, Step(0)).state()
        assert there.keys() == here.keys() and all(torch.equal(there[key], here[key]) for key in there)


def test_a_large_asset_far_away_is_brought_into_the_world(files):
    rep = File(str(files["large"]), "mesh")(None, Step(0))
    assert isinstance(rep, Mesh)
    assert rep.vertices.norm(dim=-1).max().item() == pytest.approx(RADIUS, abs=1e-4)
    assert iou(drawn(rep).alpha, drawn(ball(RADIUS)).alpha).min() > 0.99


@pytest.mark.parametrize(("name", "into"), [("splat", "gaussians"), ("mesh", "mesh"), ("texture", "texture")])
def test_grey_takes_the_colours_alone(files, name, into):
    there, here = (File(str(files[name]), into, grey=grey)(None, Step(0)).state() for grey in (False, True))
    (changed,) = [key for key in there if not torch.equal(there[key], here[key])]
    assert changed in ("albedo_logits", "colour_logits") and not here[changed].any()


def test_what_cannot_be_a_start_is_refused(files, tmp_path):
    with pytest.raises(ValueError, match="There is no file"):
        File(str(tmp_path / "none.glb"))(None, Step(0))
    (tmp_path / "notes.txt").write_text("a red cube")
    with pytest.raises(ValueError, match=r"suffixes that are read: .*\.obj"):
        File(str(tmp_path / "notes.txt"))(None, Step(0))
    with pytest.raises(ValueError, match="count must be at least 1"):
        File(str(files["mesh"]), count=0)


def test_on_the_command_line(files, tmp_path):
    """A mesh is refined as Gaussians; the run goes on when the file is gone; a file that is not there is refused."""
    out = tmp_path / "run"
    small = ("--set", "stages.shape.cameras.size=16", "--set", "exports=[ply]", "--device", "cpu")
    given = tmp_path / "mine.glb"
    given.write_bytes(files["mesh"].read_bytes())
    words = ["generate", "a red sphere", "--start", str(given), "--steps", "2", *small, "--out", str(out)]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.stderr
    given.unlink()
    done = CliRunner().invoke(cli, ["generate", "--resume", "--out", str(out)])
    assert done.exit_code == 0, done.stderr
    refused = CliRunner().invoke(cli, [*words, "--force"])
    assert refused.exit_code == 2 and refused.stderr == f"error: There is no file {given} to start from.\n"


def test_a_suffix_that_serves_both_is_read_by_content(files, tmp_path):
    """Other programs write meshes as .ply, and splats as .glb."""
    trimesh = pytest.importorskip("trimesh")
    trimesh.creation.icosphere(subdivisions=3, radius=0.7).export(tmp_path / "bunny.ply")
    mesh, true = File(str(tmp_path / "bunny.ply"), "mesh")(None, Step(0)), ball()
    assert isinstance(mesh, Mesh) and iou(drawn(mesh).alpha, drawn(true).alpha).min() > 0.99
    cloud = opened(files["splat"])
    assert isinstance(cloud, Gaussians)
    splat = export("glb-splat", cloud, tmp_path, Splats()).path.rename(tmp_path / "scene.glb")
    found = opened(splat)
    assert isinstance(found, Gaussians) and len(found) == len(cloud)


def request(recipe: str, start: Path | None, *overrides: str) -> Request:
    return Request("a red sphere", recipe, start=start, overrides=overrides, device="cpu", out=Path("nowhere"))


@pytest.mark.parametrize("name", ["splat", "mesh", "texture"])
def test_refine_is_a_recipe_for_what_the_file_holds(files, name):
    """A splat is refined as Gaussians and any mesh as a textured one, written in its own format."""
    recipe = plan(request("refine", files[name])).recipe
    (stage,) = recipe.stages.values()
    assert isinstance(stage.start, File) and stage.start.path == str(files[name])
    kind, film = ("gaussians", "ply") if name == "splat" else ("texture", "glb")
    assert (plugins.kind_of("optimise", type(stage.optimise)), stage.start.into) == (kind, kind)
    assert recipe.exports == (film, "mp4")
    rep = stage.start(None, Step(0))
    rep.prepare(stage.optimise, Step(0))


def test_the_numbers_of_a_start_stay_the_recipes(files):
    """--start brings the path and no more."""
    told = plan(request("texture", files["mesh"], "stages.texture.start.texels=32")).recipe.stages["texture"].start
    blank = recipes.build(recipes.read("texture")).stages["texture"].start
    assert isinstance(told, File) and isinstance(blank, File)
    assert told == replace(blank, path=str(files["mesh"]), texels=32)


@pytest.mark.parametrize("recipe", ["texture", "refine"])
def test_without_a_file_the_remedy_is_told_before_any_work(recipe, tmp_path):
    words = ["generate", "a red sphere", "--recipe", recipe, "--out", str(tmp_path / "run"), "--device", "cpu"]
    refused = CliRunner().invoke(cli, words)
    assert (refused.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert refused.stderr == "error: This recipe begins with a splat or a mesh of your own; add --start FILE.\n"
    broken = tmp_path / "broken.glb"
    broken.write_bytes(b"glTF")
    refused = CliRunner().invoke(cli, [*words, "--start", str(broken)])
    assert (refused.exit_code, list(tmp_path.iterdir())) == (2, [broken]) and "broken.glb" in refused.stderr


def test_texture_keeps_the_shape_to_the_last_bit(files, tmp_path):
    """Every vertex stays where the file has it; the albedo does not."""
    out = tmp_path / "run"
    small = ("--set", "stages.texture.cameras.size=16", "--set", "exports=[]", "--device", "cpu")
    words = [
        "generate",
        "a red sphere",
        "--recipe",
        "texture",
        "--start",
        str(files["texture"]),
        "--steps",
        "2",
        *small,
    ]
    done = CliRunner().invoke(cli, [*words, "--out", str(out)])
    assert done.exit_code == 0, done.stderr
    rep, before = open_run(out, "cpu").outcome.rep, opened(files["texture"])
    assert isinstance(rep, TexturedMesh) and isinstance(before, TexturedMesh)
    changed = {name for name in before.state() if not torch.equal(before.state()[name], rep.state()[name])}
    assert changed == {"albedo_logits"}
