"""Surface nets: closed, outward, exact on planes, with the gradients of finite differences."""

import math

import pytest
import torch
from torch import Tensor

from sds3d.representations.isosurface import surface_nets


def grid(n: int, radius: float = 1.0) -> Tensor:
    ticks = torch.linspace(-radius, radius, n, dtype=torch.float64)
    return torch.stack(torch.meshgrid(ticks, ticks, ticks, indexing="ij"), dim=-1)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def volume(vertices: Tensor, faces: Tensor) -> Tensor:
    """By the divergence theorem: positive where triangles face outward."""
    return torch.linalg.det(vertices[faces]).sum() / 6


def directed(faces: Tensor) -> Tensor:
    return torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def assert_closed(faces: Tensor) -> None:
    """Every directed edge has as many opposite ones."""
    ahead, counts = directed(faces).unique(dim=0, return_counts=True)
    back, opposite = directed(faces).flip(1).unique(dim=0, return_counts=True)
    assert torch.equal(ahead, back)
    assert torch.equal(counts, opposite)


@pytest.mark.parametrize("n", [9, 16, 25])
def test_a_sphere_is_closed_outward_and_converges(n: int) -> None:
    vertices, faces = surface_nets(grid(n).norm(dim=-1) - 0.7)
    assert_closed(faces)
    _, counts = directed(faces).sort(dim=1).values.unique(dim=0, return_counts=True)
    assert (counts == 2).all()
    assert len(vertices) - len(counts) + len(faces) == 2  # Euler's number of a sphere
    step = 2 / (n - 1)
    assert (vertices.norm(dim=-1) - 0.7).abs().max() < step**2
    assert abs(volume(vertices, faces) / (4 / 3 * math.pi * 0.7**3) - 1) < 4 * step**2
    normals = torch.linalg.cross(*(vertices[faces[:, i]] - vertices[faces[:, 0]] for i in (1, 2)))
    assert ((normals * vertices[faces].mean(dim=1)).sum(dim=-1) > 0).all()


def test_noise_gives_a_closed_surface_too() -> None:
    """Even in ambiguous cells, and where the object leaves the grid on all sides."""
    vertices, faces = surface_nets(random(7, 8, 9))
    assert_closed(faces)
    assert volume(vertices, faces) > 0
    assert faces.unique().numel() == len(vertices)


def test_an_object_that_fills_the_grid_is_closed_at_its_sides() -> None:
    vertices, faces = surface_nets(torch.full((5, 5, 5), -0.1, dtype=torch.float64), radius=0.8)
    assert_closed(faces)
    assert (vertices.abs() <= 0.8 + 0.4).all()  # within one grid step of 0.4
    assert volume(vertices, faces) > 1.4**3


def test_vertices_of_a_plane_lie_on_it_whatever_the_offsets() -> None:
    normal = torch.nn.functional.normalize(torch.tensor([0.3, -0.5, 0.8], dtype=torch.float64), dim=0)
    offsets = 0.9 * (torch.rand(10, 10, 10, 3, generator=torch.Generator().manual_seed(1)).double() - 0.5)
    sdf = (grid(10) + offsets * (2 / 9)) @ normal - 0.1
    vertices, faces = surface_nets(sdf, offsets)
    assert_closed(faces)
    inner = (vertices.abs() < 0.75).all(dim=-1)
    assert inner.sum() > 40
    torch.testing.assert_close(vertices[inner] @ normal, torch.full((int(inner.sum()),), 0.1, dtype=torch.float64))


def test_gradients_are_those_of_finite_differences() -> None:
    sdf = (grid(5).norm(dim=-1) - 0.63 + 0.02 * random(5, 5, 5)).requires_grad_()
    offsets = (0.1 * random(5, 5, 5, 3, seed=2)).clamp(-0.4, 0.4).requires_grad_()
    weights = random(*surface_nets(sdf, offsets)[0].shape, seed=3)
    assert torch.autograd.gradcheck(lambda s, o: (surface_nets(s, o)[0] * weights).sum(), (sdf, offsets))


def test_a_volume_grows_with_its_surface() -> None:
    """d volume / d level is the area of the surface, for a distance: 4 pi r^2."""
    level = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    volume(*surface_nets(grid(33).norm(dim=-1) - level)).backward()
    assert level.grad is not None
    assert abs(level.grad / (4 * math.pi * 0.6**2) - 1) < 0.02


@pytest.mark.parametrize(
    ("sdf", "offsets", "message"),
    [
        (torch.ones(4, 4, 4), None, "no surface"),
        (torch.ones(4, 4), None, "at least 2 points"),
        (torch.full((4, 4, 4), math.nan), None, "not finite, in 64"),
        (-torch.ones(4, 4, 4), torch.zeros(4, 4, 4), "shape"),
        (-torch.ones(4, 4, 4), torch.full((4, 4, 4, 3), 0.6), r"\[-0.5, 0.5\]"),
        (-torch.ones(4, 4, 4), torch.full((4, 4, 4, 3), math.nan), r"\[-0.5, 0.5\]"),
    ],
)
def test_bad_grids_are_refused(unchecked, sdf: Tensor, offsets: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        surface_nets(sdf, offsets)
