"""Light on surfaces: the colour that a camera sees of points of a material.

Colours are sRGB throughout, as the priors see them, and are multiplied as they are: the light is a cue of shape, not of
physics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from ..core import Step
from ..representations.mesh import Material


@dataclass(frozen=True)
class Lit:
    """n points in a light: what they look like, with normals on the camera's side; eye, the unit direction in the world
    from each to its camera; view, the camera's number."""

    material: Material
    eye: Float[Tensor, "n 3"]
    view: Int[Tensor, "n"]


@runtime_checkable
class Light(Protocol):
    """Shades points of `views` views: colours [n, 3] in [0, 1]. step None: the fixed light."""

    def __call__(self, points: Lit, views: int, step: Step | None) -> Tensor: ...


@dataclass(frozen=True)
class Lambert:
    """A light from far away on chalk: albedo (ambient + diffuse max(0, n . l)), l the world direction towards it."""

    direction: tuple[float, float, float] = (0.55, -0.35, 0.76)
    ambient: float = 0.6
    diffuse: float = 0.4

    def __post_init__(self) -> None:
        if not any(self.direction):
            raise ValueError("direction must not be (0, 0, 0): it points towards the light.")
        if self.ambient < 0 or self.diffuse < 0 or self.ambient + self.diffuse > 1:
            raise ValueError(
                "ambient and diffuse must be 0 or more and add up to 1 at most, so that colours stay in [0, 1], "
                f"given {self.ambient} and {self.diffuse}."
            )

    def __call__(self, points: Lit, views: int, step: Step | None) -> Tensor:
        normal = points.material.normal
        towards = normalize(normal.new_tensor(self.direction), dim=0)
        cosine = (normal * towards).sum(dim=-1, keepdim=True)
        return points.material.albedo * (self.ambient + self.diffuse * cosine.clamp(min=0))
