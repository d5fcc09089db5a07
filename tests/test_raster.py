"""The rasteriser of meshes against its float64 twin, and the law of its silhouettes: gradients tell true changes."""

import copy
import dataclasses
import math
import sys
import types
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sds3d.cameras import look_at, orbit
from sds3d.core import Background, Cameras
from sds3d.renderers import kernels, raster, reference, zbuffer_pytorch3d, zbuffer_torch
from sds3d.renderers.kernels import zbuffer as zbuffer_c
from sds3d.renderers.raster import Raster, zbuffer
from sds3d.renderers.shading import Lambert
from sds3d.representations.gaussians import Gaussians
from sds3d.representations.mesh import Mesh, icosphere

needs_kernel = pytest.mark.skipif(kernels.backend().name != "c", reason="there is no C kernel here")
MAPS = ("rgb", "alpha", "depth", "normal")


def bumpy(subdivisions: int, bump: float = 0.15) -> Mesh:
    """A sphere with waves of relative height `bump` and colours that vary over it; float64."""
    sphere = icosphere(subdivisions)
    n = normalize(sphere.base.double(), dim=-1)
    waves = torch.sin(7 * n[:, 0]) * torch.sin(6 * n[:, 1] + 1) * torch.cos(5 * n[:, 2])
    colours = 2 * torch.sin(4 * n + torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64))
    return Mesh(0.7 * n * (1 + bump * waves)[:, None], sphere.faces, colours)


def two() -> Mesh:
    """Two bumpy bodies, of which one hides a part of the other from some sides."""
    a, b = bumpy(1, 0.3), bumpy(1, 0.3)
    base = torch.cat([0.6 * a.base + 0.35, 0.5 * b.base - 0.4])
    faces = torch.cat([a.faces, b.faces + len(a.base)])
    return Mesh(base, faces, torch.cat([a.colour_logits, -b.colour_logits]))


def ring(size: int, views: int = 4) -> Cameras:
    cams = orbit([3.0, 95.0, 182.0, 271.0][:views], [10.0, 20.0, -10.0, 30.0][:views], size)
    # Exactly orthonormal, because a twin may invert the matrix where the renderer transposes it.
    return dataclasses.replace(cams, c2w=look_at(cams.position.double()), K=cams.K.double())


def plain(views: int = 4) -> Background:
    return Background(torch.tensor([[0.2, 0.5, 0.9]]).repeat(views, 1))


def drawn(draw: Callable, mesh: Mesh, cams: Cameras) -> dict[str, Tensor]:
    """Pictures, and gradients for one random upstream gradient in all maps."""
    mesh.zero_grad(set_to_none=True)
    out = draw(mesh, cams, plain(len(cams)))
    generator = torch.Generator().manual_seed(5)
    torch.stack(
        [(getattr(out, m).cpu() * torch.randn(getattr(out, m).shape, generator=generator)).sum() for m in MAPS]
    ).sum().backward()
    found = {name: getattr(out, name).detach() for name in MAPS}
    found |= {f"d {name}": p.grad for name, p in mesh.named_parameters()}
    return {name: tensor.cpu() for name, tensor in found.items()}


def error(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true).norm() / true.norm())


def assert_parity(found: dict[str, Tensor], true: dict[str, Tensor]) -> None:
    """The bounds that every backend is held to, in float32."""
    for name in true:
        assert error(found[name], true[name]) < (1e-3 if name.startswith("d ") else 1e-5), name


@pytest.mark.parametrize("make", [lambda: bumpy(1), two], ids=["one", "two"])
def test_it_equals_its_twin(make, device):
    mesh, cams = make(), ring(16, 3)
    true = drawn(reference.raster, copy.deepcopy(mesh), cams)
    exact = drawn(Raster(), copy.deepcopy(mesh).to(device), cams)
    for name in true:
        assert error(exact[name], true[name]) < 1e-9, name
    assert_parity(drawn(Raster(), mesh.float().to(device), cams), true)


