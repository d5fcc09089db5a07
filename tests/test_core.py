"""The words: streams of random numbers, cameras and their angles, and the loss of a guided latent."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sds3d.cameras import Orbit, look_at, opencv_to_opengl, orbit, rays, turntable, view_word, world_to_camera
from sds3d.core import Guided, Step

LIKE = torch.zeros(6, 2, 3)


# ---- streams --------------------------------------------------------------------------------------------------------


def test_a_stream_depends_on_everything_that_names_it():
    step = Step(0, "shape", index=3)
    draws = {
        "same": step,
        "seed": replace(step, seed=1),
        "stage": replace(step, stage="colour"),
        "index": replace(step, index=4),
        "child": step.child("sds"),
        "grandchild": step.child("sds").child("sds"),
        "row": replace(step, row=1),
    }
    numbers = {name: s.normal("eps", LIKE) for name, s in draws.items()} | {"name": step.normal("t", LIKE)}
    assert torch.equal(step.normal("eps", LIKE), numbers["same"])
    names = list(numbers)
    assert not any(torch.equal(numbers[a], numbers[b]) for i, a in enumerate(names) for b in names[:i])


def test_progress_changes_no_draw():
    assert torch.equal(Step(0, progress=0.1).normal("eps", LIKE), Step(0, progress=0.9).normal("eps", LIKE))


def test_fixed_draws_are_those_of_every_step():
    a, b = (Step(0, index=i).normal("eps", LIKE, fixed=True) for i in (1, 2))
    assert torch.equal(a, b) and not torch.equal(a, Step(0, index=1).normal("eps", LIKE))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**63), st.integers(0, 10**6))
def test_a_batch_is_its_rows(cut, seed, index):
    step = Step(seed, index=index)
    tail = replace(step, row=cut)
    assert torch.equal(step.normal("eps", LIKE)[cut:], tail.normal("eps", LIKE[cut:]))
    assert torch.equal(step.uniform("t", 6)[cut:], tail.uniform("t", 6 - cut))


def test_draws_have_the_distribution_that_they_claim():
    normal = Step(0).normal("eps", torch.zeros(500, 40))
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03
    assert abs(torch.corrcoef(normal[:2])[0, 1]) < 0.6
    uniform = Step(0).uniform("t", 5000)
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.02


def test_draws_keep_dtype_and_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    assert Step(0).normal("eps", LIKE.double()).dtype == torch.float64
    assert Step(0).normal("eps", LIKE[:0]).shape == (0, 2, 3)
    assert torch.equal(torch.get_rng_state(), before)


# ---- cameras --------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 359.5), st.floats(-85, 85), st.floats(0.5, 10))
def test_angles_come_back(azimuth, elevation, radius):
    cameras = orbit([azimuth], elevation, 16, radius, fov_y_deg=50.0)
    turn = abs(cameras.azimuth_deg[0].item() - azimuth) % 360
    assert min(turn, 360 - turn) < 1e-2
    assert cameras.elevation_deg[0].item() == pytest.approx(elevation, abs=1e-2)
    assert cameras.radius[0].item() == pytest.approx(radius, rel=1e-5)
    assert cameras.fov_y_deg[0].item() == pytest.approx(50, rel=1e-5)


@pytest.mark.parametrize(
    ("azimuth", "position", "right"),
    [(0.0, (3, 0, 0), (0, 1, 0)), (90.0, (0, 3, 0), (-1, 0, 0)), (180.0, (-3, 0, 0), (0, -1, 0))],
    ids=["front", "left side", "back"],
)
def test_the_frame_is_the_designs(azimuth, position, right):
    """Azimuth 0 sees the front, +x; then the subject's left, +y, is at the picture's right."""
    c2w = orbit([azimuth], 0.0, 8).c2w[0]
    expected = torch.tensor([right, (0, 0, -1), [-p / 3 for p in position]], dtype=torch.float32).T
    torch.testing.assert_close(c2w[:3, :3], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(c2w[:3, 3], torch.tensor(position, dtype=torch.float32), rtol=0, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 360), st.floats(-90, 90))
def test_poses_are_rotations_that_look_at_the_origin(azimuth, elevation):
    cameras = orbit([azimuth], elevation, 8)
    rotation = cameras.c2w[0, :3, :3].double()
    torch.testing.assert_close(rotation.T @ rotation, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-5)
    assert torch.linalg.det(rotation) > 0.999
    origin = world_to_camera(cameras)[0] @ torch.tensor([0.0, 0, 0, 1])
    torch.testing.assert_close(origin, torch.tensor([0.0, 0, 3, 1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(opencv_to_opengl(opencv_to_opengl(cameras.c2w)), cameras.c2w)


def test_a_camera_straight_above_has_a_pose():
    pose = look_at(torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, -2.0]]))
    assert pose.isfinite().all() and torch.allclose(torch.linalg.det(pose[:, :3, :3]), torch.ones(2))


def test_the_middle_ray_looks_at_the_origin_and_depth_is_camera_z():
    cameras = orbit([30.0, 120.0], 20.0, 9)
    origins, directions = rays(cameras)
    torch.testing.assert_close(origins[:, 4, 4] + 3 * directions[:, 4, 4], torch.zeros(2, 3), rtol=0, atol=1e-5)
    points = origins + 2.5 * directions
    local = torch.einsum(
        "bij,bhwj->bhwi", world_to_camera(cameras)[:, :3], torch.nn.functional.pad(points, (0, 1), value=1)
    )
    torch.testing.assert_close(local[..., 2], torch.full((2, 9, 9), 2.5))
    assert rays(cameras, samples=3)[0].shape == (2, 27, 27, 3)


def test_another_number_of_pixels_is_the_same_view():
    cameras = orbit([0.0], 0.0, 32)
    fine = cameras.resized(64, 64)
    torch.testing.assert_close(fine.fov_y_deg, cameras.fov_y_deg)
    torch.testing.assert_close(fine.K[0, 0, 2], torch.tensor(32.0))
    assert len(cameras[:0]) == 0 and cameras.to(torch.zeros((), dtype=torch.float64)).c2w.dtype == torch.float64


def test_an_orbit_spaces_each_group_evenly():
    cameras = Orbit(views=8, size=16)(Step(0, index=5))
    azimuth, elevation = cameras.azimuth_deg.reshape(2, 4), cameras.elevation_deg.reshape(2, 4)
    gaps = (azimuth.roll(-1, 1) - azimuth) % 360
    torch.testing.assert_close(gaps, torch.full((2, 4), 90.0), rtol=0, atol=1e-2)
    torch.testing.assert_close(elevation, elevation[:, :1].expand(2, 4), rtol=0, atol=1e-3)
    assert abs(azimuth[0, 0] - azimuth[1, 0]) > 1
    second = Orbit(views=4, size=16)(Step(0, index=5, row=4))
    torch.testing.assert_close(second.c2w, cameras.c2w[4:])


def test_an_orbit_covers_its_range():
    drawn = [Orbit(elevation_deg=(-10.0, 45.0))(Step(0, index=i)) for i in range(200)]
    elevation = torch.cat([c.elevation_deg for c in drawn])
    assert -10.01 <= elevation.min() < -7 and 42 < elevation.max() <= 45.01
    azimuth = torch.cat([c.azimuth_deg for c in drawn])
    assert torch.histc(azimuth, 8, 0, 360).min() > 60


@pytest.mark.parametrize(
    "bad", [{"views": 6}, {"views": 0}, {"elevation_deg": (50.0, 10.0)}, {"fov_y_deg": 180.0}, {"size": 0}]
)
def test_orbits_out_of_range_are_refused(bad):
    with pytest.raises(ValueError):
        Orbit(**bad)


def test_a_turntable_begins_at_the_front():
    cameras = turntable(4, 8)
    torch.testing.assert_close(cameras.azimuth_deg, torch.tensor([0.0, 90, 180, 270]), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("azimuth", "elevation", "word"),
    [
        (0, 0, "front"),
        (359, 0, "front"),
        (44, 0, "front"),
        (90, 0, "side"),
        (270, 0, "side"),
        (180, 0, "back"),
        (0, 80, "overhead"),
    ],
)
def test_view_words(azimuth, elevation, word):
    assert view_word(azimuth, elevation) == word


# ---- the loss -------------------------------------------------------------------------------------------------------


def test_the_loss_is_only_its_gradient():
    at = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    loss = Guided(2 * at, grad).loss()
    loss.backward()
    assert loss.item() == 0 and grad.grad is None
    torch.testing.assert_close(at.grad, 2 * grad.detach() / 3)
    assert math.isfinite(loss.item())
