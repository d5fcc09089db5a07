"""Gaussians: their optimiser, growth and pruning, and a state that comes back to the same bits."""

import dataclasses
import math

import pytest
import torch

from sds3d.cameras import orbit
from sds3d.core import Background, RenderOutput, Screen, Step
from sds3d.renderers.splats import Splats
from sds3d.representations.gaussians import GaussianOptimise, Gaussians
from sds3d.representations.start import Blob, Continue, neighbour_distance

CAMERAS = orbit([0.0, 90.0, 180.0, 270.0], [10.0, 20.0, 0.0, -10.0], 16)
WHITE = Background(torch.ones(4, 3))
NAMES = ("means", "log_scales", "quats", "opacity_logits", "colour_logits")


def start(count: int = 60, optimise: GaussianOptimise | None = None) -> Gaussians:
    rep = Blob(count)(None, Step(0))
    rep.prepare(optimise or GaussianOptimise(), Step(0))
    return rep


def at(index: int, steps: int = 40) -> Step:
    return Step(0, "shape", index, index / (steps - 1))


def train(rep: Gaussians, indices: range) -> list[dict]:
    """Towards a red ball on white."""
    numbers = []
    for index in indices:
        out = Splats()(rep, CAMERAS, WHITE, at(index))
        wanted = torch.tensor([0.8, 0.1, 0.1]) * (out.depth.detach() < 2.9) + 1.0 * (out.depth.detach() >= 2.9)
        (out.rgb - wanted).square().mean().backward()
        numbers.append(dict(rep.update(out, at(index))))
    return numbers


def fake(rep: Gaussians, gradient: torch.Tensor) -> RenderOutput:
    """An output whose screen gradients are given: [M] lengths, in one view."""
    means2d = torch.zeros(1, len(rep), 2)
    means2d.grad = torch.stack([gradient, torch.zeros_like(gradient)], dim=-1)[None]
    image = torch.zeros(1, 1, 1, 3)
    return RenderOutput(image, image[..., :1], image[..., :1], image, screen=Screen(means2d, torch.ones(1, len(rep))))


def test_update_is_adam():
    """Against torch's own, over steps whose gradients differ; growth is off."""
    rep = start(10, GaussianOptimise(grow_events=0, max_scale=10.0, means=1e-2, scales=1e-2, colours=1e-2))
    twin = {name: getattr(rep, name).detach().clone().requires_grad_() for name in NAMES}
    rates = {"means": 1e-2, "log_scales": 1e-2, "quats": 1e-2, "opacity_logits": 5e-2, "colour_logits": 1e-2}
    groups = [{"params": [twin[name]], "lr": rates[name]} for name in NAMES]
    adam = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15)
    generator = torch.Generator().manual_seed(0)
    for index in range(5):
        for name in NAMES:
            gradient = torch.randn(twin[name].shape, generator=generator)
            twin[name].grad, getattr(rep, name).grad = gradient, gradient.clone()
        adam.step()
        rep.update(fake(rep, torch.zeros(10)), at(index))
        assert all(getattr(rep, name).grad is None for name in NAMES)
    for name in NAMES:
        torch.testing.assert_close(getattr(rep, name), twin[name], rtol=1e-5, atol=1e-6)


def test_training_reduces_the_loss_and_grows():
    rep = start(200, GaussianOptimise(max_count=260))
    numbers = train(rep, range(40))
    grown = [n for n in numbers if "added" in n]
    assert len(grown) == 10
    assert len(rep) <= 260
    assert max(n["gaussians"] for n in numbers) > 200
    assert torch.isfinite(torch.cat([p.flatten() for p in rep.parameters()])).all()
    assert rep.rgb[:, 0].mean() > rep.rgb[:, 1].mean() + 0.2


@pytest.mark.parametrize("steps", [20, 300])
def test_moments_of_growth_depend_on_progress_alone(steps):
    optimise = GaussianOptimise(grow=(0.1, 0.6), grow_events=10)
    counts = [optimise.events(i / (steps - 1)) for i in range(steps)]
    assert counts[0] == 0
    assert counts[-1] == 10
    assert counts == sorted(counts)
    assert all(c == 0 for c, i in zip(counts, range(steps), strict=True) if i / (steps - 1) < 0.1)
    assert optimise.events(0.6) == 10