def test_inner_gradients_are_finite_differences():
    """Where no silhouette is, plain derivatives of the picture: a triangle that fills the view."""
    corners = torch.tensor([[0.0, -9.0, -9.0], [0.3, 9.0, -8.0], [-0.2, 0.0, 9.0]], dtype=torch.float64)
    colours = torch.tensor([[1.0, -1.0, 0.0], [0.0, 2.0, -1.0], [-2.0, 0.5, 1.0]], dtype=torch.float64)
    cams, faces = ring(4, 1), torch.tensor([[0, 1, 2]])

    def picture(vertices: Tensor, logits: Tensor) -> Tensor:
        mesh = Mesh(torch.zeros_like(corners), faces, colours)
        moved = {"offsets": vertices, "colour_logits": logits}
        out = torch.func.functional_call(Drawing(mesh, cams), {f"mesh.{n}": t for n, t in moved.items()})
        return torch.cat([out.rgb, out.depth, out.normal], dim=-1)

    assert torch.autograd.gradcheck(picture, (corners.requires_grad_(), colours.requires_grad_()), atol=1e-6)


class Drawing(torch.nn.Module):
    """A mesh and its cameras as one module, so that its parameters may be exchanged for a call."""

    def __init__(self, mesh: Mesh, cams: Cameras):
        super().__init__()
        self.mesh, self.cams = mesh, cams

    def forward(self):
        return Raster()(self.mesh, self.cams, plain(len(self.cams)))


def translate(vertices: Tensor, s: float) -> Tensor:
    return vertices + s * vertices.new_tensor([0.05, 0.08, 0.04])


def enlarge(vertices: Tensor, s: float) -> Tensor:
    return vertices * (1 + 0.12 * s)


MOTIONS = {
    "5120 faces, 64 px, translate": (4, 0.0, 64, translate),
    "5120 faces, 64 px, scale": (4, 0.0, 64, enlarge),
    "bumpy 5120 faces, 64 px, translate": (4, 0.15, 64, translate),
    "bumpy 5120 faces, 128 px, scale": (4, 0.15, 128, enlarge),
    "320 faces, 64 px, scale": (2, 0.0, 64, enlarge),
    "80 faces, 256 px, scale": (1, 0.0, 256, enlarge),
}


def predicted_and_true(case: tuple, steps: int = 4) -> tuple[float, float]:
    """The squared distance to a picture further along a motion: its gradient integrated along it, and its change."""
    subdivisions, bump, size, move = case
    mesh, cams = bumpy(subdivisions, bump), ring(size)

    def draw(s: float) -> tuple[Mesh, Tensor]:
        moved = Mesh(move(mesh.base, s), mesh.faces, mesh.colour_logits)
        return moved, Raster()(moved, cams, plain()).rgb

    with torch.no_grad():
        target = draw(1.6)[1]
        true = (draw(1.0)[1] - target).square().sum() - (draw(0.0)[1] - target).square().sum()
    velocity = move(mesh.base, 1.0) - mesh.base  # of both motions, at any time
    predicted = 0.0
    for k in range(steps):
        moved, picture = draw((k + 0.5) / steps)
        (picture - target).square().sum().backward()
        predicted += float((moved.offsets.grad * velocity).sum()) / steps
    return predicted, float(true)


@pytest.mark.parametrize("name", MOTIONS)
def test_the_gradient_along_a_motion_is_the_true_change(name, monkeypatch):
    predicted, true = predicted_and_true(MOTIONS[name])
    assert abs(predicted / true - 1) < 0.3
    monkeypatch.setattr(raster, "antialias", lambda image, crossings: image)
    predicted, true = predicted_and_true(MOTIONS[name])
    assert abs(predicted / true - 1) > 0.3  # the plain z-buffer does not see that a surface ends


def test_alpha_is_the_covered_area():
    """A square facing the camera covers its exact area, at every sub-pixel place, where a z-buffer counts pixels."""
    cams = ring(32, 1)
    rotation = cams.c2w[0, :3, :3]
    for shift in (0.0, 0.013, 0.037):
        corners = torch.tensor([[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]], dtype=torch.float64)
        square = Mesh(
            (corners + corners.new_tensor([shift, shift, 0.0])) @ rotation.T, torch.tensor([[0, 1, 2], [0, 2, 3]])
        )
        alpha = Raster()(square, cams, plain(1)).alpha.detach()
        side = float(cams.K[0, 0, 0]) / 3.0
        assert abs(float(alpha.sum()) - side**2) < 1.0  # the four corners, which both directions blend
        assert float(alpha.min()) >= 0 and float(alpha.max()) <= 1


