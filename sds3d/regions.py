"""Regions in which an asset may be edited: of the world, or of a mesh's surface, with values in [0, 1].

A region of the world is a function of points. It need not hold anything yet: a hat that an edit adds lies where there
was air. In a picture it covers what of it can be seen: the greatest value along each ray as far as the surface, and a
little into it. A region of a surface is a picture over the square of its textures, and moves with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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
from .core import Cameras, RenderOutput

SAMPLES = 48  # along a ray through the unit sphere, one each twenty-fourth of the world's unit
INTO = 0.06  # world units behind the surface that still count, more than a step between samples
FULL = 0.5  # alpha from which on a pixel's depth is a surface's


@runtime_checkable
class Region(Protocol):
    """How much of what each pixel of a render shows may change: 0 nothing, 1 all."""

    def seen(self, cameras: Cameras, out: RenderOutput) -> Float[Tensor, "B H W 1"]: ...


class Space(ABC):
    """How much of a place of the world may change: points [*n, 3] -> [*n], 0 nothing, 1 all."""

    @abstractmethod
    def __call__(self, p: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n"]: ...

    def seen(self, cameras: Cameras, out: RenderOutput) -> Float[Tensor, "B H W 1"]:
        """How much of it each pixel shows; see `covered`."""
        return covered(self, cameras, out.depth, out.alpha)


@dataclass(frozen=True)
class Ball(Space):
    """All within `radius` of `centre`, in world units."""

    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    radius: float = 0.5

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"The radius of a region must be positive, given {self.radius}.")

    def __call__(self, p: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n"]:
        return ((p - p.new_tensor(self.centre)).norm(dim=-1) <= self.radius).to(p)


@dataclass(frozen=True)
class Box(Space):
    """All between two corners, in world units."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"A box needs its low corner below its high one, given {self.low} and {self.high}.")

    def __call__(self, p: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n"]:
        return ((p >= p.new_tensor(self.low)) & (p <= p.new_tensor(self.high))).all(dim=-1).to(p)


@dataclass(frozen=True)
class Voxels(Space):
    """Values in [0, 1] on an even grid over the cube [-1, 1]^3, linear between its points, 0 outside.

    path: a .npy file of numbers [R, R, R] along x, y and z.
    """

    path: str

    def __call__(self, p: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n"]:
        """Raises ValueError for a file that is not there or holds something else."""
        grid = _read(self.path, _written(self.path), 3).to(p)
        flat = p.reshape(1, 1, 1, -1, 3).flip(-1)  # The last axis of a grid is the first of a sampled place.
        return grid_sample(grid[None, None], flat, align_corners=True, padding_mode="zeros").reshape(p.shape[:-1])


@dataclass(frozen=True)
class Texels:
    """Values in [0, 1] over the square of a mesh's textures, read as these are; 0 where a pixel shows no surface.

    path: a .npy file of numbers [S, S], row 0 at the top of the square (v = 1).
    """

    path: str

    def seen(self, cameras: Cameras, out: RenderOutput) -> Float[Tensor, "B H W 1"]:
        """Raises ValueError for a file that is not there or holds something else, and for what has no textures."""
        picture = _read(self.path, _written(self.path), 2)
        if out.uv is None:
            raise ValueError("A region over a texture needs a mesh with textures, drawn by the renderer raster.")
        u, v = out.uv.unbind(-1)
        at = torch.stack([2 * u - 1, 1 - 2 * v], dim=-1)
        read = grid_sample(
            picture.to(at).expand(len(at), 1, -1, -1), at, align_corners=False, padding_mode="border"
        ).movedim(1, -1)
        return torch.where(u[..., None] >= 0, read, 0.0)


def _written(path: str) -> int:
    """When a file was written. Raises ValueError where it is not there."""
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path} with a region.")
    return Path(path).stat().st_mtime_ns


@cache
def _read(path: str, written: int, axes: int) -> Tensor:
    """The grid of a file as it was at a time, so that it is read once and yet again when it has changed."""
    shape = "[" + ", ".join("R" * axes) + "]"
    try:
        grid = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a region: it must be a .npy file of numbers {shape}.") from error
    fits = getattr(grid, "ndim", 0) == axes and np.issubdtype(grid.dtype, np.floating) and min(grid.shape) >= 2
    if not fits or not np.isfinite(grid).all() or grid.min() < 0 or grid.max() > 1:
        raise ValueError(f"{path} holds no region: it must be a grid {shape} of numbers in [0, 1].")
    return torch.from_numpy(grid.astype(np.float32))


@torch.no_grad()
def covered(
    region: Space, cameras: Cameras, depth: Float[Tensor, "B H W 1"], alpha: Float[Tensor, "B H W 1"]
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
