"""Pinhole cameras: orbits, turntables, rays, and conversions between frames named by both frames.

The world is z-up with the object's front facing +x; a camera looks along its own +z with +y down (OpenCV). A camera at
azimuth a, elevation e and distance r sits at r (cos e cos a, cos e sin a, sin e).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .core import Cameras, Step

RADIUS = 3.0  # at this distance and angle of view the unit sphere just fills the picture
FOV_Y_DEG = 40.0


def look_at(position: Float[Tensor, "B 3"]) -> Float[Tensor, "B 4 4"]:
    """Camera-to-world matrices [B, 4, 4] of cameras at `position` that look at the origin with +z up.

    A camera straight above or below has no defined azimuth; its picture's right is then +y.
    """
    forward = torch.nn.functional.normalize(-position, dim=-1)
    up = position.new_tensor([0.0, 0.0, 1.0]).expand_as(position)
    right = torch.linalg.cross(forward, up)
    vertical = right.norm(dim=-1, keepdim=True) < 1e-6
    right = torch.where(vertical, position.new_tensor([0.0, 1.0, 0.0]), right)
    right = torch.nn.functional.normalize(right, dim=-1)
    down = torch.linalg.cross(forward, right)
    c2w = torch.eye(4, dtype=position.dtype, device=position.device).repeat(len(position), 1, 1)
    c2w[:, :3] = torch.stack([right, down, forward, position], dim=-1)
    return c2w


def intrinsics(fov_y_deg: Float[Tensor, "B"], height: int, width: int) -> Float[Tensor, "B 3 3"]:
    """K in pixels for a full vertical angle of view, square pixels, the principal point in the middle."""
    focal = height / (2 * torch.tan(torch.deg2rad(fov_y_deg) / 2))
    K = torch.zeros(len(fov_y_deg), 3, 3, dtype=fov_y_deg.dtype, device=fov_y_deg.device)
    K[:, 0, 0] = K[:, 1, 1] = focal
    K[:, 0, 2], K[:, 1, 2], K[:, 2, 2] = width / 2, height / 2, 1
    return K


def orbit(
    azimuth_deg: Float[Tensor, "B"] | Sequence[float],
    elevation_deg: Float[Tensor, "B"] | Sequence[float] | float,
    size: int,
    radius: float = RADIUS,
    fov_y_deg: float = FOV_Y_DEG,
) -> Cameras:
    """Square cameras of `size` pixels on a sphere around the origin, all looking at it."""
    azimuth = torch.deg2rad(torch.as_tensor(azimuth_deg, dtype=torch.float32))
    elevation = torch.deg2rad(torch.as_tensor(elevation_deg, dtype=torch.float32)).expand_as(azimuth)
    position = radius * torch.stack(
        [elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], dim=-1
    )
    K = intrinsics(torch.full((len(azimuth),), float(fov_y_deg)), size, size)
    return Cameras(look_at(position), K, size, size)


def turntable(frames: int, size: int, elevation_deg: float = 15.0) -> Cameras:
    """`frames` cameras once around the object at one height, starting at its front."""
    return orbit([360 * i / frames for i in range(frames)], elevation_deg, size)


@dataclass(frozen=True)
class Orbit:
    """Random cameras around the object, in groups of `group` that are evenly spaced and share one elevation.

    views: cameras a step. size: pixels a side. elevation_deg: range, uniform. fov_y_deg: full angle of view. radius:
    distance. group: cameras in one evenly spaced ring.
    """

    views: int = 4
    size: int = 64
    elevation_deg: tuple[float, float] = (-10.0, 45.0)
    fov_y_deg: float = FOV_Y_DEG
    radius: float = RADIUS
    group: int = 4

    def __post_init__(self) -> None:
        if self.views < 1 or self.group < 1 or self.views % self.group:
            raise ValueError(f"views ({self.views}) must be a positive multiple of group ({self.group}).")
        if not -90 <= self.elevation_deg[0] <= self.elevation_deg[1] <= 90:
            raise ValueError(f"elevation_deg must be a range within [-90, 90], given {self.elevation_deg}.")
        if not 0 < self.fov_y_deg < 180 or self.radius <= 0 or self.size < 1:
            raise ValueError("fov_y_deg must lie in (0, 180), radius and size must be positive.")

    def __call__(self, step: Step) -> Cameras:
        first = torch.arange(self.views) // self.group * self.group
        turn = 360 * (torch.arange(self.views) % self.group) / self.group
        azimuth = 360 * step.uniform("azimuth", self.views)[first] + turn
        low, high = self.elevation_deg
        elevation = low + (high - low) * step.uniform("elevation", self.views)[first]
        return orbit(azimuth, elevation, self.size, self.radius, self.fov_y_deg)


def rays(cameras: Cameras, samples: int = 1) -> tuple[Float[Tensor, "B H W 3"], Float[Tensor, "B H W 3"]]:
    """Origins and directions [B, H s, W s, 3] through the centres of s x s sub-pixels, s = `samples`.

    Directions have camera z = 1, so a point at parameter t along a ray has depth t.
    """
    fine = cameras.resized(cameras.height * samples, cameras.width * samples)
    v, u = torch.meshgrid(
        torch.arange(fine.height, dtype=fine.K.dtype, device=fine.K.device) + 0.5,
        torch.arange(fine.width, dtype=fine.K.dtype, device=fine.K.device) + 0.5,
        indexing="ij",
    )
    pixels = torch.stack([u, v, torch.ones_like(u)], dim=-1)  # [H, W, 3]
    local = torch.einsum("bij,hwj->bhwi", torch.linalg.inv(fine.K), pixels)
    directions = torch.einsum("bij,bhwj->bhwi", fine.c2w[:, :3, :3], local)
    origins = fine.c2w[:, None, None, :3, 3].expand_as(directions)
    return origins, directions


def opencv_to_opengl(c2w: Float[Tensor, "B 4 4"]) -> Float[Tensor, "B 4 4"]:
    """The same pose with camera axes right, up, backward."""
    return c2w * c2w.new_tensor([1.0, -1.0, -1.0, 1.0])


def world_to_camera(cameras: Cameras) -> Float[Tensor, "B 4 4"]:
    """The rigid inverse of c2w."""
    rotation = cameras.c2w[:, :3, :3].transpose(1, 2)
    w2c = torch.zeros_like(cameras.c2w)
    w2c[:, :3, :3] = rotation
    w2c[:, :3, 3] = -torch.einsum("bij,bj->bi", rotation, cameras.position)
    w2c[:, 3, 3] = 1
    return w2c


def view_word(azimuth_deg: float, elevation_deg: float = 0.0, front_deg: float = 45.0) -> str:
    """The word of the field for a view: "front", "side", "back" or, above 60 degrees, "overhead".

    front_deg: half the width of the front sector, and of the back sector.
    """
    if elevation_deg > 60:
        return "overhead"
    away = abs((azimuth_deg + 180) % 360 - 180)
    if away <= front_deg:
        return "front"
    return "back" if away >= 180 - front_deg else "side"
