"""Where a stage begins: from a ball of grey Gaussians, or from what the stage before left."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Representation, Step
from .gaussians import Gaussians

OPACITY = 0.1  # as 3DGS: transparent enough that gradients reach the whole ball
COLOUR_NOISE = 0.2  # in logits; a little, so that equal neighbours do not stay equal


def neighbour_distance(points: Float[Tensor, "M 3"], neighbours: int = 3) -> Float[Tensor, "M"]:
    """Root mean square distance to the nearest `neighbours` points, the size that 3DGS gives a new Gaussian.

    A lone point gets 1. Not differentiable.
    """
    k = min(neighbours, len(points) - 1)
    if k == 0:
        return torch.ones_like(points[:, 0])
    nearest = [
        # The exact mode: matrix products lose the digits of small distances.
        torch.cdist(chunk, points, compute_mode="donot_use_mm_for_euclid_dist").topk(k + 1, largest=False).values
        for chunk in points.detach().split(1024)
    ]
    return torch.cat(nearest)[:, 1:].square().mean(dim=-1).sqrt()


@dataclass(frozen=True)
class Blob:
    """`count` grey, round, faint Gaussians, spread evenly in a ball of `radius` around the origin."""

    count: int = 2000
    radius: float = 0.5

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, given {self.count}.")
        if not 0 < self.radius <= 1:
            raise ValueError(f"radius must lie in (0, 1], the object's sphere, given {self.radius}.")

    def __call__(self, previous: Representation | None, step: Step) -> Representation:
        draws = step.child("start").normal("blob", torch.empty(1, self.count, 12))[0]
        # Three coordinates of an even point on the sphere in five dimensions are an even point in the ball.
        means = self.radius * torch.nn.functional.normalize(draws[:, :5], dim=-1)[:, :3]
        size = neighbour_distance(means).clamp(min=1e-4, max=self.radius)
        return Gaussians(
            means=means,
            log_scales=size.log()[:, None].repeat(1, 3),
            quats=torch.nn.functional.normalize(draws[:, 5:9], dim=-1),
            opacity_logits=torch.full((self.count,), math.log(OPACITY / (1 - OPACITY))),
            colour_logits=COLOUR_NOISE * draws[:, 9:12],
        )

    def blank(self, previous: Representation | None) -> Representation:
        """One Gaussian."""
        return replace(self, count=1)(None, Step(0))


@dataclass(frozen=True)
class Continue:
    """The representation that the stage before left; ValueError where there is none."""

    def __call__(self, previous: Representation | None, step: Step) -> Representation:
        if previous is None:
            raise ValueError("The first stage has nothing to continue: give it another start, for example a blob.")
        return previous

    def blank(self, previous: Representation | None) -> Representation:
        return self(previous, Step(0))
