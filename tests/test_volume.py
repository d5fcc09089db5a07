"""The volume renderers against their float64 twin, and the laws that any of them keeps."""

import copy
import dataclasses
import functools
import math

import pytest
import torch
from torch import Tensor

from sds3d.cameras import look_at, orbit, rays
from sds3d.core import Background, Cameras, Step
from sds3d.losses import LOSSES
from sds3d.renderers import kernels, reference, volume
from sds3d.renderers.splats import Splats
from sds3d.renderers.volume import Volume
from sds3d.renderers.volume_torch import DIAGONAL
from sds3d.representations.field import DENSITY_SCALE, Ball, Field, points
from sds3d.representations.start import Blob

SIZE, SAMPLES = 12, 30
MAPS = ("rgb", "alpha", "depth", "normal", "away")


def scene(resolution: int = 7, seed: int = 0, filled: bool = False) -> Field:
    """Smooth clouds: dense enough that rays end, with empty cells unless it is filled."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.randn(resolution, resolution, resolution, 4, generator=generator)
    grid[..., 0] = 3 * grid[..., 0] - 3
    rep = Field(grid)
    if not filled:
        rep.occupied = torch.rand(rep.occupied.shape, generator=generator) < 0.6
    return rep


def cameras(views: int = 3, size: int = SIZE) -> Cameras:
    cams = orbit([10.0, 130.0, 250.0, 80.0][:views], [20.0, -30.0, 70.0, 5.0][:views], size)
    # Exactly orthonormal, so that a camera means the same in both precisions.
    return dataclasses.replace(cams, c2w=look_at(cams.position.double()), K=cams.K.double())


def plain(views: int = 3, rgb: tuple[float, ...] = (0.2, 0.5, 0.9)) -> Background:
    return Background(torch.tensor([rgb]).repeat(views, 1))


def render(draw, rep: Field, cams: Cameras, maps=MAPS, seed: int = 5) -> dict[str, Tensor]:
    """Pictures and the field's gradient for random upstream gradients of the chosen maps."""
    rep.zero_grad(set_to_none=True)
    out = draw(rep, cams, plain(len(cams)))
    generator = torch.Generator().manual_seed(seed)
    loss = 0
    for name in maps:
        image = getattr(out, name)
        loss = loss + (image * torch.randn(image.shape, generator=generator).to(image)).sum()
    loss.backward()
    found = {name: getattr(out, name).detach() for name in MAPS}
    found |= {"d x": rep.grid.grad[..., 0], "d rgb": rep.grid.grad[..., 1:]}
    return {name: tensor.cpu() for name, tensor in found.items()}


def twin(rep: Field, cams: Cameras, stop: float, maps=MAPS, offset: Tensor | None = None) -> dict[str, Tensor]:
    half = torch.full((len(cams), cams.height, cams.width), 0.5)
    draw = functools.partial(reference.volume, samples=SAMPLES, stop=stop, offset=half if offset is None else offset)
    return render(draw, copy.deepcopy(rep).double(), cams, maps)


def error(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true).norm() / true.norm().clamp(min=1e-12))


BACKENDS = [("torch", torch.float64, 1e-10), ("torch", torch.float32, 1e-4), ("auto", torch.float32, 1e-4)]


@pytest.mark.parametrize(("backend", "dtype", "bound"), BACKENDS, ids=["float64", "fallback", "kernel"])
@pytest.mark.parametrize("maps", [("rgb",), ("depth",), ("normal",), ("away",), MAPS], ids="+".join)
def test_every_backend_equals_the_twin(monkeypatch, backend, dtype, bound, maps, device) -> None:
    monkeypatch.setenv("SDS3D_KERNEL", backend)
    rep = scene()
    found = render(Volume(SAMPLES, 0.0), copy.deepcopy(rep).to(device, dtype), cameras(), maps)
    true = twin(rep, cameras(), 0.0, maps)
    for name, image in true.items():
        assert error(found[name], image) < (bound if name.startswith("d ") else bound / 10), name


@pytest.mark.parametrize(("backend", "dtype", "bound"), BACKENDS, ids=["float64", "fallback", "kernel"])
def test_early_stop_and_jitter_are_the_twins(monkeypatch, backend, dtype, bound) -> None:
    monkeypatch.setenv("SDS3D_KERNEL", backend)
    rep, cams, step = scene(filled=True), cameras(), Step(3, "shape", index=7)
    draw = functools.partial(Volume(SAMPLES, 0.05), step=step)
    offset = torch.special.ndtr(step.normal("jitter", torch.zeros(len(cams), SIZE, SIZE, dtype=dtype)))
    found = render(draw, copy.deepcopy(rep).to(dtype), cams)
    for name, image in twin(rep, cams, 0.05, offset=offset).items():
        assert error(found[name], image) < bound, name


