"""Points that a mesh carries: the 68 landmarks of a face (iBUG's order) and a part of MediaPipe's 478.

A point lies in a triangle, so it goes wherever the triangle goes. MediaPipe's contours are those of its canonical face
(Apache-2.0): right half and midline in centimetres, brought into the measured frame by a turn, a scale and a shift that
were fitted to the landmarks which both have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .head_mesh import PARTS, HeadMesh
from .head_profile import LANDMARKS, to_cm

# fmt: off
_OVAL = {  # id: (its mirror image, x, y, z)
    10: (10, 0, 8.26, 4.48), 109: (338, -1.89, 8.24, 4.27), 67: (297, -3.52, 8.01, 3.73),
    103: (332, -5.13, 7.49, 2.66), 54: (284, -6.28, 6.62, 1.43), 21: (251, -7.09, 5.43, .10),
    162: (389, -7.56, 4.11, -.99), 127: (356, -7.74, 2.36, -2.01), 234: (454, -7.66, .67, -2.44),
    93: (323, -7.54, -1.05, -2.43), 132: (361, -7.27, -2.89, -2.25), 58: (288, -6.72, -4.79, -1.75),
    172: (397, -5.94, -6.22, -.63), 136: (365, -5.09, -7.18, .71), 150: (379, -4.07, -7.99, 1.93),
    149: (378, -3.21, -8.53, 2.80), 176: (400, -2.31, -8.97, 3.61), 148: (377, -1.29, -9.30, 4.09),
    152: (152, 0, -9.40, 4.26),
}
_BROWS = {
    46: (276, -5.25, 3.88, 3.36), 53: (283, -4.59, 4.30, 4.05), 52: (282, -3.73, 4.51, 4.55),
    65: (295, -2.64, 4.52, 4.92), 55: (285, -1.22, 4.14, 5.11), 70: (300, -5.72, 4.25, 2.83),
    63: (293, -4.99, 4.80, 3.75), 105: (334, -3.99, 5.11, 4.47), 66: (296, -2.76, 5.10, 5.02),
    107: (336, -1.40, 5.01, 5.32),
}
_LIPS = {
    61: (291, -2.46, -4.34, 4.28), 146: (375, -2.20, -4.60, 4.48), 91: (321, -1.84, -4.83, 4.82),
    181: (405, -1.33, -5.11, 5.21), 84: (314, -.70, -5.29, 5.45), 17: (17, 0, -5.37, 5.54),
    185: (409, -2.29, -4.05, 4.58), 40: (270, -1.91, -3.80, 5.03), 39: (269, -1.43, -3.50, 5.50),
    37: (267, -.71, -3.33, 5.88), 0: (0, 0, -3.41, 5.98),
}
_MOUTH = {
    78: (308, -2.15, -4.28, 4.04), 95: (324, -1.83, -4.40, 4.40), 88: (318, -1.54, -4.42, 4.75),
    178: (402, -1.10, -4.46, 5.12), 87: (317, -.58, -4.52, 5.34), 14: (14, 0, -4.54, 5.40),
    191: (415, -1.85, -4.10, 4.25), 80: (310, -1.47, -4.04, 4.60), 81: (311, -1.02, -3.99, 4.93),
    82: (312, -.53, -3.99, 5.14), 13: (13, 0, -3.99, 5.22),
}
_EYE = {
    33: (263, -4.45, 2.66, 3.17), 7: (249, -4.25, 2.58, 3.28), 163: (390, -4.02, 2.48, 3.44),
    144: (373, -3.67, 2.36, 3.64), 145: (374, -3.18, 2.29, 3.78), 153: (380, -2.72, 2.32, 3.78),
    154: (381, -2.29, 2.40, 3.70), 155: (382, -2.00, 2.50, 3.69), 133: (362, -1.86, 2.59, 3.76),
    246: (466, -4.25, 2.77, 3.32), 161: (388, -4.02, 2.86, 3.48), 160: (387, -3.67, 2.93, 3.72),
    159: (386, -3.18, 2.96, 3.88), 158: (385, -2.72, 2.96, 3.87), 157: (384, -2.29, 2.89, 3.78),
    173: (398, -2.00, 2.74, 3.74),
}
# fmt: on
PUPILS = {"right eye": 468, "left eye": 473}


@dataclass(frozen=True)
class Points:
    """n points of a mesh: the names by which others know them, the triangle of each, and the shares of its corners."""

    ids: tuple[int, ...]
    face: Int[Tensor, "n"]
    weights: Float[Tensor, "n 3"]

    def at(self, vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "n 3"]:
        """Where they are, differentiable in the vertices."""
        return (self.weights.to(vertices)[..., None] * vertices[faces[self.face]]).sum(dim=1)


def nearest(
    points: Float[Tensor, "n 3"], vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]
) -> tuple[Int[Tensor, "n"], Float[Tensor, "n 3"]]:
    """The triangle nearest to each point, and the shares of its corners in the place that is nearest."""
    corners = vertices[faces]
    middles = corners.mean(dim=1)
    reach = (corners - middles[:, None]).norm(dim=-1).amax(dim=1)
    found_faces, found_weights = [], []
    for point in points:
        away = (middles - point).norm(dim=-1)
        near = (away - reach <= away.min()).nonzero()[:, 0]  # the others are farther than the nearest middle
        which, weights = _in_nearest(point, *corners[near].unbind(1))
        found_faces.append(near[which])
        found_weights.append(weights)
    return torch.stack(found_faces), torch.stack(found_weights)


def _in_nearest(point: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Of the three edges' nearest places and, where it lies within, the plane's."""
    candidates = []
    for k, (start, end) in enumerate(((a, b), (b, c), (c, a))):
        along = end - start
        share = ((point - start) * along).sum(-1) / along.square().sum(-1).clamp(min=1e-30)
        share = share.clamp(0, 1)
        columns = [torch.zeros_like(share)] * 3
        columns[k], columns[(k + 1) % 3] = 1 - share, share
        candidates.append(torch.stack(columns, dim=1))
    normal = torch.linalg.cross(b - a, c - a)
    area = normal.square().sum(-1).clamp(min=1e-30)
    u = (torch.linalg.cross(b - point, c - point) * normal).sum(-1) / area
    v = (torch.linalg.cross(c - point, a - point) * normal).sum(-1) / area
    plane = torch.stack([u, v, 1 - u - v], dim=1)
    candidates.append(torch.where((plane >= 0).all(dim=1, keepdim=True), plane, candidates[0]))
    weights = torch.stack(candidates)  # [4, F, 3]
    away = (weights[..., :1] * a + weights[..., 1:2] * b + weights[..., 2:] * c - point).square().sum(-1)
    which = int(away.flatten().argmin())
    return torch.tensor(which % len(a)), weights.flatten(0, 1)[which]


