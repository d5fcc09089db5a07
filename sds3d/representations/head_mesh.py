"""One topology for every head: the measured surface as a grid, with rings of vertices around eyes and mouth.

A corner of the grid lies at an azimuth and a height of `head_profile`, at the radius of the outermost of skin, ears and
eyes. Around each eye and the mouth a block of the grid is left out, and rings lead from its border to the opening, and
on into the head: sockets in which the eyes turn, and a mouth behind lips that can part. So skin, sockets and mouth are
one closed surface, and the eyes two more. Lids lie on the sphere that the playroom draws; the eye itself is smaller.

The square of textures holds the skin above and, below, a disc each for mouth, eyes, sockets and the neck's cut.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from .head_profile import CENTRE_CM, EYE_CM, LANDMARKS, NECK_CM, radius_cm, to_cm
from .rings import Surface, joined

PARTS = ("skin", "lips", "mouth", "left socket", "right socket", "left eye", "right eye")
STEP_DEG, COLUMNS = 4, 90
FACE_ROWS = tuple(round(3.5 + 0.8 * k, 1) for k in range(-12, 11))  # -6.1 to 11.5 cm
ROWS = (NECK_CM, -10.6, -9.9, -9.3, -8.8, -8.3, -7.8, -7.3, -6.7, *FACE_ROWS, 12.2, 12.8, 13.3, 13.7, 14.0, 14.25)
CROWN_CM = (0.0, 14.6, 1.6)
BALL_CM, SOCKET_CM = 1.70, 1.75  # radii of an eye and of the inside of its lids
OPENED = 1.75  # how much higher an eye opens than was measured: the playroom's eyes are larger
# Rings from a block's border to the opening, in shares of the way; a socket's, from the rim to behind the eye; a
# mouth's, as depth, half width and half height in centimetres; an eye's, as distances from its axis in centimetres.
TO_EYE, TO_LIPS, LIPS, SOCKET = (0.25, 0.5, 0.72, 0.88, 1), (0.25, 0.5, 0.75, 1), (0.3, 0.65, 1), (0.03, 0.2, 0.45, 0.7)
MOUTH = ((0.35, 2.15, 0.10), (0.9, 2.2, 0.45), (1.8, 2.2, 0.9), (3.2, 1.9, 1.1), (4.4, 1.1, 0.7))
BALL = (0.25, 0.46, 0.54, 0.8, 1.11, 1.19, 1.45)
BROW = 24  # vertices of a ring of the eye that lies further back
# Where textures lie in the square: the skin's lower border, and the middles and radii of the discs.
SKIN_V = 0.25
DISCS = {
    "mouth": (0.12, 0.125, 0.11),
    "left eye": (0.36, 0.125, 0.11),
    "right eye": (0.60, 0.125, 0.11),
    "left socket": (0.78, 0.065, 0.055),
    "right socket": (0.78, 0.185, 0.055),
    "neck": (0.915, 0.125, 0.075),
}


@dataclass(frozen=True)
class Loop:
    """A closed curve through landmarks, from the subject's left corner over the upper side: ids, and how many edges of
    the ring lie between each and the next."""

    ids: tuple[int, ...]
    edges: tuple[int, ...]


OUTER_LIPS = Loop((54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55), (3,) * 12)
INNER_LIPS = Loop((64, 63, 62, 61, 60, 67, 66, 65), (5, 4, 4, 5) * 2)
EYES = {
    "left": Loop((45, 44, 43, 42, 47, 46), (5, 4, 5) * 2),
    "right": Loop((39, 38, 37, 36, 41, 40), (5, 4, 5) * 2),
}
EYE_BLOCKS, EYE_ROWS = {"left": (8, 40), "right": (-40, -8)}, (1.1, 5.9)  # borders: azimuths and heights
MOUTH_BLOCK, MOUTH_ROWS = (-24, 24), (-6.1, -1.3)


@dataclass(frozen=True)
class HeadMesh:
    """The measured head in centimetres. part: of each vertex the number in `PARTS`. rings: vertices of the openings,
    "lips", "mouth", "left eye", "right eye", each from the subject's left corner over the upper side. landmark: the
    vertex of each landmark that lies on a ring."""

    vertices: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    uv: Float[Tensor, "T 2"]
    uv_faces: Int[Tensor, "F 3"]
    part: Int[Tensor, "V"]
    rings: dict[str, Int[Tensor, "n"]]
    landmark: dict[int, int]


def _spline(points: Float[Tensor, "n 3"], edges: Sequence[int]) -> Float[Tensor, "m 3"]:
    """Points along an open Catmull-Rom curve, without its end: so many in each interval."""
    whole = torch.cat([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    found = []
    for i, n in enumerate(edges):
        a, b, c, d = whole[i : i + 4]
        t = (torch.arange(n, dtype=points.dtype) / n)[:, None]
        found.append(b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a))))
    return torch.cat(found)


def _loop(loop: Loop, opened: float = 1.0) -> Float[Tensor, "m 2"]:
    """Azimuth in degrees and height of a ring through landmarks, whose height is multiplied between its corners."""
    points = to_cm(LANDMARKS.double())[list(loop.ids)]
    half = len(loop.ids) // 2
    middle = (points[0, 1] + points[half, 1]) / 2
    points[:, 1] = middle + opened * (points[:, 1] - middle)
    around = torch.cat([points, points[:1]])
    halves = [_spline(around[i : i + half + 1], loop.edges[i : i + half]) for i in (0, half)]
    x, y, z = torch.cat(halves).unbind(1)
    return torch.stack([torch.rad2deg(torch.atan2(x, z - CENTRE_CM[2])), y], dim=1)


def _on_surface(at: Float[Tensor, "n 2"], out: float | Tensor = 0.0) -> Float[Tensor, "n 3"]:
    """The points at azimuths in degrees and heights, moved outward by centimetres."""
    azimuth, y = torch.deg2rad(at[:, 0]), at[:, 1]
    radius = radius_cm(azimuth, y) + out
    return torch.stack([radius * azimuth.sin(), y, CENTRE_CM[2] + radius * azimuth.cos()], dim=1)


def _skin_uv(at: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
    height = (at[:, 1] - NECK_CM) / (CROWN_CM[1] - NECK_CM)
    return torch.stack([at[:, 0] / 360 + 0.5, SKIN_V + (1 - SKIN_V) * height], dim=1)


def _disc(surface: Surface, name: str, share: float, count: int) -> Tensor:
    """Places on a circle of a disc, from its right over its top; its middle is one place."""
    x, y, radius = DISCS[name]
    turn = 2 * math.pi * torch.arange(count, dtype=torch.float64) / count
    circle = torch.stack([turn.cos(), turn.sin()], dim=1)
    return surface.place(torch.tensor([x, y], dtype=torch.float64) + share * radius * circle)


def _border(block: tuple[int, int], rows: tuple[float, float]) -> list[tuple[int, float]]:
    """The corners of the grid on a block's border, counter-clockwise from the middle of its left side (of the head)."""
    low, high = (FACE_ROWS.index(row) for row in rows)
    heights, azimuths = FACE_ROWS[low : high + 1], range(block[0], block[1] + 1, STEP_DEG)
    right = [(block[1], y) for y in heights]
    around = [*right[:-1], *[(a, heights[-1]) for a in reversed(azimuths)][:-1]]
    around += [*[(block[0], y) for y in reversed(heights)][:-1], *[(a, heights[0]) for a in azimuths][:-1]]
    start = len(heights) // 2
    return around[start:] + around[:start]