def test_a_batch_is_its_views_to_the_bit():
    mesh, cams = two().float(), ring(24).to(torch.zeros(1))
    draw = Raster(Lambert())
    whole, again = draw(mesh, cams, plain()), draw(mesh, cams, plain())
    for name in (*MAPS, "albedo"):
        singles = torch.cat([getattr(draw(mesh, cams[b : b + 1], plain(1)), name) for b in range(4)])
        assert torch.equal(getattr(whole, name), singles), name
        assert torch.equal(getattr(whole, name), getattr(again, name)), name


def test_light_shades_the_albedo():
    mesh, cams = bumpy(2), ring(24)
    lit, unlit = Raster(Lambert((1, 0, 0), 0.4, 0.6))(mesh, cams, plain()), Raster()(mesh, cams, plain())
    torch.testing.assert_close(lit.albedo, unlit.rgb)
    inner = (lit.alpha[..., 0] == 1) & (unlit.albedo is None)
    cosine = lit.normal[..., 0].clamp(min=0)
    expected = lit.albedo * (0.4 + 0.6 * cosine)[..., None]
    full = inner & (expected.sub(lit.rgb).abs().amax(-1) < 1e-9)
    assert full.sum() > 0.9 * inner.sum()  # not at inner silhouettes, where two surfaces are blended


def test_normals_face_the_camera_from_either_side():
    mesh, cams = bumpy(2, 0.0), ring(24)
    inside_out = Mesh(mesh.base, mesh.faces.flip(1), mesh.colour_logits)
    a, b = Raster()(mesh, cams, plain()), Raster()(inside_out, cams, plain())
    torch.testing.assert_close(a.normal, b.normal)
    centre = a.normal[:, 12, 12]
    assert (torch.einsum("bi,bi->b", centre, cams.position) > 0).all()
    length = a.normal.norm(dim=-1)
    torch.testing.assert_close(length, (a.alpha[..., 0] > raster.OUTSIDE).double())


def test_a_camera_inside_sees_the_surface_all_around():
    """Triangles that cross the camera's plane are not clipped, and none behind it is drawn."""
    cams = orbit([0.0, 90.0], 0.0, 16, radius=0.1, fov_y_deg=100.0)
    out = Raster()(icosphere(1), cams, plain(2))
    assert (out.alpha == 1).all() and (out.depth > 0.3).all() and (out.depth < 1.1).all()
    away = dataclasses.replace(cams, c2w=orbit([0.0, 90.0], 0.0, 16).c2w @ torch.diag(torch.tensor([1.0, -1, -1, 1])))
    assert (zbuffer(torch.zeros(2, 3, 3) - 1.0, torch.tensor([[0, 1, 2]]), away) == -1).all()
    assert not Raster()(icosphere(1), away, plain(2)).alpha.any()


def test_two_triangles_leave_no_crack_where_they_share_an_edge():
    """Also where pixel centres lie on the edge itself, whichever way round each triangle names it."""
    cams, frame = ring(16, 1), torch.tensor([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], dtype=torch.float64)
    square = frame @ cams.c2w[0, :3, :3].T
    for turn in range(3):
        for faces in ([[0, 1, 2], [0, 2, 3]], [[0, 1, 3], [1, 2, 3]], [[0, 2, 1], [0, 2, 3]]):
            mesh = Mesh(square, torch.tensor(faces).roll(turn, dims=1))
            assert (Raster()(mesh, cams, plain(1)).alpha[0, 2:-2, 2:-2] == 1).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_drawn(bad):
    mesh, cams = bumpy(1).float(), ring(16).to(torch.zeros(1))
    local = torch.einsum("bji,vj->bvi", cams.c2w[:, :3, :3], mesh.base) + torch.tensor([0.0, 0.0, 3.0])
    kept = (mesh.faces != 3).all(dim=1).nonzero()[:, 0]
    rest = zbuffer(local, mesh.faces[kept], cams)
    for axis in range(3):
        moved = local.clone()
        moved[:, 3, axis] = bad
        assert torch.equal(zbuffer(moved, mesh.faces, cams), torch.where(rest >= 0, kept[rest], -1))
        with torch.no_grad():
            mesh.offsets[3] = 0.0
            mesh.offsets[3, axis] = bad
        alpha = Raster()(mesh, cams, plain()).alpha
        assert alpha.min() >= 0 and alpha.max() <= 1  # which no NaN passes


