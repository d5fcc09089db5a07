"""The splat renderers against their float64 twin, and the laws that any of them keeps."""

import copy
import dataclasses
import functools
import importlib
import math
import os
import subprocess
import sys
import types

import pytest
import torch

from sds3d.cameras import look_at, orbit, rays
from sds3d.core import Background, Cameras, Step
from sds3d.renderers import kernels, reference, splats, splats_torch
from sds3d.renderers.background import COLOURS, Named, Plain, Random
from sds3d.renderers.kernels import loader
from sds3d.renderers.splats import Splats
from sds3d.representations.gaussians import Gaussians, rotation_matrix

SIZE = 20
MAPS = ("rgb", "alpha", "depth", "normal")


def scene(count: int, seed: int = 0, scale: float = 0.12) -> Gaussians:
    """A ball of anisotropic Gaussians with opacities from 0.1 to 0.9."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    opacities = 0.1 + 0.8 * torch.rand(count, generator=generator)
    means = 0.7 * torch.nn.functional.normalize(normal(count, 5), dim=-1)[:, :3]
    scales = scale * torch.exp(0.5 * normal(count, 3))
    return Gaussians(means, scales.log(), normal(count, 4), opacities.logit(), normal(count, 3))


def cameras(views: int = 3, size: int = SIZE) -> Cameras:
    cams = orbit([10.0, 130.0, 250.0, 80.0][:views], [20.0, -30.0, 70.0, 5.0][:views], size)
    # Exactly orthonormal, because the twin inverts the matrix where the renderers transpose it.
    return dataclasses.replace(cams, c2w=look_at(cams.position.double()), K=cams.K.double())


def plain(views: int = 3, rgb: tuple[float, ...] = (0.2, 0.5, 0.9)) -> Background:
    return Background(torch.tensor([rgb]).repeat(views, 1))


def render(draw, rep: Gaussians, cams: Cameras, maps=MAPS, seed: int = 5):
    """Pictures, screen gradient and parameter gradients for random upstream gradients of the chosen maps."""
    rep.zero_grad(set_to_none=True)
    out = draw(rep, cams, plain(len(cams)))
    generator = torch.Generator().manual_seed(seed)
    loss = 0
    for name in maps:
        image = getattr(out, name)
        loss = loss + (image * torch.randn(image.shape, generator=generator).to(image)).sum()
    loss.backward()
    found = {name: getattr(out, name).detach() for name in MAPS}
    found |= {f"d {name}": p.grad for name, p in rep.named_parameters()}
    return found | {
        "d means2d": out.screen.means2d.grad,
        "means2d": out.screen.means2d.detach(),
        "radii": out.screen.radii,
    }


def error(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found.double() - true).norm() / true.norm().clamp(min=1e-12))


def twin(rep: Gaussians, cams: Cameras, maps=MAPS):
    """The same from the oracle; without its slow normals where they are not among the maps."""
    draw = functools.partial(reference.splats, normals="normal" in maps)
    found = render(draw, copy.deepcopy(rep).double(), cams, maps)
    return found if "normal" in maps else {name: t for name, t in found.items() if name != "normal"}


needs_kernel = pytest.mark.skipif(kernels.backend().name != "c", reason="there is no C kernel here")


@needs_kernel
@pytest.mark.parametrize(
    ("count", "maps"),
    # Not the depth of one Gaussian: it is constant, so its gradient is the rounding of 0.
    [(1, ("rgb", "alpha")), *((n, maps) for n in (60, 300) for maps in (("rgb",), ("rgb", "alpha"), ("depth",), MAPS))],
)
def test_kernel_equals_twin(count, maps):
    rep = scene(count, seed=3, scale=0.15)
    found, true = render(Splats(), rep, cameras(), maps), twin(rep, cameras(), maps=maps)
    seen = found["radii"] > 0
    # A normal is a difference of neighbouring depths, which magnifies their rounding by the focal length.
    bounds = {"normal": 1e-5}
    gradients = 3e-5 if "normal" in maps else 1e-5
    for name in true:
        if name in ("means2d", "radii"):
            assert error(found[name][seen], true[name][seen]) < 1e-6, name
        else:
            assert error(found[name], true[name]) < (gradients if name.startswith("d ") else bounds.get(name, 1e-6)), (
                name
            )


@pytest.mark.parametrize("count", [1, 60, 300])
def test_fallback_equals_twin(count):
    rep = scene(count, seed=1).double()
    found, true = render(Splats(), rep, cameras()), twin(rep, cameras())
    seen = found["radii"] > 0
    for name in true:
        if name in ("means2d", "radii"):
            assert error(found[name][seen], true[name][seen]) < 1e-12, name
        else:
            assert error(found[name], true[name]) < 1e-10, name


def test_fallback_in_float32(monkeypatch):
    monkeypatch.setenv("SDS3D_KERNEL", "torch")
    rep = scene(60, seed=3)
    found, true = render(Splats(), rep, cameras()), twin(rep, cameras())
    for name in (*MAPS, *(f"d {p}" for p, _ in rep.named_parameters()), "d means2d"):
        assert error(found[name], true[name]) < 2e-5, name


@pytest.mark.parametrize("kind", ["auto", "torch"])
def test_it_equals_its_twin(kind, device, monkeypatch):
    """On every device within one bound, where no pixel fills up: gsplat ends one a Gaussian earlier than we do."""
    monkeypatch.setenv("SDS3D_KERNEL", kind)
    rep = scene(60, seed=3, scale=0.08)
    true = twin(rep, cameras())
    assert (1 - true["alpha"]).min() > 10 * splats_torch.MIN_TRANSMITTANCE
    found = render(Splats(), rep.to(device), cameras())
    for name in (*MAPS, *(f"d {p}" for p, _ in rep.named_parameters()), "d means2d"):
        assert error(found[name].cpu(), true[name]) < 1e-5, name


def test_gsplat_is_given_and_gives_the_right_units(monkeypatch):
    """A stand-in with gsplat's interface: pixels for NDC, world-to-camera matrices, depth as a fourth channel."""
    seen = {}

    def rasterization(means, quats, scales, opacities, colors, viewmats, Ks, width, height, **options):
        seen.update(options)
        cams = Cameras(torch.linalg.inv(viewmats), Ks, width, height)
        drawn = splats_torch.draw(splats_torch.Shapes(means, scales, quats, opacities, colors), cams)
        size = means.new_tensor([width, height])
        pixels = (drawn.means2d + 1) * size / 2
        # The stand-in draws from its own means2d, so the picture is made to depend on these pixels as well.
        colour = drawn.colour + (pixels - pixels.detach()).sum(dim=(1, 2))[:, None, None, None]
        meta = {"means2d": pixels, "radii": drawn.radii[..., None].repeat(1, 1, 2).ceil().int()}
        return torch.cat([colour, drawn.depth], dim=-1), drawn.alpha, meta

    monkeypatch.setitem(sys.modules, "gsplat", types.SimpleNamespace(rasterization=rasterization))
    rep = scene(30).double()
    shapes = splats_torch.Shapes(rep.means, rep.scales, rep.quats, rep.opacities, rep.rgb)
    found, true = splats._draw_gsplat(shapes, cameras()), splats_torch.draw(shapes, cameras())
    for name in ("colour", "alpha", "depth", "means2d"):
        torch.testing.assert_close(getattr(found, name), getattr(true, name), rtol=1e-7, atol=1e-7)
    assert torch.equal(found.radii > 0, true.radii > 0)
    found.colour.sum().backward()
    # Each of the 3 SIZE^2 numbers of a picture moves by 1 per pixel, which is SIZE / 2 per unit of NDC.
    torch.testing.assert_close(found.means2d.grad, torch.full_like(found.means2d, 3 * SIZE**2 * SIZE / 2))
    assert seen["packed"] is False
    assert seen["render_mode"] == "RGB+D"


