"""Signed distances from pictures with depth, so that whatever can be drawn can become a closed surface.

| symbol | variable | equation                                                                           |
|--------|----------|------------------------------------------------------------------------------------|
| p      | points   | a point of the grid; a view sees it at the depth z and in the pixel u              |
| d      | along    | D(u) - z, the way from p on to the surface that the view shows, cut to at most w   |
|        |          | p is outside where d > 0; where d < -w it is hidden, and the view has no word      |
| h      | hull     | r (1 - 2 a(u)), r the size of a pixel at p; above 0 outside of the silhouette      |
| s      | sdf      | the greater of mean(d) over the views with a word and max(h) over all views        |

mean(d) is the truncated distance of Curless and Levoy 1996, max(h) the visual hull (Laurentini 1994) with the edge that
antialiasing gives it. A point that no view has a word about is inside, at -w.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample

from ..cameras import world_to_camera
from ..core import Cameras

TRUNCATION = 3.0  # w in steps of the grid
FULL = 0.5  # alpha from which on a pixel's depth is a surface's


def grid_points(resolution: int, radius: float, like: Tensor) -> Float[Tensor, "R R R 3"]:
    """The points of an even grid over the cube [-radius, radius]^3, indexed x, y, z."""
    axis = torch.linspace(-radius, radius, resolution, dtype=like.dtype, device=like.device)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)


@torch.no_grad()
def fuse(
    depth: Float[Tensor, "B H W 1"],
    alpha: Float[Tensor, "B H W 1"],
    cameras: Cameras,
    resolution: int = 64,
    radius: float = 1.0,
) -> Float[Tensor, "R R R"]:
    """Signed distances in world units, negative inside, on an even grid over the cube [-radius, radius]^3.

    depth: camera z, as renderers give it. Views should look from all around: what none of them sees past is solid.
    Raises ValueError where the pictures are not those of the cameras.
    """
    size = (len(cameras), cameras.height, cameras.width, 1)
    if depth.shape != size or alpha.shape != size:
        raise ValueError(f"depth and alpha must be {list(size)}, given {list(depth.shape)} and {list(alpha.shape)}.")
    points = grid_points(resolution, radius, depth).view(-1, 3)
    width = TRUNCATION * 2 * radius / (resolution - 1)
    total, words = torch.zeros_like(points[:, 0]), torch.zeros_like(points[:, 0])
    hull = torch.full_like(total, -width)
    cameras = cameras.to(depth)
    for view, w2c in enumerate(world_to_camera(cameras)):
        local = points @ w2c[:3, :3].T + w2c[:3, 3]
        z = local[:, 2].clamp_min(1e-6)
        focal = cameras.K[view, [0, 1], [0, 1]]
        pixel = local[:, :2] / z[:, None] * focal + cameras.K[view, :2, 2]
        where = 2 * pixel / pixel.new_tensor([cameras.width, cameras.height]) - 1
        seen = ((where.abs() <= 1).all(dim=1) & (local[:, 2] > 0)).to(z)
        picked = [sample(picture[view], where) for picture in (alpha, depth * (alpha > FULL), (alpha > FULL).to(depth))]
        a, d, share = picked
        hull = torch.maximum(hull, torch.where(seen > 0, z / focal.mean() * (1 - 2 * a), hull))
        along = d / share.clamp_min(FULL) - z
        told = seen * (share > FULL) * (along > -width)
        total += told * along.clamp(max=width)
        words += told
    mean = torch.where(words > 0, total / words.clamp_min(1), -width)
    return torch.maximum(mean, hull).view(resolution, resolution, resolution)


def sample(picture: Float[Tensor, "H W 1"], where: Float[Tensor, "n 2"]) -> Float[Tensor, "n"]:
    """A picture at places in [-1, 1]^2, bilinear between the centres of pixels."""
    return grid_sample(picture.permute(2, 0, 1)[None], where[None, None], align_corners=False)[0, 0, 0]
