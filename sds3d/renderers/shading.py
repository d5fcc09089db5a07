"""Light on surfaces: the colour that a camera sees of points of a material.

`Lambert` multiplies sRGB colours as they are: a cue of shape. `Pbr` shades in linear light as viewers of glTF do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from ..colour import linear_to_srgb, srgb_to_linear
from ..core import Step
from ..representations.mesh import Material


@dataclass(frozen=True)
class Lit:
    """n points in a light: what they look like, with normals on the camera's side; eye, the unit direction in the world
    from each to its camera; view, the camera's number."""

    material: Material
    eye: Float[Tensor, "n 3"]
    view: Int[Tensor, "n"]


DIELECTRIC = 0.04  # what glass and plastic reflect straight back
SHARPEST = 0.045  # a smoother surface shows a light without size as a point that no pixel meets
GRAZING = 1e-4  # the least cosine between a normal and the eye


@runtime_checkable
class Light(Protocol):
    """Shades points of `views` views: colours [n, 3] in [0, 1]. step None: the fixed light."""

    def __call__(self, points: Lit, views: int, step: Step | None) -> Tensor: ...


@dataclass(frozen=True)
class Lambert:
    """A light from far away on chalk: albedo (ambient + diffuse max(0, n . l)), l the world direction towards it."""

    direction: tuple[float, float, float] = (0.55, -0.35, 0.76)
    ambient: float = 0.6
    diffuse: float = 0.4

    def __post_init__(self) -> None:
        _check_direction(self.direction)
        if self.ambient < 0 or self.diffuse < 0 or self.ambient + self.diffuse > 1:
            raise ValueError(
                "ambient and diffuse must be 0 or more and add up to 1 at most, so that colours stay in [0, 1], "
                f"given {self.ambient} and {self.diffuse}."
            )

    def __call__(self, points: Lit, views: int, step: Step | None) -> Tensor:
        normal = points.material.normal
        towards = normalize(normal.new_tensor(self.direction), dim=0)
        return points.material.albedo * (self.ambient + self.diffuse * _dot(normal, towards).clamp(min=0))


@dataclass(frozen=True)
class Pbr:
    """A light from far away and an even one from everywhere, on glTF's metal-roughness material.

    With a step each view has a light of its own, drawn around `direction` in the cone of sine `spread`. ambient:
    radiance from everywhere. sun: what white chalk that faces the light sends back of it. The light is linear, and
    shown as sRGB, clamped to [0, 1].

    | symbol      | variable | equation                                                                          |
    |-------------|----------|-----------------------------------------------------------------------------------|
    | f_0         | base     | 0.04 (1 - metallic) + albedo metallic                                             |
    | D           | spots    | a^2 / (pi ((n . h)^2 (a^2 - 1) + 1)^2), a = roughness^2 (GGX, Walter et al. 2007) |
    | V           | shadowed | Smith's, of light and eye together (Heitz 2014), over 4 (n . l) (n . e)           |
    | F           | fresnel  | f_0 + (1 - f_0) (1 - h . e)^5 (Schlick 1994)                                      |
    | E           | shine    | share of an even light that the specular part reflects, fitted by Karis (2014)    |
    | k           | chalk    | (1 - E) (1 - metallic) albedo, so that no surface sends out more than it gets     |
    | L           |          | sun (n . l) (k + pi D V F) + ambient (k + E)                                      |
    """

    direction: tuple[float, float, float] = (0.55, -0.35, 0.76)
    sun: float = 0.7
    ambient: float = 0.5
    spread: float = 0.8

    def __post_init__(self) -> None:
        _check_direction(self.direction)
        if self.sun < 0 or self.ambient < 0:
            raise ValueError(f"sun and ambient must be 0 or more, given {self.sun} and {self.ambient}.")
        if not 0 <= self.spread < 1:
            raise ValueError(f"spread is the sine of an angle, in [0, 1), given {self.spread}.")

    def __call__(self, points: Lit, views: int, step: Step | None) -> Tensor:
        normal, eye = points.material.normal, points.eye
        towards = normalize(normal.new_tensor(self.direction), dim=0).expand(views, 3)
        if step is not None:
            away = normalize(step.child("light").normal("direction", towards), dim=-1)
            towards = normalize(towards + self.spread * away, dim=-1)
        light = towards[points.view]
        cosine = _dot(normal, light).clamp(min=0)
        direct, even = reflected(points.material, light, eye)
        return linear_to_srgb((self.sun * cosine * direct + self.ambient * even).clamp(0, 1))


def reflected(
    material: Material, light: Float[Tensor, "n 3"], eye: Float[Tensor, "n 3"]
) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
    """pi times the reflectance of linear light from `light` to `eye`, and the share of an even light sent to `eye`.

    The table of `Pbr` says how. Directions are unit vectors away from the surface.
    """
    albedo, normal, metallic = srgb_to_linear(material.albedo), material.normal, material.metallic
    roughness = material.roughness.clamp(min=SHARPEST)
    half = normalize(light + eye, dim=-1)
    nl, ne = _dot(normal, light).clamp(min=GRAZING), _dot(normal, eye).clamp(min=GRAZING)
    nh, he = _dot(normal, half).clamp(0, 1), _dot(half, eye).clamp(0, 1)
    base = DIELECTRIC + (albedo - DIELECTRIC) * metallic
    a = roughness.square().square()
    spots = a / (math.pi * (nh.square() * (a - 1) + 1).square())
    shadowed = 0.5 / (nl * (ne.square() * (1 - a) + a).sqrt() + ne * (nl.square() * (1 - a) + a).sqrt())
    fresnel = base + (1 - base) * (1 - he) ** 5
    shine = _shine(base, roughness, ne)
    chalk = (1 - shine) * (1 - metallic) * albedo
    return chalk + math.pi * spots * shadowed * fresnel, chalk + shine


def _shine(base: Tensor, roughness: Tensor, cosine: Tensor) -> Tensor:
    """Karis's fit of GGX's directional albedo ("Physically based shading on mobile", 2014), at most 1."""
    x, y = 1 - roughness, 0.0425 - 0.0275 * roughness
    z, w = 1.04 - 0.572 * roughness, 0.022 * roughness - 0.04
    grazing = torch.minimum(x.square(), torch.exp2(-9.28 * cosine)) * x + y
    return (base * (z - 1.04 * grazing) + (w + 1.04 * grazing)).clamp(0, 1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=-1, keepdim=True)


def _check_direction(direction: tuple[float, float, float]) -> None:
    if not any(direction):
        raise ValueError("direction must not be (0, 0, 0): it points towards the light.")
