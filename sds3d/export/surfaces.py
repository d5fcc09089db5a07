"""Meshes as the columns of a mesh file, in one of two frames, and back.

    y-up, front to +z:   (x, y, z) -> (y, z, x)     glTF and OBJ
    z-up, front to -y:   (x, y, z) -> (y, -x, z)    PLY and STL, as Blender and slicers take them

Blender turns the first into the second when it reads, so an asset lies the same way whichever file it came from.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Representation
from ..representations.mesh import Mesh, Triangles
from .rounding import logit

if TYPE_CHECKING:
    import trimesh


def to_y_up(points: Float[Tensor, "V 3"]) -> Float[Tensor, "V 3"]:
    return points[:, [1, 2, 0]]


def from_y_up(points: Float[Tensor, "V 3"]) -> Float[Tensor, "V 3"]:
    return points[:, [2, 0, 1]]


def to_z_up(points: Float[Tensor, "V 3"]) -> Float[Tensor, "V 3"]:
    return points[:, [1, 0, 2]] * points.new_tensor([1, -1, 1])


def from_z_up(points: Float[Tensor, "V 3"]) -> Float[Tensor, "V 3"]:
    return points[:, [1, 0, 2]] * points.new_tensor([-1, 1, 1])


def need_mesh(rep: Representation, file: str) -> Mesh:
    """The mesh itself. Raises TypeError for another representation, which `file`, a name, cannot hold."""
    if not isinstance(rep, Mesh):
        raise TypeError(f"{file} holds a mesh with colours at its vertices, given {type(rep).__name__}.")
    return rep


@torch.no_grad()
def whole_normals(mesh: Triangles) -> Float[Tensor, "V 3"]:
    """Unit normals of the vertices in float64; up where a vertex has no triangles or they cancel."""
    normals = mesh.normals().double().cpu()
    up = normals.new_tensor([0.0, 0.0, 1.0])
    lengths = normals.norm(dim=-1, keepdim=True)
    return torch.where(lengths > 0.5, normals / lengths.clamp(min=0.5), up)


def is_closed(mesh: Triangles) -> bool:
    """Whether every edge has two triangles, so that its inside is never seen."""
    return bool((mesh.edges.faces >= 0).all())


def to_mesh(name: str, vertices: Tensor, faces: Tensor, rgb: Tensor) -> Mesh:
    """A mesh in float32 of vertices in our frame. Raises ValueError, with the file's name, for what is none."""
    try:
        return Mesh(vertices.float(), faces.long(), logit(rgb.double()).float())
    except ValueError as error:
        raise ValueError(f"{name} holds no mesh that can be drawn: {error}") from None


def load(name: str, data: bytes, kind: str, turn: Callable[[Tensor], Tensor], **how: Any) -> Mesh:
    """The mesh that trimesh (MIT) reads in a file of a kind, turned into our frame. Raises ValueError."""
    import trimesh

    if not data:
        raise ValueError(f"{name} is empty.")
    try:
        read = trimesh.load_mesh(io.BytesIO(data), file_type=kind, **how)
    # Whatever a damaged file brings about in trimesh, and that is many kinds of errors, means that it is damaged.
    except Exception as error:
        raise ValueError(f"{name} cannot be read as {kind}: {' '.join(str(error).split())[:200]}.") from None
    if not isinstance(read, trimesh.Trimesh) or len(read.faces) == 0:
        raise ValueError(f"{name} holds no triangles.")
    vertices = torch.from_numpy(np.array(read.vertices, dtype=np.float64))
    faces = torch.from_numpy(np.array(read.faces, dtype=np.int64))
    return to_mesh(name, turn(vertices), faces, _colours(read))


def _colours(read: trimesh.Trimesh) -> Float[Tensor, "V 3"]:
    """Colours of the vertices in [0, 1], grey where the file has none."""
    visual: Any = read.visual
    if visual.kind != "vertex":
        return torch.full((len(read.vertices), 3), 0.5, dtype=torch.float64)
    return torch.from_numpy(np.array(visual.vertex_colors[:, :3], dtype=np.float64)) / 255
