"""Meshes as the columns of a mesh file, in one of two frames, and back.

    y-up, front to +z:   (x, y, z) -> (y, z, x)     glTF and OBJ
    z-up, front to -y:   (x, y, z) -> (y, -x, z)    PLY and STL, as Blender and slicers take them

Blender turns the first into the second when it reads, so an asset lies the same way whichever file it came from.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

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


def load(name: str, data: bytes, kind: str, **how: Any) -> list[trimesh.Trimesh]:
    """The meshes that trimesh (MIT) reads in a file of a kind, in the file's frame. ValueError where there are none."""
    import trimesh

    if not data:
        raise ValueError(f"{name} is empty.")
    try:
        read = trimesh.load_scene(io.BytesIO(data), file_type=kind, **how).dump()
    # Whatever a damaged file brings about in trimesh, and that is many kinds of errors, means that it is damaged.
    except Exception as error:
        raise ValueError(f"{name} cannot be read as {kind}: {' '.join(str(error).split())[:200]}.") from None
    parts = [part for part in read if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    if not parts:
        raise ValueError(f"{name} holds no triangles.")
    return parts


def joined(
    name: str,
    parts: Sequence[trimesh.Trimesh],
    turn: Callable[[Tensor], Tensor],
    colour: Callable[[trimesh.Trimesh], Tensor],
) -> Mesh:
    """All parts as one mesh, its vertices turned into our frame and coloured in sRGB. Raises ValueError."""
    counts = [0, *np.cumsum([len(part.vertices) for part in parts])]
    vertices = np.concatenate([np.array(part.vertices, dtype=np.float64) for part in parts])
    faces = np.concatenate([np.array(part.faces, dtype=np.int64) + n for part, n in zip(parts, counts, strict=False)])
    rgb = torch.cat([colour(part) for part in parts])
    return to_mesh(name, turn(torch.from_numpy(vertices)), torch.from_numpy(faces), rgb)


def vertex_colours(part: trimesh.Trimesh) -> Float[Tensor, "V 3"]:
    """Colours of the vertices in [0, 1], grey where there are none."""
    visual: Any = part.visual
    found = np.asarray(visual.vertex_colors if visual.kind == "vertex" else ())
    if found.shape != (len(part.vertices), 4):
        return torch.full((len(part.vertices), 3), 0.5, dtype=torch.float64)
    return torch.from_numpy(found[:, :3].astype(np.float64)) / 255
