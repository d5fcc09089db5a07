"""Fewer triangles, and surfaces that touch themselves: what stays closed, where it is, and what is one piece."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from sds3d.representations.isosurface import surface_nets
from sds3d.representations.simplify import manifold, simplified

CUBE = torch.tensor([[x, y, z] for x in (0.0, 1) for y in (0.0, 1) for z in (0.0, 1)])
SIDES = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))  # outward
FACES = torch.tensor([[q[0], q[i], q[i + 1]] for q in SIDES for i in (1, 2)])


def joined(*cubes: Tensor) -> tuple[Tensor, Tensor]:
    """Cubes as one mesh, with vertices at one place made one."""
    vertices = torch.cat([CUBE + offset for offset in cubes])
    faces = torch.cat([FACES + 8 * i for i in range(len(cubes))])
    unique, place = torch.unique(vertices, dim=0, return_inverse=True)
    return unique, place[faces]


def edge_counts(faces: Tensor) -> Tensor:
    ends = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return torch.unique(ends.sort(dim=1).values, dim=0, return_counts=True)[1]


def volume(vertices: Tensor, faces: Tensor) -> float:
    return float(torch.linalg.det(vertices[faces].double()).sum() / 6)


def pieces(vertices: Tensor, faces: Tensor) -> int:
    name = torch.arange(len(vertices))
    while True:
        least = name[faces].amin(dim=1)
        grown = name.clone()
        for k in range(3):
            grown = grown.scatter_reduce(0, faces[:, k], least, "amin")
        if torch.equal(grown, name):
            return len(name[faces].unique())
        name = grown


def grid(resolution: int = 24) -> Tensor:
    axis = torch.linspace(-1, 1, resolution)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)


def ring() -> tuple[Tensor, Tensor]:
    p = grid(28)
    return surface_nets(torch.hypot(torch.hypot(p[..., 0], p[..., 1]) - 0.6, p[..., 2]) - 0.25)


def test_the_cube_of_the_tests_is_closed_and_faces_out():
    assert (edge_counts(FACES) == 2).all() and volume(CUBE, FACES) == pytest.approx(1)


@pytest.mark.parametrize(
    "offsets",
    [((0, 0, 0), (1, 1, 0)), ((0, 0, 0), (1, 1, 1)), ((0, 0, 0), (1, 1, 0), (0, 1, 1)), ((0, 1, 0), (1, 0, 0))],
    ids=["an edge", "a corner", "two edges", "the other diagonal"],
)
def test_solids_that_touch_are_taken_apart(offsets):
    """Cubes with a common edge or corner become cubes of their own again, and nothing moves."""
    cubes = [torch.tensor(offset).float() for offset in offsets]
    vertices, faces = joined(*cubes)
    apart, renamed = manifold(vertices, faces)
    assert len(apart) == 8 * len(cubes) and pieces(apart, renamed) == len(cubes)
    assert (edge_counts(renamed) == 2).all() and torch.equal(apart[renamed], vertices[faces])


def test_a_solid_that_touches_itself_keeps_two_triangles_at_each_edge():
    """Six cubes in a ring: two of them meet in an edge alone, at both of whose ends the others are near."""
    vertices, faces = joined(*(torch.tensor(o).float() for o in ((0, 0, 0), (1, 1, 0))))
    bridge = CUBE + torch.tensor([0.0, 0, 1])
    wide = bridge * torch.tensor([2.0, 2, 1])  # lies on both, glued by its own faces
    unique, place = torch.unique(torch.cat([vertices, wide]), dim=0, return_inverse=True)
    together = torch.cat([place[faces], place[FACES + len(vertices)]])
    apart, renamed = manifold(unique, together)
    assert (edge_counts(renamed) == 2).all()
    assert volume(apart, renamed) == pytest.approx(volume(unique, together))


def test_what_is_one_surface_stays_as_it_is():
    vertices, faces = ring()
    again, renamed = manifold(vertices, faces)
    assert torch.equal(again[renamed], vertices[faces]) and len(again) == len(vertices)


def test_an_open_surface_is_refused():
    with pytest.raises(ValueError, match="not closed: 3 of its edges"):
        manifold(CUBE, FACES[1:])


@pytest.mark.parametrize("count", [2000, 600])
def test_fewer_triangles_show_the_same_ring(count):
    """Closed, of one hole, in its place and of its volume."""
    pytest.importorskip("fast_simplification")
    vertices, faces = ring()
    fewer, triangles = simplified(vertices, faces, count)
    assert count * 0.98 <= len(triangles) <= count and fewer.dtype == torch.float32
    assert (edge_counts(triangles) == 2).all() and pieces(fewer, triangles) == 1
    assert len(fewer) - len(triangles) / 2 == 0  # V - E + F = V - F / 2 of a ring
    assert volume(fewer, triangles) == pytest.approx(volume(vertices, faces), rel=0.01)
    away = torch.hypot(torch.hypot(fewer[:, 0], fewer[:, 1]) - 0.6, fewer[:, 2]) - 0.25
    assert away.abs().max() < 0.03


def test_few_enough_triangles_are_left_alone():
    vertices, faces = ring()
    same, triangles = simplified(vertices, faces, len(faces))
    assert torch.equal(same[triangles], vertices[faces])


def test_without_the_library_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_simplification", None)
    with pytest.raises(ImportError, match=r"sds3d\[mesh\]"):
        simplified(*ring(), 100)
    with pytest.raises(ValueError, match="at least 4"):
        simplified(*ring(), 3)
