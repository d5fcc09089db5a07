"""A mesh of whatever can be drawn: Gaussians, a field, or another mesh.

Pictures from all around are fused to a surface, which is thinned and painted; then its vertices and colours are fitted
to the same pictures, because an iso-surface on a grid is blunt at edges and a little small.
"""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, normalize

from .cameras import orbit
from .core import Background, Cameras, Renderer, RenderOutput, Representation, Step
from .engine import Start
from .renderers.raster import Raster
from .representations.field import points
from .representations.fusion import FULL, fuse, paint, without_specks
from .representations.isosurface import Isosurface, Shell, redistanced, surface_nets
from .representations.mesh import Mesh, Triangles, icosphere, logits_of
from .representations.simplify import simplified
from .representations.texture import unwrap
from .schedules import Ramp

# Elevation in degrees and views; no stage looks from further below. Between rings that lie further apart, outlines are
# those of no view.
RINGS = ((-10.0, 12), (10.0, 12), (30.0, 12), (50.0, 12), (80.0, 4))
VIEWS, STRIDE = 4, 15  # of a step of the fit, each a ring higher than the last and a quarter turn further
STEP_LENGTH = Ramp(4e-3, 4e-4, curve="exponential")
CUT = 4  # places a side of a pixel, of `hard`
Surface = TypeVar("Surface", bound=Triangles)


