"""Regions of the world in which an asset may be edited: functions of points with values in [0, 1].

A region need not hold anything yet: a hat that an edit adds lies where there was air. In a picture a region covers
what of it can be seen: the greatest value along each ray as far as the surface, and a little into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import grid_sample

from .cameras import rays
from .core import Cameras

SAMPLES = 48  # along a ray through the unit sphere, one each twenty-fourth of the world's unit
INTO = 0.06  # world units behind the surface that still count, more than a step between samples
FULL = 0.5  # alpha from which on a pixel's depth is a surface's


@runtime_checkable
class Region(Protocol):
    """How much of a place may change: points [*n, 3] of the world -> [*n], 0 nothing, 1 all."""

    def __call__(self, p: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n"]: ...


@dataclass(frozen=True)
class Ball:
    """All within `radius` of `centre`, in world units."""

    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    radius: float = 0.5

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"The radius of a region must be positive, given {self.radius}.")

    def __call__(self, p: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n"]:
        return ((p - p.new_tensor(self.centre)).norm(dim=-1) <= self.radius).to(p)


@dataclass(frozen=True)
class Box:
    """All between two corners, in world units."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"A box needs its low corner below its high one, given {self.low} and {self.high}.")

    def __call__(self, p: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n"]:
        return ((p >= p.new_tensor(self.low)) & (p <= p.new_tensor(self.high))).all(dim=-1).to(p)


@dataclass(frozen=True)
class Voxels:
    """Values in [0, 1] on an even grid over the cube [-1, 1]^3, linear between its points, 0 outside.

    path: a .npy file of numbers [R, R, R] along x, y and z.
    """

    path: str

    def __call__(self, p: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n"]:
        """Raises ValueError for a file that is not there or holds something else."""
        grid = _read(self.path, _written(self.path)).to(p)
        flat = p.reshape(1, 1, 1, -1, 3).flip(-1)  # The last axis of a grid is the first of a sampled place.
        return grid_sample(grid[None, None], flat, align_corners=True, padding_mode="zeros").reshape(p.shape[:-1])


def _written(path: str) -> int:
    """When a file was written. Raises ValueError where it is not there."""
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path} with a region.")
    return Path(path).stat().st_mtime_ns


@cache
def _read(path: str, written: int) -> Float[Tensor, "R R R"]:
    """The grid of a file as it was at a time, so that it is read once and yet again when it has changed."""
    try:
        grid = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a region: it must be a .npy file of numbers [R, R, R].") from error
    fits = getattr(grid, "ndim", 0) == 3 and np.issubdtype(grid.dtype, np.floating) and min(grid.shape) >= 2
    if not fits or not np.isfinite(grid).all() or grid.min() < 0 or grid.max() > 1:
        raise ValueError(f"{path} holds no region: it must be a grid [R, R, R] of numbers in [0, 1].")
    return torch.from_numpy(grid.astype(np.float32))


@torch.no_grad()
def covered(
    region: Region, cameras: Cameras, depth: Float[Tensor, "B H W 1"], alpha: Float[Tensor, "B H W 1"]
) -> Float[Tensor, "B H W 1"]:
    """How much of a region each pixel shows, where the asset in front of it leaves it to be seen.

    depth: camera z, as renderers give it. Nearer than the unit sphere and behind it there is no region.
    """
    origins, directions = rays(cameras)
    length = directions.norm(dim=-1, keepdim=True)
    middle = -(origins * directions).sum(dim=-1, keepdim=True) / length.square()
    half = 1 / length
    end = torch.where(alpha > FULL, torch.minimum(depth + INTO, middle + half), middle + half)
    most = torch.zeros_like(depth)
    for share in torch.linspace(0, 1, SAMPLES).tolist():
        t = middle + (2 * share - 1) * half
        most = torch.maximum(most, torch.where(t <= end, region(origins + t * directions)[..., None], 0.0))
    return most