def test_gsplat_without_a_toolkit_is_not_chosen(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for built, message in [(None, "nvcc"), (RuntimeError("half built"), "half built")]:

        def load(name, built=built):
            if isinstance(built, Exception):
                raise built
            return types.SimpleNamespace(_C=built)

        monkeypatch.setattr(importlib, "import_module", load)
        splats._gsplat.cache_clear()
        chosen = splats._gsplat()
        assert chosen.name == "torch"
        assert message in chosen.why
    splats._gsplat.cache_clear()


def test_twin_against_finite_differences():
    rep = scene(5, seed=2, scale=0.25).double()
    cams = cameras(2, 6)
    parameters = [p.detach().clone().requires_grad_() for p in rep.parameters()]

    def pictures(*tensors):
        moved = copy.deepcopy(rep)
        for (name, _), tensor in zip(rep.named_parameters(), tensors, strict=True):
            del moved._parameters[name]
            object.__setattr__(moved, name, tensor)
        out = reference.splats(moved, cams, plain(2))
        return out.rgb, out.alpha, out.depth, out.normal

    assert torch.autograd.gradcheck(pictures, parameters, eps=1e-6, atol=1e-5, fast_mode=True)


@needs_kernel
def test_kernel_clamps_far_rays_as_the_twin():
    """A Gaussian outside the picture whose flank reaches in: the Jacobian's ray is clamped, and so is its gradient."""
    rep = Gaussians(
        torch.tensor([[1.0, 1.35, 0.1], [1.2, -0.2, -1.4]]),
        torch.tensor([[-0.9, -1.2, -0.7], [-0.8, -0.6, -1.5]]),
        torch.tensor([[1.0, 0.3, -0.2, 0.4], [0.2, 0.9, 0.1, -0.5]]),
        torch.tensor([2.0, 1.0]),
        torch.zeros(2, 3),
    )
    cams = orbit([0.0], [0.0], SIZE)
    maps = ("rgb", "alpha")
    found, true = render(Splats(), rep, cams, maps), twin(rep, cams, maps)
    assert (true["means2d"].abs() > 1.3).any()
    assert true["alpha"].max() > 0.1
    for name in true:
        assert error(found[name], true[name]) < 1e-5, name


@pytest.mark.parametrize("kind", ["auto", "torch"])
def test_nothing_visible(kind, monkeypatch):
    monkeypatch.setenv("SDS3D_KERNEL", kind)
    behind = scene(20)
    with torch.no_grad():
        behind.means += torch.tensor([10.0, 0.0, 0.0])
    cams = orbit([0.0], [0.0], SIZE)
    out = Splats()(behind, cams, plain(1))
    assert torch.equal(out.rgb, plain(1).rgb[:, None, None].expand_as(out.rgb))
    assert not out.alpha.any()
    assert not out.depth.any()
    assert not out.normal.any()
    assert not out.screen.radii.any()
    (out.rgb.sum() + out.depth.sum() + out.normal.sum()).backward()
    assert all(not p.grad.any() for p in behind.parameters())
    assert not out.screen.means2d.grad.any()


@pytest.mark.parametrize("kind", ["auto", "torch"])
@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *((name, math.nan) for name in ("means", "log_scales", "quats", "opacity_logits", "colour_logits")),
        *((name, math.inf) for name in ("means", "log_scales", "quats")),
        *((name, -math.inf) for name in ("means", "quats", "opacity_logits")),
        ("quats", 0.0),
    ],
)
def test_a_bad_number_does_not_spread(kind, name, bad, monkeypatch):
    monkeypatch.setenv("SDS3D_KERNEL", kind)
    rep = scene(40)
    good = [i for i in range(40) if i != 7]
    without = Gaussians(*(p.detach()[good] for p in rep.parameters()))
    with torch.no_grad():
        getattr(rep, name)[7] = bad
    found, expected = render(Splats(), rep, cameras()), render(Splats(), without, cameras())
    # Not to the same bits, because torch's sigmoid rounds by an element's place in memory.
    for key in MAPS:
        assert error(found[key], expected[key].double()) < 2e-5, key
    for key, _ in rep.named_parameters():
        assert error(found[f"d {key}"][good], expected[f"d {key}"].double()) < 2e-4, key
    assert torch.isfinite(found["d means2d"]).all()


