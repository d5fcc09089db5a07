"""Fifty-one of the fifty-two ARKit blendshapes of the measured head, as displacements of points in centimetres.

Most are the measured fields of ICT-FaceKit (MIT, (c) 2020 USC) in short: a centre c, a reach r and a mean displacement
d of each, spread as 1.3 d exp(-|q - c|^2 / (2 (0.8 r)^2)), of which a mask keeps what may move. Three kinds of motion
are followed exactly instead: the jaw turns about its hinge, lids slide on the sphere of the eye, and eyes turn. A shape
at weight 1 is reached on straight lines, as morph targets are. There is no tongue, and so no `tongueOut`.

"Left" is the subject's left. `mouthClose` undoes `jawOpen` at the lips, so it is never larger than that.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .head_mesh import PARTS, head_mesh
from .head_profile import EYE_CM, EYE_RADIUS_CM

SPREAD, NARROW = 1.3, 0.8  # fitted on sixteen of the measured shapes
HINGE_CM, JAW_DEG = (-0.55, 1.82), 25.3  # (y, z) of the jaw's axis, and how far jawOpen turns about it
PITCH_DEG, YAW_DEG = 25.0, 30.0  # how far an eye turns
MOUTH_HALF_CM = 2.35  # half the width of what parts when the mouth opens
SLIT_CM = 0.02  # the mouth line's half height, within which lips are neither upper nor lower
Point = tuple[float, float, float]


@dataclass(frozen=True)
class Field:
    """A measured field of the subject's left half: centre, reach and mean displacement in centimetres.

    moves: which lip alone. twice: whether the shape moves both halves; otherwise there is one shape for each.
    """

    centre: Point
    reach: float
    mean: Point
    moves: Literal["all", "upper lip", "lower lip"] = "all"
    twice: bool = False

    def at(self, q: Float[Tensor, "V 3"]) -> Float[Tensor, "V 3"]:
        away = (q - q.new_tensor(self.centre)).square().sum(dim=1, keepdim=True)
        return SPREAD * q.new_tensor(self.mean) * torch.exp(-away / (2 * (NARROW * self.reach) ** 2))


FIELDS = {
    "mouthFunnel": Field((0, -3.5, 10.6), 2.4, (0, -0.05, 0.67)),
    "mouthPucker": Field((0, -3.4, 10.4), 2.5, (0, 0.16, 0.85)),
    "mouthRollLower": Field((0, -3.9, 10.9), 1.3, (0, 0.21, -0.83), "lower lip"),
    "mouthRollUpper": Field((0, -3.0, 10.9), 1.6, (0, -0.02, -0.75), "upper lip"),
    "mouthShrugLower": Field((0, -4.8, 10.5), 2.3, (0, 0.65, 0.37), "lower lip"),
    "mouthShrugUpper": Field((0, -2.7, 11.3), 1.2, (0, 0.43, 0.04), "upper lip"),
    "browInnerUp": Field((2.2, 6.1, 9.9), 3.0, (0.03, 0.29, 0.02), twice=True),
    "cheekPuff": Field((2.3, -3.3, 10.1), 2.0, (-0.11, 0.16, 1.04), twice=True),
}
PAIRS = {
    "mouth": Field((-0.8, -3.1, 10.6), 2.4, (1.16, 0.08, 0.17)),
    "mouthSmile": Field((2.5, -3.2, 9.8), 2.7, (0.53, 0.74, -0.58)),
    "mouthFrown": Field((2.4, -3.3, 10.1), 1.5, (0.14, -0.34, -0.11)),
    "mouthDimple": Field((2.3, -3.6, 10.1), 1.4, (0.15, 0.28, -0.42)),
    "mouthStretch": Field((2.4, -3.8, 9.9), 2.4, (0.54, -0.15, -0.47)),
    "mouthPress": Field((1.8, -4.4, 10.2), 2.7, (0, 0.19, 0.1), "lower lip"),
    "mouthLowerDown": Field((1.1, -4.5, 10.7), 1.7, (0.06, -0.31, -0.09), "lower lip"),
    "mouthUpperUp": Field((1.7, -2.2, 10.6), 2.0, (0.1, 0.5, -0.03), "upper lip"),
    "browDown": Field((4.2, 6.1, 9.0), 2.4, (-0.27, -0.22, 0.23)),
    "browOuterUp": Field((4.5, 5.5, 8.8), 2.5, (0.14, 0.55, -0.15)),
    "cheekSquint": Field((4.7, -0.2, 7.7), 4.8, (-0.01, 0.25, 0.10)),
    "noseSneer": Field((2.1, -1.4, 10.3), 2.9, (-0.05, 0.58, 0.08)),
}


@dataclass(frozen=True)
class Gaze:
    """What eye and lids do: degrees by which the eye turns up and out; where the rims of upper and lower lid go, in
    shares of the way to where they meet, and beyond it in degrees upward."""

    up_deg: float = 0.0
    out_deg: float = 0.0
    upper: float = 0.0
    lower: float = 0.0
    upper_deg: float = 0.0
    lower_deg: float = 0.0


GAZES = {
    "eyeBlink": Gaze(upper=1.0, lower=1.0),
    "eyeLookDown": Gaze(up_deg=-PITCH_DEG, upper=0.5, lower_deg=-4.0),
    "eyeLookIn": Gaze(out_deg=-YAW_DEG),
    "eyeLookOut": Gaze(out_deg=YAW_DEG),
    "eyeLookUp": Gaze(up_deg=PITCH_DEG, upper_deg=8.0, lower_deg=3.0),
    "eyeSquint": Gaze(upper=0.15, lower=0.9, lower_deg=2.0),
    "eyeWide": Gaze(upper_deg=9.0, lower_deg=-3.0),
}
MEET = 0.28  # lids meet at this share of the way from the lower to the upper rim
SIDES = ("Left", "Right")
ARKIT = (
    *(f"{name}{side}" for side in SIDES for name in GAZES),
    *("jawForward", "jawLeft", "jawRight", "jawOpen", "mouthClose", "mouthFunnel", "mouthPucker"),
    *("mouthLeft", "mouthRight"),
    *(f"{name}{side}" for name in ("mouthSmile", "mouthFrown", "mouthDimple", "mouthStretch") for side in SIDES),
    *("mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper"),
    *(f"{name}{side}" for name in ("mouthPress", "mouthLowerDown", "mouthUpperUp") for side in SIDES),
    *("browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight"),
    *("cheekPuff", "cheekSquintLeft", "cheekSquintRight", "noseSneerLeft", "noseSneerRight"),
)


def shapes(q: Float[Tensor, "V 3"], part: Int[Tensor, "V"]) -> dict[str, Float[Tensor, "V 3"]]:
    """The displacement of each point at weight 1, by the names of ARKit. part: of each point its number in `PARTS`."""
    mirrored = q * q.new_tensor([-1.0, 1.0, 1.0])
    swapped = part.new_tensor([PARTS.index(_other(name)) for name in PARTS])[part]
    left = _left_half(q, part)
    right = {name: moved * q.new_tensor([-1.0, 1.0, 1.0]) for name, moved in _left_half(mirrored, swapped).items()}
    found = _whole(q, part)
    for name, moved in left.items():
        found |= {f"{name}Left": moved, f"{name}Right": right[name]}
    return {name: found[name] for name in ARKIT}


def _other(part: str) -> str:
    """The part that a mirror shows."""
    return part.replace("left", "right") if "left" in part else part.replace("right", "left")


def _left_half(q: Tensor, part: Tensor) -> dict[str, Tensor]:
    """The shapes of the left side."""
    side = _smooth((q[:, :1] + 1) / 2)
    soft = _soft(q, part)
    found = {name: field.at(q) * soft * side * _lip(field, q) for name, field in PAIRS.items() if name != "mouth"}
    found["mouth"] = PAIRS["mouth"].at(q) * soft
    found["jaw"] = _jaw(q, part) * SPREAD * q.new_tensor([0.65, 0.02, 0.04])
    return found | {name: _gazed(gaze, q, part) for name, gaze in GAZES.items()}


def _whole(q: Tensor, part: Tensor) -> dict[str, Tensor]:
    """The shapes that move both sides."""
    mirror, soft, jaw = q.new_tensor([-1.0, 1.0, 1.0]), _soft(q, part), _jaw(q, part)
    found = {}
    for name, field in FIELDS.items():
        moved = field.at(q)
        if field.twice:
            side = _smooth((q[:, :1] + 1) / 2)
            moved = moved * side + field.at(q * mirror) * mirror * (1 - side)
        found[name] = moved * soft * _lip(field, q)
    lower, x = _lower(q), q[:, :1]
    for name, apart, narrow in (("mouthFunnel", 0.6, 0.4), ("mouthPucker", 0.0, 0.8)):
        share = found[name][:, 2:] / FIELDS[name].mean[2]  # lips come forward, part, and their corners come inward
        along = torch.cat([-narrow * x / 2.5, apart * (1 - 2 * lower), torch.zeros_like(x)], dim=1)
        found[name] = found[name] + share * along / SPREAD
    found["jawForward"] = jaw * SPREAD * q.new_tensor([0.0, -0.06, 0.75])
    found["jawOpen"] = _turned(q, jaw)
    found["mouthClose"] = -found["jawOpen"] * _near_lips(q)
    return found


def _soft(q: Tensor, part: Tensor) -> Tensor:
    """What the measured fields may move [V, 1]: skin and mouth, and little where lids lie on an eye."""
    mirrored = torch.cat([q[:, :1].abs(), q[:, 1:]], dim=1)
    away = (mirrored - q.new_tensor(EYE_CM)).norm(dim=1, keepdim=True)
    return _flesh(part).to(q)[:, None] * _smooth((away - 2.0) / 1.4)


def _flesh(part: Tensor) -> Tensor:
    """Skin, lips and mouth, which fields and jaw move."""
    return part <= PARTS.index("mouth")


def _lip(field: Field, q: Tensor) -> Tensor | float:
    if field.moves == "all":
        return 1.0
    return _lower(q) if field.moves == "lower lip" else 1 - _lower(q)


def _lower(q: Tensor) -> Tensor:
    """1 below the mouth line, 0 above it, 1/2 at the mouth's corners [V, 1]: sharp where lips part."""
    x, y = q[:, :1], q[:, 1:2]
    below = _mouth_line(x) - y
    parts = (1 - (x / MOUTH_HALF_CM).square()).clamp(min=0).sqrt()
    share = torch.maximum(parts, _smooth(below.abs() / 2.5))
    return 0.5 + 0.5 * share * (below / SLIT_CM).clamp(-1, 1)


