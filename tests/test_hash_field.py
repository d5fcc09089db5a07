"""Hash fields: levels that are grids, pictures of dense fields, occupancy, a state that comes back to the same bits."""

import copy
import math

import pytest
import torch
from small_run import SIZE, priors, recipe
from torch import Tensor
from torch.nn.functional import grid_sample

from sds3d import plugins
from sds3d.cameras import Orbit, orbit
from sds3d.core import Background, RenderOutput, Step
from sds3d.engine import Saved, run, tensors
from sds3d.prompts import Prompts
from sds3d.renderers.volume import Volume
from sds3d.representations.field import DENSITY_SCALE, EMPTY_RAW, Field
from sds3d.representations.hash_field import FADE, MIN_DEPTH, SMALL, HashBall, HashField, HashOptimise

TINY = HashBall(levels=3, log2_size=8, base=4, finest=16, cells=8)
CAMERAS = orbit([0.0, 130.0], [20.0, -30.0], 10)
WHITE = Background(torch.ones(2, 3))
MAPS = ("rgb", "alpha", "depth", "normal", "away")


def begin(form: HashBall = TINY, seed: int = 0) -> HashField:
    rep = form(None, Step(seed))
    assert isinstance(rep, HashField)
    return rep


def field(form: HashBall = TINY, scale: float = 1.0, seed: int = 0) -> HashField:
    """Random numbers of the size that training makes, in float64."""
    rep = begin(form, seed).double()
    rep.table.data *= scale / SMALL
    rep.refresh()
    return rep


def linear(form: HashBall, mixed: Tensor) -> HashField:
    """A field whose network is the matrix `mixed` [levels x features, 4]: relu(a) - relu(-a) = a."""
    rep = field(form)
    inner = torch.eye(len(mixed), dtype=torch.float64)
    return HashField(form, rep.table, torch.cat([inner, -inner], dim=1), torch.cat([mixed, -mixed]))


