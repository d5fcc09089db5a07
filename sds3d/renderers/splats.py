"""Drawing Gaussians: gsplat on CUDA, the C kernel on the CPU in float32, sparse PyTorch everywhere else."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..core import Background, Cameras, RenderOutput, Representation, Screen, Step
from ..representations.gaussians import Gaussians
from . import splats_torch
from .normals import normals_from_depth
from .splats_torch import Drawn, Shapes

OUTSIDE = 1 / 255  # at and below this alpha a pixel has no depth and no normal


def draw(shapes: Shapes, cameras: Cameras) -> Drawn:
    return splats_torch.draw(shapes, cameras)


@dataclass(frozen=True)
class Splats:
    """Draws `Gaussians`: rgb over the background, alpha, mean depth, normals from depth, and the screen for growth.

    Differentiable in every parameter and in the background. Raises TypeError for another representation.
    """

    def __call__(
        self, rep: Representation, cameras: Cameras, background: Background, step: Step | None = None
    ) -> RenderOutput:
        gaussians = rep.at(cameras.time)
        if not isinstance(gaussians, Gaussians):
            raise TypeError(f"The renderer splats draws Gaussians, given {type(gaussians).__name__}.")
        cameras = cameras.to(gaussians.means)
        shapes = Shapes(gaussians.means, gaussians.scales, gaussians.quats, gaussians.opacities, gaussians.rgb)
        drawn = draw(shapes, cameras)
        rgb = drawn.colour + (1 - drawn.alpha) * background.rgb.to(drawn.colour)[:, None, None]
        inside = drawn.alpha > OUTSIDE
        depth = torch.where(inside, drawn.depth / torch.where(inside, drawn.alpha, 1.0), 0.0)
        normal = normals_from_depth(depth, inside, cameras)
        return RenderOutput(rgb, drawn.alpha, depth, normal, screen=Screen(drawn.means2d, drawn.radii))
