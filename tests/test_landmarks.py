"""Control images: where points are drawn, in which colours, and when not."""

from __future__ import annotations

import colorsys
import functools
import math

import pytest
import torch
from torch import Tensor

from sds3d import landmarks
from sds3d.cameras import orbit, rays
from sds3d.core import Background, Image
from sds3d.landmarks import (
    BODY,
    MEDIAPIPE_FACE,
    OPENPOSE_BODY,
    OPENPOSE_FACE,
    OPENPOSE_HAND,
    Convention,
    Stroke,
    draw,
    facing,
    fade,
    project,
    unhidden,
)
from sds3d.renderers.raster import Raster
from sds3d.representations.head import Template, head
from sds3d.representations.mesh import icosphere

ONE_LINE = Convention("line", strokes=(Stroke(0, 1, (255, 0, 0)),))


@functools.cache
def template() -> Template:
    return head()


@functools.cache
def of_face() -> tuple[tuple[int, ...], Tensor, Tensor]:
    it = template()
    return it.contours.ids, *it.at(it.contours, it.vertices)


def face(azimuth_deg: list[float], size: int = 256, elevation_deg: float = 0.0, **how: Tensor) -> Image:
    numbers, points, normals = of_face()
    return draw(MEDIAPIPE_FACE, numbers, points, orbit(azimuth_deg, elevation_deg, size), normals, **how)


def colours(image: Tensor) -> set[tuple[int, ...]]:
    return {tuple(row) for row in torch.unique((image.reshape(-1, 3) * 255).round().int(), dim=0).tolist()} - {
        (0, 0, 0)
    }


def test_a_point_is_where_the_ray_through_it_leaves_the_camera() -> None:
    cameras = orbit([20.0, 130.0], [10.0, -40.0], 32)
    origins, directions = rays(cameras)
    for view, (row, column) in enumerate([(3, 17), (30, 2)]):
        point = origins[view, row, column] + 2.5 * directions[view, row, column]
        at, depth = project(point[None], cameras)
        torch.testing.assert_close(at[view, 0], torch.tensor([column + 0.5, row + 0.5]), rtol=0, atol=1e-4)
        torch.testing.assert_close(depth[view, 0], torch.tensor(2.5))


def test_a_dot_lies_around_its_point_and_is_as_large_as_it_is_told() -> None:
    cameras = orbit([0.0], 0.0, 512)
    image = draw(
        Convention("dot", dots={0: (255, 255, 255)}, radius=10.0), (0,), torch.tensor([[0.0, 0.1, 0.2]]), cameras
    )[0]
    at, _ = project(torch.tensor([[0.0, 0.1, 0.2]]), cameras)
    rows, columns = image[..., 0].nonzero().double().T + 0.5
    torch.testing.assert_close(torch.stack([columns.mean(), rows.mean()]).float(), at[0, 0], rtol=0, atol=0.3)
    assert at[0, 0, 0] > 256 > at[0, 0, 1], "the subject's left is the picture's right, and up is up"
    assert image[..., 0].sum() == pytest.approx(math.pi * 100, rel=0.03)