def _grid(surface: Surface) -> dict[tuple[int, float], Tensor]:
    """The skin without its blocks, closed at crown and neck; returns vertex and place of each corner of the grid."""
    azimuth = STEP_DEG * torch.arange(COLUMNS + 1, dtype=torch.float64) - 180
    blocks = [(block, EYE_ROWS) for block in EYE_BLOCKS.values()] + [(MOUTH_BLOCK, MOUTH_ROWS)]
    rows = []
    for y in ROWS:
        at = torch.stack([azimuth, torch.full_like(azimuth, y)], dim=1)
        inner = torch.zeros(COLUMNS + 1, dtype=torch.bool)  # corners inside a block are no vertices
        for (first, last), (low, high) in blocks:
            inner |= (azimuth > first) & (azimuth < last) & (low < y < high)
        vertices = torch.full((COLUMNS + 1,), -1)
        kept = ~inner[:-1]
        vertices[:-1][kept] = surface.ring(_on_surface(at[:-1][kept]), "skin")
        vertices[-1] = vertices[0]
        rows.append(joined(vertices, surface.place(_skin_uv(at))))
    for k, (low, high) in enumerate(itertools.pairwise(rows)):
        kept = torch.ones(COLUMNS, dtype=torch.bool)
        for (first, last), (bottom, top) in blocks:
            if bottom <= ROWS[k] < top:
                kept &= ~((azimuth[:-1] >= first) & (azimuth[:-1] < last))
        surface.strip(low, high, kept)
    crown = surface.ring(torch.tensor([CROWN_CM], dtype=torch.float64), "skin").expand(COLUMNS)
    middles = torch.stack([azimuth[:-1] + STEP_DEG / 2, torch.full_like(azimuth[:-1], CROWN_CM[1])], dim=1)
    top = joined(crown, surface.place(_skin_uv(middles)))
    ends = torch.stack([rows[-1][:-1], rows[-1][1:], top, top], dim=1)
    surface.corners.append(ends)
    _neck(surface, rows[0][:-1, 0])
    degrees = [STEP_DEG * k - 180 for k in range(COLUMNS)]
    return {(a, y): rows[i][k] for i, y in enumerate(ROWS) for k, a in enumerate(degrees)}