def require(*modules: str) -> None:
    """Raise ValueError where a library is missing that a start will need after hours, perhaps, of other stages."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ValueError(f'Making meshes takes {module.replace("_", "-")}: pip install "sds3d[mesh]".')


def all_around(size: int, like: Tensor) -> Cameras:
    """Cameras on rings around the object, each turned by half a step against the one below it."""
    rings = enumerate(RINGS)
    places = [(360 / views * (k + ring / 2), elevation) for ring, (elevation, views) in rings for k in range(views)]
    azimuth, elevation = (list(angles) for angles in zip(*places, strict=True))
    return orbit(azimuth, elevation, size).to(like)


def hard(out: RenderOutput) -> RenderOutput:
    """Colour and alpha of a picture over black as a surface would show them: cut where alpha is a half.

    Fuzzy edges are no surface's, and one that is fitted to them becomes ragged, for the sake of a blurred outline.
    Alpha and premultiplied colour are read linearly at `CUT` x `CUT` places a pixel, each full or empty, whose mean the
    pixel takes. Not differentiable.
    """
    columns = torch.cat([out.alpha, out.rgb], dim=-1).detach().permute(0, 3, 1, 2)  # [B, 4, H, W]
    alpha, rgb = interpolate(columns, scale_factor=CUT, mode="bilinear").split([1, 3], dim=1)
    full = alpha > FULL
    rgb = torch.where(full, rgb / torch.where(full, alpha, 1.0), 0.0).clamp(0, 1)
    alpha, rgb = (avg_pool2d(picture, CUT).permute(0, 2, 3, 1) for picture in (full.to(rgb), rgb))
    return replace(out, rgb=rgb, alpha=alpha)


def fit_to(mesh: Surface, target: RenderOutput, cameras: Cameras, steps: int) -> Surface:
    """A copy of a mesh with its vertices and its colours or textures moved toward pictures over black.

    The error is the squared difference of colour and of alpha, on `VIEWS` views a step in a fixed order.
    """
    mesh = copy.deepcopy(mesh)
    mesh.prepare(mesh.OPTIMISE(offsets=STEP_LENGTH), Step(0))
    for index in range(steps):
        rows = (VIEWS * index + torch.arange(VIEWS)) * STRIDE % len(cameras)
        some = Cameras(cameras.c2w[rows], cameras.K[rows], cameras.height, cameras.width)
        out = Raster()(mesh, some, Background(target.rgb.new_zeros(VIEWS, 3)))
        error = (out.rgb - target.rgb[rows]).square().mean() + (out.alpha - target.alpha[rows]).square().mean()
        error.backward()
        mesh.update(out, Step(0, "fit", index=index, progress=index / max(steps - 1, 1)))
    return mesh


@dataclass(frozen=True)
class Fused:
    """What the stage before left, seen from all around by its `renderer` in pictures of `size` pixels.

    resolution: points a side of the grid on which the pictures are fused.
    """

    renderer: Renderer
    resolution: int = 64
    size: int = 64

    def __post_init__(self) -> None:
        if self.resolution < 8 or self.size < 8:
            raise ValueError(
                f"Pictures are fused with a resolution and a size of at least 8, given {self.resolution}, {self.size}."
            )

    def pictures(self, previous: Representation | None) -> tuple[RenderOutput, Cameras]:
        """The asset from all around, over black. Raises ValueError where there is none."""
        if previous is None:
            raise ValueError("The first stage has nothing to make a mesh of; give it another start, such as a sphere.")
        like = next(previous.parameters()).detach()
        cameras = all_around(self.size, like)
        with torch.no_grad():
            return self.renderer(previous, cameras, Background(like.new_zeros(len(cameras), 3))), cameras

    def distances(self, previous: Representation | None, out: RenderOutput, cameras: Cameras) -> Float[Tensor, "R R R"]:
        """Its signed distances, without specks: those that it has, or else what the pictures tell.

        Raises ValueError for what cannot be seen.
        """
        known = isinstance(previous, Isosurface)
        sdf = previous.sdf.detach() if known else fuse(out.depth, out.alpha, cameras, self.resolution)
        sdf = without_specks(sdf)
        if not (sdf < 0).any():
            raise ValueError("There is nothing to make a mesh of: the asset is nowhere more than half opaque.")
        return sdf


@dataclass(frozen=True)
class Level(Fused):
    """An iso-surface of what the stage before left, which can still change its topology."""

    resolution: int = 48

    def __call__(self, previous: Representation | None, step: Step) -> Representation:
        """Raises ValueError where there is no stage before, or where it left nothing that can be seen."""
        out, cameras = self.pictures(previous)
        sdf = self.distances(previous, out, cameras)
        slope = normalize(torch.stack(torch.gradient(sdf), dim=-1), dim=-1)
        nearest = points(len(sdf), sdf) - sdf[..., None] * slope
        places = (nearest.view(-1, 3), slope.view(-1, 3))
        rgb = paint(*places, out.rgb, out.depth, out.alpha, cameras)
        return Isosurface(redistanced(sdf, sweeps=len(sdf)), logits_of(rgb).view_as(slope))

    def blank(self, previous: Representation | None) -> Representation:
        """An iso-surface on the smallest grid."""
        return Shell().blank(previous)


@dataclass(frozen=True)
class Meshed(Fused):
    """A closed mesh with colours at its vertices of what the stage before left.

    triangles: at most. fit: steps of fitting vertices and colours to the pictures.
    """

    triangles: int = 5000
    fit: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require("fast_simplification")
        if self.triangles < 4 or self.fit < 0:
            raise ValueError(
                f"A mesh needs at least 4 triangles and no negative fit, given {self.triangles} and {self.fit}."
            )

    def __call__(self, previous: Representation | None, step: Step) -> Representation:
        """Raises ValueError where there is no stage before, or where it left nothing that can be seen."""
        out, cameras = self.pictures(previous)
        return fit_to(self.surface(previous, out, cameras), hard(out), cameras, self.fit)

    def surface(self, previous: Representation | None, out: RenderOutput, cameras: Cameras) -> Mesh:
        """The surface of the distances, thinned and painted."""
        sdf = self.distances(previous, out, cameras)
        bare = Mesh(*simplified(*surface_nets(sdf), self.triangles))
        colours = paint(bare.vertices.detach(), bare.normals().detach(), out.rgb, out.depth, out.alpha, cameras)
        return Mesh(bare.vertices, bare.faces, logits_of(colours))

    def blank(self, previous: Representation | None) -> Representation:
        """A mesh of twenty triangles."""
        return icosphere(0)


@dataclass(frozen=True)
class Textured(Meshed):
    """A closed mesh with textures of `texels` a side, which are baked by fitting them to the same pictures."""

    texels: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        require("xatlas")

    def __call__(self, previous: Representation | None, step: Step) -> Representation:
        out, cameras = self.pictures(previous)
        surface, target = self.surface(previous, out, cameras), hard(out)
        mesh = fit_to(surface, target, cameras, self.fit)
        return fit_to(unwrap(mesh, self.texels), target, cameras, self.fit)

    def blank(self, previous: Representation | None) -> Representation:
        """A textured mesh of twenty triangles."""
        return unwrap(icosphere(0), 16)


@dataclass(frozen=True)
class Unwrapped:
    """A mesh with textures of `texels` a side, in the colours that its vertices had.

    of: where the mesh comes from, as a start of its own.
    """

    of: Start
    texels: int = 256

    def __post_init__(self) -> None:
        require("xatlas")

    def __call__(self, previous: Representation | None, step: Step) -> Representation:
        """Raises ValueError for what is no mesh with colours at its vertices."""
        mesh = self.of(previous, step)
        if not isinstance(mesh, Mesh):
            raise ValueError(
                f"Only a mesh with colours at its vertices can be unwrapped, given a {type(mesh).__name__}."
            )
        return unwrap(mesh, self.texels)

    def blank(self, previous: Representation | None) -> Representation:
        """A textured mesh of twenty triangles."""
        return unwrap(icosphere(0), 16)
