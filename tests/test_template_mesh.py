"""A head template that is displaced and painted: its two sides, what a step has seen, its state, and its file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from judges import validate

from sds3d.cameras import orbit
from sds3d.core import Background, RenderOutput, Step
from sds3d.export import export
from sds3d.export.glb_morph import decode
from sds3d.export.placement import Placement
from sds3d.export.textures import cut
from sds3d.generate import Request, plan
from sds3d.losses import LOSSES
from sds3d.renderers.raster import Raster
from sds3d.renderers.shading import Lambert
from sds3d.representations.clips import EXPRESSIONS
from sds3d.representations.expressions import ARKIT
from sds3d.representations.head import Identity
from sds3d.representations.head_mesh import BALL_CM, DISCS, SKIN_V
from sds3d.representations.head_profile import UNIT_CM
from sds3d.representations.mesh import icosphere
from sds3d.representations.template_mesh import (
    LAYOUT,
    SLOW,
    ChosenHead,
    TemplateMesh,
    by_region,
    pliancy,
    pooled,
    twins,
    unfolded,
)
from sds3d.representations.texture import TextureOptimise, texels

ODD = Identity(width=0.3, nose=-0.7, jaw=0.1)
SIZE = 32
STILL = TextureOptimise(offsets=1e-2, albedo=0.1, roughness=0.0, metallic=0.0, normal=0.1)


def look(head: TemplateMesh) -> RenderOutput:
    """From the subject's left, so that the right side is not seen."""
    return Raster()(head, orbit([60, 120], 15.0, 16), Background(torch.ones(2, 3)))


def test_twins_show_mirror_images() -> None:
    size = 64
    head, other = TemplateMesh(Identity(), 1), twins(64)
    at, face, shares = texels(head.uv, head.uv_faces, size)
    row, column = at // size, at % size
    skin = row < (1 - SKIN_V) * size - 1
    assert torch.equal(other[at[skin]], row[skin] * size + size - 1 - column[skin])
    # A texel shows the mirror image of what its twin shows: on the skin exactly, in an eye within a texel.
    shown = torch.full((size * size, 3), torch.nan)
    shown[at] = (shares[..., None] * head.base[head.faces[face]]).sum(dim=1)
    away = (shown[other[at]] * torch.tensor([1.0, -1.0, 1.0]) - shown[at]).norm(dim=1)
    assert away[skin].max() < 1e-5
    x, y, radius = DISCS["left eye"]
    eye = torch.hypot((column + 0.5) / size - x, 1 - (row + 0.5) / size - y) < radius
    drawn = eye & shown[other[at]].isfinite().all(dim=1)  # A twin at the rim of the disc may have no triangle.
    assert eye.sum() > 100 and drawn.sum() > 0.9 * eye.sum()
    assert away[drawn].max() < math.pi * BALL_CM / (radius * size) / UNIT_CM