def places(count: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1


def at(index: int, steps: int = 20) -> Step:
    return Step(0, "shape", index, index / (steps - 1))


def nothing() -> RenderOutput:
    image = torch.zeros(1, 1, 1, 3)
    return RenderOutput(image, image[..., :1], image[..., :1], image)


def ball(form: HashBall, at: Tensor) -> Tensor:
    """The raw density that the field starts with."""
    depth = form.density / DENSITY_SCALE * (1 - at.square().sum(-1) / form.radius**2)
    return torch.where(depth > 0, depth.clamp_min(1e-12).expm1().log(), -math.inf).clamp_min(EMPTY_RAW)


def train(rep: HashField, indices: range) -> None:
    """Towards red on white."""
    for index in indices:
        out = Volume(16)(rep, CAMERAS, WHITE, at(index))
        (out.rgb - torch.tensor([0.8, 0.1, 0.1])).square().sum().backward()
        rep.update(out, at(index))


def test_levels_grow_in_equal_ratios_and_share_at_most_the_table() -> None:
    assert TINY.sides == [4, 8, 16]
    assert TINY.entries == [64, 256, 256]
    assert HashBall().sides[0] == 16 and HashBall().sides[-1] == 2048
    assert field().table.shape == (64 + 256 + 256, 2)


def test_a_level_that_fits_the_table_is_a_grid() -> None:
    """Against torch's own interpolation, which names the axes the other way round."""
    form = HashBall(levels=2, log2_size=9, base=3, finest=8, cells=8)
    rep, where = field(form), places(200)
    found, begin = rep.features(where).split(2, dim=-1), 0
    for level, side in enumerate(form.sides):
        grid = rep.table[begin : begin + side**3].reshape(side, side, side, 2)
        image, wanted = grid.permute(3, 0, 1, 2)[None], where.flip(-1)[None, None, None]
        true = grid_sample(image, wanted, align_corners=True)[0, :, 0, 0].T
        torch.testing.assert_close(found[level], true)
        begin += side**3


def test_a_hashed_level_has_at_its_points_the_entries_of_the_hash() -> None:
    """The hash in unsigned arithmetic of 32 bits, as the paper's, number by number."""
    rep = field()
    ticks = [(0, 0, 0), (3, 15, 7), (15, 15, 15), (12, 1, 9)]
    where = torch.tensor(ticks, dtype=torch.float64) * 2 / 15 - 1
    hashed = [(i ^ (j * 2654435761 % 2**32) ^ (k * 805459861 % 2**32)) % 2**8 for i, j, k in ticks]
    torch.testing.assert_close(rep.features(where)[:, 4:], rep.table[64 + 256 + torch.tensor(hashed)])


def test_features_and_slopes_have_the_gradients_of_finite_differences() -> None:
    rep, where = field(), places(6)

    def sampled(table: Tensor, inner: Tensor, outer: Tensor) -> tuple[Tensor, ...]:
        named = {"table": table, "inner": inner, "outer": outer}
        moved = copy.deepcopy(rep)
        for name, tensor in named.items():
            del moved._parameters[name]
            object.__setattr__(moved, name, tensor)
        return moved.sample(where)

    inputs = [p.detach().clone().requires_grad_() for p in (rep.table, rep.inner, rep.outer)]
    assert torch.autograd.gradcheck(sampled, inputs, fast_mode=True)
    far = torch.cat([where, torch.full((1, 3), 0.99).double()])  # outside of the ball there is a slope as well
    raw, slope = rep.sample(far)
    step = 1e-6 * torch.eye(3, dtype=torch.float64)
    rise = [(rep.raw(far + d)[:, 0] - rep.raw(far - d)[:, 0]) / 2e-6 for d in step]
    torch.testing.assert_close(slope, torch.stack(rise, dim=-1), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(rep.sample(far)[1], slope.detach()) and torch.equal(rep.sample(far)[0], raw.detach())


def test_a_constant_table_is_a_constant_field() -> None:
    """Whatever collides in it; the ball apart."""
    rep = field()
    rep.table.data[:] = torch.tensor([0.7, -1.3])
    where = places(50)
    made = rep.raw(where) - torch.cat([ball(TINY, where)[:, None], torch.zeros(50, 3)], dim=-1)
    torch.testing.assert_close(made, made[:1].expand_as(made))
    assert made[0].abs().min() > 1e-3


def test_it_begins_as_the_ball() -> None:
    form = HashBall(radius=0.5, density=30.0, levels=2, log2_size=8, base=4, finest=16, cells=16)
    rep, where = begin(form, 3), places(300).float()
    raw, distance = rep.raw(where), where.norm(dim=-1)
    density = DENSITY_SCALE * torch.nn.functional.softplus(raw[:, 0].detach())
    true = 30 * (1 - distance.square() / 0.25).clamp_min(0)
    torch.testing.assert_close(density, true, rtol=1e-3, atol=0.01)
    torch.testing.assert_close(raw[:, 1:].sigmoid().detach(), torch.full((300, 3), 0.5), rtol=0, atol=1e-3)
    assert not rep.occupied[0].any() and rep.occupied[8, 8, 8]
    assert torch.equal(rep.table, begin(form, 3).table) and not torch.equal(rep.table, begin(form, 4).table)
    blank = form.blank(None)
    assert isinstance(blank, HashField) and [t.shape for t in blank.state().values()] == [
        t.shape for t in rep.state().values()
    ]
    out = Volume(64, 0.0)(rep, orbit([40.0], 25.0, 33), Background(torch.ones(1, 3)))
    assert out.alpha[0, 16, 16] > 0.99 and not out.alpha[0, 0].any()
    touched = (out.alpha[0, ..., 0] > 0.5).sum()
    wanted = math.pi * (0.5 / (3 * 2 * math.tan(math.radians(20)) / 33)) ** 2  # the ball's disc in pixels at radius 3
    assert 0.8 < touched / wanted < 1.1


def test_its_picture_and_gradients_are_those_of_the_dense_field_that_it_equals(device) -> None:
    """One level that is not hashed, a network that is a matrix, a ball that lies outside of all samples."""
    form = HashBall(radius=0.01, levels=1, log2_size=9, base=7, finest=7, cells=6)
    mixed = torch.tensor([[3.0, 1.0, 0.0, -1.0], [1.0, 0.0, 2.0, 0.5]]).double()
    rep = linear(form, mixed).to(device)
    offset = torch.tensor([EMPTY_RAW, 0.0, 0.0, 0.0]).to(rep.table)
    dense = Field((rep.table @ mixed.to(device) + offset).detach().reshape(7, 7, 7, 4))
    rep.occupied = dense.occupied
    rep.table.grad = None
    upstream = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(2, 10, 10, 3 if name in ("rgb", "normal") else 1, generator=upstream) for name in MAPS}
    for one in (rep, dense):
        out = Volume(24, 0.05)(one, CAMERAS, WHITE, at(3))
        torch.stack([(getattr(out, name) * weights[name].to(rep.table)).sum() for name in MAPS]).sum().backward()
    for name in MAPS:
        one, two = (getattr(Volume(24, 0.05)(r, CAMERAS, WHITE, at(3)), name) for r in (rep, dense))
        torch.testing.assert_close(one, two)
    assert dense.grid.grad is not None and dense.grid.grad.abs().sum() > 0
    torch.testing.assert_close(rep.table.grad, dense.grid.grad.reshape(-1, 4) @ mixed.T.to(device))


def test_a_look_hides_nothing_that_it_found_dense_until_it_fades() -> None:
    rep = field(scale=0.3)
    rep.prepare(HashOptimise(occupancy_steps=1), at(0))
    middles = rep.peak.clone()
    rep.update(nothing(), at(5))
    noise = at(5).child("occupancy").normal("look", rep.peak.new_empty(1, 8, 8, 8, 3))[0]
    cells = torch.cartesian_prod(*[torch.arange(8)] * 3).reshape(8, 8, 8, 3)
    looked = (cells + torch.special.ndtr(noise)) / 4 - 1
    depth = DENSITY_SCALE / 4 * torch.nn.functional.softplus(rep.raw(looked.reshape(-1, 3))[:, 0]).reshape(8, 8, 8)
    torch.testing.assert_close(rep.peak, torch.maximum(FADE * middles, depth))
    assert (depth > MIN_DEPTH).any() and not rep.occupied.all()
    assert rep.occupied[depth > MIN_DEPTH].all()
    rep.table.data.zero_()  # the ball is left
    seen = rep.peak.clone()
    rep.update(nothing(), at(6))
    torch.testing.assert_close(rep.peak, torch.maximum(FADE * seen, rep.peak))
    assert rep.occupied[FADE * seen > MIN_DEPTH].all()


def test_skipping_what_is_empty_hardly_changes_the_picture() -> None:
    """Of a field as fine as its cells, some of which are empty."""
    rep = field(HashBall(levels=2, log2_size=8, base=4, finest=12, cells=12), scale=0.5)
    assert 0.2 < rep.occupied.float().mean() < 0.95
    skipped = Volume(64)(rep, CAMERAS, WHITE)
    rep.occupied = torch.ones_like(rep.occupied)
    whole = Volume(64)(rep, CAMERAS, WHITE)
    hidden = whole.alpha - skipped.alpha
    assert hidden.min() >= 0 and hidden.max() < 0.03


def test_update_is_adam() -> None:
    rep = field()
    rep.prepare(HashOptimise(table=3e-1, network=1e-2), at(0))
    twin = {name: parameter.detach().clone().requires_grad_() for name, parameter in rep.named_parameters()}
    groups = [{"params": [twin["table"]], "lr": 3e-1}, {"params": [twin["inner"], twin["outer"]], "lr": 1e-2}]
    adam = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15)
    for index in range(4):
        generator = torch.Generator().manual_seed(index)
        for name, parameter in rep.named_parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            twin[name].grad = parameter.grad.clone()
        rep.update(nothing(), at(index))
        adam.step()
    for name, parameter in rep.named_parameters():
        torch.testing.assert_close(parameter, twin[name])
        assert parameter.grad is None