def test_the_twin_has_the_gradients_of_finite_differences() -> None:
    rep, cams = scene(3).double(), cameras(2, 3)
    offset = torch.full((2, 3, 3), 0.5)

    def pictures(grid: Tensor) -> tuple[Tensor, ...]:
        moved = copy.deepcopy(rep)
        del moved._parameters["grid"]
        object.__setattr__(moved, "grid", grid)
        out = reference.volume(moved, cams, plain(2), 12, 0.0, offset)
        return out.rgb, out.alpha, out.depth, out.normal, out.away

    assert torch.autograd.gradcheck(pictures, rep.grid.detach().clone().requires_grad_())


@pytest.mark.skipif(kernels.backend().name != "c", reason="there is no C kernel here")
def test_the_kernel_is_used_and_its_bits_do_not_depend_on_threads(monkeypatch) -> None:
    threads, used = torch.get_num_threads(), []
    draw = volume.volume_c.march
    monkeypatch.setattr(volume.volume_c, "march", lambda *inputs: used.append(1) or draw(*inputs))
    try:
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(render(Volume(), scene(), cameras()))
    finally:
        torch.set_num_threads(threads)
    assert len(used) == 2
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_batch_is_its_views(monkeypatch, backend) -> None:
    monkeypatch.setenv("SDS3D_KERNEL", backend)
    rep, cams, step = scene(), cameras(), Step(0, "shape", 4)
    together = Volume()(rep, cams, plain(), step)
    for view in range(3):
        alone = Volume()(rep, cams[view : view + 1], plain(1), dataclasses.replace(step, row=view))
        for name in MAPS:
            torch.testing.assert_close(getattr(together, name)[view], getattr(alone, name)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_uniform_ball_dims_as_beer_and_lambert_say(monkeypatch, backend) -> None:
    """1 - exp(-sigma * chord), up to what the grid and the samples blur at the ball's surface."""
    monkeypatch.setenv("SDS3D_KERNEL", backend)
    radius, sigma = 0.6, 2.0
    grid = torch.zeros(96, 96, 96, 4)
    distance = points(96, grid).norm(dim=-1)
    grid[..., 0] = torch.where(distance < radius, math.log(math.expm1(sigma / DENSITY_SCALE)), -30.0)
    out = Volume(400, 0.0)(Field(grid), cameras(), plain())
    origins, directions = rays(cameras())
    unit = torch.nn.functional.normalize(directions, dim=-1)
    nearest = (origins - (origins * unit).sum(-1, keepdim=True) * unit).square().sum(-1, keepdim=True)
    chord = 2 * (radius**2 - nearest).clamp_min(0).sqrt()
    clear = (chord > 0.6) | (chord == 0)
    true = 1 - torch.exp(-sigma * chord)
    assert (out.alpha.double() - true).abs()[clear].max() < 0.06
    assert (out.alpha.double() - true)[chord > 0.6].mean().abs() < 0.02
    # The near half of a thin ball weighs a little more, so the mean depth lies a little before the middle.
    middle = ((origins * unit).sum(-1, keepdim=True).neg() / directions.norm(dim=-1, keepdim=True))[chord > 0.9]
    assert (out.depth[chord > 0.9] < middle).all()
    assert (out.depth[chord > 0.9] > middle - 0.3).all()


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_an_empty_field_is_the_background_exactly(monkeypatch, backend) -> None:
    monkeypatch.setenv("SDS3D_KERNEL", backend)
    grid = torch.zeros(8, 8, 8, 4)
    grid[..., 0] = -30
    out = render(Volume(), Field(grid), cameras())
    assert torch.equal(out["rgb"], plain().rgb[:, None, None].expand_as(out["rgb"]))
    assert all(not out[name].any() for name in out if name != "rgb")


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_field_and_its_camera_move_together(monkeypatch, backend) -> None:
    """Samples lie at distances from the camera, so a shift by whole cells changes nothing but rounding."""
    monkeypatch.setenv("SDS3D_KERNEL", backend)
    grid = torch.full((17, 17, 17, 4), -30.0)
    grid[4:9, 5:10, 3:8] = scene(5).grid.detach() + torch.tensor([2.0, 0, 0, 0])
    moved = grid.roll((4, -3, 5), dims=(0, 1, 2))
    shift = torch.tensor([4.0, -3.0, 5.0]).double() * 2 / 16
    cams = cameras()
    c2w = cams.c2w.clone()
    c2w[:, :3, 3] += shift
    here = Volume()(Field(grid), cams, plain())
    there = Volume()(Field(moved), dataclasses.replace(cams, c2w=c2w), plain())
    assert here.alpha.max() > 0.5
    for name in MAPS:
        torch.testing.assert_close(getattr(here, name), getattr(there, name), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_hard_ball_has_the_depth_and_the_normals_of_a_sphere(monkeypatch, backend) -> None:
    monkeypatch.setenv("SDS3D_KERNEL", backend)
    grid = torch.zeros(48, 48, 48, 4)
    grid[..., 0] = 60 * (0.6 - points(48, grid).norm(dim=-1))
    cams = cameras(size=24)
    out = Volume(200)(Field(grid), cams, plain())
    origins, directions = rays(cams)
    unit = torch.nn.functional.normalize(directions, dim=-1)
    along = -(origins * unit).sum(-1, keepdim=True)
    gap = 0.6**2 - (origins + along * unit).square().sum(-1, keepdim=True)
    hit = gap[..., 0] > 0.09  # away from the rim
    t = along - gap.clamp_min(0).sqrt()
    true = (origins + t * unit) / 0.6
    assert (out.alpha[hit] > 0.99).all()
    assert ((out.depth - t / directions.norm(dim=-1, keepdim=True))[hit]).abs().max() < 0.03
    cosine = (out.normal * true).sum(-1)[hit]
    assert cosine.min() > math.cos(math.radians(6))
    torch.testing.assert_close(out.normal[hit].norm(dim=-1), torch.ones(int(hit.sum())))
    assert out.away[hit].max() < 1e-3


def test_the_contract_of_a_picture() -> None:
    out = Volume()(scene(), cameras(), plain(), Step(0))
    outside = out.alpha[..., 0] <= 1 / 255
    assert outside.any() and (~outside).any()
    assert ((out.rgb >= 0) & (out.rgb <= 1)).all()
    assert ((out.alpha >= 0) & (out.alpha <= 1)).all()
    assert not out.depth[outside].any() and not out.normal[outside].any()
    length = out.normal[~outside].norm(dim=-1)
    assert (length < 1 + 1e-5).all() and (length > 0.9).float().mean() > 0.9
    assert out.screen is None and out.albedo is None


def test_jitter_changes_with_the_step_alone() -> None:
    rep, cams = scene(), cameras()
    still, one, same, other = (
        Volume()(rep, cams, plain(), step).rgb for step in (None, Step(0, "a", 1), Step(0, "a", 1), Step(0, "a", 2))
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other) and not torch.equal(one, still)


def test_skipping_what_is_empty_hardly_changes_the_picture() -> None:
    rep = Ball(resolution=24)(None, Step(0))
    assert isinstance(rep, Field)
    skipped = Volume()(rep, cameras(), plain())
    rep.occupied = torch.ones_like(rep.occupied)
    whole = Volume()(rep, cameras(), plain())
    assert 0 < (whole.alpha - skipped.alpha).max() < 0.01


def test_the_orientation_loss_is_of_volumes_alone() -> None:
    """A shell that is dense at its far side alone shows its back; a ball that is dense in its middle does not."""
    ball = Ball(resolution=16)(None, Step(0))
    out = Volume()(ball, cameras(), plain())
    shell = copy.deepcopy(ball)
    shell.grid.data[..., 0] = 10 * (points(16, shell.grid).norm(dim=-1) - 0.9)
    inverse = Volume()(shell, cameras(), plain())
    loss = LOSSES["orientation"](ball, out, Step(0))
    assert loss < LOSSES["orientation"](shell, inverse, Step(0)) / 5
    loss.backward()
    assert ball.grid.grad is not None and ball.grid.grad.abs().sum() > 0
    gaussians = Blob(4)(None, Step(0))
    with pytest.raises(ValueError, match="needs a volume, and a Gaussians"):
        LOSSES["orientation"](gaussians, Splats()(gaussians, cameras(), plain()), Step(0))


def test_bad_numbers_and_other_representations_are_refused(unchecked) -> None:
    for numbers, message in (({"samples": 0}, "samples"), ({"stop": 1.0}, "stop"), ({"stop": -0.1}, "stop")):
        with pytest.raises(ValueError, match=message):
            Volume(**numbers)
    with pytest.raises(TypeError, match="draws a Field or a HashField, given Gaussians"):
        Volume()(Blob(4)(None, Step(0)), cameras(), plain())
    with pytest.raises(TypeError, match="draws Gaussians, given Field"):
        Splats()(scene(), cameras(), plain())


def test_samples_lie_on_the_diagonal() -> None:
    """A ray along the diagonal of a full cube meets as many samples as were asked for."""
    grid = torch.zeros(4, 4, 4, 4)
    grid[..., 0] = math.log(math.expm1(0.1 / DENSITY_SCALE))
    c2w = look_at(torch.tensor([[2.0, 2.0, 2.0]]))
    cams = dataclasses.replace(orbit([0.0], 0.0, 1, fov_y_deg=1.0), c2w=c2w)
    out = Volume(50, 0.0)(Field(grid), cams, plain(1))
    count = -torch.log1p(-out.alpha.double()) / (0.1 * DIAGONAL / 50)
    assert abs(count.item() - 50) < 0.6