def on_vertices(ids: tuple[int, ...], vertices: Int[Tensor, "n"], faces: Int[Tensor, "F 3"]) -> Points:
    """Points that are vertices: each in the first triangle that has it as a corner."""
    hit = faces[None] == vertices[:, None, None]  # [n, F, 3]
    face = hit.any(dim=-1).int().argmax(dim=1)
    return Points(ids, face, hit[torch.arange(len(vertices)), face].float())


def ibug(mesh: HeadMesh) -> Points:
    """The 68 landmarks: of eyes and mouth on their rings, the others where the skin is nearest to the measured."""
    measured = to_cm(LANDMARKS.double())
    skin = ((mesh.part[mesh.faces] == PARTS.index("skin")).all(dim=1)).nonzero()[:, 0]
    face, weights = nearest(measured, mesh.vertices, mesh.faces[skin])
    on_rings = on_vertices(tuple(mesh.landmark), torch.tensor(list(mesh.landmark.values())), mesh.faces)
    face, weights = skin[face], weights.float()
    rows = torch.tensor(on_rings.ids)
    face[rows], weights[rows] = on_rings.face, on_rings.weights
    return Points(tuple(range(68)), face, weights)


def mediapipe(mesh: HeadMesh) -> Points:
    """130 of MediaPipe's points: oval, brows, lips, eyes, and the middles of the irises."""
    skin = ((mesh.part[mesh.faces] == PARTS.index("skin")).all(dim=1)).nonzero()[:, 0]
    free = _both(_OVAL) | _both(_BROWS)
    face, weights = nearest(torch.stack(list(free.values())), mesh.vertices, mesh.faces[skin])
    rings = {"lips": _both(_LIPS), "mouth": _both(_MOUTH), "right eye": _one(_EYE, 1), "left eye": _one(_EYE, -1)}
    found: dict[int, int] = {}
    for name, table in rings.items():
        found |= _on_ring(mesh.rings[name], mesh.vertices, table)
    for name, number in PUPILS.items():
        ball = (mesh.part == PARTS.index(name)).nonzero()[:, 0]
        found[number] = int(ball[mesh.vertices[ball, 2].argmax()])
    tied = on_vertices(tuple(found), torch.tensor(list(found.values())), mesh.faces)
    return Points((*free, *found), torch.cat([skin[face], tied.face]), torch.cat([weights.float(), tied.weights]))


def _one(table: dict[int, tuple[int, float, float, float]], side: int) -> dict[int, Tensor]:
    """The points of one side in the measured frame: 1 as in the table, on the right, -1 its mirror image."""
    turn = math.radians(-2.14)
    found = {}
    for number, (mirrored, x, y, z) in table.items():
        y, z = math.cos(turn) * y - math.sin(turn) * z, math.sin(turn) * y + math.cos(turn) * z
        point = torch.tensor([side * x, y, z], dtype=torch.float64) * 0.992
        found[number if side == 1 else mirrored] = point + point.new_tensor([0.0, 0.68, 5.68])
    return found


def _both(table: dict[int, tuple[int, float, float, float]]) -> dict[int, Tensor]:
    return _one(table, 1) | _one(table, -1)


def _on_ring(ring: Tensor, vertices: Tensor, points: dict[int, Tensor]) -> dict[int, int]:
    """For each point of a contour the ring's vertex at the same share of the way between the corners.

    Those above the line between the contour's corners go to the ring's upper half.
    """
    x, y = torch.stack(list(points.values()))[:, :2].unbind(1)
    left, right = x.argmax(), x.argmin()
    share = (x - x[right]) / (x[left] - x[right])
    upper = y > torch.lerp(y[right], y[left], share)
    across, half = vertices[ring, 0], len(ring) // 2
    wanted = torch.lerp(across[half], across[0], share)
    rows = []
    for place, above in zip(wanted, upper, strict=True):
        some = torch.arange(half + 1) if above else torch.cat([torch.arange(half, len(ring)), torch.tensor([0])])
        rows.append(int(ring[some[(across[some] - place).abs().argmin()]]))
    return dict(zip(points, rows, strict=True))