@pytest.mark.parametrize("saved", [2, 5])
def test_resuming_gives_the_same_bits(saved: int) -> None:
    """Between two looks for empty cells, and after one."""
    whole, first, second = (begin() for _ in range(3))
    for rep in (whole, first, second):
        rep.prepare(HashOptimise(occupancy_steps=4), at(0))
    train(whole, range(7))
    train(first, range(saved))
    state = first.state()
    train(first, range(saved, saved + 1))  # what is saved is a copy
    second.load(state)
    train(second, range(saved, 7))
    assert all(torch.equal(a, b) for a, b in zip(whole.state().values(), second.state().values(), strict=True))
    assert torch.equal(whole.occupied, second.occupied)
    bare = TINY.blank(None)
    assert isinstance(bare, HashField)
    bare.load(whole.state())
    assert list(bare.state()) == ["table", "inner", "outer", "peak"]
    one, two = (Volume(16)(rep, CAMERAS, WHITE).rgb for rep in (whole, bare))
    assert torch.equal(one, two)


def test_a_run_of_two_steps_moves_it_and_goes_on_after_one_with_the_same_bits() -> None:
    start = plugins.load("start", "hash_ball")(levels=2, log2_size=8, base=4, finest=16, cells=16)
    optimise = plugins.load("optimise", "hash")(occupancy_steps=1)
    cameras = Orbit(views=2, size=SIZE, group=1)
    made = recipe(2, start=start, optimise=optimise, renderer=Volume(24), cameras=cameras)
    kept: list[Saved] = []

    def keep(step, rep, terms, out, numbers) -> None:
        kept.append(Saved(step.stage, step.index + 1, {k: t.clone() for k, t in tensors(rep, terms).items()}))

    rep = run(made, Prompts("red"), priors(), watchers=(keep,)).rep
    resumed = run(made, Prompts("red"), priors(), saved=kept[0]).rep
    assert isinstance(rep, HashField) and isinstance(resumed, HashField)
    assert all(torch.equal(a, b) for a, b in zip(rep.state().values(), resumed.state().values(), strict=True))
    assert not torch.equal(rep.table, start(None, Step(0)).table)
    assert kept[0].tensors.keys() == kept[1].tensors.keys()


def test_misuse_is_refused(unchecked) -> None:
    rep = begin()
    with pytest.raises(ValueError, match="prepare"):
        rep.update(nothing(), at(0))
    with pytest.raises(TypeError, match="HashOptimise"):
        rep.prepare({"table": 1e-3}, Step(0))
    with pytest.raises(ValueError, match="occupancy_steps"):
        HashOptimise(occupancy_steps=0)
    for bad in ("radius", "density", "levels", "log2_size", "features", "cells", "base"):
        with pytest.raises(ValueError, match=bad):
            HashBall(**{bad: 0})
    with pytest.raises(ValueError, match="base <= finest"):
        HashBall(base=64, finest=32)
    with pytest.raises(TypeError, match="floating-point"):
        HashField(TINY, rep.table.long(), rep.inner, rep.outer)
    good = rep.state()
    for name, bad, message in [
        ("table", good["table"][:-1], r"table must have the shape \[576, 2\]"),
        ("peak", good["peak"] * math.nan, "peak holds 512 numbers that are not finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            rep.load({**good, name: bad})
    with pytest.raises(ValueError, match='lacks "outer"'):
        rep.load({name: tensor for name, tensor in good.items() if name != "outer"})
