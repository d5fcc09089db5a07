"""Where an asset lies in its file, and how large it is."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Representation
from ..representations.gaussians import Gaussians
from ..representations.mesh import Triangles

SEEN = 0.5  # of the highest opacity; fainter Gaussians have no say in how large the object is


@dataclass(frozen=True)
class Similarity:
    """x -> scale * (x - centre), of Gaussians with their sizes."""

    scale: float = 1.0
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def inverse(self) -> Similarity:
        x, y, z = self.centre
        return Similarity(1 / self.scale, (-self.scale * x, -self.scale * y, -self.scale * z))

    @torch.no_grad()
    def __call__(self, rep: Representation) -> Representation:
        """A moved copy; the representation itself where nothing moves."""
        if self == Similarity():
            return rep
        moved = copy.deepcopy(rep)
        if isinstance(moved, Triangles):
            moved.base.copy_(self.points(moved.vertices))
            moved.offsets.zero_()
        elif isinstance(moved, Gaussians):
            moved.means.copy_(self.points(moved.means))
            moved.log_scales.add_(math.log(self.scale))
        else:
            raise TypeError(f"Size and pivot are for Gaussians and meshes, not for a {type(rep).__name__}.")
        return moved

    def points(self, points: Float[Tensor, "M 3"]) -> Float[Tensor, "M 3"]:
        return self.scale * (points - points.new_tensor(self.centre))


@dataclass(frozen=True)
class Placement:
    """size: the longest side of the bounding box in metres; None leaves one unit of the world one metre.

    pivot: what lies in the file's origin: the world's origin ("world"), the middle of the box ("center") or the middle
    of its base ("base").
    """

    size: float | None = None
    pivot: Literal["world", "center", "base"] = "world"

    def __post_init__(self) -> None:
        if self.size is not None and not (math.isfinite(self.size) and self.size > 0):
            raise ValueError(f"The size of an asset is a positive number of metres, given {self.size}.")

    def of(self, rep: Representation) -> Similarity:
        """The similarity that places this representation. Raises ValueError for one without extent."""
        if self == Placement():
            return Similarity()
        low, high = bounds(rep)
        longest = float((high - low).max())
        if self.size is not None and not longest > 0:
            raise ValueError("The asset is a single point, which no scale brings to a size.")
        scale = 1.0 if self.size is None else self.size / longest
        middle = (low + high) / 2
        if self.pivot == "base":
            middle[2] = low[2]
        x, y, z = (0.0, 0.0, 0.0) if self.pivot == "world" else middle.tolist()
        return Similarity(scale, (x, y, z))


@torch.no_grad()
def visible(rep: Representation) -> Float[Tensor, "M 3"]:
    """The corners of a mesh, or the centres of the Gaussians that can be seen. TypeError for anything else."""
    if isinstance(rep, Triangles):
        return rep.vertices[rep.faces.unique()]
    if isinstance(rep, Gaussians):
        return rep.means[rep.opacities >= SEEN * rep.opacities.max()]
    raise TypeError(f"Size and pivot are for Gaussians and meshes, not for a {type(rep).__name__}.")


def bounds(rep: Representation) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    """The two corners of the bounding box of what is `visible`."""
    points = visible(rep)
    return points.amin(dim=0), points.amax(dim=0)
