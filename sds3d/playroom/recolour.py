"""A scene's pictures in every colour that its caption can name, from one rendering.

Light and colour multiply, so a picture is linear in the colours of its parts: what keeps its colour (lips, tyres,
frames), and for each slot that a caption colours a weight, in which shading and antialiasing already are:

    picture = clamp(fixed + sum over slots of weight_k colour_k) over the background

It is `render`'s picture but where light would burn a colour out (white and light skin in full light, by up to .03).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Cameras
from .grammar import Head, Pair, Spec, Thing
from .head import EYE_RGB, HAIR_RGB, SKIN_RGB
from .render import cast, shade
from .scenes import COLOUR_RGB, build

SLOTS = 3  # the most that a caption colours: a head's skin, hair and eyes
BRIGHTEST = 1.1  # above every weight: a surface that faces the light has 1.06


@dataclass(frozen=True)
class Basis:
    """fixed [B, H, W, 3], weights [B, H, W, SLOTS] (0 for slots that a scene does not have), alpha [B, H, W, 1]."""

    fixed: Tensor
    weights: Tensor
    alpha: Tensor


def slots(spec: Spec) -> list[tuple[Spec, Spec, tuple[float, ...], tuple[float, ...]]]:
    """For each slot the scene in two colours of it, and these, which no light burns out."""
    if isinstance(spec, Head):
        named = {"skin": (SKIN_RGB, "dark", "brown"), "hair": (HAIR_RGB, "black", "brown")}
        named["eyes"] = (EYE_RGB, "green", "blue")
        return [
            (replace(spec, **{slot: a}), replace(spec, **{slot: b}), table[a], table[b])
            for slot, (table, a, b) in named.items()
        ]
    a, b = "red", "blue"
    both = COLOUR_RGB[a], COLOUR_RGB[b]
    if isinstance(spec, Pair):
        sides = {"first": spec.first, "second": spec.second}
        return [
            (
                replace(spec, **{side: replace(thing, colour=a)}),
                replace(spec, **{side: replace(thing, colour=b)}),
                *both,
            )
            for side, thing in sides.items()
        ]
    names = ("colour",) if isinstance(spec, Thing) else ("colour", "part")
    return [(replace(spec, **{name: a}), replace(spec, **{name: b}), *both) for name in names]


def colours(spec: Spec) -> Float[Tensor, "SLOTS 3"]:
    """The colours of a determined scene's slots; black for those that it does not have."""
    if isinstance(spec, Head):
        told = [SKIN_RGB[spec.skin], HAIR_RGB[spec.hair], EYE_RGB[spec.eyes]]
    elif isinstance(spec, Pair):
        told = [COLOUR_RGB[spec.first.colour], COLOUR_RGB[spec.second.colour]]
    elif isinstance(spec, Thing):
        told = [COLOUR_RGB[spec.colour]]
    else:
        told = [COLOUR_RGB[spec.colour], COLOUR_RGB[spec.part]]
    return torch.tensor([*told, *[(0.0, 0.0, 0.0)] * (SLOTS - len(told))])


def basis(spec: Spec, cameras: Cameras, samples: int = 2) -> Basis:
    """What the pictures of a determined scene are made of, whatever its colours; rays as in `render`."""
    _, points, normals, image = cast(build(spec), cameras, samples)
    light = shade(torch.full_like(points, 0.5), normals)[:, :1] / 0.5  # grey, so that nothing is clamped
    fixed, weights = build(spec).albedo(points), points.new_zeros(len(points), SLOTS)
    for k, (in_a, in_b, a, b) in enumerate(slots(spec)):
        away = points.new_tensor(a) - points.new_tensor(b)
        weights[:, k] = (build(in_a).albedo(points) - build(in_b).albedo(points)) @ away / away.square().sum()
    fixed = fixed - weights @ colours(spec).to(points)
    return Basis(image(fixed * light), image(weights * light), image(torch.ones_like(points[:, :1])))


def picture(found: Basis, slot_colours: Float[Tensor, "SLOTS 3"]) -> Float[Tensor, "B H W 3"]:
    """Colour times alpha in these colours."""
    return (found.fixed + found.weights @ slot_colours.to(found.weights)).clamp(0, 1)
