"""A mesh grown from rings of vertices, which strips of quads join and fans of triangles close."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass
class Surface:
    """A mesh while it grows: rings of vertices, joined by strips of quads and closed by fans."""

    points: list[Tensor] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    places: list[Tensor] = field(default_factory=list)
    corners: list[Tensor] = field(default_factory=list)  # [n, 4, 2]: vertex and place; a triangle repeats its last
    count: int = 0
    placed: int = 0

    def ring(self, points: Float[Tensor, "n 3"], part: str) -> Int[Tensor, "n"]:
        """Add vertices, each of them of a part; returns their numbers."""
        self.points.append(points)
        self.parts += [part] * len(points)
        self.count += len(points)
        return torch.arange(self.count - len(points), self.count)

    def place(self, uv: Float[Tensor, "n 2"]) -> Int[Tensor, "n"]:
        """Add places in the square of textures; returns their numbers."""
        self.places.append(uv)
        self.placed += len(uv)
        return torch.arange(self.placed - len(uv), self.placed)

    def strip(self, outer: Tensor, inner: Tensor, kept: Tensor | None = None) -> None:
        """Quads between two rings [n, 2] of vertices and places, which run counter-clockwise around what lies inward.

        The last of n is joined to the first, unless rings tell where they are `kept`, of n - 1 quads.
        """
        if kept is None:
            outer, inner = torch.cat([outer, outer[:1]]), torch.cat([inner, inner[:1]])
        quads = torch.stack([outer[:-1], outer[1:], inner[1:], inner[:-1]], dim=1)
        self.corners.append(quads if kept is None else quads[kept])

    def fan(self, ring: Tensor, pole: Tensor) -> None:
        """Triangles from a ring [n, 2] to a pole [1, 2]."""
        self.strip(ring, pole.expand(len(ring), 2))

    def triangles(self) -> tuple[Int[Tensor, "F 3"], Int[Tensor, "F 3"]]:
        """Vertices and places of triangles; diagonals of quads lean the other way where x > 0, as in a mirror."""
        vertices, quads = torch.cat(self.points), torch.cat(self.corners)
        left = vertices[quads[..., 0]].mean(dim=1)[:, 0] > 0
        whole = quads[:, 2, 0] != quads[:, 3, 0]
        leaning = torch.where((left & whole)[:, None, None], quads.roll(-1, dims=1), quads)
        first, second = leaning[:, [0, 1, 2]], leaning[:, [0, 2, 3]]
        triangles = torch.cat([first, second[whole]])
        return triangles[..., 0], triangles[..., 1]


def joined(vertices: Tensor, places: Tensor) -> Tensor:
    """Vertices and places [n, 2] of a ring."""
    return torch.stack([vertices, places], dim=1)