def test_a_vertex_far_away_is_no_burden():
    mesh, cams = bumpy(1).float(), ring(16)
    with torch.no_grad():
        mesh.offsets[3] = torch.tensor([1e12, -3e11, 1e11])
    alpha = Raster()(mesh, cams, plain()).alpha
    assert alpha.min() >= 0 and alpha.max() <= 1


def test_bad_input_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="towards the light"):
        Lambert(direction=(0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="add up to 1"):
        Lambert(ambient=0.9, diffuse=0.4)
    one = Gaussians(torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1, 4), torch.zeros(1), torch.zeros(1, 3))
    with pytest.raises(TypeError, match="draws a mesh"):
        Raster()(one, ring(4, 1), plain(1))


@needs_kernel
def test_the_c_z_buffer_draws_the_same_pixels():
    """On smooth, crossing and tiny triangles, on edges through pixel centres, at the camera's plane, and of garbage."""
    library = kernels.backend().library
    generator = torch.Generator().manual_seed(0)
    cams = orbit([3.0, 95.0, 182.0, 271.0], [10.0, 20.0, -10.0, 30.0], 33)

    def local(vertices: Tensor) -> Tensor:
        return torch.einsum("bji,vj->bvi", cams.c2w[:, :3, :3], vertices) + torch.tensor([0.0, 0.0, 3.0])

    soup, triples = torch.randn(300, 3, generator=generator), torch.randint(300, (500, 3), generator=generator)
    garbage = local(soup)
    garbage[:, :40, 0], garbage[:, 40:60, 2], garbage[:, 60:80] = math.nan, math.inf, 1e30
    ball, fine, grid = two().float(), icosphere(4), torch.cartesian_prod(*[torch.arange(-2.0, 3.0)] * 2, torch.zeros(1))
    square = torch.tensor([[i, i + 1, i + 6] for i in range(19)] + [[i, i + 6, i + 5] for i in range(19)])
    aligned = dataclasses.replace(cams, K=torch.tensor([[12.0, 0, 16.5], [0, 12, 16.5], [0, 0, 1]]).repeat(4, 1, 1))
    cases = [
        (local(ball.base), ball.faces, cams),
        (local(fine.base), fine.faces, cams),
        (local(2 * soup), triples, cams),  # many of these cross the camera's plane
        (grid.repeat(4, 1, 1) + torch.tensor([0.0, 0.0, 3.0]), square, aligned),
        (garbage, triples, cams),
    ]
    for number, (vertices, faces, cameras) in enumerate(cases):
        wanted = zbuffer_torch.zbuffer(vertices, faces, cameras)
        assert torch.equal(zbuffer_c.zbuffer(vertices, faces, cameras, library), wanted), number
        assert (wanted >= 0).float().mean() > 0.05
        assert torch.equal(zbuffer(vertices, faces, cameras), wanted)


def test_without_the_kernel_the_picture_is_the_same(monkeypatch):
    mesh, cams = two().float(), ring(16).to(torch.zeros(1))
    first = drawn(Raster(), mesh, cams)
    monkeypatch.setenv("SDS3D_KERNEL", "torch")
    second = drawn(Raster(), copy.deepcopy(mesh), cams)
    assert all(torch.equal(first[name], second[name]) for name in first)


class Meshes:
    """What the stand-in below takes of `pytorch3d.structures.Meshes`: padded vertices and triangles."""

    def __init__(self, verts: Tensor, faces: Tensor):
        self.verts, self.faces = verts, faces


