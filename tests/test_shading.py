"""Light on surfaces: no surface sends out more than it gets, limits of the material, and lights that are drawn."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from sds3d.colour import linear_to_srgb, srgb_to_linear
from sds3d.core import Step
from sds3d.renderers.shading import Lambert, Lit, Pbr, reflected
from sds3d.representations.mesh import Material

UP = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)


def material(albedo: float, roughness: float, metallic: float, n: int) -> Material:
    """A flat surface that faces +z; albedo in linear light."""
    ones = torch.ones(n, 1, dtype=torch.float64)
    colour = linear_to_srgb(torch.full((n, 3), albedo, dtype=torch.float64))
    return Material(colour, UP.expand(n, 3), roughness * ones, metallic * ones)


def at(angle: float, n: int = 1) -> Tensor:
    """Unit directions at an angle from the surface's normal."""
    return torch.tensor([math.sin(angle), 0.0, math.cos(angle)], dtype=torch.float64).expand(n, 3)


def even_light(albedo: float, roughness: float, metallic: float, angle: float, rings: int = 600) -> tuple[float, float]:
    """What a white sky sends to an eye, integrated over it and as the closed form says."""
    # Even steps of the cosine squared give every ray the same irradiance.
    cosine = ((torch.arange(rings, dtype=torch.float64) + 0.5) / rings).sqrt()[:, None]
    turn = (torch.arange(120, dtype=torch.float64) + 0.5) / 120 * math.pi  # half a turn: the other half is its mirror
    sine = (1 - cosine**2).sqrt()
    light = torch.stack([sine * turn.cos(), sine * turn.sin(), cosine.expand(-1, 120)], dim=-1).view(-1, 3)
    direct, even = reflected(material(albedo, roughness, metallic, len(light)), light, at(angle, len(light)))
    return float(direct.mean()), float(even.mean())