def _neck(surface: Surface, rim: Tensor) -> None:
    """The flat end below; a ring close to its border keeps the edge sharp in interpolated normals."""
    points = surface.points[0]
    middle = points.mean(dim=0, keepdim=True)
    inner = surface.ring(middle + 0.96 * (points - middle), "skin")
    pole = surface.ring(middle, "skin")
    outside, inside, centre = (
        _disc(surface, "neck", share, n) for share, n in ((1, len(rim)), (0.96, len(rim)), (0, 1))
    )
    # Seen from below the ring runs the other way round.
    outer, ring = joined(rim.flip(0), outside), joined(inner.flip(0), inside)
    surface.strip(outer, ring)
    surface.fan(ring, joined(pole, centre))


def _patch(
    surface: Surface,
    border: Tensor,
    start: Tensor,
    end: Tensor,
    shares: Sequence[float],
    out: Sequence[float] | None = None,
    part: str = "skin",
) -> Tensor:
    """Rings on the skin from a border [n, 2] at `start` to `end`, azimuths and heights; returns the last ring."""
    last = border
    for share, away in zip(shares, out or (0.0,) * len(shares), strict=True):
        at = torch.lerp(start, end, share)
        ring = joined(surface.ring(_on_surface(at, away), part), surface.place(_skin_uv(at)))
        surface.strip(last, ring)
        last = ring
    return last


def _eye_opening(surface: Surface, grid: dict[tuple[int, float], Tensor], side: str) -> Tensor:
    """Lids and the socket of one eye; returns the rim's vertices."""
    border = _border(EYE_BLOCKS[side], EYE_ROWS)
    start = torch.tensor(border, dtype=torch.float64)
    end = _loop(EYES[side], OPENED)
    rim = _patch(surface, torch.stack([grid[key] for key in border]), start, end, TO_EYE)
    centre = torch.tensor([EYE_CM[0] if side == "left" else -EYE_CM[0], *EYE_CM[1:]], dtype=torch.float64)
    way = normalize(_on_surface(end) - centre, dim=1)
    behind = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64)
    angle = torch.acos((way @ behind).clamp(-1, 1))[:, None]
    side_way = normalize(way - (way @ behind)[:, None] * behind, dim=1)
    name = f"{side} socket"
    last = joined(rim[:, 0], _disc(surface, name, 1, len(rim)))
    for share in SOCKET:
        left = (1 - share) * angle
        points = centre + SOCKET_CM * (left.cos() * behind + left.sin() * side_way)
        ring = joined(surface.ring(points, name), _disc(surface, name, 1 - share, len(rim)))
        surface.strip(last, ring)
        last = ring
    pole = surface.ring((centre + SOCKET_CM * behind)[None], name)
    surface.fan(last, joined(pole, _disc(surface, name, 0, 1)))
    return rim[:, 0]


