"""Meshes: their geometry in closed form, their optimiser, and a state that comes back to the same bits."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from sds3d import losses, plugins
from sds3d.cameras import orbit
from sds3d.core import Background, Step
from sds3d.renderers.raster import Raster
from sds3d.renderers.shading import Lambert
from sds3d.representations.gaussians import GaussianOptimise, Gaussians
from sds3d.representations.mesh import Mesh, MeshOptimise, Sphere, edges, icosphere, subdivided
from sds3d.schedules import Ramp

CAMERAS = orbit([0.0, 90.0, 180.0, 270.0], [10.0, 20.0, 0.0, -10.0], 16)
WHITE = Background(torch.ones(4, 3))


def start() -> Mesh:
    rep = Sphere(0.6, 1)(None, Step(0))
    assert isinstance(rep, Mesh)
    rep.prepare(MeshOptimise(), Step(0))
    return rep


def at(index: int, steps: int = 30) -> Step:
    return Step(0, "shape", index, index / (steps - 1))


def train(rep: Mesh, indices: range) -> None:
    """Towards a larger red ball."""
    with torch.no_grad():
        red = Mesh(icosphere(1, 0.8).base, rep.faces, torch.tensor([[2.0, -2, -2]]).repeat(len(rep.base), 1))
        wanted = Raster(Lambert())(red, CAMERAS, WHITE).rgb
    for index in indices:
        out = Raster(Lambert())(rep, CAMERAS, WHITE, at(index))
        loss = (out.rgb - wanted).square().sum() + losses.Losses({"laplacian": 1.0})(rep, out, at(index))
        loss.backward()
        assert rep.update(out, at(index)) == {"triangles": 80}


@pytest.mark.parametrize("subdivisions", range(4))
def test_an_icosphere_is_a_closed_round_surface(subdivisions):
    mesh = icosphere(subdivisions, 0.7)
    assert len(mesh) == 20 * 4**subdivisions
    torch.testing.assert_close(mesh.vertices.norm(dim=-1), torch.full((len(mesh.base),), 0.7))
    assert (mesh.edges.faces >= 0).all()
    assert len(mesh.base) - len(mesh.edges.ends) + len(mesh) == 2  # Euler
    directed = torch.cat([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    assert len(torch.unique(directed, dim=0)) == len(directed)  # neighbours are wound alike
    middle = mesh.vertices[mesh.faces].mean(dim=1)
    assert ((mesh.face_normals() * middle).sum(-1) > 0).all()  # outward
    assert (mesh.normals() * normalize(mesh.base, dim=-1)).sum(-1).min() > 0.99


def test_normals_are_as_long_as_twice_the_area_and_close_up():
    mesh = icosphere(4)
    area = 0.5 * mesh.face_normals().norm(dim=-1).sum()
    assert abs(float(area.detach()) / (4 * math.pi) - 1) < 5e-3
    assert mesh.face_normals().sum(dim=0).abs().max() < 1e-5  # the divergence theorem


def test_splitting_keeps_the_surface():
    tetrahedron = torch.eye(4)[:, :3]
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
    whole = Mesh(tetrahedron, faces)
    split = Mesh(*subdivided(tetrahedron, faces))
    assert len(split) == 16 and len(split.base) == 10
    torch.testing.assert_close(split.face_normals().view(4, 4, 3).sum(dim=0), whole.face_normals())


def test_edges_know_their_triangles_and_far_corners():
    found = edges(torch.tensor([[0, 1, 2], [2, 1, 3]]))
    table = {
        tuple(e): (f, o)
        for e, f, o in zip(found.ends.tolist(), found.faces.tolist(), found.opposite.tolist(), strict=True)
    }
    assert table[1, 2] == ([0, 1], [0, 3])
    assert table[0, 1] == ([0, -1], [2, -1]) and len(table) == 5
    three = edges(torch.tensor([[0, 1, 2], [1, 0, 3], [0, 1, 4]]))  # a fin: one pair and one boundary of its own
    both = (three.ends == torch.tensor([0, 1])).all(dim=1)
    assert three.opposite[both].tolist() == [[2, 3], [4, -1]]


def test_the_laplacian_is_the_way_to_the_neighbours_mean():
    fan = torch.tensor([[0.1, 0.2, 0.3], [1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0], [9, 9, 9]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 1]])
    found = Mesh(fan, faces).laplacian()
    torch.testing.assert_close(found[0], -fan[0])
    torch.testing.assert_close(found[1], (fan[0] + fan[2] + fan[4]) / 3 - fan[1])
    assert (found[5] == 0).all()  # a lone vertex


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2, 2.5])
def test_a_bend_is_one_minus_the_cosine_of_its_angle(angle):
    wing = torch.tensor([[0, 0, 0], [0, 1, 0], [-1, 0.5, 0], [math.cos(angle), 0.5, math.sin(angle)]])
    mesh = Mesh(wing.double(), torch.tensor([[0, 1, 2], [1, 0, 3]]))
    torch.testing.assert_close(
        mesh.bends(), torch.tensor([1 - math.cos(angle)], dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_regularisers_smooth_a_mesh_and_refuse_what_is_none():
    rep = start()
    bump = 0.1 * torch.randn(rep.offsets.shape, generator=torch.Generator().manual_seed(0))
    out = Raster()(rep, CAMERAS, WHITE)
    before = {
        name: float(losses.LOSSES[name](rep, out, at(0)).detach()) for name in ("laplacian", "normal_consistency")
    }
    with torch.no_grad():
        rep.offsets += bump
    for name, flat in before.items():
        loss = losses.LOSSES[name](rep, out, at(0))
        (gradient,) = torch.autograd.grad(loss, rep.offsets)
        assert loss > 2 * flat and (gradient * bump).sum() > 0
        one = Gaussians(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1, 4), torch.zeros(1), torch.zeros(1, 3))
        with pytest.raises(ValueError, match=f'"{name}" needs a mesh'):
            losses.LOSSES[name](one, out, at(0))
    lone = Mesh(torch.eye(3), torch.tensor([[0, 1, 2]]))
    assert losses.normal_consistency(lone, out, at(0)) == 0


def test_colours_step_by_adam():
    rep = start()
    names, rates = ("colour_logits",), MeshOptimise()
    twin = {name: getattr(rep, name).detach().clone().requires_grad_() for name in names}
    adam = torch.optim.Adam([{"params": [twin[name]]} for name in names], betas=(0.9, 0.99), eps=1e-15)
    generator = torch.Generator().manual_seed(0)
    for index in range(5):
        for name, group in zip(names, adam.param_groups, strict=True):
            gradient = torch.randn(twin[name].shape, generator=generator)
            twin[name].grad, getattr(rep, name).grad = gradient, gradient.clone()
            group["lr"] = rates.rates(at(index).progress)[name]
        adam.step()
        rep.update(Raster()(rep, CAMERAS, WHITE), at(index))
    for name in names:
        torch.testing.assert_close(getattr(rep, name), twin[name])
        assert getattr(rep, name).grad is None


def test_vertices_step_together():
    """Along the running mean of the spread gradients, and the one that moves most by the rate: whatever their size."""
    rep = icosphere(3)
    rep.prepare(MeshOptimise(offsets=1e-2), Step(0))
    first, second = torch.zeros_like(rep.base), torch.zeros_like(rep.base)
    first[7, 2], second[30] = 3.0, torch.tensor([1.0, -2.0, 0.5])
    spread = rep.diffused(first)
    mean = 0.8 * 0.2 * spread + 0.2 * rep.diffused(second)
    steps = [-1e-2 * way / way.norm(dim=1).max() for way in (spread, mean)]
    for index, gradient in enumerate((first, second)):
        rep.offsets.grad = gradient.clone()
        rep.update(Raster()(rep, CAMERAS, WHITE), at(index))
        torch.testing.assert_close(rep.offsets.detach(), sum(steps[: index + 1]))
    assert rep.offsets.grad is None
    moved = -steps[0][:, 2]
    assert moved.argmax() == 7 and (moved > 1e-3).sum() > 6 and (moved >= 0).all()


def test_spreading_keeps_what_is_even_and_smooths_what_is_not():
    rep = icosphere(2)
    even = torch.ones_like(rep.base)
    torch.testing.assert_close(rep.diffused(even), even)
    rough = torch.randn(even.shape, generator=torch.Generator().manual_seed(0))
    smooth = rep.diffused(rough)
    mean = rep.averaging()
    assert (mean(smooth) - smooth).norm() < 0.1 * (mean(rough) - rough).norm()
    torch.testing.assert_close(rep.diffused(2 * rough + even), 2 * smooth + even)  # it is linear


@pytest.mark.parametrize("cut", [1, 5])
def test_resuming_ends_in_the_same_bits(cut):
    """A fresh object of another shape, which loads the state, goes on as if never interrupted."""
    whole, first = start(), start()
    train(whole, range(8))
    train(first, range(cut))
    saved = {name: tensor.clone() for name, tensor in first.state().items()}
    second = icosphere(0)
    second.prepare(MeshOptimise(), Step(0))
    second.load(saved)
    assert all(torch.equal(second.state()[name], tensor) for name, tensor in saved.items())
    train(second, range(cut, 8))
    assert whole.state().keys() == second.state().keys()
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name


def test_a_fit_finds_size_and_colour():
    rep = start()
    rep.prepare(MeshOptimise(offsets=Ramp(2e-2, 2e-3), colours=0.15), Step(0))
    covered = Raster()(icosphere(1, 0.8), CAMERAS, WHITE).alpha
    before = (Raster()(rep, CAMERAS, WHITE).alpha - covered).abs().mean()
    train(rep, range(30))
    after = (Raster()(rep, CAMERAS, WHITE).alpha - covered).abs().mean()
    assert after < 0.15 * before
    assert rep.rgb[:, 0].mean() > 0.65 and rep.rgb[:, 1:].mean() < 0.35


def test_a_state_without_an_optimiser_is_the_mesh_alone():
    source, target = start(), icosphere(0)
    train(source, range(2))
    target.load(source.state())
    assert torch.equal(target.vertices, source.vertices) and torch.equal(target.faces, source.faces)
    assert set(target.state()) == {"base", "faces", "offsets", "colour_logits"}
    assert torch.equal(target.double().edges.ends, source.edges.ends)


def test_recipes_can_say_them():
    kinds = {"start": "sphere", "optimise": "mesh", "renderer": "raster", "light": "lambert"}
    found = [plugins.load(family, kind) for family, kind in kinds.items()]
    assert found == [Sphere, MeshOptimise, Raster, Lambert]
    from sds3d import schema
    from sds3d.core import Renderer

    for data in ({"kind": "raster"}, {"kind": "raster", "light": {"kind": "lambert", "ambient": 0.5}}):
        made = schema.convert(data, Renderer, "renderer", {})
        assert schema.convert(schema.to_data(made), Renderer, "renderer", {}) == made
    assert made == Raster(Lambert(ambient=0.5))


def test_bad_input_is_refused_in_a_sentence(unchecked):
    v, f = torch.eye(3), torch.tensor([[0, 1, 2]])
    cases = [
        (lambda: Mesh(v, f[:0]), ValueError, "at least one triangle"),
        (lambda: Mesh(v, f[0]), ValueError, "at least one triangle"),
        (lambda: Mesh(v[:0], f), ValueError, "corner 2"),
        (lambda: Mesh(v[0], f), ValueError, "vertices must have the shape"),
        (lambda: Mesh(v, f + 1), ValueError, "corner 3, but there are only 3 vertices"),
        (lambda: Mesh(v, f - 1), ValueError, "corner -1"),
        (lambda: Mesh(v, f.float()), TypeError, "whole numbers"),
        (lambda: Mesh(v.long(), f), TypeError, "floating-point"),
        (lambda: Mesh(v * math.nan, f), ValueError, "not finite, in 3 of 3"),
        (lambda: Mesh(v, f, v[:2]), ValueError, "colour_logits must have the shape"),
        (lambda: Sphere(radius=0.0), ValueError, "radius"),
        (lambda: Sphere(subdivisions=9), ValueError, "subdivisions"),
        (lambda: start().prepare(GaussianOptimise(), Step(0)), TypeError, "optimised by a MeshOptimise"),
        (lambda: icosphere(0).update(Raster()(icosphere(0), CAMERAS, WHITE), Step(0)), ValueError, "prepare"),
        (lambda: icosphere(0).load({"base": v}), ValueError, 'lacks "faces"'),
        (lambda: start().load(icosphere(0).state()), ValueError, 'lacks "first.offsets"'),
    ]
    for case, kind, words in cases:
        with pytest.raises(kind, match=words):
            case()


def test_a_damaged_state_changes_nothing():
    rep, other = start(), start()
    train(other, range(1))
    before = rep.state()
    for name in ("base", "offsets", "second.colour_logits"):
        for damaged in (other.state()[name][1:], other.state()[name] * math.nan):
            with pytest.raises(ValueError):
                rep.load(other.state() | {name: damaged})
    assert all(torch.equal(rep.state()[name], tensor) for name, tensor in before.items())
