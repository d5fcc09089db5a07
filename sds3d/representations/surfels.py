"""Gaussians on a surface: flat discs along its triangles, so that a mesh can be drawn and refined as splats.

| symbol | variable | equation                                                                       |
|--------|----------|--------------------------------------------------------------------------------|
| A, n   | area     | the surface's area, and the number of discs                                    |
| d      | spacing  | sqrt(A / n), the side of a disc's share of the surface                         |
|        | scales   | SPREAD d along the surface, THICK d across it                                  |

The discs lie at even steps of area along the triangles, each at a random place of its own. Without order between
neighbouring triangles that is stratified sampling by area.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ..core import Step
from .gaussians import Gaussians
from .mesh import Triangles, logits_of

SPREAD, THICK = 0.65, 0.1  # in spacings; discs that overlap so far leave no holes
OPACITY = 0.95


@torch.no_grad()
def surfels(mesh: Triangles, count: int, step: Step) -> Gaussians:
    """`count` Gaussians on a mesh, in its unshaded colours. Raises ValueError where it has no area."""
    vertices = mesh.vertices
    corners = vertices[mesh.faces]  # [F, 3, 3]
    across = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    areas = across.norm(dim=-1).double() / 2
    total = float(areas.sum())
    if not total > 0 or not math.isfinite(total):
        raise ValueError(f"A mesh must have a surface to be covered with Gaussians; its area is {total:g}.")
    u, v, w = torch.special.ndtr(step.normal("surfels", vertices.new_empty(1, count, 3))[0]).double().unbind(-1)
    along = (torch.arange(count, device=areas.device) + u) * (total / count)
    face = torch.searchsorted(areas.cumsum(0), along).clamp(max=len(areas) - 1)
    root = v.sqrt()
    weights = torch.stack([1 - root, root * (1 - w), root * w], dim=-1).to(vertices)  # even over the triangle
    means = (weights[..., None] * corners[face]).sum(dim=1)
    colours = mesh.material(face, weights).albedo
    spacing = math.sqrt(total / count)
    scales = vertices.new_tensor([SPREAD, SPREAD, THICK]) * spacing
    return Gaussians(
        means=means,
        log_scales=scales.log().expand(count, 3),
        quats=turn_to(normalize(across[face], dim=-1)),
        opacity_logits=vertices.new_full((count,), OPACITY).logit(),
        colour_logits=logits_of(colours),
    )


def turn_to(directions: Float[Tensor, "n 3"]) -> Float[Tensor, "n 4"]:
    """Unit quaternions wxyz that turn +z to unit directions the short way; for -z half a turn about x."""
    x, y, z = directions.unbind(-1)
    opposite = z < -1 + 1e-6
    half = torch.stack([1 + z, -y, x, torch.zeros_like(z)], dim=-1)
    return torch.where(opposite[:, None], directions.new_tensor([0.0, 1, 0, 0]), normalize(half, dim=-1))