def test_asymmetry_is_that_of_the_hand_and_makes_sides_alike() -> None:
    head = TemplateMesh(ODD, SIZE)
    with torch.no_grad():
        head.albedo_logits.zero_()
    assert LOSSES["symmetry"](head, look(head), Step(0)) < 1e-12
    texel = (SIZE // 4, SIZE // 3)
    with torch.no_grad():
        head.albedo_logits[texel] = torch.tensor([2.0, 0.0, 0.0])
    change = torch.sigmoid(torch.tensor(2.0)) - 0.5
    loss = LOSSES["symmetry"](head, look(head), Step(0))
    assert float(loss.detach()) == pytest.approx(float(2 * change**2 / (3 * SIZE**2)), rel=1e-5)  # it and its twin
    loss.backward()
    grad = head.albedo_logits.grad
    assert grad is not None
    assert grad[texel][0] > 0 > grad[texel[0], SIZE - 1 - texel[1]][0]


def test_texture_tv_and_displacement_are_those_of_the_hand() -> None:
    head = TemplateMesh(Identity(), SIZE)
    out = look(head)
    with torch.no_grad():
        head.albedo_logits.copy_(torch.arange(SIZE).remainder(2)[:, None, None].expand(SIZE, SIZE, 3))
        head.offsets[:] = torch.tensor([0.3, 0.0, 0.4])
    step = torch.sigmoid(torch.tensor(1.0)) - 0.5
    assert float(LOSSES["texture_tv"](head, out, Step(0)).detach()) == pytest.approx(float(step))
    assert float(LOSSES["displacement"](head, out, Step(0)).detach()) == pytest.approx(0.25)
    for name in ("texture_tv", "symmetry"):
        with pytest.raises(ValueError, match=name):
            LOSSES[name](icosphere(0), out, Step(0))


def test_what_is_drawn_to_be_learnt_from_is_seen_and_the_rest_is_filled_from_its_twin() -> None:
    head = TemplateMesh(Identity(), SIZE)
    with torch.no_grad():
        look(head)
    assert not head.seen.any(), "a picture that nothing learns from"
    head.prepare(STILL, Step(0))
    out = look(head)
    out.rgb.sum().backward()
    seen = head.seen.flatten() > 0
    grad = head.albedo_logits.grad
    assert grad is not None
    assert torch.equal(seen | ~(grad.view(-1, 3).abs().amax(dim=1) > 0), torch.ones_like(seen))
    with torch.no_grad():
        head.albedo_logits.copy_(torch.rand(SIZE, SIZE, 3))
        head.slopes.copy_(torch.rand(SIZE, SIZE, 2))
    head.albedo_logits.grad = head.slopes.grad = head.offsets.grad = None
    before, other = head.albedo_logits.detach().clone().view(-1, 3), twins(SIZE)
    head.update(out, Step(0, progress=0.5))
    assert torch.equal(head.albedo_logits.view(-1, 3), before), "only a stage's last step fills"
    head.update(out, Step(0, progress=1.0))
    lost = ~seen & seen[other]
    assert lost.any()
    after, slopes = head.albedo_logits.view(-1, 3), head.slopes.view(-1, 2)
    assert torch.equal(after[lost], before[other[lost]])
    assert torch.equal(after[~lost], before[~lost])
    assert torch.equal(slopes[lost], slopes[other[lost]] * torch.tensor([-1.0, 1.0]))


def test_eyes_and_features_stay_where_they_are() -> None:
    head = TemplateMesh(Identity(), 1)
    head.prepare(STILL, Step(0))
    out = look(head)
    head.offsets.grad = torch.ones_like(head.offsets)
    head.update(out, Step(0))
    moved = head.offsets.detach().norm(dim=1)
    regions = head.template.regions
    assert moved[regions["left eye"]].max() == moved[regions["right eye"]].max() == 0
    assert moved[head.base[:, 2].argmax()] == pytest.approx(1e-2, rel=1e-3), "the crown, which nothing holds"
    middles = head.template.landmarks.at(head.offsets.detach(), head.faces)[[30, 51, 57]]  # the nose's tip, both lips
    assert middles.norm(dim=1).max() < 0.05 * moved.max()
    assert pliancy().min() == 0 and pliancy().max() <= 1


def test_a_saved_head_is_the_same_head_with_the_same_template() -> None:
    head = TemplateMesh(ODD, SIZE)
    head.prepare(STILL, Step(0))
    out = look(head)
    out.rgb.square().sum().backward()
    head.update(out, Step(0))
    again = ChosenHead().blank(None)
    assert isinstance(again, TemplateMesh)
    again.load(head.state())
    for name, tensor in again.state().items():
        assert torch.equal(tensor, head.state()[name]), name
    assert torch.equal(again.template.vertices, again.base)
    assert again.template.shapes.keys() == head.template.shapes.keys() == set(ARKIT)
    with pytest.raises(ValueError, match="nose"):
        again.load(head.state() | {"identity": torch.tensor([0.0] * 6 + [2.0] + [0.0] * 5)})
    with pytest.raises(ValueError, match="seen"):
        again.load(head.state() | {"seen": torch.zeros(3)})


def test_candidates_are_the_measured_head_and_others_that_a_seed_repeats() -> None:
    start = ChosenHead(count=2, texels=1)
    first, other = (head.identity for head in start.candidates(Step(3, "geometry")))
    assert not first.any()
    assert other.abs().min() > 0
    _, again = (head.identity for head in start.candidates(Step(3, "geometry")))
    assert torch.equal(other, again)
    with pytest.raises(ValueError, match="count"):
        ChosenHead(count=0)
    with pytest.raises(ValueError, match="texels"):
        ChosenHead(texels=0)


def test_origins_say_what_was_learnt_and_what_was_set() -> None:
    head = TemplateMesh(ODD, SIZE)
    told = head.origins()
    assert "nose -0.70" in told["identity"] and "MIT" in told["template"]
    assert "roughness: heuristic by region;" in told["maps"] and "normal: flat" in told["maps"]
    with torch.no_grad():
        head.roughness_logits += 0.1
        head.slopes += 0.1
    assert "roughness: heuristic by region, then distilled" in head.origins()["maps"]
    assert "normal: distilled" in head.origins()["maps"]
    rough = by_region(256)["roughness_logits"].sigmoid()
    assert {round(float(v), 2) for v in (rough.min(), rough.max())} == {0.15, 0.75}


def test_the_layouts_features_lie_at_the_landmarks() -> None:
    head = TemplateMesh(Identity(), 256)
    points = head.template.landmarks
    places = torch.cat([head.uv, torch.zeros(len(head.uv), 1)], dim=1)
    at = points.at(places, head.uv_faces)[:, :2]
    at[57] = (at[57] + at[66]) / 2  # from the lower lip's border to its middle
    rgb = head.sample(at)[:, :3].detach()
    shown = {"lips": 57, "skin": 8}
    for name, number in shown.items():
        torch.testing.assert_close(rgb[number], torch.tensor(LAYOUT[name]), rtol=0, atol=0.02, msg=name)


def test_a_feature_keeps_one_colour_which_changes_slowly() -> None:
    head = TemplateMesh(Identity(), 64)
    head.prepare(replace(STILL, albedo=0.1), Step(0))
    out, before = look(head), head.albedo_logits.detach().clone().view(-1, 3)
    grad = torch.linspace(0.5, 1, 64 * 64 * 3).view(64, 64, 3)
    head.albedo_logits.grad = grad.clone()
    head.update(out, Step(0))
    moved, region = head.albedo_logits.detach().view(-1, 3) - before, unfolded(64).region
    torch.testing.assert_close(moved[region == 0], torch.full_like(moved[region == 0], -0.1), rtol=1e-4, atol=0)
    torch.testing.assert_close(moved[region > 0], torch.full_like(moved[region > 0], -0.1 * SLOW), rtol=1e-4, atol=0)
    flat, own = pooled(grad.view(-1, 3), region), grad.view(-1, 3)
    assert torch.equal(flat[region == 0], own[region == 0])
    for number in range(1, len(LAYOUT)):
        there = region == number
        torch.testing.assert_close(flat[there], own[there].mean(dim=0).expand(int(there.sum()), 3))
    assert len(region.unique()) == len(LAYOUT)


def test_its_glb_has_the_faces_of_its_template_at_any_size(tmp_path: Path) -> None:
    head = TemplateMesh(ODD, SIZE)
    with torch.no_grad():
        head.offsets[:, 2] = 0.05 * head.base[:, 0]
    placement = Placement(size=0.25)
    made = export("glb", head, tmp_path, Raster(Lambert()), head.origins(), placement=placement)
    again, turn, rows = decode({"asset.glb": made.path.read_bytes()}), placement.of(head), cut(head).source
    assert tuple(again.shapes) == tuple(head.template.shapes) and len(again.shapes) == 51
    ((name, weights),) = [(clip.name, clip.weights) for clip in again.clips]
    assert name == "expressions" and weights.keys() == EXPRESSIONS.weights.keys()
    for shape, moved in head.template.shapes.items():
        ours = turn.points(head.vertices.detach().double() + moved.double())[rows]
        assert (again.vertices + again.shapes[shape] - ours).abs().max() < 1e-5, shape
    assert validate(made.path) == []


def test_heads_alone_are_made_of_heads() -> None:
    with pytest.raises(ValueError, match='makes heads, and "a red cube" is none'):
        plan(Request("a red cube", recipe="dreamface", out=Path("nowhere")))
    for prompt in ("a head", "a head with black hair and blue eyes"):
        assert plan(Request(prompt, recipe="dreamface", out=Path("nowhere"))).prompts.prompt == prompt
    plan(Request("a red cube", recipe="dreamface", prior="sd15", overrides=ONE_PRIOR, out=Path("nowhere")))


ONE_PRIOR = ("stages.texture.guidance={sds: {kind: sds}}",)
