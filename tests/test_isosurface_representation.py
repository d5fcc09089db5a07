"""An iso-surface that is optimised: gradients of vertices on the grid, distances, and where it comes from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from small_run import SIZE, prior
from test_isosurface import assert_closed, grid, random, volume
from torch import Tensor
from torch.nn.functional import normalize

from sds3d import recipes
from sds3d.cameras import orbit
from sds3d.core import Background, RenderOutput, Step
from sds3d.engine import Saved, run, tensors
from sds3d.export import can_hold, export
from sds3d.losses import LOSSES
from sds3d.meshing import Level, Meshed, Textured, Unwrapped
from sds3d.prompts import Prompts
from sds3d.renderers.raster import Raster
from sds3d.renderers.volume import Volume
from sds3d.representations.field import Field, points
from sds3d.representations.isosurface import (
    Isosurface,
    IsosurfaceOptimise,
    Shell,
    interpolated,
    redistanced,
    surface_nets,
)
from sds3d.representations.mesh import Mesh, MeshOptimise, icosphere
from sds3d.representations.simplify import neighbours
from sds3d.representations.start import Continue
from sds3d.representations.texture import TexturedMesh
from sds3d.terms import LOOKS

CAMERAS, BLACK = orbit([0.0, 90.0, 180.0, 270.0], 20.0, 32), Background(torch.zeros(4, 3))


def ball(n: int = 16, radius: float = 0.6) -> Isosurface:
    """In float64, with a colour of its own at each point of the grid."""
    return Isosurface(grid(n).norm(dim=-1) - radius, 0.5 * random(n, n, n, 3))


def at(index: int = 0, steps: int = 8) -> Step:
    return Step(0, "shape", index, index / (steps - 1))


def nothing() -> RenderOutput:
    empty = torch.zeros(1, 1, 1, 3)
    return RenderOutput(rgb=empty, alpha=empty[..., :1], depth=empty[..., :1], normal=empty)


def descend(rep: Isosurface, indices: range) -> None:
    """Steps towards the outline and the normals of a cube-like block, and towards red."""
    goal = Isosurface(points(20, torch.zeros(())).sub(0.1).abs().amax(dim=-1) - 0.45)
    with torch.no_grad():
        target = Raster()(goal, CAMERAS, BLACK)
    for index in indices:
        out = Raster()(rep, CAMERAS, BLACK)
        error = (LOOKS["normal"](out) - LOOKS["normal"](target)).square().mean()
        red = (out.rgb - target.alpha * out.rgb.new_tensor([0.8, 0.1, 0.1])).square().mean()
        (error + red + 1e-3 * LOSSES["eikonal"](rep, out, at(index))).backward()
        rep.update(out, at(index))


def fitted(steps: int = 8) -> Isosurface:
    rep = Isosurface(points(20, torch.zeros(())).norm(dim=-1) - 0.6)
    rep.prepare(IsosurfaceOptimise(), at())
    descend(rep, range(steps))
    return rep


def test_interpolation_is_exact_for_what_is_linear_and_has_its_gradient():
    places = 2 * torch.rand(50, 3, generator=torch.Generator().manual_seed(0)).double() - 1
    matrix = random(3, 2)
    torch.testing.assert_close(interpolated(grid(5) @ matrix, places), places @ matrix)
    values = random(3, 3, 3, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: interpolated(v, places[:5]), values)


def test_it_is_a_mesh_of_its_zero_surface():
    rep = ball()
    vertices, faces = surface_nets(rep.sdf)
    assert torch.equal(rep.vertices, vertices) and torch.equal(rep.faces, faces)
    torch.testing.assert_close(rep.colour_logits, interpolated(rep.tints, vertices))
    assert_closed(rep.faces)
    moved = rep.float()  # as a move to another device: the mesh comes along
    assert moved.vertices.dtype == moved.sdf.dtype == torch.float32 and len(moved.edges.ends) * 2 == len(moved) * 3


def test_the_gradient_of_colours_is_that_of_finite_differences():
    """Exactly, because the colours of the vertices are linear in those of the grid."""
    rep, weights = ball(), random(len(ball().base), 3, seed=4)
    (rep.colour_logits * weights).sum().backward()
    rep.pull()
    assert rep.tints.grad is not None and rep.colour_logits.grad is None
    way = random(*rep.tints.shape, seed=5)
    ends = [(Isosurface(rep.sdf, rep.tints + way * h).colour_logits * weights).sum() for h in (-0.5, 0.5)]
    torch.testing.assert_close((rep.tints.grad * way).sum(), ends[1] - ends[0])


def test_the_gradient_of_the_shape_nears_that_of_finite_differences():
    """Of a smooth functional in a smooth direction, to the second order in the step of the grid."""

    def moment(rep: Mesh) -> Tensor:
        a, b, c = rep.vertices[rep.faces].unbind(1)
        return (torch.linalg.det(torch.stack([a, b, c], dim=1)) * (a + b + c).sum(dim=-1).cos()).sum()

    errors = []
    for n in (17, 33):
        place = grid(n)
        sdf, way = place.norm(dim=-1) - 0.6, 1 + (2 * place[..., 0] + place[..., 2]).sin()
        rep = Isosurface(sdf)
        moment(rep).backward()
        rep.pull()
        assert rep.sdf.grad is not None and rep.offsets.grad is None
        ends = [moment(Isosurface(sdf + h * way)).detach() for h in (-1e-4, 1e-4)]
        difference = (ends[1] - ends[0]) / 2e-4
        errors.append(float(((rep.sdf.grad * way).sum() / difference - 1).abs()))
    assert errors[1] < errors[0] / 2 < 0.05


def test_a_volume_grows_with_its_surface_area():
    """d volume / d level is the area, which the pulled gradient adds up to exactly where triangles are the surface."""
    rep = Isosurface(grid(24)[..., 2].abs() - 0.52)  # a slab, cut off by the grid's sides
    volume(rep.vertices, rep.faces).backward()
    rep.pull()
    assert rep.sdf.grad is not None
    inner = (grid(24)[..., :2].abs() < 0.8).all(dim=-1)
    cell = (2 / 23) ** 2
    columns = rep.sdf.grad.sum(dim=2)[inner[:, :, 0]]
    torch.testing.assert_close(columns, torch.full_like(columns, -2 * cell))  # above and below


def test_a_grid_whose_points_all_move_takes_its_surface_along():
    """Each vertex goes with its cell, and no gradient, colour or distance is read elsewhere than before."""
    rep, still, by = ball(), ball(), torch.tensor([0.3, -0.5, 0.1]).double()
    with torch.no_grad():
        rep.shifts.copy_(by.expand_as(rep.shifts))
    rep.settle()
    torch.testing.assert_close(rep.vertices, still.vertices + by * 2 / 15)
    assert torch.equal(rep.faces, still.faces) and torch.equal(rep.colour_logits, still.colour_logits)
    weights = random(*rep.vertices.shape, seed=6)
    for one in (rep, still):
        (one.vertices * weights).sum().backward()
        one.pull()
    torch.testing.assert_close(rep.sdf.grad, still.sdf.grad)
    assert rep.shifts.grad is None


def test_the_gradient_of_the_grids_points_is_that_of_finite_differences():
    """Exactly, because a vertex is linear in them."""
    rep, weights, way = ball(), random(len(ball().base), 3, seed=4), random(16, 16, 16, 3, seed=5)
    (rep.vertices * weights).sum().backward()
    rep.pull(moving=True)
    ends = [(surface_nets(rep.sdf, 0.1 * h * way)[0] * weights).sum() for h in (-0.5, 0.5)]
    assert rep.shifts.grad is not None
    torch.testing.assert_close((rep.shifts.grad * 0.1 * way).sum(), ends[1] - ends[0])


def test_points_of_the_grid_move_where_they_are_asked_to_and_half_a_step_at_most():
    rep = Isosurface(points(20, torch.zeros(())).norm(dim=-1) - 0.6)
    rep.prepare(IsosurfaceOptimise(offsets=0.4), at())
    descend(rep, range(4))
    assert rep.shifts.abs().max() == 0.5
    assert_closed(rep.faces)
    still = Isosurface(points(20, torch.zeros(())).norm(dim=-1) - 0.6)
    still.prepare(IsosurfaceOptimise(offsets=0.0), at())
    descend(still, range(4))
    assert not still.shifts.any()


def test_what_was_saved_before_grids_could_move_goes_on_with_points_in_their_places():
    rep = Isosurface(points(20, torch.zeros(())).norm(dim=-1) - 0.6)
    rep.prepare(IsosurfaceOptimise(offsets=0.0), at())
    descend(rep, range(2))
    old = {name: tensor for name, tensor in rep.state().items() if "shifts" not in name}
    again = Isosurface(-torch.ones(2, 2, 2))
    again.prepare(IsosurfaceOptimise(offsets=0.0), at())
    again.load(old)
    for one in (rep, again):
        descend(one, range(2, 4))
    assert torch.equal(rep.vertices, again.vertices)


def test_redistancing_is_exact_for_planes_and_nears_a_ball():
    """A plane keeps its place whatever its slope was; along the grid all is mended, around a ball as it gets finer."""
    plane = grid(12)[..., 1] - 0.13
    torch.testing.assert_close(redistanced(torch.where(plane.abs() < 0.2, plane, 7 * plane), sweeps=12), plane)
    tilted = grid(12) @ normalize(torch.tensor([2.0, -1.0, 0.5]).double(), dim=0) - 0.05
    mended = redistanced(4 * tilted, sweeps=12)
    beside = (tilted.abs() < 0.03) & (grid(12).abs() < 0.9).all(dim=-1)  # crossed along all three axes
    torch.testing.assert_close(mended[beside], tilted[beside])
    errors = []
    for n in (17, 33):
        true = grid(n).norm(dim=-1) - 0.6
        mended = redistanced(torch.where(true.abs() < 3 / n, true, 3 * true), sweeps=n)
        assert torch.equal(mended < 0, true < 0)
        errors.append(float((mended - true)[grid(n).norm(dim=-1) > 0.3].abs().max()))
    assert errors[1] < 0.7 * errors[0]


def test_eikonal_is_zero_for_distances():
    plane = Isosurface(grid(9) @ normalize(torch.tensor([2.0, -1.0, 0.5]).double(), dim=0))
    eikonal = LOSSES["eikonal"]
    assert float(eikonal(plane, nothing(), at()).detach()) < 1e-28
    twice = Isosurface(2 * plane.sdf)
    torch.testing.assert_close(eikonal(twice, nothing(), at()), torch.ones((), dtype=torch.float64))
    still = Isosurface(torch.full((4, 4, 4), -0.1))
    eikonal(still, nothing(), at()).backward()
    assert still.sdf.grad is not None and still.sdf.grad.isfinite().all()
    bent = Isosurface(grid(4).norm(dim=-1) - 0.8 + 0.02 * random(4, 4, 4))
    wanted = []
    for name in (0, 5, 21, 40):
        nudge = torch.zeros(64, dtype=torch.float64)
        nudge[name] = 1e-6
        ends = [eikonal(Isosurface(bent.sdf + sign * nudge.view(4, 4, 4)), nothing(), at()) for sign in (-1, 1)]
        wanted.append((ends[1] - ends[0]).detach() / 2e-6)
    eikonal(bent, nothing(), at()).backward()
    assert bent.sdf.grad is not None
    torch.testing.assert_close(bent.sdf.grad.flatten()[[0, 5, 21, 40]], torch.stack(wanted), rtol=1e-5, atol=1e-8)
    with pytest.raises(ValueError, match="needs signed distances"):
        eikonal(icosphere(0), nothing(), at())


def test_it_moves_to_its_pictures_and_stays_closed():
    rep, goal = fitted(30), points(20, torch.zeros(())).sub(0.1).abs().amax(dim=-1) - 0.45
    assert_closed(rep.faces)
    begun = (points(20, torch.zeros(())).norm(dim=-1) < 0.6) != (goal < 0)
    left = (rep.sdf < 0) != (goal < 0)
    assert left.sum() < begun.sum() / 2
    assert (rep.rgb[:, 0] > rep.rgb[:, 1] + 0.1).float().mean() > 0.8, "what is seen became red"
    slopes = torch.stack(torch.gradient(rep.sdf.detach(), spacing=2 / 19), dim=-1).norm(dim=-1)
    assert (slopes - 1).abs().median() < 0.1, "distances stay distances"


def test_a_state_goes_on_to_the_same_bits():
    whole, first = fitted(8), fitted(4)
    second = Isosurface(-torch.ones(2, 2, 2))
    second.prepare(IsosurfaceOptimise(), at())
    second.load(first.state())
    descend(second, range(4, 8))
    state = second.state()
    assert (
        state.keys()
        == whole.state().keys()
        == {"sdf", "tints", "shifts", "steps"}
        | {f"{moment}.{name}" for moment in ("first", "second") for name in ("sdf", "tints", "shifts")}
    )
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, state[name]), name
    assert state["second.sdf"].shape == (1,)
    bare = Isosurface(-torch.ones(2, 2, 2))
    bare.load(whole.state())
    assert torch.equal(bare.vertices, whole.vertices) and torch.equal(bare.faces, whole.faces)


@pytest.mark.parametrize(
    ("sdf", "tints", "error", "message"),
    [
        (torch.ones(4, 4, 4), None, ValueError, "no surface"),
        (-torch.ones(4, 4, 3), torch.zeros(4, 4, 3, 3), ValueError, "sdf must have the shape"),
        (-torch.ones(4, 4, 4), torch.zeros(4, 4, 4), ValueError, "tints must have the shape"),
        (torch.full((4, 4, 4), -math.inf), None, ValueError, "not finite"),
        (-torch.ones(4, 4, 4, dtype=torch.long), None, TypeError, "floating-point"),
    ],
)
def test_what_is_no_isosurface_is_refused(unchecked, sdf, tints, error, message):
    with pytest.raises(error, match=message):
        Isosurface(sdf, tints)


def test_what_cannot_be_optimised_is_refused():
    rep = ball()
    with pytest.raises(ValueError, match="prepare"):
        rep.update(nothing(), at())
    with pytest.raises(TypeError, match="IsosurfaceOptimise"):
        rep.prepare(MeshOptimise(), at())
    with pytest.raises(ValueError, match='lacks "tints"'):
        rep.load({"sdf": rep.sdf.detach()})
    crumb = Isosurface(grid(9).norm(dim=-1) - 0.1)  # one point alone is inside
    crumb.prepare(IsosurfaceOptimise(distances=10.0), at())
    volume(crumb.vertices, crumb.faces).backward()
    with pytest.raises(ArithmeticError, match='vanished at step 0 of stage "shape"'):
        crumb.update(nothing(), at())
    for radius, resolution, message in ((0.0, 16, "radius"), (1.2, 16, "radius"), (0.5, 7, "resolution")):
        with pytest.raises(ValueError, match=message):
            Shell(radius, resolution)


def test_a_shell_is_a_ball():
    rep = Shell(0.7, 24)(None, at())
    assert isinstance(rep, Isosurface)
    assert (rep.vertices.norm(dim=-1) - 0.7).abs().max() < (2 / 23) ** 2
    assert isinstance(Shell().blank(None), Isosurface)


def test_the_level_of_a_field_has_its_radius_and_its_colours():
    place = points(24, torch.zeros(()))
    raw = 40 * (0.55 - place.norm(dim=-1, keepdim=True))  # opaque inside, and linear across the surface
    colours = torch.where(place[..., 2:] > 0, torch.tensor([4.0, -4, -4]), torch.tensor([-4.0, -4, 4]))
    field = Field(torch.cat([raw.clamp(-9, 9), colours], dim=-1))
    rep = Level(Volume(), resolution=32, size=48)(field, at())
    assert isinstance(rep, Isosurface)
    seen = rep.vertices.detach()[:, 2] > -0.2  # nobody looks from below
    radii = rep.vertices.detach()[seen].norm(dim=-1)
    assert (radii.mean() - 0.55).abs() < 2 / 31 / 2 and radii.std() < 2 / 31 / 2
    top = rep.vertices[:, 2] > 0.1
    assert (rep.rgb[top][:, 0] > rep.rgb[top][:, 2]).all()
    sides = (rep.vertices[:, 2] < -0.1) & (rep.vertices[:, 2] > -0.3)
    assert (rep.rgb[sides][:, 2] > rep.rgb[sides][:, 0]).all()
    slopes = torch.stack(torch.gradient(rep.sdf.detach(), spacing=2 / 31), dim=-1).norm(dim=-1)
    assert (slopes - 1).abs().median() < 0.1
    with pytest.raises(ValueError, match="first stage"):
        Level(Volume())(None, at())
    with pytest.raises(ValueError, match="nowhere more than half opaque"):
        Level(Volume(), resolution=16, size=16)(Field(torch.full((4, 4, 4, 4), -9.0)), at())


def test_meshes_are_made_of_its_own_distances():
    """Nothing is fused: without thinning and fitting the mesh is the surface itself."""
    pytest.importorskip("fast_simplification")
    rep = fitted(4)
    same, thin = (Meshed(Raster(), triangles=count, fit=0)(rep, at()) for count in (5000, 500))
    assert isinstance(same, Mesh) and len(same) == len(rep)
    assert torch.equal(same.vertices.unique(dim=0), rep.vertices.unique(dim=0))
    assert isinstance(thin, Mesh) and len(thin) <= 500
    neighbours(thin.vertices.detach(), thin.faces)  # raises where the surface is open
    pytest.importorskip("xatlas")
    for start in (Textured(Raster(), triangles=300, fit=0, texels=64), Unwrapped(Continue(), texels=128)):
        assert isinstance(start(rep, at()), TexturedMesh)


def test_it_is_written_as_any_mesh(tmp_path: Path):
    pytest.importorskip("trimesh")
    rep = Shell(0.6, 12)(None, at())
    for name in ("glb", "obj", "ply-mesh", "stl"):
        assert can_hold(name, rep)
        made = export(name, rep, tmp_path, Raster())
        assert made.path.is_file() and made.psnr_db is not None


@pytest.mark.parametrize("stop_at", [3, 7])
def test_the_stages_of_geometry_texture_resume_to_the_same_bits(stop_at: int):
    """Its own numbers with an analytic prior, small: stopped in the geometry or in the colours, and gone on with."""
    pytest.importorskip("fast_simplification")
    pytest.importorskip("xatlas")
    data = recipes.read("geometry-texture")
    for name in data["stages"]:
        small = ["steps=5", "prior=discs", f"cameras.size={SIZE}"]
        small += ["start.resolution=12"] if name == "geometry" else ["start.texels=64"]
        for assignment in small:
            recipes.override(data, f"stages.{name}.{assignment}")
    recipe, prompts = recipes.build(data), Prompts("red", name_background=False)
    named = prior(group=4, names=("red", "red, normals"))
    whole = run(recipe, prompts, {"discs": named})
    count, kept = 0, {}

    def watch(step, rep, terms, out, numbers):
        nonlocal count
        count += 1
        if count == stop_at:
            kept["saved"] = Saved(step.stage, step.index + 1, tensors(rep, terms))

    stopped = run(recipe, prompts, {"discs": named}, watchers=[watch], stop=lambda: count >= stop_at)
    assert not stopped.done and isinstance(stopped.rep, Isosurface if stop_at == 3 else TexturedMesh)
    resumed = run(recipe, prompts, {"discs": named}, saved=kept["saved"])
    assert resumed.done and isinstance(resumed.rep, TexturedMesh)
    neighbours(resumed.rep.vertices.detach(), resumed.rep.faces)  # raises where the surface is open
    for name, tensor in whole.rep.state().items():
        assert torch.equal(tensor, resumed.rep.state()[name]), name
