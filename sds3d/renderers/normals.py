"""World normals from a depth map: robust for round Gaussians, whose own axes say nothing about the surface."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from ..core import Cameras


def _slope(depth: Tensor, inside: Tensor, footprint: Tensor) -> Tensor:
    """Change of depth [B, H, W] per pixel along the last axis, from the two neighbours.

    A neighbour weighs less the larger the jump towards it is in pixel footprints, so that an edge between near and far
    does not tilt the surfaces on both of its sides. Zero where no neighbour is inside.
    """
    change = depth[..., 1:] - depth[..., :-1]
    weight = (inside[..., 1:] & inside[..., :-1]) / (change.square() + footprint.square())
    moved = change * weight
    total = pad(weight, (0, 1)) + pad(weight, (1, 0))
    moved = pad(moved, (0, 1)) + pad(moved, (1, 0))
    return moved / torch.where(total > 0, total, 1.0)


def normals_from_depth(
    depth: Float[Tensor, "B H W 1"], inside: Bool[Tensor, "B H W 1"], cameras: Cameras
) -> Float[Tensor, "B H W 3"]:
    """Unit world normals [B, H, W, 3] of the surface z = depth, turned to the camera; 0 outside.

    Where depth has the slopes a and b per pixel, the surface point depth (u, v, 1) has the normal
    (a f_x, b f_y, -(depth + u a f_x + v b f_y)), which faces the camera at every slope. Differentiable in depth.
    """
    z, mask = depth[..., 0], inside[..., 0]  # [B, H, W]
    fx, fy = cameras.K[:, 0, 0, None, None], cameras.K[:, 1, 1, None, None]
    cx, cy = cameras.K[:, 0, 2, None, None], cameras.K[:, 1, 2, None, None]
    u = (torch.arange(cameras.width, dtype=z.dtype, device=z.device) + 0.5 - cx) / fx  # [B, 1, W]
    v = (torch.arange(cameras.height, dtype=z.dtype, device=z.device)[:, None] + 0.5 - cy) / fy  # [B, H, 1]
    # One footprint per view, the pixel's width at the depth of the world's origin, keeps the weights smooth.
    distance = cameras.radius[:, None, None]
    a = fx * _slope(z, mask, distance / fx)
    b = fy * _slope(z.transpose(1, 2), mask.transpose(1, 2), distance / fy).transpose(1, 2)
    # Plane by plane: at a few thousand pixels, tensors with a last axis of 3 cost three times as much.
    c = -torch.where(mask, z + u * a + v * b, 1.0)  # a and b are 0 outside, so this keeps the length from being 0
    scale = (a * a + b * b + c * c).rsqrt() * mask
    a, b, c, R = a * scale, b * scale, c * scale, cameras.c2w[:, :3, :3, None, None]
    return torch.stack([R[:, i, 0] * a + R[:, i, 1] * b + R[:, i, 2] * c for i in range(3)], dim=-1)
