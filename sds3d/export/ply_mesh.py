"""A mesh with colours at its vertices as binary .ply: z-up, front to -y, metres; colours in sRGB, 8 bits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..core import Renderer, Representation
from ..representations.mesh import Mesh
from .provenance import plain
from .rounding import bytes_of, float32
from .surfaces import from_z_up, load, need_mesh, to_z_up, whole_normals

VERTEX = np.dtype([("place", "<f4", 3), ("normal", "<f4", 3), ("rgb", "u1", 3)])
FACE = np.dtype([("count", "u1"), ("corners", "<i4", 3)])
FLOATS, BYTES = ("x", "y", "z", "nx", "ny", "nz"), ("red", "green", "blue")


@torch.no_grad()
def encode(rep: Representation, renderer: Renderer, provenance: Mapping[str, str], name: str) -> dict[str, bytes]:
    """One file, with provenance in its comments. Raises TypeError for another representation than a mesh."""
    mesh = need_mesh(rep, name)
    vertices = np.empty(len(mesh.base), VERTEX)
    vertices["place"] = float32(to_z_up(mesh.vertices))
    vertices["normal"] = float32(to_z_up(whole_normals(mesh)))
    vertices["rgb"] = bytes_of(255 * mesh.rgb).cpu().numpy()
    faces = np.empty(len(mesh), FACE)
    faces["count"], faces["corners"] = 3, mesh.faces.cpu().numpy()
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += [f"comment {plain(word)} {plain(said)}" for word, said in provenance.items()]
    lines += [f"element vertex {len(vertices)}", *(f"property float {column}" for column in FLOATS)]
    lines += [f"property uchar {column}" for column in BYTES]
    lines += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    return {name: "\n".join(lines).encode("ascii") + vertices.tobytes() + faces.tobytes()}


def decode(files: Mapping[str, bytes]) -> Mesh:
    """The mesh, turned into our frame. Raises ValueError for what is none."""
    name, data = next(iter(files.items()))
    return load(name, data, "ply", from_z_up, process=False)
