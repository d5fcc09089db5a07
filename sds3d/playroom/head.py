"""The playroom's heads: the measured head of `representations.head_profile` with hair, eyes and what a caption adds."""

from __future__ import annotations

import torch
from torch import Tensor

from ..representations.head_profile import (
    CENTRE_CM,
    EAR_AXES_CM,
    EAR_CM,
    EYE_CM,
    EYE_RADIUS_CM,
    IRIS_CM,
    PUPIL_CM,
    UNIT_CM,
    skin_cm,
    to_cm,
)
from . import shapes
from .grammar import Head
from .scenes import RGB, Part
from .shapes import Solid

SKIN_RGB: dict[str | None, RGB] = {
    "light": (0.96, 0.80, 0.69),
    "tan": (0.83, 0.62, 0.45),
    "brown": (0.58, 0.38, 0.25),
    "dark": (0.34, 0.21, 0.15),
}
HAIR_RGB: dict[str | None, RGB] = {
    "black": (0.09, 0.08, 0.09),
    "brown": (0.40, 0.22, 0.10),
    "blond": (0.93, 0.78, 0.36),
    "red": (0.75, 0.25, 0.08),
    "white": (0.93, 0.93, 0.94),
}
EYE_RGB: dict[str | None, RGB] = {"blue": (0.15, 0.40, 0.85), "green": (0.15, 0.60, 0.25), "brown": (0.40, 0.20, 0.08)}
SCLERA, PUPIL, LIPS, TEETH, FRAME, HAT = (
    (0.97, 0.97, 0.97),
    (0.03, 0.03, 0.03),
    (0.72, 0.22, 0.22),
    (0.98, 0.98, 0.95),
    (0.08, 0.08, 0.10),
    (0.50, 0.33, 0.16),
)


def _cm(solid: Solid) -> Solid:
    """A solid given in centimetres of the measured frame, as a solid of the world."""
    return lambda p: solid(to_cm(p)) / UNIT_CM


def _swollen(q: Tensor, scale: float, centre: tuple[float, float, float]) -> Tensor:
    """The bare head enlarged about a point: a shell of even thickness, also where the profile is steep."""
    c = q.new_tensor(centre)
    return skin_cm((q - c) / scale + c) * scale


def _hair(q: Tensor) -> Tensor:
    """A shell over skull and nape, open at the face."""
    away = torch.atan2(q[..., 0].abs(), q[..., 2] - CENTRE_CM[2])  # 0 at the front, pi at the back
    hairline = 9.6 - 4.0 * (away / 0.9).clamp(0, 1) ** 2 - 11.0 * ((away - 1.25) / 0.45).clamp(0, 1)
    return torch.maximum(_swollen(q, 1.1, (0.0, 4.0, 2.0)), (hairline - q[..., 1]) * 0.35)


def _beard(q: Tensor) -> Tensor:
    """A shell over jaw and chin, open around the mouth."""
    x, y, z = q.unbind(-1)
    away = torch.atan2(x.abs(), z - CENTRE_CM[2])
    sideburn = -2.0 + 3.5 * ((away - 0.6) / 0.6).clamp(0, 1)
    region = torch.maximum((y - sideburn) * 0.5, (away - 1.35) * 5)
    mouth = 2.1 - torch.hypot(x / 1.7, y + 3.4)
    return torch.stack([_swollen(q, 1.11, (0.0, 0.0, 2.0)), region, mouth * 0.5, -9.4 - y]).amax(dim=0)


def _eye(side: float) -> Solid:
    x, y, z = EYE_CM
    return shapes.moved(shapes.sphere(EYE_RADIUS_CM), side * x, y, z)


def _glasses(q: Tensor) -> Tensor:
    x = q[..., 0].abs()
    mirrored = torch.stack([x, q[..., 1], q[..., 2]], dim=-1)
    ring = shapes.moved(shapes.torus(2.5, 0.42), 3.3, 3.5, 10.6)
    bridge = shapes.capsule((0.0, 3.9, 11.0), (1.0, 3.9, 10.8), 0.4)
    temple = shapes.capsule((5.8, 3.7, 10.2), (8.3, 3.7, 1.5), 0.4)
    return torch.stack([ring(mirrored), bridge(mirrored), temple(mirrored)]).amin(dim=0)


def _hat(q: Tensor) -> Tensor:
    upright = torch.stack([q[..., 0], q[..., 2] - 1.0, q[..., 1]], dim=-1)  # the shapes' z is the head's up
    brim = shapes.moved(shapes.cylinder(13.0, 0.5, 0.4), z=9.4)
    crown = shapes.moved(shapes.cone(10.6, 3.4, 8.2), z=12.6)
    return torch.minimum(brim(upright), crown(upright))


def _eye_rgb(iris: tuple[float, float, float], side: float):
    def paint(p: Tensor) -> Tensor:
        q = to_cm(p)
        off = torch.hypot(q[:, 0] - side * EYE_CM[0], q[:, 1] - EYE_CM[1])
        front = q[:, 2] > EYE_CM[2]
        rgb = q.new_tensor(SCLERA).repeat(len(q), 1)
        rgb[front & (off < IRIS_CM)] = q.new_tensor(iris)
        rgb[front & (off < PUPIL_CM)] = q.new_tensor(PUPIL)
        return rgb

    return paint


def _skin_rgb(head: Head):
    def paint(p: Tensor) -> Tensor:
        q = to_cm(p)
        x, y, front = q[:, 0], q[:, 1], q[:, 2] > 4.0
        rgb = q.new_tensor(SKIN_RGB[head.skin]).repeat(len(q), 1)
        brow = front & ((y - 6.6 + 0.06 * (x.abs() - 3.0) ** 2).abs() < 0.55) & (x.abs() > 1.3) & (x.abs() < 5.4)
        rgb[brow] = q.new_tensor(HAIR_RGB[head.hair])
        if head.smile:  # a wide mouth with raised corners and teeth
            height = y + 4.3 - 0.13 * x**2
            rgb[front & (x.abs() < 3.9) & (height.abs() < 1.25 - 0.05 * x**2)] = q.new_tensor(LIPS)
            rgb[front & (x.abs() < 3.0) & (height.abs() < 0.65 - 0.05 * x**2)] = q.new_tensor(TEETH)
        else:
            rgb[front & (torch.hypot(x / 2.5, (y + 3.5) / 0.85) < 1)] = q.new_tensor(LIPS)
        return rgb

    return paint


def head_parts(head: Head) -> tuple[Part, ...]:
    """The parts of a determined head."""
    hair = HAIR_RGB[head.hair]
    ear, (x, y, z) = shapes.ellipsoid(*EAR_AXES_CM), EAR_CM
    ears: Solid = lambda q: ear(torch.stack([q[..., 0].abs() - x, q[..., 1] - y, q[..., 2] - z], dim=-1))  # noqa: E731
    parts = [
        Part(_cm(lambda q: torch.minimum(skin_cm(q), ears(q)) * 0.8), _skin_rgb(head)),
        Part(_cm(lambda q: _hair(q) * 0.8), hair),
        Part(_cm(_eye(-1.0)), _eye_rgb(EYE_RGB[head.eyes], -1.0)),
        Part(_cm(_eye(1.0)), _eye_rgb(EYE_RGB[head.eyes], 1.0)),
    ]
    if head.glasses:
        parts.append(Part(_cm(_glasses), FRAME))
    if head.hat:
        parts.append(Part(_cm(_hat), HAT))
    if head.beard:
        parts.append(Part(_cm(lambda q: _beard(q) * 0.8), hair))
    return tuple(parts)
