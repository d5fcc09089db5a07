"""Fields: the bound of their occupancy, their optimiser, a finer grid, and a state that comes back to the same bits."""

import math

import pytest
import torch
from torch import Tensor

from sds3d.cameras import orbit
from sds3d.core import Background, RenderOutput, Step
from sds3d.losses import LOSSES
from sds3d.renderers.volume import Volume
from sds3d.representations.field import (
    DENSITY_SCALE,
    MIN_DEPTH,
    Ball,
    Field,
    FieldOptimise,
    find_occupied,
    points,
    resampled,
)
from sds3d.representations.start import Blob

CAMERAS = orbit([0.0, 90.0, 180.0, 270.0], [10.0, 20.0, 0.0, -10.0], 12)
WHITE = Background(torch.ones(4, 3))
OPTIMISE = FieldOptimise(resolution=12, refine_at=0.4, occupancy_steps=4)


def start(optimise: FieldOptimise = OPTIMISE) -> Field:
    rep = Ball(resolution=8)(None, Step(0))
    assert isinstance(rep, Field)
    rep.prepare(optimise, Step(0))
    return rep


def at(index: int, steps: int = 20) -> Step:
    return Step(0, "shape", index, index / (steps - 1))


def train(rep: Field, indices: range) -> list[dict[str, float]]:
    """Towards a red ball on white."""
    numbers = []
    for index in indices:
        out = Volume(24)(rep, CAMERAS, WHITE, at(index))
        wanted = torch.tensor([0.8, 0.1, 0.1]) * (out.depth.detach() > 0) + 1.0 * (out.depth.detach() == 0)
        (out.rgb - wanted).square().mean().backward()
        numbers.append(dict(rep.update(out, at(index))))
    return numbers


def nothing() -> RenderOutput:
    image = torch.zeros(1, 1, 1, 3)
    return RenderOutput(image, image[..., :1], image[..., :1], image)


def random(resolution: int, seed: int = 0) -> Tensor:
    return torch.randn(resolution, resolution, resolution, 4, generator=torch.Generator().manual_seed(seed))


def test_update_is_adam() -> None:
    """Against torch's own, with a rate for density and one for colours."""
    rep = start(FieldOptimise(density=3e-1, colours=1e-2, resolution=8))
    density, colours = rep.grid.detach().split([1, 3], dim=-1)
    density, colours = density.clone().requires_grad_(), colours.clone().requires_grad_()
    groups = [{"params": [density], "lr": 3e-1}, {"params": [colours], "lr": 1e-2}]
    adam = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15)
    for index in range(5):
        rep.grid.grad = random(8, index)
        density.grad, colours.grad = (part.clone() for part in rep.grid.grad.split([1, 3], dim=-1))
        rep.update(nothing(), at(index))
        adam.step()
        torch.testing.assert_close(rep.grid.detach(), torch.cat([density, colours], dim=-1).detach())
    assert rep.grid.grad is None


def test_no_place_of_an_empty_cell_is_dense() -> None:
    grid = random(9)
    grid[..., 0] = 4 * grid[..., 0] - 18
    occupied = find_occupied(grid)
    assert 0.1 < occupied.float().mean() < 0.9
    fine = resampled(grid, 8 * 4 + 1)[..., 0]  # four places a side of each cell, its corners included
    depth = DENSITY_SCALE * 2 / 8 * torch.nn.functional.softplus(fine)
    densest = torch.nn.functional.max_pool3d(depth[None, None], kernel_size=5, stride=4)[0, 0]
    assert (densest[~occupied] <= MIN_DEPTH).all()


def test_a_single_dense_point_occupies_the_cells_around_it_and_their_neighbours() -> None:
    grid = torch.full((10, 10, 10, 4), -30.0)
    assert not find_occupied(grid).any()
    grid[5, 4, 0, 0] = 0.0
    expected = torch.zeros(9, 9, 9, dtype=torch.bool)
    expected[3:7, 2:6, 0:2] = True
    assert torch.equal(find_occupied(grid), expected)


def test_a_finer_grid_is_the_same_field() -> None:
    grid = random(5)
    assert torch.equal(resampled(grid, 5), grid)
    finer = resampled(grid, 17)
    torch.testing.assert_close(finer[::4, ::4, ::4], grid)
    torch.testing.assert_close(finer[2::4, 0::4, 4::4], (grid[:-1, :, 1:] + grid[1:, :, 1:]) / 2)


def test_the_grid_is_refined_once_and_keeps_its_picture() -> None:
    rep = start()
    numbers = train(rep, range(8))
    assert [n["resolution"] for n in numbers] == [8] * 8
    before = Volume(24)(rep, CAMERAS, WHITE)
    rep._refine(15)  # every second point is an old one, so the fields are equal everywhere
    rep.refresh()
    torch.testing.assert_close(Volume(24)(rep, CAMERAS, WHITE).rgb, before.rgb, rtol=1e-3, atol=1e-3)
    rep = start()
    numbers = train(rep, range(12))
    assert [n["resolution"] for n in numbers] == [8] * 8 + [12] * 4
    assert rep.grid.requires_grad
    assert rep._moments["second"].shape == rep.grid.shape


