"""Viewers that nobody here wrote show our files as we do: silhouettes, colours, and the numbers that they read."""

from __future__ import annotations

import shutil
from pathlib import Path

import judges
import pytest
import torch
from judges import FRAMES, SAID, VIEW, accessors_that_differ, likeness, ours, pose, raster, shoot
from torch import Tensor

from sds3d.cameras import orbit, world_to_camera
from sds3d.core import Step
from sds3d.export import export, glb_splat
from sds3d.renderers.raster import Raster
from sds3d.renderers.splats import Splats
from sds3d.representations.gaussians import Gaussians, rotation_matrix
from sds3d.representations.mesh import Mesh, icosphere
from sds3d.representations.surfels import surfels
from sds3d.representations.texture import TexturedMesh, unwrap

OVERLAP, NEAR_DB = 0.9, 25.0
Shots = dict[tuple[str, str], judges.Shot]  # by page and format
SHOWN = [
    *(("spark", name) for name in ("ply", "spz", "splat")),
    *(("three", name) for name in ("ply", "spz", "splat", "glb-splat")),
    *(("model-viewer", name) for name in ("coloured", "textured")),
]


def pear() -> Mesh:
    """A closed lump that is symmetric in nothing, with colours that tell the axes."""
    mesh = icosphere(3, 0.5)
    with torch.no_grad():
        mesh.offsets.add_(mesh.base.clamp(min=0) * torch.tensor([0.6, 0.3, 0.9]))
        mesh.colour_logits.copy_(5 * mesh.base)
    return mesh


def splats() -> Gaussians:
    return surfels(pear(), 3000, Step(0))


def textured() -> TexturedMesh:
    return unwrap(pear(), 256)


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_a_pose_sees_what_our_camera_sees(frame: tuple[float, ...]) -> None:
    """Any point, turned into the frame and seen by position, target, up and angle of view, meets the same pixel."""
    cameras = orbit([200.0], -10.0, 100, radius=2.5, fov_y_deg=50)
    points = Step(0).normal("points", torch.empty(1, 20, 3))[0].double() * 0.4
    own = points @ world_to_camera(cameras)[0, :3, :3].double().T + world_to_camera(cameras)[0, :3, 3].double()
    own = own @ cameras.K[0].double().T
    seen = pose(cameras, frame)
    position, target, up = (torch.tensor(seen[name], dtype=torch.float64) for name in ("position", "target", "up"))
    back = torch.nn.functional.normalize(position - target, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(up, back), dim=0)
    local = points @ rotation_matrix(torch.tensor([frame], dtype=torch.float64))[0].T - position
    x, y, z = (local @ torch.stack([right, torch.linalg.cross(back, right), back]).T).unbind(-1)
    scale = 50 / torch.tan(torch.deg2rad(torch.tensor(seen["fov"], dtype=torch.float64) / 2))
    theirs = torch.stack([50 + scale * x / -z, 50 - scale * y / -z], dim=-1)
    torch.testing.assert_close(theirs, own[:, :2] / own[:, 2:], rtol=0, atol=1e-3)


def test_the_measure_sees_an_asset_that_is_turned_mirrored_or_pale() -> None:
    """What a wrong frame, a wrong sign or a wrong transfer function would do to the pear."""
    right = ours(pear(), Raster(), VIEW)
    turned, mirrored, pale = pear(), pear(), pear()
    with torch.no_grad():
        for mesh, signs in ((turned, [-1.0, -1.0, 1.0]), (mirrored, [1.0, -1.0, 1.0])):
            mesh.base.copy_(mesh.vertices * torch.tensor(signs))
            mesh.offsets.zero_()
        pale.colour_logits.copy_((pale.rgb ** (1 / 2.2)).clamp(1e-3, 1 - 1e-3).logit())
    for wrong in (turned, mirrored):
        assert likeness(ours(wrong, Raster(), VIEW), right)[0] < OVERLAP
    overlap, near = likeness(ours(pale, Raster(), VIEW), right)
    assert overlap > OVERLAP, "a silhouette has no colour"
    assert near < NEAR_DB
    assert likeness(right, right)[0] == 1


def test_without_node_or_chromium_a_test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(pytest.skip.Exception, match=r"on Debian: apt-get install chromium"):
        judges.chromium()
    judges._install.cache_clear()
    with pytest.raises(pytest.skip.Exception, match=r"on Debian: apt-get install nodejs npm"):
        judges.program("splat-transform")
    judges._install.cache_clear()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pear in every format that a viewer opens."""
    root = tmp_path_factory.mktemp("pear")
    made = {name: export(name, splats(), root, Splats()).path for name in ("ply", "spz", "splat", "glb-splat")}
    for name, mesh in (("coloured", pear()), ("textured", textured())):
        (root / name).mkdir()
        made[name] = export("glb", mesh, root / name, Raster()).path
    return made


@pytest.fixture(scope="module")
def shots(files: dict[str, Path]) -> Shots:
    """One browser shows them all."""
    asked = [(page, name if name in FRAMES else "glb", files[name]) for page, name in SHOWN]
    return dict(zip(SHOWN, shoot(asked, VIEW), strict=True))


def own_picture(name: str) -> Tensor:
    if name == "coloured":
        return ours(pear(), Raster(), VIEW)
    return ours(textured(), Raster(), VIEW) if name == "textured" else ours(splats(), Splats(), VIEW)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "name"), SHOWN)
def test_a_viewer_shows_what_we_draw(shots: Shots, page: str, name: str) -> None:
    """three.js ends a Gaussian at two standard deviations, and we at three, so there the silhouette alone counts."""
    overlap, near = likeness(shots[page, name].picture, own_picture(name))
    SAID.append(f"{page}, {name}: IoU {overlap:.3f}, {near:.1f} dB")
    assert overlap >= OVERLAP
    assert page == "three" or near >= NEAR_DB


@pytest.mark.slow
def test_three_reads_the_accessors_that_we_write(shots: Shots, files: dict[str, Path]) -> None:
    """Bit for bit, every attribute of the glTF of Gaussians; one that differs is found."""
    shot = shots["three", "glb-splat"]
    assert set(shot.told["accessors"]) == {*glb_splat.WIDTHS, "COLOR_0"}
    assert accessors_that_differ(shot, files["glb-splat"]) == []
    shot.told["accessors"]["POSITION"][0] ^= 1
    assert accessors_that_differ(shot, files["glb-splat"]) == ["POSITION"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ply", "spz", "splat"])
def test_another_rasteriser_draws_the_same_splats(files: dict[str, Path], name: str) -> None:
    """PlayCanvas's own, which ends a Gaussian at three standard deviations as we do."""
    overlap, near = likeness(raster(files[name], VIEW), ours(splats(), Splats(), VIEW))
    SAID.append(f"splat-transform, {name}: IoU {overlap:.3f}, {near:.1f} dB")
    assert overlap >= OVERLAP
    assert near >= NEAR_DB
