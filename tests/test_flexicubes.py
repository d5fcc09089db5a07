"""FlexiCubes as extractor: grid, sign, scale and orientation, against a stand-in that keeps kaolin's conventions.

kaolin itself ran nowhere in these tests, nor while they were written. `FlexiCubes` below has its signature and what was
read in its source: the order of corners and cubes, float32, and which end of an edge tells the winding. Its vertices
are those of surface nets; how the real one parts the sheets of ambiguous cells is not tested.
"""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from test_isosurface import assert_closed, directed, grid, random, volume
from torch import Tensor

from sds3d import schema
from sds3d.core import RenderOutput, Step
from sds3d.representations.isosurface import Isosurface, IsosurfaceOptimise, Shell, extracted, surface_nets

CALLS: list[list[int]] = []  # the resolutions that the stand-in was asked for


class FlexiCubes:
    """A dual mesh of cubes, each of which has at most one vertex."""

    def __init__(self, device: Any = "cuda") -> None:
        self.device = device

    def __call__(
        self, voxelgrid_vertices: Tensor, scalar_field: Tensor, cube_idx: Tensor, resolution: Any, **weights: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert not weights
        assert isinstance(resolution, list)
        assert voxelgrid_vertices.dtype == scalar_field.dtype == torch.float32
        assert voxelgrid_vertices.shape == (len(scalar_field), 3)
        assert cube_idx.shape == (math.prod(resolution), 8)
        CALLS.append(resolution)
        places, values = voxelgrid_vertices[cube_idx], scalar_field[cube_idx]
        ends = [(k, k | 1 << axis) for axis in range(3) for k in range(8) if not k >> axis & 1]
        first, second = torch.tensor(ends).T
        crossed = (values[:, first] < 0) != (values[:, second] < 0)
        share = torch.where(crossed, values[:, first] / (values[:, first] - values[:, second]), 0.0)[..., None]
        met = torch.where(crossed[..., None], places[:, first].lerp(places[:, second], share), 0.0)
        used = crossed.any(dim=1)
        vertices = met[used].sum(dim=1) / crossed[used].sum(dim=1, keepdim=True)
        vertex = torch.full_like(used, -1, dtype=torch.long)
        vertex[used] = torch.arange(len(vertices))
        quads = torch.cat([self._quads(values, resolution, axis) for axis in range(3)])
        faces = vertex[torch.cat([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])]
        return vertices, faces, vertices.new_zeros(len(vertices))

    @staticmethod
    def _quads(values: Tensor, resolution: list[int], axis: int) -> Tensor:
        """The four cubes of each crossed edge along an axis that lies between four cubes."""
        u, v = (axis + 1) % 3, (axis + 2) % 3
        number = torch.arange(len(values)).view(resolution)
        here = number.narrow(u, 1, resolution[u] - 1).narrow(v, 1, resolution[v] - 1).flatten()
        low, high = values[here, 0], values[here, 1 << axis]
        crossed = (low < 0) != (high < 0)
        here, low, high = here[crossed, None], low[crossed], high[crossed]
        du, dv = (number.stride(k) for k in (u, v))
        up = torch.cat([here - du - dv, here - dv, here, here - du], dim=1)  # as seen from the high end
        # kaolin lists the edges along y from their high end, and looks at the sign of the end that it lists first.
        outward = high > 0 if axis == 1 else ~(low > 0)
        return torch.where(outward[:, None], up, up.flip(1))


@pytest.fixture(autouse=True)
def kaolin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Modules of kaolin's names, of which the last has the stand-in."""
    for name in ("kaolin", "kaolin.ops", "kaolin.ops.conversions"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module = sys.modules["kaolin.ops.conversions"]
    vars(module)["FlexiCubes"] = FlexiCubes
    CALLS.clear()
    return module


def normals(vertices: Tensor, faces: Tensor) -> Tensor:
    a, b, c = vertices[faces].unbind(1)
    return torch.linalg.cross(b - a, c - a)


def test_a_sphere_has_its_radius_is_closed_and_faces_outward() -> None:
    vertices, faces = extracted("flexicubes", grid(17).norm(dim=-1) - 0.7)
    assert_closed(faces)
    _, counts = directed(faces).sort(dim=1).values.unique(dim=0, return_counts=True)
    assert len(vertices) - len(counts) + len(faces) == 2  # Euler's number of a sphere
    assert vertices.dtype == torch.float64
    assert (vertices.norm(dim=-1) - 0.7).abs().max() < (2 / 16) ** 2
    assert ((normals(vertices, faces) * vertices[faces].mean(dim=1)).sum(dim=-1) > 0).all()
    assert CALLS == [[18, 18, 18]]  # cubes, with the layer around the grid


def test_axes_are_not_confused_and_what_leaves_the_grid_is_closed() -> None:
    """On noise in a grid whose sides differ: the vertices of surface nets, cube by cube."""
    sdf, offsets = random(4, 6, 9), (0.3 * random(4, 6, 9, 3, seed=1)).clamp(-0.5, 0.5)
    vertices, faces = extracted("flexicubes", sdf, offsets)
    nets, triangles = surface_nets(sdf, offsets)
    torch.testing.assert_close(vertices, nets, atol=1e-5, rtol=0)
    assert len(faces) == len(triangles)
    assert_closed(faces)
    assert volume(vertices, faces) > 0


@pytest.mark.parametrize("zero", [0.0, -0.0, 1e-50, -1e-50])
def test_points_on_the_surface_turn_no_triangle_round(zero: float) -> None:
    """A diamond whose surface passes through points of the grid; float32 knows no 1e-50."""
    sdf = (4 * grid(9)).abs().sum(dim=-1) - 2
    assert (sdf == 0).sum() > 6
    sdf = torch.where(sdf == 0, zero, sdf)
    vertices, faces = extracted("flexicubes", sdf)
    assert len(faces) == len(surface_nets(sdf)[1])  # The same points are inside.
    assert_closed(faces)
    # The diamond |x| + |y| + |z| <= 1/2, whose corners and edges are cut by less than a cell.
    assert ((normals(vertices, faces) * vertices[faces].mean(dim=1)).sum(dim=-1) > -1e-7).all()
    assert 0.6 < volume(vertices, faces) / (4 / 3 * 0.5**3) <= 1 + 1e-5


def test_offsets_of_the_grid_move_the_surface_by_as_many_steps() -> None:
    sdf, move = grid(12).norm(dim=-1) - 0.6, torch.tensor([0.4, -0.2, 0.1], dtype=torch.float64)
    still, faces = extracted("flexicubes", sdf)
    moved, same = extracted("flexicubes", sdf, move.expand(*sdf.shape, 3))
    torch.testing.assert_close(moved - still, (move * 2 / 11).expand_as(still), atol=1e-6, rtol=0)
    assert torch.equal(faces, same)


def test_gradients_reach_values_and_offsets() -> None:
    sdf = (4 * grid(9)).norm(dim=-1).sub(2).div(4)  # of |p| - 1/2, which is 0 in six points of the grid
    assert (sdf == 0).sum() == 6
    given = [sdf.requires_grad_(), torch.zeros(9, 9, 9, 3, dtype=torch.float64, requires_grad=True)]
    pull = random(len(surface_nets(sdf)[0]), 3, seed=4)
    wanted = torch.autograd.grad((surface_nets(*given)[0] * pull).sum(), given)
    found = torch.autograd.grad((extracted("flexicubes", *given)[0] * pull).sum(), given)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert found[0][sdf == 0].abs().min() > 0


def test_an_asset_is_optimised_and_comes_back_with_its_extractor() -> None:
    start = Shell(0.6, 12, "flexicubes")
    rep = start(None, Step(0))
    assert isinstance(rep, Isosurface)
    rep.prepare(IsosurfaceOptimise(distances=0.01, offsets=0.02), Step(0))
    before, empty = rep.vertices.norm(dim=-1).mean().item(), torch.zeros(1, 1, 1, 3)
    for index in range(3):
        (rep.vertices.norm(dim=-1) - 0.7).square().mean().backward()
        rep.update(RenderOutput(rgb=empty, alpha=empty[..., :1], depth=empty[..., :1], normal=empty), Step(index))
    assert before + 0.01 < rep.vertices.norm(dim=-1).mean() < 0.7
    assert rep.shifts.any()
    CALLS.clear()
    blank = start.blank(None)
    assert isinstance(blank, Isosurface)
    blank.load(rep.state())
    assert torch.equal(blank.vertices, rep.vertices)
    assert torch.equal(blank.faces, rep.faces)
    assert CALLS == [[3] * 3, [13] * 3, [13] * 3]
    assert schema.to_data(start)["extractor"] == "flexicubes"
    assert "extractor" not in schema.to_data(Shell())


def test_surface_nets_ask_no_kaolin(kaolin: ModuleType) -> None:
    del vars(kaolin)["FlexiCubes"]
    Shell(0.6, 8)(None, Step(0))
    assert not CALLS


@pytest.mark.parametrize("missing", ["package", "class"])
def test_without_a_usable_kaolin_a_start_says_what_to_install(
    missing: str, kaolin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is none, or a placeholder; and where it is from before the change of licence."""
    if missing == "class":
        del vars(kaolin)["FlexiCubes"]
    else:
        monkeypatch.setitem(sys.modules, "kaolin.ops.conversions", None)
    with pytest.raises(ValueError, match=r"takes kaolin with kaolin\.ops\.conversions\.FlexiCubes.*install the wheel"):
        Shell(extractor="flexicubes")