def test_growth_takes_the_top_share_and_keeps_moments_aligned():
    rep = start(40, GaussianOptimise(grow=(0.0, 1.0), grow_events=1, grow_share=0.1, prune_opacity=0.0))
    for name in NAMES:
        getattr(rep, name).grad = torch.randn(getattr(rep, name).shape, generator=torch.Generator().manual_seed(1))
    gradient = torch.linspace(1, 40, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(2))]
    rows = gradient.topk(4).indices
    others = [i for i in range(40) if i not in rows]
    colours = rep.colour_logits.detach().clone()
    numbers = rep.update(fake(rep, gradient), Step(0, progress=1.0))
    state = rep.state()
    assert numbers == {"gaussians": 44, "added": 4, "removed": 0}
    assert all(state[name].shape[0] == 44 for name in state if name not in ("steps", "events"))
    for moment in ("first", "second"):
        for name in NAMES:
            tensor = state[f"{moment}.{name}"]
            assert not tensor[rows].any()
            assert not tensor[40:].any()
            assert (tensor[others] != 0).all()
    # After one step Adam's first moment is 0.1 times the gradient: each survivor still owns the one that it had.
    generator = torch.Generator().manual_seed(1)
    expected = 0.1 * torch.randn(colours.shape, generator=generator)
    torch.testing.assert_close(state["first.colour_logits"][others], expected[others])


def test_a_split_keeps_the_centre_and_a_clone_keeps_the_picture():
    def one(scale: float) -> Gaussians:
        rep = Gaussians(
            torch.tensor([[0.1, 0.2, 0.3]]),
            torch.full((1, 3), scale).log(),
            torch.tensor([[1.0, 0.2, 0.3, 0.1]]),
            torch.tensor([0.5]),
            torch.tensor([[1.0, -1.0, 0.0]]),
        )
        rep.prepare(GaussianOptimise(grow=(0.0, 1.0), grow_events=1), Step(0))
        return rep

    large, small = one(0.2), one(0.01)
    before = Splats()(small, CAMERAS, WHITE)
    for rep in (large, small):
        rep.update(fake(rep, torch.ones(1)), Step(0, progress=1.0))
        assert len(rep) == 2
    torch.testing.assert_close(large.means.mean(0), torch.tensor([0.1, 0.2, 0.3]))
    assert not torch.equal(large.means[0], large.means[1])
    torch.testing.assert_close(large.scales, torch.full((2, 3), 0.2 / 1.6))
    after = Splats()(small, CAMERAS, WHITE)
    doubled = 1 - (1 - before.alpha) ** 2  # what two of the old opacity would show
    assert (before.alpha - after.alpha).abs().max() < 0.25 * (doubled - before.alpha).max()


def test_pruning_removes_the_faint_but_never_more_than_half():
    optimise = GaussianOptimise(grow=(0.0, 1.0), grow_events=1, grow_share=0.0, prune_opacity=0.05)
    rep = start(20, optimise)
    with torch.no_grad():
        rep.opacity_logits[:6] = -6.0
    means = rep.means.detach().clone()
    assert rep.update(fake(rep, torch.zeros(20)), Step(0, progress=1.0))["removed"] == 6
    assert torch.equal(rep.means, means[6:])
    rep = start(20, optimise)
    with torch.no_grad():
        rep.opacity_logits[:] = torch.linspace(-9, -8, 20)
    rep.update(fake(rep, torch.zeros(20)), Step(0, progress=1.0))
    assert len(rep) == 10
    assert rep.opacity_logits.min() > -8.6
    lone = start(1, optimise)
    with torch.no_grad():
        lone.opacity_logits[:] = -20.0
    lone.update(fake(lone, torch.zeros(1)), Step(0, progress=1.0))
    assert len(lone) == 1


def test_scales_are_bounded():
    rep = start(10, GaussianOptimise(max_scale=0.05, grow_events=0))
    rep.log_scales.grad = -torch.ones(10, 3)
    rep.update(fake(rep, torch.zeros(10)), at(0))
    assert rep.scales.max() <= 0.05 + 1e-6


@pytest.mark.parametrize("cut", [3, 12, 25])
def test_resuming_ends_in_the_same_bits(cut):
    """Also across growth: a fresh object of another count, which loads the state, goes on as if never interrupted."""
    whole = start()
    train(whole, range(40))
    first = start()
    train(first, range(cut))
    saved = {name: tensor.clone() for name, tensor in first.state().items()}
    second = start(7)
    second.load(saved)
    assert all(torch.equal(second.state()[name], tensor) for name, tensor in saved.items())
    train(second, range(cut, 40))
    assert whole.state().keys() == second.state().keys()
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, second.state()[name]), name


def test_dropping_the_moments_changes_the_bits():
    whole, second = start(), start()
    train(whole, range(8))
    train(second, range(4))
    state = second.state()
    state = {name: torch.zeros_like(t) if name.startswith(("first", "second")) else t for name, t in state.items()}
    second.load(state)
    train(second, range(4, 8))
    assert not torch.equal(whole.means, second.means)


