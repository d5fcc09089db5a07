"""Regions of an edit: which points they hold, which pixels show them, and edits that stay inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_guidance import image

from sds3d.cameras import orbit
from sds3d.core import Background, Guided, RenderOutput, Step, Views
from sds3d.guidance.local import Local, seen_by
from sds3d.guidance.pull import Pull
from sds3d.guidance.sds import Sds
from sds3d.playroom.grammar import Thing
from sds3d.playroom.render import render
from sds3d.playroom.scenes import build
from sds3d.regions import Ball, Box, Voxels, covered
from sds3d.renderers.splats import Splats
from sds3d.representations.gaussians import GaussianOptimise, Gaussians
from sds3d.representations.start import Blob
from sds3d.testing import ASKED, GuidanceLaws, analytic_prior, conditions, views

EVERYWHERE, NOWHERE = Ball(radius=5.0), Ball((9.0, 9.0, 9.0), 0.1)


def voxels(folder: Path, grid: np.ndarray) -> Voxels:
    np.save(folder / "region.npy", grid)
    return Voxels(str(folder / "region.npy"))


def test_a_ball_and_a_box_hold_their_points() -> None:
    p = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0.5, 0.1, 0], [-1, 0, 0.2]])
    assert Ball((0.0, 0.0, 0.0), 0.5)(p).tolist() == [1, 1, 0, 0]
    assert Box((0.0, 0.0, -1.0), (0.5, 1.0, 0.0))(p).tolist() == [1, 1, 1, 0]
    assert Ball()(p.view(2, 2, 3)).shape == (2, 2)


def test_voxels_are_linear_along_each_axis_and_nothing_outside(tmp_path: Path) -> None:
    ticks = np.linspace(0, 1, 5, dtype=np.float32)
    p = torch.rand(64, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for axis in range(3):
        folder = tmp_path / str(axis)
        folder.mkdir()
        shape = [1, 1, 1]
        shape[axis] = 5
        region = voxels(folder, np.broadcast_to(ticks.reshape(shape), (5, 5, 5)))
        torch.testing.assert_close(region(p), (p[:, axis] + 1) / 2)
        assert region(torch.full((1, 3), 1.5)).tolist() == [0]


@pytest.mark.parametrize(
    "grid",
    [np.zeros((4, 4)), np.zeros((4, 4, 4), int), np.full((4, 4, 4), 1.5), np.full((4, 4, 4), np.nan), np.zeros(0)],
    ids=["flat", "whole numbers", "above one", "not finite", "empty"],
)
def test_a_file_that_holds_no_region_is_refused(grid: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="region"):
        voxels(tmp_path, grid)(torch.zeros(1, 3))


def test_a_missing_file_and_one_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is no file"):
        Voxels(str(tmp_path / "none.npy"))(torch.zeros(1, 3))
    (tmp_path / "text.npy").write_text("a picture of the hair")
    with pytest.raises(ValueError, match=r"must be a \.npy file"):
        Voxels(str(tmp_path / "text.npy"))(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="radius"):
        Ball(radius=0.0)
    with pytest.raises(ValueError, match="low corner"):
        Box((0.0, 0.0, 0.0), (1.0, 0.0, 1.0))


def test_a_view_shows_a_region_in_front_and_in_the_air_but_not_behind_the_object() -> None:
    cameras = orbit([0, 180], 0.0, 33)
    out = render(build(Thing("cube", "red")), cameras, torch.zeros(2, 3))
    nose = covered(Ball((0.52, 0.0, 0.0), 0.2), cameras, out.depth, out.alpha)[..., 0]
    assert nose[0, 16, 16] == 1 and nose[0, 16, 4] == 0
    assert nose[1].max() == 0  # The cube hides its own front from the back.
    hat = covered(Ball((0.0, 0.0, 0.8), 0.15), cameras, out.depth, out.alpha)[..., 0]
    assert hat[0, 3, 16] == hat[1, 3, 16] == 1 and out.alpha[0, 3, 16] == 0
    torch.testing.assert_close(hat[0], hat[1].flip(1))


def guide(method: object, prior, of=None) -> Guided:
    torch.manual_seed(0)
    seen = views(image().float(), image().float().flip(1) if of is None else of)
    return method(prior, seen, conditions(prior, len(seen.image), ASKED), Step(0), {})  # type: ignore[operator]


def test_everywhere_is_the_guidance_itself_and_nowhere_the_pull_alone() -> None:
    prior = analytic_prior()
    inside, pull = guide(Sds(), prior), guide(Pull(), prior)
    torch.testing.assert_close(guide(Local(Sds(), EVERYWHERE), prior).grad, inside.grad)
    torch.testing.assert_close(guide(Local(Sds(), NOWHERE, hold=2.0), prior).grad, 2 * pull.grad)
    assert torch.equal(pull.target - prior.encode(image().float()), -pull.grad)  # type: ignore[operator]


def test_the_parts_add_up() -> None:
    guided = guide(Local(Sds(), Ball((0.3, 0.0, 0.0), 0.5)), analytic_prior())
    assert guided.parts is not None
    torch.testing.assert_close(sum(guided.parts.values()), guided.grad)


def test_a_mask_of_pixels_keeps_its_place_in_the_latent() -> None:
    prior = analytic_prior()
    mask = torch.zeros(1, 8, 8, 1)
    mask[0, 2, 5] = 1
    seen = seen_by(prior, mask, prior.encode(mask.expand(-1, -1, -1, 3)))
    changed = prior.encode(mask.expand(-1, -1, -1, 3)) != prior.encode(torch.zeros(1, 8, 8, 3))
    assert torch.equal(seen > 0.5, changed)


def test_a_step_down_the_pull_comes_nearer_to_the_source() -> None:
    prior = analytic_prior()
    pull = guide(Pull(), prior)
    source = prior.encode(image().float().flip(1))
    assert (pull.at - 0.5 * pull.grad - source).norm() < 0.51 * (pull.at - source).norm()


@pytest.mark.parametrize("method", [Pull(), Local(Sds(), EVERYWHERE)])
def test_without_a_source_both_are_refused(method) -> None:
    prior = analytic_prior()
    with pytest.raises(ValueError, match="frozen source"):
        method.check(prior, frozenset({"cond", "uncond"}))
    seen = views(image().float())
    out = RenderOutput(seen.image, seen.out.alpha, seen.out.depth, seen.out.normal)
    with pytest.raises(ValueError, match=r"views\.source"):
        method(prior, Views(seen.image, out, seen.cameras), conditions(prior, len(seen.image), ASKED), Step(0), {})


class TestLocal(GuidanceLaws):
    guidance = Local(Sds(), Ball((0.2, 0.0, 0.0), 0.6))


def test_the_pull_alone_brings_a_disturbed_copy_at_least_halfway_back() -> None:
    prior = analytic_prior()
    source, copy = (Blob(60, 0.5)(None, Step(0)) for _ in range(2))
    assert isinstance(source, Gaussians) and isinstance(copy, Gaussians)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for rep in (source, copy):
            rep.opacity_logits += 4  # solid, so that colours are seen
        source.colour_logits += torch.randn(60, 3, generator=draw)
        copy.colour_logits.copy_(source.colour_logits + 0.5 * torch.randn(60, 3, generator=draw))
        copy.means += 0.05 * torch.randn(60, 3, generator=draw)
    cameras = orbit([0, 90, 180, 270], 15.0, 16)
    grey, renderer = Background(torch.full((4, 3), 0.5)), Splats()
    with torch.no_grad():
        was = renderer(source, cameras, grey).rgb
    copy.prepare(GaussianOptimise(grow_events=0), Step(0))
    distance = []
    for index in range(61):
        step = Step(0, "edit", index, index / 60)
        out = renderer(copy, cameras, grey)
        distance.append((out.rgb - was).square().mean().sqrt().item())
        Pull()(prior, Views(out.rgb, out, cameras, was), {}, step, {}).loss().backward()
        copy.update(out, step)
    assert distance[-1] < distance[0] / 2
