"""Marching through fields in plain PyTorch: samples in occupied cells alone, packed, one segment per ray.

The image formation, shared by all backends:

* a ray is sampled at the distances (k + u) step from the camera, k = 0, 1, ..., in world units; u in (0, 1) is the
  ray's own, 1/2 without jitter; a place outside of the cube [-1, 1]^3 or in a cell that is not occupied is empty;
* alpha = 1 - exp(-density step), front to back, until the transmittance is at most `stop` (the sample that gets there
  still counts);
* the normal of a sample is -g / sqrt(g^2 + 1e-12), where g is the exact gradient of the interpolated x, per world unit.

A field is what gives the raw numbers (x, r, g, b) at places: a dense grid between its points, a `HashField` by itself.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from ..representations.field import DENSITY_SCALE
from ..representations.hash_field import HashField

DIAGONAL = 2 * math.sqrt(3)  # of the cube, in world units
SOFT = 1e-12  # added to the squared length of a gradient, so that a normal has a derivative everywhere


@dataclass(frozen=True)
class March:
    """What every backend takes; the C kernel only dense grids.

    grid: [R, R, R, 4], raw numbers, or a field that is hashed. occupied: [C, C, C], where a dense grid has C = R - 1.
    origins: [B, 3]. directions: [B, H, W, 3] with camera z = 1. offset: [B, H, W] in (0, 1), the u of each ray. step:
    world units. stop: a transmittance.
    """

    grid: Float[Tensor, "R R R 4"] | HashField
    occupied: Bool[Tensor, "C C C"]
    origins: Float[Tensor, "B 3"]
    directions: Float[Tensor, "B H W 3"]
    offset: Float[Tensor, "B H W"]
    step: float
    stop: float


@dataclass(frozen=True)
class Marched:
    """Sums along each ray, weighted with alpha times transmittance.

    colour: over black. alpha. depth: of camera z. normal. away: of max(0, normal . ray)^2, the orientation penalty.
    """

    colour: Float[Tensor, "B H W 3"]
    alpha: Float[Tensor, "B H W 1"]
    depth: Float[Tensor, "B H W 1"]
    normal: Float[Tensor, "B H W 3"]
    away: Float[Tensor, "B H W 1"]


SUMS = (3, 1, 1, 3, 1)  # channels of the parts of `Marched`, in their order


@torch.no_grad()
def _samples(march: March) -> tuple[Tensor, Tensor]:
    """Ray and distance of every sample in an occupied cell, sorted by ray and there by distance: [n] each."""
    size, cells = march.step, march.occupied.shape[0]
    length = march.directions.norm(dim=-1)
    unit = march.directions / length[..., None]
    origins = march.origins[:, None, None]
    # The cube lies in a sphere of its diagonal, which meets as many samples on any ray through the middle.
    middle = -(origins * unit).sum(-1)
    half = (DIAGONAL**2 / 4 - (origins + middle[..., None] * unit).square().sum(-1)).clamp_min(0).sqrt()
    first = ((middle - half) / size - march.offset).floor().clamp_min(0)
    k = first[..., None] + torch.arange(math.ceil(DIAGONAL / size) + 2, device=first.device)
    t = (k + march.offset[..., None]) * size  # [B, H, W, K]
    place = (origins[..., None, :] + t[..., None] * unit[..., None, :] + 1) * (cells / 2)
    inside = ((place >= 0) & (place <= cells)).all(dim=-1)
    x, y, z = place.long().clamp(0, cells - 1).unbind(-1)
    ray, index = (inside & march.occupied[x, y, z]).flatten(0, 2).nonzero().unbind(-1)
    return ray, t.flatten(0, 2)[ray, index]


def _interpolate(grid: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """The four raw numbers [n, 4] at points [n, 3] of the cube, and the gradient [n, 3] of the first."""
    n = grid.shape[0]
    place = (points + 1) * ((n - 1) / 2)
    cell = place.detach().long().clamp(0, n - 2)
    high = place - cell
    share = torch.stack([1 - high, high])  # [2, n, 3]
    x, y, z = share.unbind(-1)
    raw, gradient = 0.0, 0.0
    for i, j, k in itertools.product((0, 1), repeat=3):
        corner = grid[cell[:, 0] + i, cell[:, 1] + j, cell[:, 2] + k]
        raw = raw + (x[i] * y[j] * z[k])[:, None] * corner
        slopes = [(2 * i - 1) * y[j] * z[k], (2 * j - 1) * x[i] * z[k], (2 * k - 1) * x[i] * y[j]]
        gradient = gradient + (n - 1) / 2 * torch.stack(slopes, dim=-1) * corner[:, :1]
    assert isinstance(raw, Tensor) and isinstance(gradient, Tensor)
    return raw, gradient


def _before(depth: Tensor, ray: Tensor) -> Tensor:
    """Transmittance in front of each sample of a segment; depth [n] is the samples' own optical depth.

    The sums run over all segments at once; float64 keeps the difference of two of them exact enough.
    """
    total = depth.double().cumsum(0) - depth.double()
    first = torch.searchsorted(ray, ray)  # left: the segment's first sample
    return torch.exp(total[first] - total).to(depth.dtype)


def _places(rays: March, ray: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Of samples: where they are, and the unit direction of their ray, [n, 3] each."""
    directions = rays.directions.reshape(-1, 3)[ray]
    unit = directions / directions.norm(dim=-1, keepdim=True)
    return rays.origins[ray // rays.offset[0].numel()] + t[:, None] * unit, unit


def _depth(rays: March, raw: Tensor) -> Tensor:
    """The optical depth [n] of samples with raw numbers [n, 4]."""
    return rays.step * DENSITY_SCALE * softplus(raw[:, 0])


@torch.no_grad()
def live_samples(rays: March) -> tuple[Tensor, Tensor]:
    """Ray and distance [n] of the samples that add to the picture, sorted by ray and there by distance."""
    ray, t = _samples(rays)
    if rays.stop == 0:
        return ray, t
    points, grid = _places(rays, ray, t)[0], rays.grid
    raw = grid.raw(points) if isinstance(grid, HashField) else _interpolate(grid, points)[0]
    live = _before(_depth(rays, raw), ray) > rays.stop
    return ray[live], t[live]


def march(rays: March) -> Marched:
    """Follow every ray; differentiable in the grid. Memory grows with the samples."""
    (B, H, W), grid = rays.offset.shape, rays.grid
    ray, t = live_samples(rays)
    points, unit = _places(rays, ray, t)
    raw, slope = grid.sample(points) if isinstance(grid, HashField) else _interpolate(grid, points)
    depth = _depth(rays, raw)
    weight = -torch.expm1(-depth) * _before(depth, ray)
    normal = -slope * (slope.square().sum(-1, keepdim=True) + SOFT).rsqrt()
    away = (normal * unit).sum(-1, keepdim=True).clamp_min(0).square()
    z = t[:, None] / rays.directions.norm(dim=-1).flatten()[ray, None]
    features = torch.cat([raw[:, 1:].sigmoid(), torch.ones_like(z), z, normal, away], dim=-1)
    sums = features.new_zeros(B * H * W, sum(SUMS)).index_add(0, ray, weight[:, None] * features)
    return Marched(*sums.reshape(B, H, W, -1).split(SUMS, dim=-1))
