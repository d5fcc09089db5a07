"""The shape of a mesh as binary .stl: z-up, front to -y, in millimetres, as slicers take it. It has no colour.

Eighty bytes of header, in which provenance stands as far as it fits, the number of triangles, and for each its normal,
its three corners and two bytes of nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..core import Renderer, Representation
from ..representations.mesh import Mesh, Triangles
from .provenance import one_line
from .rounding import float32
from .surfaces import from_z_up, joined, load, to_z_up, vertex_colours

MILLIMETRES = 1000.0  # in a metre
HEADER = 80  # bytes
TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("nothing", "<u2")])


@torch.no_grad()
def encode(rep: Representation, renderer: Renderer, provenance: Mapping[str, str], name: str) -> dict[str, bytes]:
    """One file. Raises TypeError for another representation than a mesh."""
    if not isinstance(rep, Triangles):
        raise TypeError(f"{name} holds the shape of a mesh, given {type(rep).__name__}.")
    table = np.zeros(len(rep), TRIANGLE)
    table["normal"] = float32(to_z_up(torch.nn.functional.normalize(rep.face_normals().double(), dim=-1)))
    table["corners"] = float32(to_z_up(MILLIMETRES * rep.vertices.double()))[rep.faces.cpu().numpy()]
    # A file that begins with "solid" would be taken for the format's other kind, which is text.
    header = f"binary STL in mm, {one_line(provenance)}".encode("ascii")[:HEADER].ljust(HEADER, b" ")
    return {name: header + len(table).to_bytes(4, "little") + table.tobytes()}


def decode(files: Mapping[str, bytes]) -> Mesh:
    """The mesh in grey, turned into our frame, with corners at one place made one vertex. Raises ValueError."""
    name, data = next(iter(files.items()))
    return joined(name, load(name, data, "stl", process=True), _turned, vertex_colours)


def _turned(points: Tensor) -> Tensor:
    return from_z_up(points / MILLIMETRES)
