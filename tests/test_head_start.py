"""Stages that begin with a head: what its density is, that it looks like the template, and that runs go on from it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from small_run import priors, recipe
from torch import Tensor
from torch.nn.functional import softplus

from sds3d.cameras import Orbit, orbit
from sds3d.controls import Landmarks
from sds3d.core import Background, Renderer, RenderOutput, Representation, Step
from sds3d.engine import Saved, run, tensors
from sds3d.generate import Request, plan
from sds3d.heads import FULL_RAW, Head, raw
from sds3d.playroom.measures import iou
from sds3d.prompts import Prompts
from sds3d.renderers.raster import Raster
from sds3d.renderers.splats import Splats
from sds3d.renderers.volume import Volume
from sds3d.representations.adam import adam_
from sds3d.representations.field import DENSITY_SCALE, EMPTY_RAW, Field, FieldOptimise, resampled
from sds3d.representations.gaussians import Gaussians
from sds3d.representations.head import Identity, head
from sds3d.representations.head_points import nearest
from sds3d.representations.head_profile import LANDMARKS
from sds3d.representations.isosurface import Isosurface
from sds3d.representations.mesh import Mesh
from sds3d.representations.texture import TexturedMesh

CAMERAS = orbit([0.0, 45.0, 90.0, 135.0, 180.0, 270.0], [0.0, 15.0, 30.0, 0.0, 15.0, -10.0], 64)
BLACK = Background(torch.zeros(6, 3))
MADE = {
    "field": (Field, Volume()),
    "gaussians": (Gaussians, Splats()),
    "isosurface": (Isosurface, Raster()),
    "mesh": (Mesh, Raster()),
    "texture": (TexturedMesh, Raster()),
}


def alpha(renderer: Renderer, rep: Representation) -> Tensor:
    return renderer(rep, CAMERAS, BLACK).alpha.detach()


def overlap(a: Tensor, b: Tensor) -> float:
    return float(iou(a, b).mean())


@pytest.fixture(scope="module")
def outline() -> Tensor:
    """What the template covers."""
    return alpha(Raster(), head().mesh())


@pytest.fixture(scope="module")
def surface() -> Isosurface:
    made = Head(into="isosurface", resolution=40)(None, Step(0))
    assert isinstance(made, Isosurface)
    return made


def field(surface: Isosurface, beta: float) -> Field:
    x = raw(surface.sdf.detach(), beta)[..., None]
    return Field(torch.cat([x, x.new_zeros(*x.shape[:3], 3)], dim=-1))


def test_the_prior_alone_draws_the_template(outline: Tensor, surface: Isosurface) -> None:
    assert overlap(alpha(Volume(), field(surface, Head().beta)), outline) > 0.95
    assert overlap(alpha(Raster(), surface), outline) > 0.95
    sdf = surface.sdf.detach()
    mirrored = sdf.flip(1)  # y is the subject's left
    torch.testing.assert_close(mirrored, sdf, rtol=0, atol=0.1 * 2 / 39)  # a tenth of a step of the grid


def test_the_density_is_the_papers() -> None:
    """Against the equation in float64, where the field can hold it: from empty space to `FULL_RAW`."""
    sdf = torch.linspace(-1, 1, 2001).view(1, 1, -1)
    for beta in (1e-4, 1e-3, 5e-3, 0.1):
        x = raw(sdf, beta).double()
        wanted = (-sdf.double() / beta).sigmoid() / beta
        assert x.min() >= EMPTY_RAW and x.max() <= FULL_RAW
        held = (x > EMPTY_RAW) & (x < FULL_RAW)
        torch.testing.assert_close(DENSITY_SCALE * softplus(x)[held], wanted[held], rtol=1e-4, atol=0)
        assert (wanted[x == EMPTY_RAW] <= 1.0001 * DENSITY_SCALE * softplus(torch.tensor(EMPTY_RAW))).all()
        assert (wanted[x == FULL_RAW] >= DENSITY_SCALE * FULL_RAW).all()
    far = raw(torch.tensor([[[1.0]]]), 5e-3)
    assert float(far) == EMPTY_RAW  # as dense as what is empty, whatever is learnt there


def test_a_wider_prior_is_thicker(outline: Tensor, surface: Isosurface) -> None:
    """And softer: it covers more, and lets more through where it does."""
    drawn = [alpha(Volume(), field(surface, beta)) for beta in (5e-3, 1e-2, 2e-2)]
    for thin, thick in itertools.pairwise(drawn):
        assert (thick > 0.5).sum() > (thin > 0.5).sum()
    assert overlap(drawn[0], outline) > overlap(drawn[-1], outline)


def test_a_prior_that_stays_is_a_start(surface: Isosurface) -> None:
    """h + g, g kept and h from 0 on, goes where a field goes that begins at g, also through a finer grid."""
    sparse = surface.sdf.detach()[::3, ::3, ::3]
    prior = torch.cat([raw(sparse, 0.02)[..., None], torch.zeros(*sparse.shape, 3)], dim=-1)
    rep, learnt = Field(prior), torch.zeros_like(prior)
    optimise = FieldOptimise(density=0.3, colours=0.1, resolution=20, refine_at=0.5, occupancy_steps=1)
    rep.prepare(optimise, Step(0))
    first, second = torch.zeros_like(prior), torch.zeros_like(prior)
    cameras, background = orbit([20.0, 200.0], 10.0, 10), Background(torch.ones(2, 3))

    def loss(out: RenderOutput) -> Tensor:
        return (out.rgb - 0.3).square().sum() + out.alpha.sum()

    for index in range(6):
        step = Step(0, "field", index, index / 5)
        out = Volume(32)(rep, cameras, background, step)
        loss(out).backward()
        rep.update(out, step)
        both = Field(prior + learnt)
        loss(Volume(32)(both, cameras, background, step)).backward()
        learnt = learnt.requires_grad_()
        learnt.grad = both.grid.grad
        with torch.no_grad():
            adam_(learnt, first, second, index + 1, learnt.new_tensor([0.3, 0.1, 0.1, 0.1]))
        learnt = learnt.detach()
        if len(learnt) < rep.resolution:
            share = ((len(learnt) - 1) / 19) ** 3
            prior, learnt = resampled(prior, 20), resampled(learnt, 20)
            first, second = share * resampled(first, 20), share**2 * resampled(second, 20)
        torch.testing.assert_close(prior + learnt, rep.grid.detach(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("into", MADE)
def test_it_begins_what_the_stage_optimises(into: str, outline: Tensor, surface: Isosurface) -> None:
    start = Head(into=into, resolution=40, count=3000, texels=16)  # type: ignore[arg-type]
    rep, (kind, renderer) = surface if into == "isosurface" else start(None, Step(0)), MADE[into]
    assert type(rep) is kind
    if isinstance(rep, Field):
        assert torch.equal(rep.grid, field(surface, start.beta).grid)
    assert overlap(alpha(renderer, rep), outline) > (0.999 if kind in (Mesh, TexturedMesh) else 0.8)
    blank = start.blank(None)
    assert type(blank) is kind
    blank.load(rep.state())
    for name, tensor in rep.state().items():
        assert torch.equal(blank.state()[name], tensor)


def test_landmarks_lie_on_the_head_of_their_identity() -> None:
    identity = Identity(width=0.8, nose=-0.7, jaw=0.5)
    mesh = Head(into="mesh", identity=identity)(None, Step(0))
    assert isinstance(mesh, Mesh)
    away = []
    for chosen in (identity, Identity()):
        places = Landmarks(identity=chosen).face[2]
        face, shares = nearest(places, mesh.vertices.detach(), mesh.faces)
        found = (mesh.vertices.detach()[mesh.faces[face]] * shares[..., None]).sum(dim=1)
        away.append(float((found - places).norm(dim=1).max()))
    assert away[0] < 1e-4 < 1e-2 < away[1]


def test_a_template_of_ones_own_is_solid_though_it_is_open(tmp_path: Path) -> None:
    it = head()
    cap = it.vertices[it.faces].amax(dim=1)[:, 2] < it.vertices[:, 2].min() + 0.02
    listed = {"faces": (it.landmarks.face - cap.long().cumsum(0)[it.landmarks.face]).tolist()}
    mesh, points = written(
        tmp_path, it.vertices, it.faces[~cap], listed | {"weights": it.landmarks.weights.double().tolist()}
    )
    surface = Head(template=mesh, landmarks=points, into="isosurface", resolution=20)(None, Step(0))
    assert isinstance(surface, Isosurface) and cap.sum() > 100
    assert overlap(alpha(Raster(), surface), alpha(Raster(), head().mesh())) > 0.8
    assert surface.sdf[10, 10, 5:14].lt(0).all()


def test_a_template_without_texture_places_is_unwrapped(tmp_path: Path) -> None:
    """Strips of triangles between the landmarks alone, as a file of another size and frame."""
    corners = torch.arange(66)[:, None] + torch.arange(3)
    mesh, points = written(tmp_path, LANDMARKS, corners, list(range(68)))
    rep = Head(template=mesh, landmarks=points, into="texture", texels=64)(None, Step(0))
    assert type(rep) is TexturedMesh and rep.size == 64
    torch.testing.assert_close(rep.vertices.detach(), LANDMARKS.float(), rtol=0, atol=1e-4)


def written(folder: Path, vertices: Tensor, faces: Tensor, landmarks: object) -> tuple[str, str]:
    """The files of a template, fifty times as large and with y up."""
    lines = [f"v {50 * y} {50 * z} {50 * x}" for x, y, z in vertices.tolist()]
    lines += [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces.tolist()]
    (folder / "head.obj").write_text("\n".join(lines))
    (folder / "points.json").write_text(json.dumps(landmarks))
    return str(folder / "head.obj"), str(folder / "points.json")


def test_a_run_goes_on_after_a_step_with_the_same_bits() -> None:
    made = recipe(
        2,
        start=Head(resolution=16, beta=0.02),
        optimise=FieldOptimise(resolution=16),
        renderer=Volume(24),
        cameras=Orbit(views=2, size=16, group=1),
    )
    kept: list[Saved] = []

    def keep(step, rep, terms, out, numbers) -> None:
        kept.append(Saved(step.stage, step.index + 1, {k: t.clone() for k, t in tensors(rep, terms).items()}))

    rep = run(made, Prompts("red"), priors(), watchers=(keep,)).rep
    resumed = run(made, Prompts("red"), priors(), saved=kept[0]).rep
    assert isinstance(rep, Field) and isinstance(resumed, Field)
    assert torch.equal(rep.grid, resumed.grid)


def test_what_cannot_begin_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "head.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (tmp_path / "points.json").write_text("[0, 1, 2]")

    def asked(prompt: str, *told: str) -> None:
        overrides = [f"stages.field.start.{assignment}" for assignment in told]
        plan(Request(prompt, recipe="headsculpt", out=tmp_path / "run", overrides=overrides))

    asked("a head with black hair")
    for told, message in (
        ([f"template={tmp_path}/gone.obj", f"landmarks={tmp_path}/points.json"], r"There is no file .*gone\.obj"),
        ([f"template={tmp_path}/head.obj", f"landmarks={tmp_path}/points.json"], "points.json .*68"),
        ([f"template={tmp_path}/head.obj"], "go together"),
        (["identity={nose: 3}"], "nose of a head must lie in"),
        (["into=hair"], '"hair".*field'),
        (["beta=0"], "beta must lie in"),
        (["resolution=4"], "resolution must lie in"),
        (["texels=4"], "texels 16"),
    ):
        with pytest.raises(ValueError, match=message):
            asked("a head with black hair", *told)
    with pytest.raises(ValueError, match="identity is of the built-in head"):
        Head(template="head.obj", landmarks="points.json", identity=Identity(nose=0.5))
    with pytest.raises(ValueError, match='makes heads, and "a red cube" is none'):
        asked("a red cube")
    assert not (tmp_path / "run").exists()
