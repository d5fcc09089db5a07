"""A mesh with colours at its vertices as binary glTF 2.0: y-up, front to +z, metres.

| attribute | value, float32                                       |
|-----------|------------------------------------------------------|
| POSITION  | (x, y, z) -> (y, z, x)                               |
| NORMAL    | unit, of the vertices                                |
| COLOR_0   | linear light, as glTF asks; our colours are sRGB     |

The material is chalk where the renderer has a light, and else KHR_materials_unlit, so that a viewer shows the colours
that the prior saw. An open surface is marked as seen from both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..core import Renderer, Representation
from ..representations.mesh import Mesh, Triangles
from .colour import linear_to_srgb, srgb_to_linear
from .gltf import INDICES, TRIANGLES, Buffer, read_glb, to_glb
from .rounding import float32
from .surfaces import from_y_up, is_closed, need_mesh, to_mesh, to_y_up, whole_normals

UNLIT = "KHR_materials_unlit"
RESTART = 65_535  # the index that glTF keeps from vertices when indices have two bytes


def encode(rep: Representation, renderer: Renderer, provenance: Mapping[str, str], name: str) -> dict[str, bytes]:
    """One file. Raises TypeError for another representation than a mesh."""
    mesh, buffer = need_mesh(rep, name), Buffer()
    attributes = {
        "POSITION": buffer.positions(float32(to_y_up(mesh.vertices.double()))),
        "NORMAL": buffer.column(float32(to_y_up(whole_normals(mesh)))),
        "COLOR_0": buffer.column(float32(srgb_to_linear(mesh.rgb.double()))),
    }
    primitive = {"attributes": attributes, "indices": indices(mesh.faces, buffer), "material": 0, "mode": TRIANGLES}
    chalk = {"baseColorFactor": [1, 1, 1, 1], "metallicFactor": 0, "roughnessFactor": 1}
    document = {
        "meshes": [{"primitives": [primitive]}],
        "materials": [{"pbrMetallicRoughness": chalk, **sides(mesh)}],
    }
    return {name: to_glb(unlit(document) if no_light(renderer) else document, buffer, provenance)}


def indices(faces: torch.Tensor, buffer: Buffer) -> int:
    """The corners of triangles, in two bytes where that is enough; returns the number of their accessor."""
    flat = faces.detach().cpu().numpy().reshape(-1, 1)
    return buffer.column(flat.astype("<u2" if flat.max() < RESTART else "<u4"), INDICES)


def no_light(renderer: Renderer) -> bool:
    """Whether a renderer shows plain colours: it has no light, or none is on."""
    return getattr(renderer, "light", None) is None


def sides(mesh: Triangles) -> dict[str, bool]:
    return {} if is_closed(mesh) else {"doubleSided": True}


def unlit(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with its one material shown as it is, whatever the light."""
    (material,) = document["materials"]
    return {**document, "materials": [{**material, "extensions": {UNLIT: {}}}], "extensionsUsed": [UNLIT]}


def decode(files: Mapping[str, bytes]) -> Mesh:
    """The mesh of the first primitive, turned into our frame; white where it has no colours. Raises ValueError."""
    name, data = next(iter(files.items()))
    glb = read_glb(data, name)
    primitive, attributes = glb.primitive, glb.part("meshes", 0, "primitives", 0, "attributes")
    if primitive.get("mode", TRIANGLES) != TRIANGLES:
        raise glb.wrong("its first primitive is not of triangles")
    corners = glb.column(primitive.get("indices"), 1).astype(np.int64)
    position = glb.column(attributes.get("POSITION"), 3)
    colour = glb.column(attributes["COLOR_0"], 3) if "COLOR_0" in attributes else np.ones_like(position)
    if position.dtype != np.dtype("<f4") or colour.dtype != position.dtype or len(colour) != len(position):
        raise glb.wrong("its vertices are not columns of float32 of one length")
    if len(corners) % 3:
        raise glb.wrong("its corners are no triangles")
    light = torch.from_numpy(colour.astype(np.float64))
    vertices = from_y_up(torch.from_numpy(position.astype(np.float64)))
    return to_mesh(name, vertices, torch.from_numpy(corners.reshape(-1, 3)), linear_to_srgb(light.clamp(0, 1)))
