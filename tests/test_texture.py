"""Textured meshes: readings and their gradients, frames, unwrapping without overlap or seams, and a file's maps."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sds3d import plugins
from sds3d.cameras import look_at, orbit
from sds3d.core import Background, Cameras, Step
from sds3d.renderers.raster import Raster
from sds3d.renderers.shading import Lambert, Pbr
from sds3d.representations.mesh import Mesh, MeshOptimise, icosphere
from sds3d.representations.texture import (
    WIDTHS,
    TexturedMesh,
    TextureOptimise,
    blank,
    nearest,
    texels,
    unwrap,
)

pytest.importorskip("xatlas")
CAMERAS = orbit([0.0, 90.0, 180.0, 270.0], [10.0, 20.0, 0.0, -10.0], 24)
GREY = Background(torch.full((4, 3), 0.4))
CORNERS = torch.tensor([[0.0, -1, -1], [0, 1, -1], [0, 1, 1], [0, -1, 1]])  # a square that faces the front camera
HALVES = torch.tensor([[0, 1, 2], [0, 2, 3]])
SQUARE = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]])


def square(size: int, uv: Tensor = SQUARE, **textures: Tensor) -> TexturedMesh:
    return TexturedMesh(CORNERS, HALVES, uv, HALVES, blank(size) | textures)


def front(size: int) -> Cameras:
    """A camera in which that square fills the picture."""
    cams = orbit([0.0], [0.0], size, fov_y_deg=math.degrees(2 * math.atan(1 / 3)))
    return dataclasses.replace(cams, c2w=look_at(torch.tensor([[3.0, 0, 0]])))


def painted(subdivisions: int = 3) -> Mesh:
    ball = icosphere(subdivisions, 0.8)
    return Mesh(ball.base, ball.faces, 1.5 * torch.sin(4 * ball.base + torch.tensor([0.0, 1, 2])))


def test_a_picture_hangs_upright_and_unmirrored():
    """Row 0 at v = 1, column 0 at u = 0: texels that are as large as pixels come out as they are."""
    picture = torch.rand(8, 8, 3, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    out = Raster()(square(8, albedo_logits=picture.logit()), front(8), Background(torch.ones(1, 3)))
    torch.testing.assert_close(out.rgb[0], picture, atol=1e-4, rtol=0)
    assert (out.alpha == 1).all()


def test_a_constant_texture_is_a_plain_mesh():
    colour = torch.tensor([0.7, 0.2, 0.4])
    ball = icosphere(2, 0.8)
    plain = Mesh(ball.base, ball.faces, colour.logit().repeat(len(ball.base), 1))
    textured = unwrap(plain, 64)
    for light in (None, Lambert()):
        one, other = Raster(light)(plain, CAMERAS, GREY), Raster(light)(textured, CAMERAS, GREY)
        for name in ("rgb", "alpha", "depth", "normal"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-5, rtol=1e-5)


def test_unwrapping_keeps_the_colours():
    mesh = painted()
    textured = unwrap(mesh, 128)
    assert torch.equal(textured.vertices, mesh.vertices) and torch.equal(textured.faces, mesh.faces)
    difference = Raster()(mesh, CAMERAS, GREY).rgb - Raster()(textured, CAMERAS, GREY).rgb
    assert -10 * difference.square().mean().log10() > 40  # dB


@pytest.mark.parametrize(("subdivisions", "size", "noise"), [(0, 16, 0.0), (2, 64, 0.0), (2, 128, 0.1), (3, 256, 0.02)])
def test_charts_cover_every_triangle_and_lie_apart(subdivisions, size, noise):
    """Neither the triangles overlap nor does a bilinear reading in one chart reach a texel of another."""
    ball = painted(subdivisions)
    ball.offsets.data = noise * torch.randn(ball.base.shape, generator=torch.Generator().manual_seed(0))
    mesh = unwrap(ball, size)
    a, b, c = (mesh.uv.double()[mesh.uv_faces] * size).unbind(1)
    areas = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).abs() / 2
    assert areas.min() > 0
    at, face, weights = texels(mesh.uv, mesh.uv_faces, size)
    assert len(at) - len(at.unique()) <= 1e-3 * len(at) * (noise > 0)  # spikes may fold over themselves
    assert abs(len(at) / float(areas.sum()) - 1) < 4 / size + 0.01
    assert areas.sum() > 0.2 * size**2
    back = (weights[..., None] * mesh.uv[mesh.uv_faces[face]]).sum(1)
    middle = torch.stack([at % size + 0.5, size - at // size - 0.5], dim=-1) / size
    torch.testing.assert_close(back, middle, atol=1e-5, rtol=0)
    # Charts are what hangs together by uv; each gets a colour, and is read all over, borders included.
    chart = torch.arange(len(mesh.uv))
    for _ in range(len(mesh.uv)):
        least = chart[mesh.uv_faces].amin(dim=1)
        grown = chart.scatter_reduce(0, mesh.uv_faces.flatten(), least.repeat_interleave(3), "amin")
        if torch.equal(grown, chart):
            break
        chart = grown
    marked = torch.zeros(size * size, dtype=torch.bool)
    marked[at] = True
    owner = torch.zeros(size * size, dtype=torch.long)
    owner[at] = chart[mesh.uv_faces[face, 0]]
    number = owner[nearest(marked.view(size, size))]
    share = torch.rand(20, len(mesh), 3, generator=torch.Generator().manual_seed(0)).square()
    share = share / share.sum(-1, keepdim=True)
    mesh.albedo_logits.data = (number / len(mesh.uv))[..., None].repeat(1, 1, 3).clamp(0.001, 0.999).logit()
    places = (share[..., None] * mesh.uv[mesh.uv_faces]).sum(dim=2).flatten(0, 1)
    wanted = (chart[mesh.uv_faces[:, 0]] / len(mesh.uv)).clamp(0.001, 0.999).repeat(20)
    strange = (mesh.sample(places)[:, 0] - wanted).abs() > 1e-4
    assert strange.float().mean() <= 5e-3 * (noise > 0)  # spikes thinner than a texel hold the middle of none


def test_readings_are_bilinear_with_exact_gradients():
    generator = torch.Generator().manual_seed(0)
    mesh = square(3).double()
    textures = [torch.randn(3, 3, width, generator=generator).double().requires_grad_() for width in WIDTHS.values()]
    places = torch.tensor([[0.31, 0.4], [0.72, 0.6], [0.02, 0.97], [0.45, 0.35]], dtype=torch.float64)

    def read(uv: Tensor, *given: Tensor) -> Tensor:
        return torch.func.functional_call(Reading(mesh), dict(zip(NAMES, given, strict=True)), (uv,))

    assert torch.autograd.gradcheck(read, (places.requires_grad_(), *textures))
    middles = torch.tensor([[1 / 6, 5 / 6], [0.5, 0.5], [5 / 6, 1 / 6]], dtype=torch.float64)
    read_there = read(middles, *textures)[:, :3]
    torch.testing.assert_close(read_there, textures[0].sigmoid()[[0, 1, 2], [0, 1, 2]])


NAMES = [f"mesh.{name}" for name in WIDTHS]


class Reading(torch.nn.Module):
    """A reading as a module, so that the textures may be exchanged for a call."""

    def __init__(self, mesh: TexturedMesh):
        super().__init__()
        self.mesh = mesh

    def forward(self, uv: Tensor) -> Tensor:
        return self.mesh.sample(uv)


def test_a_picture_has_its_gradient_in_every_texture():
    """The whole way, from a lit picture to each texture and the vertices, against finite differences; float64."""
    ball = unwrap(painted(1), 32).double()
    generator = torch.Generator().manual_seed(0)
    cams = dataclasses.replace(CAMERAS, c2w=look_at(CAMERAS.position.double()), K=CAMERAS.K.double())
    above = torch.randn(4, 24, 24, 3, generator=generator, dtype=torch.float64)

    def loss() -> Tensor:
        return (Raster(Pbr(sun=0.4, ambient=0.3))(ball, cams, GREY).rgb * above).sum()

    loss().backward()
    for name in WIDTHS:
        parameter = getattr(ball, name)
        way = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            start, ends = parameter.clone(), []
            for sign in (1, -1):
                parameter.copy_(start + sign * 1e-5 * way)
                ends.append(float(loss()))
            parameter.copy_(start)
        found = float((parameter.grad * way).sum())
        assert abs(found - (ends[0] - ends[1]) / 2e-5) < 1e-5 * float(parameter.grad.norm() * way.norm()), name
    assert ball.offsets.grad.abs().sum() > 0


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_normal_map_tilts_along_growing_u_and_v(mirrored):
    """On the square u grows along +y and v along +z of the world; mirrored, u grows along -y."""
    uv = SQUARE.clone()
    if mirrored:
        uv[:, 0] = 1 - uv[:, 0]
    across = -1.0 if mirrored else 1.0
    for slope in ((0.5, 0.0), (0.0, 0.5), (0.3, -0.4)):
        tilted = square(4, uv, slopes=torch.tensor(slope).expand(4, 4, 2))
        out = Raster()(tilted, front(8), Background(torch.ones(1, 3)))
        wanted = normalize(torch.tensor([1.0, across * slope[0], slope[1]]), dim=0)
        torch.testing.assert_close(out.normal, wanted.expand_as(out.normal), atol=1e-5, rtol=0)
        encoded = tilted.maps()["normal"][0, 0]
        torch.testing.assert_close(2 * encoded - 1, normalize(torch.tensor([*slope, 1.0]), dim=0))


def test_a_triangle_without_area_in_the_square_keeps_its_normal():
    flat = square(4, torch.full((4, 2), 0.5), slopes=torch.ones(4, 4, 2))
    out = Raster()(flat, front(8), Background(torch.ones(1, 3)))
    torch.testing.assert_close(out.normal, torch.tensor([1.0, 0, 0]).expand_as(out.normal))


def test_the_maps_are_pictures_and_draw_what_the_mesh_draws():
    mesh = unwrap(painted(), 64)
    generator = torch.Generator().manual_seed(0)
    for name in WIDTHS:
        getattr(mesh, name).data = 0.5 * torch.randn(getattr(mesh, name).shape, generator=generator)
    maps = mesh.maps()
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        "albedo": (64, 64, 3),
        "roughness": (64, 64, 1),
        "metallic": (64, 64, 1),
        "normal": (64, 64, 3),
    }
    assert all(m.min() >= 0 and m.max() <= 1 for m in maps.values())
    textures = {f"{name}_logits": maps[name].logit() for name in ("albedo", "roughness", "metallic")}
    n = 2 * maps["normal"] - 1
    written = TexturedMesh(
        mesh.base, mesh.faces, mesh.uv, mesh.uv_faces, textures | {"slopes": n[..., :2] / n[..., 2:]}
    )
    one, other = (Raster(Pbr())(m, CAMERAS, GREY) for m in (mesh, written))
    torch.testing.assert_close(one.rgb, other.rgb, atol=1e-4, rtol=0)
    # What is never read shows its neighbours: a quarter as large a picture has no colour of its own outside of charts.
    mesh.albedo_logits.data = torch.full((64, 64, 3), 2.0)
    mesh.albedo_logits.data[~mesh._read()] = -2.0
    assert (mesh.maps()["albedo"] > 0.8).all()


def test_nearest_is_nearest():
    marked = torch.rand(21, 21, generator=torch.Generator().manual_seed(3)) < 0.02
    places = torch.cartesian_prod(torch.arange(21), torch.arange(21)).float()
    truth = torch.cdist(places, places[marked.flatten()]).amin(dim=1)
    found = nearest(marked).flatten()
    assert marked.flatten()[found].all()
    away = (places - places[found]).norm(dim=1)
    torch.testing.assert_close(away, truth)
    assert torch.equal(nearest(torch.zeros_like(marked)).flatten(), torch.arange(441))


def test_a_batch_is_its_views():
    mesh, draw = unwrap(painted(2), 32), Raster(Pbr())
    whole = draw(mesh, CAMERAS, GREY, Step(0, "s", 5))
    for view in range(4):
        single = draw(mesh, CAMERAS[view : view + 1], Background(GREY.rgb[:1]), Step(0, "s", 5, row=view))
        for name in ("rgb", "albedo", "normal", "depth"):
            torch.testing.assert_close(getattr(single, name)[0], getattr(whole, name)[view])


def train(mesh: TexturedMesh, indices: range) -> None:
    for index in indices:
        step = Step(0, "s", index, index / 9)
        out = Raster(Pbr())(mesh, CAMERAS, GREY, step)
        (out.rgb - torch.tensor([0.8, 0.2, 0.1])).square().mean().backward()
        mesh.update(out, step)


def test_a_texel_moves_as_far_as_it_is_pulled():
    """A tenth of the pull is a tenth of the step, where Adam would make the two alike."""
    mesh = unwrap(painted(1), 32)
    mesh.prepare(TextureOptimise(albedo=0.1), Step(0))
    before = mesh.albedo_logits.detach().clone()
    mesh.albedo_logits.grad = torch.zeros_like(before)
    mesh.albedo_logits.grad[3, 4, 0], mesh.albedo_logits.grad[5, 6, 1] = 1.0, -0.1
    mesh.update(Raster()(mesh, CAMERAS, GREY), Step(0))
    moved = mesh.albedo_logits.detach() - before
    torch.testing.assert_close(moved[[3, 5], [4, 6], [0, 1]], torch.tensor([-0.1, 0.01]), rtol=0, atol=1e-5)
    assert (moved != 0).sum() == 2


def test_resuming_ends_in_the_same_bits():
    def start() -> TexturedMesh:
        mesh = unwrap(painted(1), 32)
        mesh.prepare(TextureOptimise(offsets=1e-3), Step(0))
        return mesh

    whole, first = start(), start()
    train(whole, range(6))
    train(first, range(2))
    second = square(5)
    second.prepare(TextureOptimise(offsets=1e-3), Step(0))
    second.load(first.state())
    train(second, range(2, 6))
    assert set(whole.state()) == set(second.state())
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name
    for name in ("offsets", *WIDTHS):
        assert not torch.equal(getattr(whole, name), getattr(start(), name)), name


def test_vertices_stay_unless_told_otherwise():
    mesh = unwrap(painted(1), 32)
    mesh.prepare(TextureOptimise(), Step(0))
    before = float((Raster()(mesh, CAMERAS, GREY).rgb - torch.tensor([0.8, 0.2, 0.1])).square().mean().detach())
    train(mesh, range(10))
    after = float((Raster()(mesh, CAMERAS, GREY).rgb - torch.tensor([0.8, 0.2, 0.1])).square().mean().detach())
    assert torch.equal(mesh.vertices, mesh.base) and after < before
    assert plugins.load("optimise", "texture") is TextureOptimise and plugins.load("light", "pbr") is Pbr


def test_bad_input_is_refused_in_a_sentence(unchecked):
    good = blank(4)
    cases = [
        (lambda: TexturedMesh(CORNERS, HALVES, SQUARE + 0.1, HALVES, good), ValueError, "uv must lie in"),
        (lambda: TexturedMesh(CORNERS, HALVES, SQUARE[:3], HALVES, good), ValueError, "only 3 places"),
        (lambda: TexturedMesh(CORNERS, HALVES, SQUARE, HALVES[:1], good), ValueError, "shape of faces"),
        (lambda: TexturedMesh(CORNERS, HALVES, SQUARE * math.nan, HALVES, good), ValueError, "not finite"),
        (lambda: square(4, slopes=torch.zeros(5, 5, 2)), ValueError, "slopes must have the shape"),
        (lambda: square(4, albedo_logits=torch.zeros(4, 5, 3)), ValueError, "albedo_logits must have the shape"),
        (lambda: square(4, albedo_logits=torch.tensor(1.0)), ValueError, "texels a side"),
        (lambda: unwrap(painted(0), 8), ValueError, "unwrapped into 16 to"),
        (lambda: square(4).prepare(MeshOptimise(), Step(0)), TypeError, "optimised by a TextureOptimise"),
    ]
    for case, kind, words in cases:
        with pytest.raises(kind, match=words):
            case()
