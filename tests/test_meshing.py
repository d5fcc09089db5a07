"""A mesh of whatever can be drawn: against the scenes that were drawn, and from Gaussians."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from sds3d import recipes
from sds3d.cameras import orbit
from sds3d.core import Background, Cameras, RenderOutput, Representation, Step
from sds3d.meshing import Meshed, Textured, all_around, fit_to, hard
from sds3d.playroom.grammar import parse
from sds3d.playroom.measures import iou, psnr
from sds3d.playroom.render import render
from sds3d.playroom.scenes import Scene, build
from sds3d.renderers.raster import Raster
from sds3d.renderers.splats import Splats
from sds3d.representations.isosurface import surface_nets
from sds3d.representations.mesh import Mesh, Triangles, icosphere
from sds3d.representations.start import Blob
from sds3d.representations.surfels import surfels
from sds3d.schema import RecipeError

pytest.importorskip("fast_simplification")


@dataclass(frozen=True)
class Exact:
    """Draws a scene of the playroom, whatever it is asked to draw."""

    scene: Scene

    def __call__(
        self, rep: Representation, cameras: Cameras, background: Background, step: Step | None = None
    ) -> RenderOutput:
        return render(self.scene, cameras, background.rgb, samples=3)


def assert_closed(mesh: Triangles) -> None:
    """Each directed edge is there once, and so is its opposite."""
    tail, head = mesh.faces.flatten().tolist(), mesh.faces.roll(-1, dims=1).flatten().tolist()
    there = set(zip(tail, head, strict=True))
    assert len(there) == len(tail) and there == set(zip(head, tail, strict=True))


@pytest.mark.parametrize(
    "text",
    ["a red cube", pytest.param("a head with dark skin, red hair and green eyes", marks=pytest.mark.slow)],
)
def test_a_mesh_of_a_scene_looks_like_the_scene(text):
    """Seen from where no picture was taken: the outline, the colours, and a closed surface of few triangles."""
    scene = build(parse(text))
    mesh = Meshed(Exact(scene), resolution=48, triangles=2000)(icosphere(0), Step(0))
    assert isinstance(mesh, Mesh) and len(mesh) <= 2000
    assert_closed(mesh)
    cameras, white = orbit([20.0, 110.0, 200.0, 290.0], 30.0, 64), Background(torch.ones(4, 3))
    true, out = render(scene, cameras, white.rgb, samples=3), Raster()(mesh, cameras, white)
    assert iou(out.alpha, true.alpha).min() > 0.97
    assert psnr(out.rgb.detach(), true.rgb, true.alpha > 0.5) > 28


def test_a_mesh_of_gaussians_looks_like_them():
    vertices = icosphere(3, 0.7).vertices.detach()
    ball = Mesh(vertices, icosphere(3).faces, ((vertices / 0.7 + 1) / 2).clamp(0.01, 0.99).logit())
    cloud = surfels(ball, 3000, Step(0))
    mesh = Meshed(Splats(), resolution=32, triangles=800, size=48)(cloud, Step(0))
    cameras, white = orbit([20.0, 110.0, 200.0, 290.0], 30.0, 48), Background(torch.ones(4, 3))
    with torch.no_grad():
        drawn, out = (renderer(rep, cameras, white) for renderer, rep in ((Splats(), cloud), (Raster(), mesh)))
    assert iou(out.alpha, drawn.alpha).min() > 0.97
    assert psnr(out.rgb, drawn.rgb, (out.alpha > 0.5) | (drawn.alpha > 0.5)) > 26


def test_a_textured_mesh_is_closed():
    """Its charts cut the texture and not the surface, in which two boxes that touch in an edge are taken apart."""
    pytest.importorskip("xatlas")
    boxes = torch.ones(16, 16, 16)
    boxes[4:8, 4:8, 4:12], boxes[8:12, 8:12, 4:12] = -1.0, -1.0
    touching = Mesh(*surface_nets(boxes))
    mesh = Textured(Raster(), resolution=16, size=16, fit=1, texels=32)(touching, Step(0))
    assert isinstance(mesh, Triangles)
    assert_closed(mesh)


@pytest.mark.parametrize("width", [0.5, 2.0, 5.0])
def test_fuzzy_edges_are_cut_where_they_are_half_opaque(width):
    """However wide a ramp of alpha is, what is left of it begins where it crosses a half, in the colour it had."""
    columns = torch.arange(24) + 0.5
    rgb = torch.tensor([0.9, 0.4, 0.1])
    for begin in (9.5, 10.1, 10.4):
        alpha = ((columns - begin) / width + 0.5).clamp(0, 1).expand(2, 8, 24)[..., None]
        nothing = torch.zeros_like(alpha)
        cut = hard(RenderOutput(rgb=alpha * rgb, alpha=alpha, depth=nothing, normal=alpha * rgb))
        assert (cut.alpha[:, :, :8] == 0).all() and (cut.alpha[:, :, 13:] == 1).all()
        assert (cut.alpha.sum(dim=2) - (24 - begin)).abs().max() < 0.27  # one place of four in a pixel
        torch.testing.assert_close(cut.rgb, cut.alpha * rgb)


def test_fitting_moves_the_surface_as_a_whole():
    """A ball fitted to pictures of a larger one comes to its size and stays as round as it was."""
    small, large = icosphere(3, 0.6), icosphere(3, 0.66)
    cameras = all_around(48, small.base)
    with torch.no_grad():
        target = Raster()(large, cameras, Background(torch.zeros(len(cameras), 3)))
    radii = fit_to(small, target, cameras, 60).vertices.norm(dim=-1)
    seen = large.vertices.detach()[:, 2] > -0.3  # nobody looks from below
    assert (radii[seen].mean() - 0.66).abs() < 0.004 and radii[seen].std() < 0.004
    assert torch.equal(small.vertices, icosphere(3, 0.6).vertices), "what is fitted is a copy"


def test_a_missing_library_is_told_before_the_run(monkeypatch):
    """Not after the stages before: the recipe is refused."""
    monkeypatch.setattr("sds3d.meshing.importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"stages.mesh.start: .*sds3d\[mesh\]"):
        recipes.build(recipes.read("gaussians-mesh"))


def test_views_lie_all_around():
    cameras = all_around(16, torch.zeros(()))
    assert len(cameras) == 52 and cameras.position.mean(dim=0)[:2].abs().max() < 1e-5


def test_what_no_mesh_can_be_made_of_is_refused():
    with pytest.raises(ValueError, match="first stage"):
        Meshed(Splats())(None, Step(0))
    with pytest.raises(ValueError, match="nowhere more than half opaque"):
        Meshed(Splats(), size=16, resolution=16)(Blob(5, 0.1)(None, Step(0)), Step(0))
    with pytest.raises(ValueError, match="at least 8"):
        Meshed(Splats(), resolution=4)
    assert isinstance(Meshed(Splats()).blank(None), Mesh)
