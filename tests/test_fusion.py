"""Signed distances fused from pictures with depth, against the scenes that were drawn."""

from __future__ import annotations

import pytest
import torch

from sds3d.cameras import orbit
from sds3d.core import Cameras
from sds3d.playroom.grammar import parse
from sds3d.playroom.render import render, shade, surface_normals
from sds3d.playroom.scenes import build
from sds3d.representations.field import points as grid
from sds3d.representations.fusion import TRUNCATION, fuse, paint, without_specks

RESOLUTION = 32
STEP = 2 / (RESOLUTION - 1)


def around(size: int = 48) -> Cameras:
    """Three rings of eight and one from above."""
    places = [(45 * k + e, e) for e in (-10, 15, 45) for k in range(8)] + [(0, 80)]
    azimuth, elevation = zip(*places, strict=True)
    return orbit(list(map(float, azimuth)), list(map(float, elevation)), size)


@pytest.fixture(scope="module")
def drawn():
    cameras = around()
    texts = ("a red cube", "a yellow cone next to a purple sphere", "a head with dark skin, red hair and green eyes")
    scenes = {text: build(parse(text)) for text in texts}
    return cameras, {
        text: (scene, render(scene, cameras, torch.ones(len(cameras), 3), samples=2)) for text, scene in scenes.items()
    }


def test_what_is_fused_is_the_scene(drawn):
    """Half a step away from the surface every sign is right, and the volume is the scene's."""
    cameras, scenes = drawn
    points = grid(RESOLUTION, torch.zeros(0)).view(-1, 3)
    for text, (scene, out) in scenes.items():
        sdf = fuse(out.depth, out.alpha, cameras, RESOLUTION).flatten()
        true = scene.distance(points)
        away = true.abs() > STEP / 2
        assert (sdf.sign() == true.sign())[away].all(), text
        overlap = ((sdf < 0) & (true < 0)).sum() / ((sdf < 0) | (true < 0)).sum()
        assert overlap > 0.94, text
        assert sdf.abs().max() >= TRUNCATION * STEP - 1e-6 and sdf.min() >= -TRUNCATION * STEP - 1e-6


def test_without_depth_only_the_visual_hull_is_left(drawn):
    """A cube's silhouettes leave it a little larger than it is and never smaller."""
    cameras, scenes = drawn
    scene, out = scenes["a red cube"]
    points = grid(RESOLUTION, torch.zeros(0)).view(-1, 3)
    hull = fuse(torch.zeros_like(out.depth) + 1e-3, out.alpha, cameras, RESOLUTION).flatten() < 0
    inside = scene.distance(points) < -STEP / 2
    assert hull[inside].all() and hull.sum() < 2 * inside.sum()


def test_nothing_drawn_is_nothing_inside():
    cameras = around(16)
    empty = torch.zeros(len(cameras), 16, 16, 1)
    assert (fuse(empty, empty, cameras, 16) > 0).float().mean() > 0.99  # but for corners that no view looks at


def test_the_order_of_the_views_does_not_matter(drawn):
    cameras, scenes = drawn
    _, out = scenes["a red cube"]
    order = torch.arange(len(cameras)).flip(0)
    turned = Cameras(cameras.c2w[order], cameras.K[order], cameras.height, cameras.width)
    one, other = fuse(out.depth, out.alpha, cameras, 16), fuse(out.depth[order], out.alpha[order], turned, 16)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_pictures_of_other_cameras_are_refused():
    picture = torch.zeros(2, 8, 8, 1)
    with pytest.raises(ValueError, match=r"must be \[25, 16, 16, 1\]"):
        fuse(picture, picture, around(16))


def test_painted_points_have_the_scenes_colours(drawn):
    """Seen from all around, points on the surface get the shaded colour there; on the far side of edges too."""
    cameras, scenes = drawn
    for text, (scene, _) in scenes.items():
        out = render(scene, cameras, torch.zeros(len(cameras), 3), samples=2)
        points = grid(RESOLUTION, torch.zeros(0)).view(-1, 3)
        points = points[scene.distance(points).abs() < STEP / 2]
        normals = surface_normals(scene, points)
        points = points - scene.distance(points)[:, None] * normals
        above = points[:, 2] > -0.2  # the views look down, and undersides are in nobody's sight
        points, normals = points[above], normals[above]
        painted = paint(points, normals, out.rgb, out.depth, out.alpha, cameras)
        error = (painted - shade(scene.albedo(points), normals)).abs().mean(dim=1)
        assert error.median() < 0.02 and error.mean() < 0.05, text


def test_a_point_that_nobody_sees_is_painted_like_what_hides_it(drawn):
    cameras, scenes = drawn
    scene, _ = scenes["a red cube"]
    out = render(scene, cameras, torch.zeros(len(cameras), 3), samples=2)
    painted = paint(torch.zeros(1, 3), torch.tensor([[0.0, 0, 1]]), out.rgb, out.depth, out.alpha, cameras)
    assert painted[0, 0] > 0.5 and painted[0, 1:].max() < 0.3


def test_specks_are_taken_away_and_parts_are_kept():
    """Of three balls in a ratio of volumes of 1000 to 125 to 1 the last alone goes."""
    points = grid(40, torch.zeros(0))
    balls = [(-0.3, 0.5), (0.5, 0.25), (0.9, 0.05)]
    distances = [(points - centre).norm(dim=-1) - radius for centre, radius in balls]
    sdf = torch.stack(distances).amin(dim=0)
    kept = without_specks(sdf)
    two = torch.stack(distances[:2]).amin(dim=0) < 0
    assert torch.equal(kept < 0, two) and (sdf < 0).sum() > two.sum()
    assert torch.equal(kept.abs(), sdf.abs()) and torch.equal(without_specks(kept), kept)