def _jaw(q: Tensor, part: Tensor) -> Tensor:
    """How far a point goes with the jaw [V, 1]."""
    y, z = q[:, 1:2] - HINGE_CM[0], q[:, 2:] - HINGE_CM[1]
    below = torch.rad2deg(torch.atan2(-y, z))  # 17 degrees at the mouth, 39 at the chin, more at the throat
    throat = 1 - _smooth((below - 36) / 50)
    return _lower(q) * throat * _smooth(z / 4.5) * _flesh(part).to(q)[:, None] * _smooth((2.0 - q[:, 1:2]) / 4.0)


def _turned(q: Tensor, share: Tensor) -> Tensor:
    """The displacement of points that turn about the jaw's hinge by a share [V, 1] of `JAW_DEG`."""
    angle = math.radians(JAW_DEG) * share[:, 0]
    y, z = q[:, 1] - HINGE_CM[0], q[:, 2] - HINGE_CM[1]
    sin, cos = angle.sin(), angle.cos()
    return torch.stack([torch.zeros_like(y), cos * y - sin * z - y, sin * y + cos * z - z], dim=1)


def _near_lips(q: Tensor) -> Tensor:
    """1 at the lips and behind them, 0 from chin and nose on [V, 1]."""
    across = (q[:, :1].abs() - 2.6).clamp(min=0)
    return 1 - _smooth((torch.hypot(across, q[:, 1:2] + 3.4) - 1.3) / 2.2)