@pytest.mark.parametrize("size", [512, 1024, 1536])
def test_a_line_is_as_wide_as_the_picture_asks(size: int) -> None:
    points = torch.tensor([[0.0, -0.5, 0.0], [0.0, 0.5, 0.0]])
    image = draw(ONE_LINE, (0, 1), points, orbit([0.0], 0.0, size))[0]
    assert image[:, size // 2, 0].sum() == 2 * size / 512
    ends, _ = project(points, orbit([0.0], 0.0, size))
    assert image[..., 0].any(dim=0).sum() == pytest.approx(float(ends[0, 1, 0] - ends[0, 0, 0]), abs=2 + 2 * size / 512)


def test_a_limb_is_an_ellipse_in_three_fifths_of_its_colour() -> None:
    points = torch.full((18, 3), torch.nan)
    points[2], points[3] = torch.tensor([0.0, -0.3, 0.0]), torch.tensor([0.0, -0.3, -0.6])
    image = draw(OPENPOSE_BODY, range(18), points, orbit([0.0], 0.0, 512))[0]
    assert colours(image) == {(153, 102, 0), (255, 170, 0), (255, 255, 0)}, "right upper arm, shoulder and elbow"
    limb = ((image * 255).round().int() == torch.tensor([153, 102, 0])).all(dim=-1)
    (top, bottom), _ = project(points[2:4], orbit([0.0], 0.0, 512))[0][0, :, 1].sort()
    middle = round(float(top + bottom) / 2)
    assert limb[middle].sum() == 8
    whole = float(bottom - top) / 2 * 4 * math.pi
    assert limb.sum() == pytest.approx(whole, rel=0.15), "less what lies under the joints"


def test_the_tables_are_the_conventions() -> None:
    for i, rgb in OPENPOSE_BODY.dots.items():
        hue = colorsys.rgb_to_hsv(*(part / 255 for part in rgb))[0]
        assert hue == pytest.approx(i / 18, abs=1e-3), "OpenPose goes once round the wheel"
    limbs = {frozenset((BODY[stroke.start], BODY[stroke.end])) for stroke in OPENPOSE_BODY.strokes}
    assert len(limbs) == 17
    for side in ("left", "right"):
        for a, b in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"), ("eye", "ear")):
            assert frozenset((f"{side} {a}", f"{side} {b}")) in limbs
        for end in ("shoulder", "hip"):
            assert frozenset(("neck", f"{side} {end}")) in limbs
        assert frozenset(("nose", f"{side} eye")) in limbs
    assert len(OPENPOSE_HAND.strokes) == 20
    assert [stroke.end for stroke in OPENPOSE_HAND.strokes] == list(range(1, 21)), "a tree, one way to each joint"
    assert [stroke.start for stroke in OPENPOSE_HAND.strokes].count(0) == 5
    assert OPENPOSE_HAND.strokes[0].rgb == (255, 0, 0) and OPENPOSE_HAND.strokes[10].rgb == (0, 255, 255)
    assert len(MEDIAPIPE_FACE.numbers) == 130
    assert len(MEDIAPIPE_FACE.strokes) == 36 + 40 + 32 + 16
    assert OPENPOSE_FACE.numbers == tuple(range(70))


def test_a_face_from_ahead_has_all_colours_and_from_behind_none() -> None:
    front, back = face([0.0]), face([180.0])
    wanted = {stroke.rgb for stroke in MEDIAPIPE_FACE.strokes} | set(MEDIAPIPE_FACE.dots.values())
    assert colours(front) == wanted
    assert not back.any()
    left = ((front[0] * 255).round().int() == torch.tensor([10, 200, 180])).all(dim=-1).nonzero()[:, 1]
    assert left.min() > 128, "the subject's left eye is on the picture's right"
    it = template()
    points, normals = it.at(it.landmarks, it.vertices)
    dots = draw(OPENPOSE_FACE, it.landmarks.ids, points, orbit([0.0, 180.0], 0.0, 256), normals)
    assert colours(dots[0]) == {(255, 255, 255)}
    assert not dots[1].any()


def test_from_the_side_the_far_eye_is_gone() -> None:
    left, right = (10, 200, 180), (180, 200, 10)
    for azimuth, near, far in ((90.0, left, right), (-90.0, right, left)):
        depth = Raster()(template().mesh(), orbit([azimuth], 0.0, 256), Background(torch.ones(1, 3))).depth.detach()
        profile = colours(face([azimuth], depth=depth))
        assert near in profile
        assert far not in profile


@pytest.mark.parametrize("azimuth", [0.0, 30.0, 75.0])
def test_a_mirror_shows_the_other_side_with_colours_swapped(azimuth: float) -> None:
    """Left's colours are right's with red and blue exchanged, and the head is symmetric."""
    one, other = face([azimuth], 512)[0], face([-azimuth], 512)[0]
    differ = (one - other.flip(1).flip(2)).abs().amax(dim=-1) > 0
    assert differ.sum() <= 0.01 * (one.amax(dim=-1) > 0).sum(), "but for pixels whose centre lies on a border"


def test_a_batch_equals_its_views() -> None:
    views = [0.0, 40.0, 200.0]
    whole = face(views, 128, 15.0)
    for view, azimuth in enumerate(views):
        assert torch.equal(whole[view : view + 1], face([azimuth], 128, 15.0))


def test_what_lies_behind_a_surface_is_hidden() -> None:
    cameras = orbit([0.0], 0.0, 64)
    depth = Raster()(icosphere(3, 0.5), cameras, Background(torch.ones(1, 3))).depth.detach()
    points = torch.tensor([[-0.9, 0.0, 0.0], [0.9, 0.0, 0.0], [0.5, 0.0, 0.0], [-0.9, 0.9, 0.0], [0.0, 0.0, 0.498]])
    assert unhidden(points, cameras, depth)[0].tolist() == [False, True, True, True, True]
    larger = cameras.resized(256, 256)
    assert torch.equal(unhidden(points, larger, depth), unhidden(points, cameras, depth)), "pictures of any size"
    nose = Convention("points", dots=dict.fromkeys(range(5), (255, 255, 255)), radius=4.0)
    alone = draw(nose, range(5), points, larger)
    assert (alone - draw(nose, range(5), points, larger, depth=depth)).sum() == 0, "another point covers the hidden one"
    assert draw(nose, range(5), points[:1].expand(5, 3), larger, depth=depth).sum() == 0


def test_depth_hides_the_far_eye_behind_the_nose() -> None:
    cameras = orbit([72.0], 0.0, 256)
    depth = Raster()(template().mesh(), cameras, Background(torch.ones(1, 3))).depth.detach()
    yellow = lambda image: ((image * 255).round().int() == torch.tensor([180, 200, 10])).all(dim=-1).sum()  # noqa: E731
    assert yellow(face([72.0], depth=depth)) < yellow(face([72.0]))
    front = Raster()(template().mesh(), orbit([0.0], 0.0, 256), Background(torch.ones(1, 3))).depth.detach()
    assert torch.equal(face([0.0], depth=front), face([0.0])), "from ahead nothing hides anything"


def test_a_zero_normal_faces_every_camera() -> None:
    points = torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.0, -0.5]])
    normals = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    cosine = facing(points, normals, orbit([0.0, 180.0], 0.0, 8))
    assert cosine[0, 0] > 0.9 and cosine[1, 0] < -0.9
    assert (cosine[:, 1] == 0).all()


