"""Drawing fields: dense ones by the C kernel on the CPU in float32; elsewhere, and hashed ones, by packed PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import rays
from ..core import Background, Cameras, RenderOutput, Representation, Step
from ..representations.field import Field
from ..representations.hash_field import HashField
from . import kernels, volume_torch
from .kernels import volume as volume_c
from .splats import OUTSIDE
from .volume_torch import DIAGONAL, SOFT, March, Marched


@dataclass(frozen=True)
class Volume:
    """Draws a `Field` or a `HashField` by marching.

    Gives rgb over the background, alpha, mean depth, normals, and what faces away. samples: along the diagonal of the
    field's cube, evenly spaced. stop: a ray ends where no more than this share of the light comes through; 0 follows
    every ray to its end. With a step the samples of each ray are shifted by a share
    of their spacing, drawn anew; without one they are not. Normals are the mean of the slopes of the density, of
    length 1, 0 outside.

    Differentiable in the field and in the background. Raises TypeError for another representation.
    """

    samples: int = 96
    stop: float = 1e-4

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= 4096:
            raise ValueError(f"samples must lie in [1, 4096], given {self.samples}.")
        if not 0 <= self.stop < 1:
            raise ValueError(f"stop is a transmittance in [0, 1), given {self.stop}.")

    def __call__(
        self, rep: Representation, cameras: Cameras, background: Background, step: Step | None = None
    ) -> RenderOutput:
        field = rep.at(cameras.time)
        if not isinstance(field, Field | HashField):
            raise TypeError(f"The renderer volume draws a Field or a HashField, given {type(field).__name__}.")
        grid, like = (field.grid, field.grid) if isinstance(field, Field) else (field, field.table)
        origins, directions = rays(cameras.to(like))
        offset = torch.full_like(directions[..., 0], 0.5)
        if step is not None:
            offset = torch.special.ndtr(step.normal("jitter", offset))  # even in (0, 1)
        march = March(grid, field.occupied, origins[:, 0, 0], directions, offset, DIAGONAL / self.samples, self.stop)
        drawn = draw(march)
        rgb = drawn.colour + (1 - drawn.alpha) * background.rgb.to(drawn.colour)[:, None, None]
        inside = drawn.alpha > OUTSIDE
        depth = torch.where(inside, drawn.depth / torch.where(inside, drawn.alpha, 1.0), 0.0)
        return RenderOutput(rgb, drawn.alpha, depth, _unit(drawn.normal, inside), away=drawn.away)


def draw(march: March) -> Marched:
    """Follow the rays: the C kernel for dense grids in float32 on the CPU, where there is one, else PyTorch."""
    library = None if isinstance(march.grid, HashField) else kernels.backend_for(march.grid).library
    return volume_torch.march(march) if library is None else volume_c.march(march, library)


def _unit(sums: Tensor, inside: Tensor) -> Tensor:
    """Normals of length 1 where something is drawn, else 0."""
    scale = (sums.square().sum(-1, keepdim=True) + SOFT).rsqrt()
    return torch.where(inside, scale * sums, 0.0)
