"""A stage that begins with a head: the template as a radiance field, Gaussians, an iso-surface or a mesh.

In a field the template is a prior on the density, as in HeadSculpt (Han et al. 2023, arXiv 2306.03038):

| symbol  | variable | equation                                                                               |
|---------|----------|----------------------------------------------------------------------------------------|
| s       | sdf      | signed distance to the template in world units, negative inside                        |
| beta    | beta     | how soft the surface is: 1 / beta is the density inside, per world unit                |
| sigma_g |          | sigmoid(-s / beta) / beta                                                              |
| g       | `raw`    | the number of which the field's density is sigma_g, between `EMPTY_RAW` and `FULL_RAW` |
| sigma   |          | density of h + g, h what is learnt                                                     |

The paper takes |s|, which is a hollow shell; s makes a solid head. It adds g for good. In a dense grid that is the same
as to begin at g: h and h + g have the same gradient at every point, and Adam's steps know nothing but gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .core import Representation, Step
from .meshing import Level
from .renderers.raster import Raster
from .representations.field import DENSITY_SCALE, EMPTY_RAW, LARGEST, Ball, Field
from .representations.head import head
from .representations.head_files import TemplateChoice
from .representations.isosurface import Isosurface, Shell
from .representations.mesh import icosphere
from .representations.start import Blob
from .representations.surfels import surfels
from .representations.texture import unwrap

Into = Literal["field", "gaussians", "isosurface", "mesh", "texture"]  # as the kinds of optimise
FULL_RAW = 20.0  # nothing shines through a cell of it, and Adam can still empty it


@dataclass(frozen=True)
class Head(TemplateChoice):
    """The head template, grey, as what the stage optimises.

    into: its kind. beta: of a field, in world units. What a ray sees lies about three betas outside of the template; a
    beta below a tenth of the step between a ray's samples is drawn with gaps. resolution: points a side of the grid of
    a field or an iso-surface. count: Gaussians. texels: a side, of textures, in the places that the template has.
    """

    SUBJECT = "head"

    into: Into = "field"
    beta: float = 5e-3
    resolution: int = 48
    count: int = 5000
    texels: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta <= 0.1:
            raise ValueError(f"beta must lie in (0, 0.1] world units, given {self.beta}.")
        if not 8 <= self.resolution <= LARGEST:
            raise ValueError(f"resolution must lie in [8, {LARGEST}], given {self.resolution}.")
        if self.count < 1 or self.texels < 16:
            raise ValueError(f"count must be at least 1 and texels 16, given {self.count} and {self.texels}.")

    def __call__(self, previous: Representation | None, step: Step) -> Representation:
        """Raises ValueError for files that are missing or no template."""
        template = self.found()
        mesh = template.mesh()
        if self.into == "mesh":
            return mesh
        if self.into == "gaussians":
            return surfels(mesh, self.count, step)
        if self.into == "texture":
            # Without places of its own the template is unwrapped.
            return unwrap(mesh, self.texels) if template.uv is None else template.textured(self.texels)
        surface = Level(Raster(), self.resolution)(mesh, step)  # solid, also where lips and sockets hide hollows
        assert isinstance(surface, Isosurface)  # That is what it makes.
        if self.into == "isosurface":
            return surface
        x = raw(surface.sdf.detach(), self.beta)[..., None]
        return Field(torch.cat([x, x.new_zeros(*x.shape[:3], 3)], dim=-1))

    def blank(self, previous: Representation | None) -> Representation:
        """The smallest of its class."""
        if self.into == "mesh":
            return icosphere(0)
        if self.into == "texture":
            return head().textured(1)
        starts = {"field": Ball(), "gaussians": Blob(), "isosurface": Shell()}
        return starts[self.into].blank(None)


def raw(sdf: Float[Tensor, "X Y Z"], beta: float) -> Float[Tensor, "X Y Z"]:
    """The raw number x of a field whose density, DENSITY_SCALE softplus(x), is sigmoid(-sdf / beta) / beta.

    It is EMPTY_RAW far outside and at most `FULL_RAW`.
    """
    density = (-sdf / beta).sigmoid() / (beta * DENSITY_SCALE)
    return (density + (-(-density).expm1()).log()).clamp(EMPTY_RAW, FULL_RAW)  # log(exp(density) - 1) overflows