def rasterize_meshes(
    meshes,
    image_size=256,
    blur_radius=0.0,
    faces_per_pixel=8,
    bin_size=None,
    max_faces_per_bin=None,
    perspective_correct=False,
    clip_barycentric_coords=False,
    cull_backfaces=False,
    z_clip_value=None,
    cull_to_frustum=False,
):
    """pytorch3d's documented conventions, drawn by our z-buffer: +x left, +y up, triangles numbered through the batch.

    Like the real one it needs finite corners, and leaves centres on an edge out unless there is some blur.
    """
    assert faces_per_pixel == 1 and not cull_backfaces and not cull_to_frustum  # the cull is wrong for wide pictures
    assert meshes.verts.isfinite().all() and meshes.faces.shape[:1] == meshes.verts.shape[:1]
    assert max_faces_per_bin >= meshes.faces.shape[1] and perspective_correct and z_clip_value == zbuffer_torch.NEAR
    (H, W), count = image_size, meshes.faces.shape[1]
    short = min(H, W) / 2
    K = torch.tensor([[[short, 0.0, W / 2], [0.0, short, H / 2], [0.0, 0.0, 1.0]]], dtype=torch.float64)
    eye = Cameras(torch.eye(4, dtype=torch.float64)[None], K, H, W)
    views = []
    for number, (verts, faces) in enumerate(zip(meshes.verts.double(), meshes.faces, strict=True)):
        local = torch.cat([verts[:, :2] * verts[:, 2:], verts[:, 2:]], dim=-1)[None]
        ids = zbuffer_torch.zbuffer(local, faces, eye)
        if blur_radius == 0:
            surface = raster.intersect(local, faces, ids, K)
            ids = ids.flatten().index_fill(0, surface.at[(surface.weights < 1e-9).any(dim=1)], -1).view(1, H, W)
        views.append(torch.where(ids >= 0, ids + number * count, -1))
    ids = torch.cat(views).flip(1, 2)[..., None]  # from rising to falling coordinates
    return ids, None, None, None


@pytest.fixture
def pytorch3d(monkeypatch) -> Iterator[None]:
    """The stand-in in the place of pytorch3d, chosen on the CPU too."""
    modules = {
        "pytorch3d": {},
        "pytorch3d.structures": {"Meshes": Meshes},
        "pytorch3d.renderer": {},
        "pytorch3d.renderer.mesh": {},
        "pytorch3d.renderer.mesh.rasterize_meshes": {"rasterize_meshes": rasterize_meshes},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(raster, "backend", lambda like: zbuffer_pytorch3d.backend(like.device))
    zbuffer_pytorch3d.backend.cache_clear()
    yield
    zbuffer_pytorch3d.backend.cache_clear()


def test_pytorch3d_is_given_and_gives_the_right_pixels(pytorch3d):
    assert raster.backend(torch.zeros(1)).name == "pytorch3d"
    mesh, cams = two(), ring(16, 3)
    true = drawn(reference.raster, copy.deepcopy(mesh), cams)
    assert_parity(drawn(Raster(), mesh.float(), cams), true)
    test_a_camera_inside_sees_the_surface_all_around()
    test_two_triangles_leave_no_crack_where_they_share_an_edge()
    for bad in (math.nan, math.inf, -math.inf):
        test_what_is_not_finite_is_not_drawn(bad)


def test_pytorch3d_that_draws_otherwise_or_not_at_all_is_not_chosen(pytorch3d, monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(zbuffer_pytorch3d, "BLUR", 0.0)  # cracks along the trial's diagonal
    assert "otherwise" in zbuffer_pytorch3d.backend(cpu).why

    def broken(*inputs, **options):
        raise RuntimeError("Not compiled with GPU support.")

    monkeypatch.setattr(sys.modules["pytorch3d.renderer.mesh.rasterize_meshes"], "rasterize_meshes", broken)
    zbuffer_pytorch3d.backend.cache_clear()
    assert "Not compiled with GPU support" in zbuffer_pytorch3d.backend(cpu).why
    monkeypatch.delattr(sys.modules["pytorch3d.structures"], "Meshes")  # as in a package that only has the name
    zbuffer_pytorch3d.backend.cache_clear()
    chosen = zbuffer_pytorch3d.backend(cpu)
    assert chosen.name == "torch" and "cannot import name 'Meshes'" in chosen.why


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_the_real_pytorch3d_draws_the_same_pixels():
    pytest.importorskip("pytorch3d.structures")
    cuda = torch.device("cuda")
    assert zbuffer_pytorch3d.backend(cuda).name == "pytorch3d", zbuffer_pytorch3d.backend(cuda).why
    mesh, cams = two().float().to(cuda), dataclasses.replace(ring(33, 4), width=21).to(torch.zeros(1, device=cuda))
    local = torch.einsum("bji,vj->bvi", cams.c2w[:, :3, :3], mesh.base) + mesh.base.new_tensor([0.0, 0.0, 3.0])
    found, true = (draw(local, mesh.faces, cams) for draw in (zbuffer_pytorch3d.zbuffer, zbuffer_torch.zbuffer))
    assert torch.equal(found, true)
