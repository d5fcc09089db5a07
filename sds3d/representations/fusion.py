"""Signed distances and colours from pictures with depth, so that whatever can be drawn can become a closed surface.

| symbol | variable | equation                                                                           |
|--------|----------|------------------------------------------------------------------------------------|
| p      | places   | a point of the grid; a view sees it at the depth z and in the pixel u              |
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
from torch.nn.functional import grid_sample, max_pool3d, normalize

from ..cameras import world_to_camera
from ..core import Cameras
from .field import points

TRUNCATION = 3.0  # w in steps of the grid
FULL = 0.5  # alpha from which on a pixel's depth is a surface's
UNSEEN = 1e-4  # the worth of a view that does not see a point


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
    places = radius * points(resolution, depth).view(-1, 3)
    width = TRUNCATION * 2 * radius / (resolution - 1)
    total, words = torch.zeros_like(places[:, 0]), torch.zeros_like(places[:, 0])
    hull = torch.full_like(total, -width)
    cameras = cameras.to(depth)
    for view in range(len(cameras)):
        where, z, pixel = project(places, cameras, view)
        seen = ((where.abs() <= 1).all(dim=1) & (z > 0)).to(z)
        full = (alpha[view] > FULL).to(depth)
        a, d, share = (sample(picture, where)[:, 0] for picture in (alpha[view], depth[view] * full, full))
        hull = torch.maximum(hull, torch.where(seen > 0, pixel * (1 - 2 * a), hull))
        along = d / share.clamp_min(FULL) - z
        told = seen * (share > FULL) * (along > -width)
        total += told * along.clamp(max=width)
        words += told
    mean = torch.where(words > 0, total / words.clamp_min(1), -width)
    return torch.maximum(mean, hull).view(resolution, resolution, resolution)


@torch.no_grad()
def without_specks(sdf: Float[Tensor, "X Y Z"], share: float = 0.01) -> Float[Tensor, "X Y Z"]:
    """The distances with every part taken away whose volume is below a share of the whole: floating specks.

    A part is what hangs together along the axes of the grid.
    """
    inside = sdf < 0
    numbers = torch.arange(1, sdf.numel() + 1, dtype=torch.float64, device=sdf.device).view(sdf.shape)
    names = torch.where(inside, numbers, 0.0)
    while True:  # Every point takes the greatest name of its neighbours, until each part has one.
        lines = [[3 if other == axis else 1 for other in range(3)] for axis in range(3)]
        grown = [max_pool3d(names[None], line, stride=1, padding=[k // 2 for k in line])[0] for line in lines]
        grown = torch.where(inside, torch.stack(grown).amax(dim=0), 0.0)
        if torch.equal(grown, names):
            break
        names = grown
    _, part, volume = names.unique(return_inverse=True, return_counts=True)
    speck = inside & (volume[part] < share * inside.sum())
    return torch.where(speck, sdf.abs().clamp_min(torch.finfo(sdf.dtype).tiny), sdf)


@torch.no_grad()
def paint(
    places: Float[Tensor, "n 3"],
    normals: Float[Tensor, "n 3"],
    premultiplied: Float[Tensor, "B H W 3"],
    depth: Float[Tensor, "B H W 1"],
    alpha: Float[Tensor, "B H W 1"],
    cameras: Cameras,
) -> Float[Tensor, "n 3"]:
    """Colours in [0, 1] of places on the surface: the mean over the views that see them, the more the straighter.

    premultiplied: pictures over black. A view sees a point that is at most two pixels behind what it shows; a point
    that no view sees gets the colour of what hides it.
    """
    cameras = cameras.to(places)
    colour, weight = torch.zeros_like(places), torch.zeros_like(places[:, :1])
    for view in range(len(cameras)):
        where, z, pixel = project(places, cameras, view)
        towards = normalize(cameras.position[view] - places, dim=-1)
        facing = (normals * towards).sum(dim=-1).clamp_min(0).square()
        full = (alpha[view] > FULL).to(depth)
        d, share = (sample(picture, where)[:, 0] for picture in (depth[view] * full, full))
        visible = (share > FULL) & (z < d / share.clamp_min(FULL) + 2 * pixel)
        worth = ((facing + UNSEEN) * (visible + UNSEEN))[:, None]
        colour += worth * sample(premultiplied[view], where)
        weight += worth * sample(alpha[view], where)
    return (colour / weight.clamp_min(1e-12)).clamp(0, 1)


def project(
    places: Float[Tensor, "n 3"], cameras: Cameras, view: int
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Where a view sees places: the place in [-1, 1]^2 of its picture, the depth, and a pixel's size at that depth."""
    w2c = world_to_camera(cameras[view : view + 1])[0]
    local = places @ w2c[:3, :3].T + w2c[:3, 3]
    z = local[:, 2]
    focal = cameras.K[view, [0, 1], [0, 1]]
    pixel = local[:, :2] / z.clamp_min(1e-6)[:, None] * focal + cameras.K[view, :2, 2]
    return 2 * pixel / pixel.new_tensor([cameras.width, cameras.height]) - 1, z, z / focal.mean()


def sample(picture: Float[Tensor, "H W c"], where: Float[Tensor, "n 2"]) -> Float[Tensor, "n c"]:
    """A picture at places in [-1, 1]^2, bilinear between the centres of pixels, 0 outside."""
    return grid_sample(picture.permute(2, 0, 1)[None], where[None, None], align_corners=False)[0, :, 0].T