def test_a_face_fades_with_the_cosine_of_the_azimuth() -> None:
    azimuth = torch.tensor([0.0, 30.0, 60.0, 90.0, 120.0, 180.0])
    torch.testing.assert_close(
        fade(orbit(azimuth, 0.0, 8)), torch.deg2rad(azimuth).cos().clamp(min=0), rtol=0, atol=1e-6
    )
    assert fade(orbit([0.0], 60.0, 8)) == pytest.approx(0.5, abs=1e-6)


def test_points_that_are_not_there_take_their_strokes_along() -> None:
    points = torch.tensor([[0.0, -0.5, 0.0], [torch.nan, 0.5, 0.0]])
    assert not draw(ONE_LINE, (0, 1), points, orbit([0.0], 0.0, 64)).any()
    behind = torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
    assert not draw(ONE_LINE, (0, 1), behind, orbit([0.0], 0.0, 64)).any()
    outside = draw(ONE_LINE, (0, 1), torch.tensor([[0.0, -9.0, 0.0], [0.0, 9.0, 0.0]]), orbit([0.0], 0.0, 64))
    assert outside[0, 32, :, 0].all() or outside[0, 31, :, 0].all(), "what is within the picture is drawn"


def test_one_drawing_goes_onto_another() -> None:
    below = torch.full((1, 64, 64, 3), 0.5)
    points = torch.tensor([[0.0, -0.5, 0.0], [0.0, 0.5, 0.0]])
    over = draw(ONE_LINE, (0, 1), points, orbit([0.0], 0.0, 64), onto=below)
    alone = draw(ONE_LINE, (0, 1), points, orbit([0.0], 0.0, 64))
    drawn = alone.amax(dim=-1, keepdim=True) > 0
    assert torch.equal(over, torch.where(drawn, alone, below))
    assert (below == 0.5).all(), "which stays as it was"


def test_missing_numbers_are_named() -> None:
    with pytest.raises(ValueError, match="openpose-face draws 70 points, and number 0 is missing"):
        draw(OPENPOSE_FACE, range(1, 68), torch.zeros(67, 3), orbit([0.0], 0.0, 8))
    with pytest.raises(ValueError, match="3 points, but 2 numbers"):
        draw(ONE_LINE, (0, 1), torch.zeros(3, 3), orbit([0.0], 0.0, 8))
    assert landmarks.AWAY < 0
