"""Signed distances of basic solids: negative inside, in world units, for points p [..., 3]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Solid = Callable[[Tensor], Tensor]  # points [..., 3] -> signed distance [...]


def sphere(radius: float) -> Solid:
    return lambda p: p.norm(dim=-1) - radius


def ellipsoid(a: float, b: float, c: float) -> Solid:
    """First-order distance (exact on the surface) to the ellipsoid with half-axes a, b, c."""

    def distance(p: Tensor) -> Tensor:
        axes = p.new_tensor([a, b, c])
        q = p / axes
        length = q.norm(dim=-1)
        return length * (length - 1) / (q / axes).norm(dim=-1).clamp_min(1e-6)

    return distance


def box(x: float, y: float, z: float, rounding: float = 0.02) -> Solid:
    """Half-sizes x, y, z, outer measure, with rounded edges."""

    def distance(p: Tensor) -> Tensor:
        q = p.abs() - p.new_tensor([x - rounding, y - rounding, z - rounding])
        return q.clamp_min(0).norm(dim=-1) + q.amax(dim=-1).clamp_max(0) - rounding

    return distance


def cylinder(radius: float, half_height: float, rounding: float = 0.02) -> Solid:
    """Along z, outer measure, with rounded rims."""

    def distance(p: Tensor) -> Tensor:
        q = torch.stack([p[..., :2].norm(dim=-1) - radius, p[..., 2].abs() - half_height], dim=-1) + rounding
        return q.clamp_min(0).norm(dim=-1) + q.amax(dim=-1).clamp_max(0) - rounding

    return distance


def cone(radius: float, half_height: float, top: float = 0.0) -> Solid:
    """Along z: `radius` at the bottom, `top` at the top (exact distance to a capped cone)."""

    def distance(p: Tensor) -> Tensor:
        x, y = p[..., :2].norm(dim=-1), p[..., 2]
        rim = torch.where(y < 0, radius, top)
        cap_x, cap_y = x - torch.minimum(x, rim), y.abs() - half_height
        kx, ky = top - radius, 2 * half_height
        along = (((top - x) * kx + (half_height - y) * ky) / (kx * kx + ky * ky)).clamp(0, 1)
        side_x, side_y = x - top + kx * along, y - half_height + ky * along
        inside = (side_x < 0) & (cap_y < 0)
        squared = torch.minimum(cap_x**2 + cap_y**2, side_x**2 + side_y**2)
        return torch.where(inside, -1.0, 1.0) * squared.sqrt()

    return distance


def torus(radius: float, tube: float) -> Solid:
    """Around z."""
    return lambda p: torch.hypot(p[..., :2].norm(dim=-1) - radius, p[..., 2]) - tube


def capsule(start: tuple[float, float, float], end: tuple[float, float, float], radius: float) -> Solid:
    def distance(p: Tensor) -> Tensor:
        a = p.new_tensor(start)
        axis = p.new_tensor(end) - a
        along = ((p - a) @ axis / axis.dot(axis)).clamp(0, 1)
        return (p - a - along[..., None] * axis).norm(dim=-1) - radius

    return distance


def prism(x: float, y: float, z: float) -> Solid:
    """A gable roof: ridge along x, half-length x, half-width y at the bottom, half-height z; a bound off its faces."""

    def distance(p: Tensor) -> Tensor:
        slope = torch.hypot(torch.tensor(2 * z), torch.tensor(y))
        side = (p[..., 1].abs() * 2 * z + (p[..., 2] - z) * y) / slope
        return torch.maximum(torch.maximum(side, p[..., 0].abs() - x), -z - p[..., 2])

    return distance


def moved(solid: Solid, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Solid:
    return lambda p: solid(p - p.new_tensor([x, y, z]))


def scaled(solid: Solid, scale: float) -> Solid:
    return lambda p: solid(p / scale) * scale


def turned(solid: Solid, axes: tuple[int, int, int]) -> Solid:
    """The solid with its coordinates permuted: turned(cylinder, (1, 2, 0)) lies along x."""
    return lambda p: solid(p[..., list(axes)])


def carved(solid: Solid, hole: Solid) -> Solid:
    return lambda p: torch.maximum(solid(p), -hole(p))


def union(*solids: Solid) -> Solid:
    return lambda p: torch.stack([solid(p) for solid in solids]).amin(dim=0)