def _mouth(surface: Surface, grid: dict[tuple[int, float], Tensor]) -> tuple[Tensor, Tensor]:
    """Lips and what lies behind them; returns the vertices of their outer and inner border."""
    border = _border(MOUTH_BLOCK, MOUTH_ROWS)
    start, outer, inner = torch.tensor(border, dtype=torch.float64), _loop(OUTER_LIPS), _loop(INNER_LIPS)
    lips = _patch(surface, torch.stack([grid[key] for key in border]), start, outer, TO_LIPS)
    # Lips are a little full, and roll inward.
    rim = _patch(surface, lips, outer, inner, LIPS, [0.15 * math.sin(math.pi * t) - 0.3 * t**3 for t in LIPS], "lips")
    points = surface.points[-1]
    turn = 2 * math.pi * torch.arange(len(rim), dtype=torch.float64) / len(rim)
    middle = points.mean(dim=0)
    last = joined(rim[:, 0], _disc(surface, "mouth", 1, len(rim)))
    for depth, width, height in MOUTH:
        share = min(1.0, depth / 0.9)  # behind the lips the slit becomes an ellipse
        ellipse = torch.stack([width * turn.cos(), middle[1] + height * turn.sin()], dim=1)
        across = torch.lerp(points[:, :2], ellipse, share)
        deep = torch.lerp(points[:, 2], points[:, 2].amin().expand(len(rim)), share) - depth
        ring = surface.ring(torch.cat([across, deep[:, None]], dim=1), "mouth")
        ring = joined(ring, _disc(surface, "mouth", 1 - depth / 5, len(rim)))
        surface.strip(last, ring)
        last = ring
    end = torch.stack([torch.zeros_like(middle[1]), middle[1], points[:, 2].amin() - 4.8])
    surface.fan(last, joined(surface.ring(end[None], "mouth"), _disc(surface, "mouth", 0, 1)))
    return lips[:, 0], rim[:, 0]


def _ball(surface: Surface, side: str) -> None:
    """An eye: rings about its axis, close together where iris and pupil end."""
    name = f"{side} eye"
    centre = torch.tensor([EYE_CM[0] if side == "left" else -EYE_CM[0], *EYE_CM[1:]], dtype=torch.float64)
    front = [math.asin(off / BALL_CM) for off in BALL]
    angles = [*front, math.pi / 2, math.pi * 0.66, math.pi * 0.83]
    turn = 2 * math.pi * torch.arange(BROW, dtype=torch.float64) / BROW
    rings = []
    for angle in reversed(angles):
        flat = math.sin(angle) * torch.stack([turn.cos(), turn.sin()], dim=1)
        points = centre + BALL_CM * torch.cat([flat, torch.full_like(flat[:, :1], math.cos(angle))], dim=1)
        rings.append(joined(surface.ring(points, name), _disc(surface, name, angle / math.pi, BROW)))
    for outer, inner in itertools.pairwise(rings):
        surface.strip(outer, inner)
    axis = torch.tensor([0.0, 0.0, BALL_CM], dtype=torch.float64)
    surface.fan(rings[-1], joined(surface.ring((centre + axis)[None], name), _disc(surface, name, 0, 1)))
    back = surface.ring((centre - axis)[None], name)
    border = _disc(surface, name, 1, BROW)  # the pole behind is a place beside each of its triangles
    ends = torch.stack([rings[0].roll(-1, 0), rings[0], *[joined(back.expand(BROW), border)] * 2], dim=1)
    surface.corners.append(ends)


@functools.cache
def head_mesh() -> HeadMesh:
    """The measured head, in float64. Its two halves are mirror images."""
    surface = Surface()
    grid = _grid(surface)
    rings = {f"{side} eye": _eye_opening(surface, grid, side) for side in EYES}
    rings["lips"], rings["mouth"] = _mouth(surface, grid)
    for side in EYES:
        _ball(surface, side)
    faces, uv_faces = surface.triangles()
    loops = {"left eye": EYES["left"], "right eye": EYES["right"], "lips": OUTER_LIPS, "mouth": INNER_LIPS}
    landmark = {}
    for name, loop in loops.items():
        at = torch.tensor([0, *loop.edges]).cumsum(0)[:-1]
        landmark |= dict(zip(loop.ids, rings[name][at].tolist(), strict=True))
    part = torch.tensor([PARTS.index(name) for name in surface.parts])
    return HeadMesh(torch.cat(surface.points), faces, torch.cat(surface.places), uv_faces, part, rings, landmark)
