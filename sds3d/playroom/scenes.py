"""From a determined caption to its exact scene: signed-distance parts in a canonical pose, front to +x."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from . import shapes
from .grammar import Pair, Spec, Thing, Toy, caption, is_determined
from .shapes import Solid, moved

RGB = tuple[float, float, float]
COLOUR_RGB: dict[str | None, RGB] = {  # a determined caption names every colour, so None is never asked
    "red": (0.85, 0.13, 0.11),
    "green": (0.20, 0.65, 0.24),
    "blue": (0.15, 0.30, 0.85),
    "yellow": (0.96, 0.84, 0.16),
    "orange": (0.96, 0.50, 0.10),
    "purple": (0.55, 0.20, 0.70),
    "white": (0.95, 0.95, 0.93),
    "black": (0.12, 0.12, 0.13),
}
DARK, GLASS, WOOD, LAMP = (0.10, 0.10, 0.11), (0.62, 0.82, 0.92), (0.45, 0.27, 0.13), (0.98, 0.95, 0.75)


@dataclass(frozen=True)
class Part:
    """A solid and its unshaded colour: one sRGB colour, or a function of the points [n, 3] -> [n, 3]."""

    solid: Solid
    rgb: RGB | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Scene:
    """Parts whose union is drawn. caption: the full sentence. landmarks: the 68 points [68, 3] of a head, else None."""

    caption: str
    parts: tuple[Part, ...]
    landmarks: Float[Tensor, "68 3"] | None = None

    def distance(self, p: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n"]:
        """Signed distance of points to the union, negative inside."""
        nearest = self.parts[0].solid(p)
        for part in self.parts[1:]:
            nearest = torch.minimum(nearest, part.solid(p))
        return nearest

    def albedo(self, p: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        """Unshaded colour of the part nearest to each point."""
        owner = torch.stack([part.solid(p) for part in self.parts]).argmin(dim=0)
        rgb = p.new_zeros(p.shape)
        for i, part in enumerate(self.parts):
            mine = owner == i
            if mine.any():
                rgb[mine] = part.rgb(p[mine]) if callable(part.rgb) else p.new_tensor(part.rgb)
        return rgb


def build(spec: Spec) -> Scene:
    """The scene of a determined caption. Raises ValueError for one that leaves a colour open (use `grammar.fill`)."""
    if not is_determined(spec):
        raise ValueError(f'"{caption(spec)}" leaves a colour open; it has no single scene. Draw one with grammar.fill.')
    if isinstance(spec, Thing):
        return Scene(caption(spec), (_thing(spec, 1.0, 0.0, 0.0),))
    if isinstance(spec, Pair):
        return Scene(caption(spec), _pair(spec))
    if isinstance(spec, Toy):
        return Scene(caption(spec), _TOYS[spec.kind](COLOUR_RGB[spec.colour], COLOUR_RGB[spec.part]))
    from ..representations.head_profile import LANDMARKS
    from .head import head_parts

    return Scene(caption(spec), head_parts(spec), LANDMARKS)


_SHAPES: dict[str, tuple[Solid, float]] = {  # the solid, and half its height
    "cube": (shapes.box(0.52, 0.52, 0.52, 0.03), 0.52),
    "sphere": (shapes.sphere(0.68), 0.68),
    "cylinder": (shapes.cylinder(0.48, 0.62, 0.03), 0.62),
    "cone": (shapes.cone(0.64, 0.64), 0.64),
    "torus": (shapes.torus(0.58, 0.24), 0.24),
}


def _thing(thing: Thing, scale: float, y: float, z: float) -> Part:
    solid, _ = _SHAPES[thing.shape]
    return Part(moved(shapes.scaled(solid, scale), 0, y, z), COLOUR_RGB[thing.colour])


def _pair(pair: Pair) -> tuple[Part, ...]:
    first, second = (_SHAPES[thing.shape][1] for thing in (pair.first, pair.second))
    if pair.relation == "next to":  # the first stands at the subject's right, both on one floor
        scale = 0.58
        floor = -scale * max(first, second)
        return (
            _thing(pair.first, scale, -0.46, floor + scale * first),
            _thing(pair.second, scale, 0.46, floor + scale * second),
        )
    scale = 0.64
    bottom = -scale * (first + second)  # the stack is centred, the first stands on the second
    return (
        _thing(pair.first, scale, 0, bottom + scale * (2 * second + first)),
        _thing(pair.second, scale, 0, bottom + scale * second),
    )


def _snowman(main: RGB, scarf: RGB) -> tuple[Part, ...]:
    return (
        Part(moved(shapes.sphere(0.42), 0, 0, -0.50), main),
        Part(moved(shapes.sphere(0.32), 0, 0, 0.08), main),
        Part(moved(shapes.sphere(0.24), 0, 0, 0.56), main),
        Part(moved(shapes.torus(0.20, 0.08), 0, 0, 0.34), scarf),
        Part(moved(shapes.sphere(0.05), 0.21, -0.10, 0.64), DARK),
        Part(moved(shapes.sphere(0.05), 0.21, 0.10, 0.64), DARK),
        Part(shapes.capsule((0.22, 0, 0.54), (0.42, 0, 0.52), 0.04), (0.95, 0.5, 0.1)),
        Part(moved(shapes.sphere(0.05), 0.31, 0, 0.12), DARK),
        Part(moved(shapes.sphere(0.06), 0.40, 0, -0.40), DARK),
    )


def _mushroom(cap: RGB, stem: RGB) -> tuple[Part, ...]:
    dome = shapes.carved(shapes.ellipsoid(0.72, 0.72, 0.66), moved(shapes.box(1, 1, 0.5, 0), z=-0.5))
    return (
        Part(moved(dome, z=0.02), cap),
        Part(moved(shapes.cone(0.30, 0.40, 0.20), z=-0.36), stem),
    )


def _house(walls: RGB, roof: RGB) -> tuple[Part, ...]:
    return (
        Part(moved(shapes.box(0.46, 0.53, 0.36), z=-0.26), walls),
        Part(moved(shapes.prism(0.54, 0.64, 0.26), z=0.34), roof),
        Part(moved(shapes.box(0.04, 0.12, 0.21, 0.01), 0.46, -0.20, -0.40), WOOD),
        Part(moved(shapes.box(0.03, 0.13, 0.11, 0.01), 0.46, 0.24, -0.20), GLASS),
    )


def _tree(crown: RGB, trunk: RGB) -> tuple[Part, ...]:
    return (
        Part(moved(shapes.cone(0.58, 0.30, 0.10), z=-0.10), crown),
        Part(moved(shapes.cone(0.46, 0.28, 0.08), z=0.28), crown),
        Part(moved(shapes.cone(0.34, 0.27), z=0.65), crown),
        Part(moved(shapes.cylinder(0.15, 0.26), z=-0.62), trunk),
    )


def _rocket(body: RGB, fins: RGB) -> tuple[Part, ...]:
    fin = shapes.union(shapes.box(0.52, 0.05, 0.20), shapes.box(0.05, 0.52, 0.20))
    return (
        Part(moved(shapes.cylinder(0.28, 0.48), z=-0.14), body),
        Part(moved(shapes.ellipsoid(0.28, 0.28, 0.56), z=0.34), body),
        Part(moved(fin, z=-0.58), fins),
        Part(moved(shapes.cone(0.22, 0.10, 0.14), z=-0.70), DARK),
        Part(moved(shapes.sphere(0.13), 0.22, 0, 0.22), GLASS),
    )


def _mug(body: RGB, handle: RGB) -> tuple[Part, ...]:
    cup = shapes.carved(shapes.cylinder(0.50, 0.55), moved(shapes.cylinder(0.41, 0.52), z=0.12))
    ring = shapes.carved(shapes.turned(shapes.torus(0.32, 0.09), (1, 2, 0)), moved(shapes.cylinder(0.45, 0.5), y=-0.48))
    return (
        Part(moved(cup, y=-0.18), body),
        Part(moved(ring, y=0.32), handle),
    )


def _table(top: RGB, legs: RGB) -> tuple[Part, ...]:
    return (Part(moved(shapes.box(0.50, 0.70, 0.08), z=0.42), top), Part(_legs(0.40, 0.60, 0.08, 0.36, -0.52), legs))


def _chair(seat: RGB, legs: RGB) -> tuple[Part, ...]:
    back = moved(shapes.box(0.07, 0.40, 0.40), -0.34, 0, 0.40)
    return (
        Part(shapes.union(moved(shapes.box(0.41, 0.40, 0.08), z=-0.06), back), seat),
        Part(_legs(0.33, 0.32, 0.07, -0.10, -0.76), legs),
    )


def _legs(x: float, y: float, radius: float, top: float, bottom: float) -> Solid:
    leg = shapes.cylinder(radius, (top - bottom) / 2)

    def distance(p: Tensor) -> Tensor:  # one leg, seen in the mirrors x = 0 and y = 0
        quarter = torch.cat([p[..., :2].abs(), p[..., 2:]], dim=-1)
        return leg(quarter - p.new_tensor([x, y, (top + bottom) / 2]))

    return distance


def _car(body: RGB, wheels: RGB) -> tuple[Part, ...]:
    wheel = shapes.turned(shapes.cylinder(0.21, 0.09), (0, 2, 1))

    def four(p: Tensor) -> Tensor:
        quarter = torch.cat([p[..., :2].abs(), p[..., 2:]], dim=-1)
        return wheel(quarter - p.new_tensor([0.48, 0.38, -0.30]))

    return (
        Part(moved(shapes.box(0.82, 0.40, 0.20, 0.08), z=-0.12), body),
        Part(moved(shapes.box(0.42, 0.34, 0.22, 0.08), -0.12, 0, 0.22), body),
        Part(moved(shapes.box(0.44, 0.28, 0.12, 0.04), -0.12, 0, 0.22), GLASS),
        Part(moved(shapes.box(0.32, 0.36, 0.12, 0.04), -0.12, 0, 0.22), GLASS),
        Part(four, wheels),
        Part(moved(shapes.sphere(0.09), 0.78, -0.24, -0.08), LAMP),
        Part(moved(shapes.sphere(0.09), 0.78, 0.24, -0.08), LAMP),
    )


def _boat(hull: RGB, sail: RGB) -> tuple[Part, ...]:
    shell = shapes.carved(shapes.ellipsoid(0.86, 0.38, 0.52), moved(shapes.box(1, 1, 0.5, 0), z=0.5))
    triangle = shapes.turned(shapes.prism(0.04, 0.50, 0.48), (1, 0, 2))
    return (
        Part(moved(shell, z=-0.28), hull),
        Part(moved(shapes.cylinder(0.04, 0.62), z=0.22), WOOD),
        Part(moved(triangle, z=0.32), sail),
        Part(moved(shapes.box(0.10, 0.06, 0.06), 0.62, 0, -0.26), LAMP),
    )


_TOYS = {
    "snowman": _snowman,
    "mushroom": _mushroom,
    "house": _house,
    "tree": _tree,
    "rocket": _rocket,
    "mug": _mug,
    "table": _table,
    "car": _car,
    "boat": _boat,
    "chair": _chair,
}