def _gazed(gaze: Gaze, q: Tensor, part: Tensor) -> Tensor:
    """The displacement of the left eye, its socket and lids."""
    p = q - q.new_tensor(EYE_CM)
    turn, yaw = math.radians(gaze.up_deg), math.radians(gaze.out_deg)
    x, y, z = p.unbind(1)
    y, z = math.cos(turn) * y + math.sin(turn) * z, math.cos(turn) * z - math.sin(turn) * y
    x, z = math.cos(yaw) * x + math.sin(yaw) * z, math.cos(yaw) * z - math.sin(yaw) * x
    ball = torch.stack([x, y, z], dim=1) - p
    lids = _lids(gaze, p)
    is_ball, is_lid = (
        part == PARTS.index("left eye"),
        (part == PARTS.index("skin")) | (part == PARTS.index("left socket")),
    )
    return ball * is_ball[:, None] + lids * is_lid[:, None]


def _lids(gaze: Gaze, p: Tensor) -> Tensor:
    """Points around the eye's middle turn about the axis through it from side to side: they stay on a sphere."""
    angle = torch.atan2(p[:, 1], p[:, 2])
    upper, lower = (_interpolated(line, p[:, 0]) for line in _rims())
    meet = lower + MEET * (upper - lower)
    parts = ((upper - lower) / math.radians(12)).clamp(0, 1)  # nothing moves in the corners
    to_upper = gaze.upper * (meet - upper) + math.radians(gaze.upper_deg) * parts
    to_lower = gaze.lower * (meet - lower) + math.radians(gaze.lower_deg) * parts
    above, under = (angle - upper) / math.radians(55), (lower - angle) / math.radians(45)
    turn = torch.where(angle > (upper + lower) / 2, to_upper * (1 - _smooth(above)), to_lower * (1 - _smooth(under)))
    turn = turn * (1 - _smooth((p.norm(dim=1) - EYE_RADIUS_CM - 0.2) / 0.6))
    sin, cos = turn.sin(), turn.cos()
    y, z = cos * p[:, 1] + sin * p[:, 2], cos * p[:, 2] - sin * p[:, 1]
    return torch.stack([torch.zeros_like(y), y - p[:, 1], z - p[:, 2]], dim=1)


