"""Gaussians on a surface: where they lie, which way they face, and that they look like it."""

from __future__ import annotations

import math

import pytest
import torch

from sds3d.cameras import orbit
from sds3d.core import Background, Step
from sds3d.renderers.splats import Splats
from sds3d.representations.gaussians import rotation_matrix
from sds3d.representations.mesh import Mesh, icosphere
from sds3d.representations.surfels import SPREAD, THICK, surfels, turn_to

RADIUS, COUNT = 0.7, 3000


def ball() -> Mesh:
    """A ball of triangles with its position as its colour."""
    vertices = icosphere(3, RADIUS).vertices.detach()
    return Mesh(vertices, icosphere(3).faces, ((vertices / RADIUS + 1) / 2).clamp(1e-3, 1 - 1e-3).logit())


def test_discs_lie_on_the_surface_and_face_out():
    cloud = surfels(ball(), COUNT, Step(0))
    out = cloud.means / cloud.means.norm(dim=-1, keepdim=True)
    assert (cloud.means.norm(dim=-1) - RADIUS).abs().max() < 0.02
    normals = rotation_matrix(cloud.quats)[:, :, 2]
    assert (normals * out).sum(dim=-1).min() > 0.95
    torch.testing.assert_close(cloud.rgb, (out + 1) / 2, rtol=0, atol=0.03)
    spacing = math.sqrt(4 * math.pi * RADIUS**2 / COUNT)
    torch.testing.assert_close(cloud.scales[0], spacing * torch.tensor([SPREAD, SPREAD, THICK]), rtol=0.02, atol=0)


def test_they_are_even_by_area():
    """Each octant of the ball holds an eighth, far nearer than independent draws would bring it."""
    cloud = surfels(ball(), COUNT, Step(0))
    octant = ((cloud.means > 0).long() * torch.tensor([1, 2, 4])).sum(dim=-1)
    assert (torch.bincount(octant, minlength=8) - COUNT / 8).abs().max() < 0.06 * COUNT / 8


def test_they_are_drawn_as_a_closed_ball():
    cloud = surfels(ball(), COUNT, Step(0))
    cameras = orbit([0.0, 90.0, 200.0], 15.0, 48)
    out = Splats()(cloud, cameras, Background(torch.ones(3, 3)))
    focal = float(cameras.K[0, 0, 0])
    radius = focal * RADIUS / math.sqrt(9 - RADIUS**2)
    drawn = (out.alpha.detach().sum(dim=(1, 2, 3)) / math.pi).sqrt()  # a splat is never sharper than about a pixel
    assert (drawn > radius).all() and (drawn < radius + 1.5).all()
    assert out.alpha[:, 20:28, 20:28].min() > 0.95
    towards = torch.nn.functional.normalize(cameras.position, dim=-1)
    front = out.rgb[:, 22:26, 22:26].mean(dim=(1, 2))
    torch.testing.assert_close(front, (towards + 1) / 2, rtol=0, atol=0.04)


def test_turns_take_z_to_any_direction():
    directions = torch.nn.functional.normalize(Step(0).normal("d", torch.empty(1, 50, 3))[0], dim=-1)
    poles = torch.tensor([[0.0, 0, 1], [0, 0, -1], [1, 0, 0]])
    directions = torch.cat([directions, poles])
    turned = rotation_matrix(turn_to(directions))[:, :, 2]
    torch.testing.assert_close(turned, directions, rtol=0, atol=1e-6)


def test_a_mesh_without_area_is_refused():
    flat = torch.zeros(3, 3)
    with pytest.raises(ValueError, match="its area is 0"):
        surfels(Mesh(flat, torch.tensor([[0, 1, 2]])), 10, Step(0))