def test_the_same_seed_grows_the_same():
    first, second = start(), start()
    train(first, range(40))
    train(second, range(40))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_load_refuses_what_does_not_fit():
    rep = start()
    train(rep, range(2))
    good = rep.state()
    for name, bad, message in [
        ("means", good["means"][:-1], "log_scales must have the shape"),
        ("quats", good["quats"][:, :3], "quats must have the shape"),
        ("first.means", good["first.means"][:5], "first.means must have the shape"),
        ("grow.seen", good["grow.seen"][:5], "grow.seen must have the shape"),
        ("opacity_logits", good["opacity_logits"] * math.nan, "not finite, in 60 of 60"),
    ]:
        with pytest.raises(ValueError, match=message):
            start().load({**good, name: bad})
    with pytest.raises(ValueError, match=r'lack "second\.quats"'):
        start().load({name: t for name, t in good.items() if name != "second.quats"})
    bare = Blob(5)(None, Step(0))
    bare.load(good)
    assert set(bare.state()) == set(NAMES)
    assert torch.equal(bare.means, good["means"])


def test_construction_refuses_what_does_not_fit(unchecked):
    good = [p.detach() for p in Blob(4)(None, Step(0)).parameters()]
    with pytest.raises(ValueError, match="at least one"):
        Gaussians(*(t[:0] for t in good))
    with pytest.raises(ValueError, match=r"opacity_logits must have the shape \[4\]"):
        Gaussians(*good[:3], good[3][:, None], good[4])
    with pytest.raises(ValueError, match="means holds numbers that are not finite, in 1 of 4"):
        Gaussians(good[0].index_fill(0, torch.tensor([2]), math.inf), *good[1:])
    with pytest.raises(TypeError, match="floating-point"):
        Gaussians(good[0].long(), *good[1:])


def test_misuse_is_refused():
    rep = Blob(4)(None, Step(0))
    with pytest.raises(ValueError, match="prepare"):
        rep.update(fake(rep, torch.zeros(4)), at(0))
    with pytest.raises(TypeError, match="GaussianOptimise"):
        rep.prepare({"means": 1e-3}, Step(0))
    rep.prepare(GaussianOptimise(), Step(0))
    with pytest.raises(ValueError, match="no screen"):
        rep.update(dataclasses.replace(fake(rep, torch.zeros(4)), screen=None), at(0))
    for bad in ({"grow": (0.6, 0.1)}, {"grow_share": 2.0}, {"max_count": 0}, {"max_scale": 0.0}):
        with pytest.raises(ValueError):
            GaussianOptimise(**bad)


def test_blob():
    rep = Blob(3000, 0.6)(None, Step(0))
    distance = rep.means.norm(dim=-1)
    assert len(rep) == 3000
    assert distance.max() <= 0.6
    # Even in the ball: half of its volume lies within 0.794 of the radius.
    assert abs((distance < 0.6 * 0.5 ** (1 / 3)).float().mean() - 0.5) < 0.03
    assert rep.means.mean(0).norm() < 0.03
    torch.testing.assert_close(rep.opacities, torch.full((3000,), 0.1))
    assert (rep.rgb - 0.5).abs().mean() < 0.1
    torch.testing.assert_close(rep.scales[:, 0], rep.scales[:, 2])
    again, other = Blob(3000, 0.6)(None, Step(0)), Blob(3000, 0.6)(None, Step(1))
    assert torch.equal(rep.means, again.means)
    assert not torch.equal(rep.means, other.means)
    assert len(Blob(1)(None, Step(0))) == 1
    with pytest.raises(ValueError):
        Blob(0)
    with pytest.raises(ValueError):
        Blob(10, 1.5)


def test_neighbour_distance():
    line = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]])
    expected = torch.tensor([1 + 4 + 9, 1 + 1 + 4, 1 + 1 + 4, 1 + 4 + 9.0]).div(3).sqrt()
    torch.testing.assert_close(neighbour_distance(line), expected)
    assert neighbour_distance(line[:1]).item() == 1


def test_continue():
    rep = Blob(3)(None, Step(0))
    assert Continue()(rep, Step(0)) is rep
    with pytest.raises(ValueError, match="nothing to continue"):
        Continue()(None, Step(0))


def test_properties():
    rep = start(5)
    torch.testing.assert_close(rep.scales, rep.log_scales.exp())
    identity = torch.einsum("mij,mkj->mik", rep.rotations, rep.rotations)
    torch.testing.assert_close(identity, torch.eye(3).expand(5, 3, 3), rtol=1e-5, atol=1e-6)
    assert rep.at(torch.zeros(4)) is rep