@functools.cache
def _rims() -> tuple[Tensor, Tensor]:
    """Of the left eye's upper and lower rim the place across and the angle [n, 2] above the eye's middle."""
    mesh = head_mesh()
    ring = mesh.vertices[mesh.rings["left eye"]] - mesh.vertices.new_tensor(EYE_CM)
    half = len(ring) // 2
    line = torch.stack([ring[:, 0], torch.atan2(ring[:, 1], ring[:, 2])], dim=1)
    upper, lower = line[: half + 1].flip(0), torch.cat([line[half:], line[:1]])
    return upper, lower


@functools.cache
def _mouth_slit() -> Tensor:
    """Place across and height [n, 2] of the line between the lips."""
    mesh = head_mesh()
    ring = mesh.vertices[mesh.rings["mouth"]]
    half = len(ring) // 2
    upper, lower = ring[: half + 1].flip(0), torch.cat([ring[half:], ring[:1]])
    below = _interpolated(lower[:, :2], upper[:, 0])
    return torch.stack([upper[:, 0], (upper[:, 1] + below) / 2], dim=1)


def _mouth_line(x: Tensor) -> Tensor:
    return _interpolated(_mouth_slit(), x[:, 0])[:, None]


def _interpolated(line: Tensor, x: Tensor) -> Tensor:
    """The second column of a line [n, 2] at x, linearly between its points; the ends' beyond them."""
    line = line.to(x)
    at = torch.searchsorted(line[:, 0].contiguous(), x.contiguous()).clamp(1, len(line) - 1)
    low, high = line[at - 1], line[at]
    share = ((x - low[:, 0]) / (high[:, 0] - low[:, 0])).clamp(0, 1)
    return torch.lerp(low[:, 1], high[:, 1], share)


def _smooth(x: Tensor) -> Tensor:
    """0 below 0, 1 above 1, and smooth in between."""
    x = x.clamp(0, 1)
    return x * x * (3 - 2 * x)
