"""The nearest triangle at each pixel centre, in PyTorch on any device, and what the rasteriser shares with it.

Everything here is made of single operations in a fixed order. So the plane through the eye and an edge is -1 times that
of the neighbouring triangle, to the bit, and no crack opens between them; and the C kernel can draw the same pixels.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core import Cameras
from ..representations.mesh import ranges

NEAR = 0.01  # in world units; what is nearer to the camera's plane is not drawn


def zbuffer(local: Float[Tensor, "B V 3"], faces: Int[Tensor, "F 3"], cameras: Cameras) -> Int[Tensor, "B H W"]:
    """The index of the nearest triangle at each pixel centre, -1 where there is none; of two at one depth the first.

    local: vertices in the cameras' frames. Computed in float64. Each triangle meets the pixels of its bounding box, all
    of them where it crosses the camera's plane.
    """
    B, H, W = len(local), cameras.height, cameras.width
    a, b, c = local.detach().double()[:, faces].unbind(2)  # [B, F, 3] each
    planes = torch.stack([cross(b, c), cross(c, a), cross(a, b)], dim=2)  # [B, F, 3, 3]
    volume = dot(a, planes[:, :, 0])
    K = cameras.K.double()
    corners = torch.stack([a, b, c], dim=2)
    z = corners[..., 2]
    pixel = corners[..., :2] / z[..., None] * K[:, None, None, [0, 1], [0, 1]] + K[:, None, None, :2, 2]
    size = pixel.new_tensor([W, H])
    whole = (z > NEAR).all(dim=-1)[..., None]  # a projected box bounds only what is in front
    low = torch.where(whole, (pixel.amin(dim=2) - 0.5).ceil().clamp(min=0).minimum(size), 0.0)
    high = torch.where(whole, (pixel.amax(dim=2) - 0.5).floor() + 1, size).clamp(min=0).minimum(size)
    drawn = (z > NEAR).any(dim=-1) & (volume != 0) & volume.isfinite()
    extent = torch.where(drawn[..., None], (high - low).clamp(min=0), 0.0)
    low, extent = low.long().reshape(-1, 2), extent.long().reshape(-1, 2)  # [B F, 2]: column, row
    row, place = ranges(extent.prod(dim=1))  # one entry per triangle and pixel
    x = low[row, 0] + place % extent[row, 0]
    y = low[row, 1] + place // extent[row, 0]
    view, face = row // len(faces), row % len(faces)
    weights = dot(planes.flatten(0, 1)[row], pixel_rays(K, view, x, y)[:, None])
    total = weights[:, 0] + weights[:, 1] + weights[:, 2]
    depth = volume.flatten()[row] / torch.where(total != 0, total, 1.0)
    hit = (weights * total.sign()[:, None] >= 0).all(dim=1) & (total != 0) & (depth > NEAR)
    at, depth, face = ((view * H + y) * W + x)[hit], depth[hit], face[hit]
    nearest = depth.new_full((B * H * W,), torch.inf).scatter_reduce(0, at, depth, "amin")
    first = depth == nearest[at]
    none = faces.new_full((B * H * W,), len(faces))
    ids = none.scatter_reduce(0, at[first], face[first], "amin")
    return torch.where(ids < len(faces), ids, -1).view(B, H, W)


def cross(a: Tensor, b: Tensor) -> Tensor:
    """a x b over the last axis, which is -(b x a) to the bit.

    A fused multiply-add, as in `torch.linalg.cross`, rounds one of the two products only and has not this symmetry.
    """
    (ax, ay, az), (bx, by, bz) = a.unbind(-1), b.unbind(-1)
    return torch.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], dim=-1)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """a . b over the last axis, in a fixed order and without fused operations."""
    (ax, ay, az), (bx, by, bz) = a.unbind(-1), b.unbind(-1)
    return ax * bx + ay * by + az * bz


def pixel_rays(K: Float[Tensor, "B 3 3"], view: Tensor, x: Tensor, y: Tensor) -> Float[Tensor, "n 3"]:
    """Directions of camera z = 1 through the centres of pixels."""
    u = (x.to(K) + 0.5 - K[view, 0, 2]) / K[view, 0, 0]
    v = (y.to(K) + 0.5 - K[view, 1, 2]) / K[view, 1, 1]
    return torch.stack([u, v, torch.ones_like(u)], dim=-1)