@pytest.mark.parametrize("kind", ["auto", "torch"])
def test_extreme_but_finite(kind, monkeypatch):
    """Needles, discs, dust and giants, some at the camera: the picture and every gradient stay finite."""
    monkeypatch.setenv("SDS3D_KERNEL", kind)
    rep = scene(64, seed=9)
    with torch.no_grad():
        rep.log_scales[:16, 0] = -20
        rep.log_scales[16:32] = 4.0
        rep.means[32:40] = torch.tensor([2.995, 0.0, 0.0])
        rep.means[40:48] *= 1e6
        rep.quats[48:56] *= 1e-10
        rep.opacity_logits[56:] = 30.0
    found = render(Splats(), rep, orbit([0.0, 40.0], [0.0, 0.0], SIZE))
    assert all(torch.isfinite(t).all() for t in found.values())


@needs_kernel
def test_bits_do_not_depend_on_threads():
    rep = scene(500, seed=4)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(render(Splats(), rep, cameras(4, 40)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, tensor in results[0].items():
            assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("kind", ["auto", "torch"])
def test_batch_equals_singles(kind, monkeypatch):
    monkeypatch.setenv("SDS3D_KERNEL", kind)
    rep, cams = scene(100), cameras()
    batch = Splats()(rep, cams, plain())
    for b in range(len(cams)):
        single = Splats()(rep, cams[b : b + 1], plain(1))
        for name in MAPS:
            bound = 1e-4 if name == "normal" else 1e-6  # sums in another order, of which normals are differences
            torch.testing.assert_close(getattr(batch, name)[b : b + 1], getattr(single, name), rtol=bound, atol=bound)


def test_turning_world_and_camera_together_changes_nothing():
    rep, cams = scene(100).double(), cameras()
    turn = torch.tensor([[0.6, -0.3, 0.5, 0.55]], dtype=torch.float64)
    R = rotation_matrix(turn)[0]
    w, x, y, z = torch.nn.functional.normalize(turn[0], dim=0)
    a, b, c, d = rep.quats.detach().unbind(-1)
    turned = copy.deepcopy(rep)
    with torch.no_grad():
        turned.means.copy_(rep.means @ R.T)
        product = [
            w * a - x * b - y * c - z * d,
            w * b + x * a + y * d - z * c,
            w * c - x * d + y * a + z * b,
            w * d + x * c - y * b + z * a,
        ]
        turned.quats.copy_(torch.stack(product, dim=-1))
    move = torch.eye(4, dtype=torch.float64)
    move[:3, :3] = R
    first = Splats()(rep, cams, plain())
    second = Splats()(turned, dataclasses.replace(cams, c2w=move @ cams.c2w), plain())
    for name in ("rgb", "alpha", "depth"):
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(first.normal @ R.T, second.normal, rtol=1e-7, atol=1e-7)


def test_normals_of_a_sphere_point_outwards():
    """A dense opaque ball of bumps: the normals are those of the sphere within the bumps, and all face the camera."""
    directions = torch.nn.functional.normalize(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    ball = Gaussians(
        0.7 * directions,
        torch.full((4000, 3), 0.03).log(),
        torch.tensor([[1.0, 0, 0, 0]]).repeat(4000, 1),
        torch.full((4000,), 3.0),
        torch.zeros(4000, 3),
    )
    cams = cameras(3, 64)
    out = Splats()(ball, cams, plain())
    inside = out.alpha[..., 0] > 0.99
    torch.testing.assert_close(out.normal.norm(dim=-1)[inside], torch.ones(int(inside.sum())))
    towards = torch.nn.functional.normalize(cams.position, dim=-1)[:, None, None]
    middle = inside & ((out.normal * towards).sum(-1) > 0.5)
    origins, ray = rays(cams)
    outwards = torch.nn.functional.normalize(origins + ray * out.depth, dim=-1)
    cosine = (out.normal * outwards).sum(-1)[middle]
    assert middle.sum() > 1000
    assert cosine.mean() > 0.95


def test_background_gets_a_gradient():
    rep = scene(30)
    rgb = torch.full((3, 3), 0.5, requires_grad=True)
    out = Splats()(rep, cameras(), Background(rgb))
    out.rgb.sum().backward()
    torch.testing.assert_close(rgb.grad, (1 - out.alpha).sum((1, 2)).expand(3, 3))


def test_without_gradients_nothing_is_tracked():
    with torch.no_grad():
        out = Splats()(scene(10), cameras(), plain())
    assert not out.rgb.requires_grad
    assert not out.screen.means2d.requires_grad


def test_other_representations_are_refused():
    class Other(Gaussians):
        def at(self, time):
            return torch.nn.Identity()

    rep = scene(3)
    rep.__class__ = Other
    with pytest.raises(TypeError, match="draws Gaussians, given Identity"):
        Splats()(rep, cameras(), plain())


def test_kernel_choice(monkeypatch):
    monkeypatch.setenv("SDS3D_KERNEL", "torch")
    assert kernels.backend().name == "torch"
    assert "SDS3D_KERNEL" in kernels.backend().why
    monkeypatch.setenv("SDS3D_KERNEL", "warp")
    with pytest.raises(ValueError, match="one of auto, c, torch"):
        kernels.backend()
    assert splats.backend(torch.zeros(1, dtype=torch.float64)).name == "torch"


def test_without_a_kernel_all_renderers_are_warned_of(monkeypatch, caplog):
    def nothing():
        raise RuntimeError("nothing here")

    monkeypatch.setattr(loader, "_shipped", nothing)
    monkeypatch.setattr(loader, "_compiled", nothing)
    assert loader._find.__wrapped__().name == "torch"
    for word in ("Gaussians", "fields", "meshes", "nothing here"):
        assert word in caplog.text


def test_without_a_compiler_the_fallback_draws(tmp_path):
    """In a process of its own: no shipped library, no compiler, an empty cache."""
    if loader.shipped_path().exists():
        pytest.skip("this package ships its kernel")
    code = (
        "from sds3d.renderers import kernels\n"
        "import torch; from sds3d.representations.start import Blob; from sds3d.core import Step, Background\n"
        "from sds3d.renderers.splats import Splats; from sds3d.cameras import orbit\n"
        "b = kernels.backend(); print(b.name, '|', b.why)\n"
        "Splats()(Blob(20)(None, Step(0)), orbit([0.], [0.], 8), Background(torch.ones(1, 3)))\n"
    )
    environment = {**os.environ, "PATH": "", "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("CC", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("torch |")
    assert "no C compiler" in done.stdout


@needs_kernel
def test_a_damaged_cached_kernel_is_built_anew(tmp_path):
    code = "from sds3d.renderers import kernels; b = kernels.backend(); print(b.name, '|', b.why)"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}

    def run() -> subprocess.CompletedProcess:
        words = [sys.executable, "-c", code]
        return subprocess.run(words, env=environment, capture_output=True, text=True, check=True)

    assert "compiled for this CPU in" in run().stdout
    cached = list(tmp_path.rglob("kernels-*.so"))
    assert len(cached) == 1
    assert "compiled for this CPU, " in run().stdout
    cached[0].write_bytes(cached[0].read_bytes()[:1000])
    assert "compiled for this CPU in" in run().stdout


def test_import_compiles_nothing():
    code = "import sds3d.renderers.splats, sds3d.renderers.kernels.loader as l; print(l._find.cache_info().currsize)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


def test_backgrounds():
    step = Step(3, "shape", 5)
    named = Named()(step, 8, 4)
    assert named.rgb.shape == (8, 3)
    assert len(named.name) == 2
    for group, name in enumerate(named.name):
        assert torch.equal(named.rgb[4 * group : 4 * group + 4], torch.tensor([COLOURS[name]]).repeat(4, 1))
    second = Named()(dataclasses.replace(step, row=4), 4, 4)
    assert second.name == named.name[1:]
    assert {Named()(Step(i), 4, 4).name[0] for i in range(200)} == set(COLOURS)
    random = Random()(step, 8, 4)
    assert random.name is None
    assert torch.equal(random.rgb[0], random.rgb[3])
    assert not torch.equal(random.rgb[0], random.rgb[4])
    assert Plain((0.1, 0.2, 0.3), "navy")(step, 4, 4).name == ("navy",)
    with pytest.raises(ValueError, match='"pink"'):
        Named(("pink",))
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        Plain((2.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="multiple"):
        Named()(step, 6, 4)