@pytest.mark.parametrize("metallic", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("roughness", [0.2, 0.5, 1.0])
def test_a_white_surface_in_a_white_sky_is_not_brighter_than_the_sky(roughness, metallic):
    for angle in (0.0, 0.5, 1.0, 1.3, 1.5):
        direct, even = even_light(1.0, roughness, metallic, angle)
        assert direct <= 1.05  # the fit of the specular share errs by so much at grazing angles
        assert even <= 1 + 1e-9
        assert direct > 0.3  # what rough metal loses between its own bumps, as in every viewer of glTF


def test_the_closed_form_of_an_even_light_is_its_integral():
    for roughness in (0.3, 0.6, 1.0):
        for angle in (0.0, 0.6, 1.1):
            for albedo, metallic in ((0.8, 0.0), (0.6, 1.0)):
                direct, even = even_light(albedo, roughness, metallic, angle)
                assert abs(direct - even) < 0.1


def test_a_metal_has_no_colour_of_its_own_but_its_reflection():
    light, eye = at(0.5), at(-0.5)
    black, _ = reflected(material(0.0, 0.4, 1.0, 1), light, eye)
    assert black.max() < 0.01 * reflected(material(1.0, 0.4, 1.0, 1), light, eye)[0].min()
    off, _ = reflected(material(0.9, 0.1, 1.0, 1), at(1.2), at(0.3))
    assert off.max() < 1e-2  # a smooth metal is dark where no light is mirrored
    grey, _ = reflected(material(0.9, 0.1, 0.0, 1), at(1.2), at(0.3))
    assert abs(float(grey.mean()) - 0.9) < 0.1  # and plastic is not


def test_roughness_spreads_the_highlight():
    """It peaks where the light is mirrored; rougher is lower there and higher away from it."""
    angles = torch.linspace(-1.2, 1.2, 241)
    eyes = torch.cat([at(float(angle)) for angle in angles])
    light = at(-0.4, len(eyes))
    seen = [reflected(material(0.7, r, 1.0, len(eyes)), light, eyes)[0][:, 0] for r in (0.1, 0.3, 0.6)]
    for curve in seen[:2]:
        assert abs(float(angles[curve.argmax()]) - 0.4) < 0.05
    peaks = [float(curve.max()) for curve in seen]
    assert peaks[0] > 5 * peaks[1] > 25 * peaks[2] / 5
    assert seen[0][120] < seen[1][120] < seen[2][120]


def test_reflection_of_a_metal_is_reciprocal():
    generator = torch.Generator().manual_seed(0)
    a, b = (normalize(torch.rand(50, 3, generator=generator, dtype=torch.float64) + 0.05, dim=-1) for _ in range(2))
    there, back = (reflected(material(0.6, 0.35, 1.0, 50), x, y)[0] for x, y in ((a, b), (b, a)))
    torch.testing.assert_close(there, back)


def test_chalk_that_faces_the_light_sends_back_the_sun():
    surface = material(0.5, 1.0, 0.0, 1)
    light = Pbr(direction=(0, 0, 1), sun=0.8, ambient=0.0)
    seen = srgb_to_linear(light(Lit(surface, at(0.9), torch.zeros(1, dtype=torch.long)), 1, None))
    assert abs(float(seen.mean()) / 0.4 - 1) < 0.1  # 0.8 x 0.5, less and plus a little of its sheen
    lambert = Lambert((0, 0, 1), 0.2, 0.8)(Lit(surface, at(0.9), torch.zeros(1, dtype=torch.long)), 1, None)
    torch.testing.assert_close(lambert, surface.albedo)


def test_the_light_is_fixed_without_a_step_and_drawn_with_one():
    n, views = 40, 8
    spread = Pbr(spread=0.6)
    normal = normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(1)), dim=-1)
    base = material(0.5, 0.6, 0.0, n)
    flat = Material(*(getattr(base, f.name).float() for f in dataclasses.fields(base)))
    points = Lit(dataclasses.replace(flat, normal=normal), normal, torch.arange(n) % views)
    fixed = spread(points, views, None)
    assert torch.equal(fixed, spread(points, views, None))
    drawn = spread(points, views, Step(0, "s", 3))
    assert torch.equal(drawn, spread(points, views, Step(0, "s", 3)))
    assert not torch.equal(drawn, spread(points, views, Step(0, "s", 4))) and not torch.equal(drawn, fixed)
    for view in range(views):  # a view draws the same light alone
        own = points.view == view
        parts = {f.name: getattr(points.material, f.name)[own] for f in dataclasses.fields(Material)}
        single = Lit(Material(**parts), points.eye[own], torch.zeros(int(own.sum()), dtype=torch.long))
        torch.testing.assert_close(spread(single, 1, Step(0, "s", 3, row=view)), drawn[own])
    still = dataclasses.replace(spread, spread=0.0)
    torch.testing.assert_close(still(points, views, Step(0, "s", 3)), fixed)


def test_gradients_are_finite_where_the_light_grazes_and_behind():
    directions = normalize(torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 0, -1], [1, 0, 1e-6], [-1, 0, -1e-6]]), dim=-1)
    n = len(directions)
    parts = [torch.zeros(n, 3), directions.clone(), torch.zeros(n, 1), torch.ones(n, 1)]
    parts = [part.requires_grad_() for part in parts]
    eye = directions.roll(1, 0)
    seen = Pbr()(Lit(Material(*parts), eye, torch.zeros(n, dtype=torch.long)), 1, None)
    seen.sum().backward()
    assert seen.isfinite().all() and seen.min() >= 0 and seen.max() <= 1
    assert all(part.grad.isfinite().all() for part in parts)


def test_srgb_undoes_linear():
    colour = torch.linspace(0, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(colour)), colour, atol=1e-7, rtol=0)
    assert abs(float(srgb_to_linear(torch.tensor(0.5))) - 0.21404) < 1e-5


def test_lights_that_cannot_be_are_refused():
    for make, words in (
        (lambda: Pbr(direction=(0, 0, 0)), "towards the light"),
        (lambda: Pbr(sun=-1), "sun and ambient"),
        (lambda: Pbr(spread=1.0), "spread"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
