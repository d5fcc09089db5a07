"""A stage that begins with the user's own asset: a splat file or a mesh."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from .core import Representation, Step
from .export import glb_splat, ply_mesh, read
from .export.placement import Similarity, bounds, visible
from .export.ply import HEADER_LIMIT
from .meshing import Meshed
from .renderers.splats import Splats
from .representations.gaussians import Gaussians
from .representations.mesh import Mesh, Triangles, icosphere, logits_of
from .representations.start import Blob
from .representations.surfels import surfels
from .representations.texture import TexturedMesh, unwrap

Into = Literal["gaussians", "mesh", "texture"]  # as the kinds of optimise
FACES, SPLATS = re.compile(rb"\nelement face [1-9]"), b"KHR_gaussian_splatting"
RADIUS = 0.85  # of an asset that is brought into the world's sphere
SMALLEST, LARGEST = 0.2, 1.1  # of one that is left as it is; pictures show a little more than the sphere


@dataclass(frozen=True)
class File:
    """The asset of a file that `sds3d export` can write, as the representation that the stage optimises.

    path: None leaves it to the user, who must name one. into: Gaussians, a mesh with colours at its vertices, or one
    with textures. count: Gaussians that a mesh becomes. texels: a side, of the texture that other colours become. grey:
    without its colours, of which those near 0 and 1 hardly change any more. place: move and scale an asset that reaches
    out of the world's sphere, or is smaller than a fifth of it.
    """

    path: str | None = None
    into: Into = "gaussians"
    count: int = 5000
    texels: int = 512
    grey: bool = False
    place: bool = True

    def __post_init__(self) -> None:
        if self.count < 1 or self.texels < 16:
            raise ValueError(f"count must be at least 1 and texels 16, given {self.count} and {self.texels}.")

    def __call__(self, previous: Representation | None, step: Step) -> Representation:
        """Raises ValueError for a file that is not there, cannot be read or holds nothing that can be seen."""
        rep = opened(self.found())
        rep = self.turned(placed(rep) if self.place else rep, step)
        if self.grey:
            with torch.no_grad():
                getattr(rep, "albedo_logits" if self.into == "texture" else "colour_logits").zero_()
        return rep

    def turned(self, rep: Representation, step: Step) -> Representation:
        """An asset as what the stage optimises."""
        if self.into == "gaussians":
            return rep if isinstance(rep, Gaussians) else surfels(_triangles(rep), self.count, step)
        if self.into == "texture" and isinstance(rep, TexturedMesh):
            return rep
        mesh = rep if isinstance(rep, Mesh) else _vertex_coloured(rep, step)
        return mesh if self.into == "mesh" else unwrap(mesh, self.texels)

    def found(self) -> Path:
        """The file. Raises ValueError where none is named and where it is not there."""
        if self.path is None:
            raise ValueError("This recipe begins with a splat or a mesh of your own; add --start FILE.")
        if not Path(self.path).is_file():
            raise ValueError(f"There is no file {self.path} to start from.")
        return Path(self.path)

    def blank(self, previous: Representation | None) -> Representation:
        """The smallest of its class."""
        if self.into == "gaussians":
            return Blob(1).blank(None)
        return icosphere(0) if self.into == "mesh" else unwrap(icosphere(0), 16)


def opened(path: Path) -> Representation:
    """The asset of a file, by its suffix; where that may mean splats or a mesh, by what it holds. Raises ValueError."""
    data = path.read_bytes()
    if path.suffix == ".ply" and FACES.search(data[:HEADER_LIMIT]):
        return ply_mesh.decode({str(path): data})
    if path.suffix == ".glb" and SPLATS in data:
        return glb_splat.decode({str(path): data})
    return read(path)


def _triangles(rep: Representation) -> Triangles:
    if not isinstance(rep, Triangles):
        raise ValueError(f"A file with {type(rep).__name__} cannot be a start.")
    return rep


def _vertex_coloured(rep: Representation, step: Step) -> Mesh:
    """A textured mesh keeps its triangles and takes its texture's colours at its corners; Gaussians are meshed."""
    if isinstance(rep, TexturedMesh):
        corner = torch.eye(3).to(rep.base)
        faces = torch.arange(len(rep), device=rep.faces.device)
        rgb = torch.zeros_like(rep.base)
        for k in range(3):
            albedo = rep.material(faces, corner[k].expand(len(faces), 3)).albedo
            rgb[rep.faces[:, k]] = albedo.detach()
        return Mesh(rep.vertices, rep.faces, logits_of(rgb))
    made = Meshed(Splats())(rep, step)
    assert isinstance(made, Mesh)  # That is what it makes.
    return made


def placed(rep: Representation) -> Representation:
    """The asset within the world's sphere: as it is where it fits, else with the middle of its box in the origin.

    Gaussians that can hardly be seen have no say in it.
    """
    points = visible(rep)
    low, high = bounds(rep)
    if points.norm(dim=-1).max() <= LARGEST and (high - low).max() >= 2 * SMALLEST:
        return rep
    centre = (low + high) / 2
    radius = (points - centre).norm(dim=-1).max()
    if not radius > 0:
        raise ValueError("The asset has no extent: all of it lies in one point.")
    x, y, z = centre.tolist()
    return Similarity(RADIUS / float(radius), (x, y, z))(rep)
