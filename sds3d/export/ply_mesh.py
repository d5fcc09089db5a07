"""A mesh with colours at its vertices as binary .ply: z-up, front to -y, metres; colours in sRGB, 8 bits."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..core import Renderer, Representation
from ..representations.mesh import Mesh
from .provenance import plain
from .rounding import bytes_of, float32
from .surfaces import from_z_up, joined, load, to_z_up, vertex_colours, whole_normals

VERTEX = np.dtype([("place", "<f4", 3), ("normal", "<f4", 3), ("rgb", "u1", 3)])
FACE = np.dtype([("count", "u1"), ("corners", "<i4", 3)])
FLOATS, BYTES = ("x", "y", "z", "nx", "ny", "nz"), ("red", "green", "blue")


@torch.no_grad()
def encode(rep: Representation, renderer: Renderer, provenance: Mapping[str, str], name: str) -> dict[str, bytes]:
    """One file, with provenance in its comments. Raises TypeError for another representation than a rep."""
    if not isinstance(rep, Mesh):
        raise TypeError(f"{name} holds a mesh with colours at its vertices, given {type(rep).__name__}.")
    vertices = np.empty(len(rep.base), VERTEX)
    vertices["place"] = float32(to_z_up(rep.vertices))
    vertices["normal"] = float32(to_z_up(whole_normals(rep)))
    vertices["rgb"] = bytes_of(255 * rep.rgb).cpu().numpy()
    faces = np.empty(len(rep), FACE)
    faces["count"], faces["corners"] = 3, rep.faces.cpu().numpy()
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += [f"comment {plain(word)} {plain(said)}" for word, said in provenance.items()]
    lines += [f"element vertex {len(vertices)}", *(f"property float {column}" for column in FLOATS)]
    lines += [f"property uchar {column}" for column in BYTES]
    lines += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    return {name: "\n".join(lines).encode("ascii") + vertices.tobytes() + faces.tobytes()}


def decode(files: Mapping[str, bytes]) -> Mesh:
    """The mesh, turned into our frame. Raises ValueError for what is none."""
    name, data = next(iter(files.items()))
    return joined(name, load(name, data, "ply", process=False), from_z_up, vertex_colours)