def test_a_ball_turns_red() -> None:
    rep = start(FieldOptimise(colours=0.4, resolution=8))
    train(rep, range(20))
    out = Volume(24)(rep, CAMERAS, WHITE)
    seen = (out.rgb - (1 - out.alpha))[out.alpha[..., 0] > 0.9]
    assert len(seen) > 20
    torch.testing.assert_close(seen.mean(dim=0).detach(), torch.tensor([0.8, 0.1, 0.1]), rtol=0, atol=0.1)


@pytest.mark.parametrize("saved", [3, 7, 11])
def test_resuming_gives_the_same_bits(saved: int) -> None:
    """Before and after the grid is refined, and between two looks for empty cells."""
    whole, first, second = start(), start(), start()
    train(whole, range(14))
    train(first, range(saved))
    state = first.state()
    train(first, range(saved, saved + 1))  # what is saved is a copy
    second.load(state)
    train(second, range(saved, 14))
    assert all(torch.equal(a, b) for a, b in zip(whole.state().values(), second.state().values(), strict=True))
    assert list(whole.state()) == ["grid", "occupied", "first", "second", "steps"]


def test_total_variation_is_that_of_a_ramp() -> None:
    """x rises by 3 from one side to the other along the first axis, r falls by 1 along the last."""
    grid = torch.zeros(7, 7, 7, 4)
    grid[..., 0] = torch.linspace(0, 3, 7)[:, None, None]
    grid[..., 1] = -torch.linspace(0, 1, 7)
    rep = Field(grid)
    loss = LOSSES["tv"](rep, nothing(), at(0))
    torch.testing.assert_close(loss.detach(), torch.tensor((3 / 6 + 1 / 6) / 4))
    loss.backward()
    assert rep.grid.grad is not None and rep.grid.grad[0, :, :, 0].sum() < 0 < rep.grid.grad[-1, :, :, 0].sum()
    with pytest.raises(ValueError, match="needs a field, and a Gaussians"):
        LOSSES["tv"](Blob(4)(None, Step(0)), nothing(), at(0))


def test_load_refuses_what_does_not_fit() -> None:
    rep = start()
    train(rep, range(1))
    good = rep.state()
    for name, bad, message in [
        ("grid", good["grid"][:-1], r"grid must have the shape \[R, R, R, 4\]"),
        ("grid", good["grid"] * math.nan, "not finite, in 512 points"),
        ("occupied", good["occupied"][:-1], r"occupied must have the shape \[7, 7, 7\]"),
        ("second", random(9), r"second must have the grid's shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            start().load({**good, name: bad})
    with pytest.raises(ValueError, match='lacks "first"'):
        start().load({name: tensor for name, tensor in good.items() if name != "first"})
    bare = Ball(resolution=4).blank(None)
    bare.load(good)
    assert list(bare.state()) == ["grid", "occupied"]
    assert torch.equal(bare.state()["grid"], good["grid"])


def test_misuse_is_refused(unchecked) -> None:
    with pytest.raises(ValueError, match=r"shape \[R, R, R, 4\]"):
        Field(torch.zeros(4, 4, 5, 4))
    with pytest.raises(TypeError, match="floating-point"):
        Field(torch.zeros(4, 4, 4, 4, dtype=torch.long))
    rep = Ball(resolution=4)(None, Step(0))
    with pytest.raises(ValueError, match="prepare"):
        rep.update(nothing(), at(0))
    with pytest.raises(TypeError, match="FieldOptimise"):
        rep.prepare({"density": 1e-3}, Step(0))
    for bad in ({"resolution": 1}, {"resolution": 1000}, {"refine_at": 2.0}, {"occupancy_steps": 0}):
        with pytest.raises(ValueError):
            FieldOptimise(**bad)
    for bad in ({"radius": 0.0}, {"density": -1.0}, {"resolution": 1}):
        with pytest.raises(ValueError):
            Ball(**bad)


def test_the_ball_has_its_density_and_its_radius() -> None:
    rep = Ball(0.5, 3.0, 33)(None, Step(0))
    assert isinstance(rep, Field)
    distance = points(33, rep.grid).norm(dim=-1)
    true = 3 * (1 - distance.square() / 0.25).clamp_min(0)
    torch.testing.assert_close(rep.density.detach(), true, rtol=1e-3, atol=0.01)
    torch.testing.assert_close(rep.rgb.detach(), torch.full((33, 33, 33, 3), 0.5))
    assert not rep.occupied[0].any() and rep.occupied[16, 16, 16]
    assert rep.at(torch.zeros(4)) is rep
