"""A mesh as binary glTF 2.0: y-up, front to +z, metres; its look at its vertices or in textures.

| attribute  | value, float32                                                                       |
|------------|--------------------------------------------------------------------------------------|
| POSITION   | (x, y, z) -> (y, z, x)                                                               |
| NORMAL     | unit, of the vertices                                                                |
| COLOR_0    | linear light, as glTF asks; our colours are sRGB                                     |
| TEXCOORD_0 | (u, 1 - v): glTF's v runs down; the pictures are PNG, of which base colour alone is sRGB |
| TANGENT    | of growing u, where there is a normal map                                            |

Occlusion is not known, so of the picture of occlusion, roughness and metallic the first is 1. A map that is the same
everywhere is written as a factor. The material is lit where the renderer has a light, and else KHR_materials_unlit, so
that a viewer shows the colours that the prior saw. An open surface is marked as seen from both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..colour import linear_to_srgb, srgb_to_linear
from ..core import Renderer, Representation
from ..representations.mesh import Mesh, Triangles
from ..representations.texture import TexturedMesh
from . import textures
from .gltf import INDICES, TRIANGLES, Buffer, Glb, read_glb, to_glb
from .rounding import float32
from .surfaces import from_y_up, is_closed, joined, load, to_mesh, to_y_up, vertex_colours, whole_normals

if TYPE_CHECKING:
    import trimesh

UNLIT = "KHR_materials_unlit"
RESTART = 65_535  # the index that glTF keeps from vertices when indices have two bytes
SAMPLER = {"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}  # trilinear, clamped


def encode(rep: Representation, renderer: Renderer, provenance: Mapping[str, str], name: str) -> dict[str, bytes]:
    """One file. Raises TypeError for another representation than a mesh."""
    buffer = Buffer()
    return {name: to_glb(document(rep, renderer, buffer, name), buffer, provenance)}


def document(rep: Representation, renderer: Renderer, buffer: Buffer, name: str) -> dict[str, Any]:
    """The document of a file's one mesh, whose columns go into the buffer. Raises TypeError for what is no mesh."""
    if isinstance(rep, TexturedMesh):
        made = textured(rep, buffer)
    elif isinstance(rep, Mesh):
        made = coloured(rep, buffer)
    else:
        raise TypeError(f"{name} holds a mesh, given {type(rep).__name__}.")
    if not is_closed(rep):
        made["materials"][0]["doubleSided"] = True
    if getattr(renderer, "light", None) is None:
        made["materials"][0]["extensions"] = {UNLIT: {}}
        made["extensionsUsed"] = [UNLIT]
    return made


@torch.no_grad()
def coloured(mesh: Mesh, buffer: Buffer) -> dict[str, Any]:
    """The document of a mesh with colours at its vertices, as rough as chalk."""
    attributes = {
        "POSITION": buffer.positions(float32(to_y_up(mesh.vertices.double()))),
        "NORMAL": buffer.column(float32(to_y_up(whole_normals(mesh)))),
        "COLOR_0": buffer.column(float32(srgb_to_linear(mesh.rgb.double()))),
    }
    chalk = {"baseColorFactor": [1, 1, 1, 1], "metallicFactor": 0, "roughnessFactor": 1}
    return _document(attributes, indices(mesh.faces, buffer), {"pbrMetallicRoughness": chalk})


@torch.no_grad()
def textured(mesh: TexturedMesh, buffer: Buffer) -> dict[str, Any]:
    """The document of a textured mesh."""
    cut, maps = textures.cut(mesh), mesh.maps()
    attributes = {
        "POSITION": buffer.positions(float32(to_y_up(cut.vertices))),
        "NORMAL": buffer.column(float32(to_y_up(cut.normals))),
        "TEXCOORD_0": buffer.column(float32(torch.stack([cut.uv[:, 0], 1 - cut.uv[:, 1]], dim=1))),
    }
    pictures = {"baseColor": maps["albedo"]}
    surface: dict[str, Any] = {"baseColorTexture": {"index": 0}}
    rough, metal = (textures.one_value(maps[name]) for name in ("roughness", "metallic"))
    if rough is not None and metal is not None:
        surface |= {"roughnessFactor": rough, "metallicFactor": metal}
    else:
        surface |= {"metallicRoughnessTexture": {"index": len(pictures)}}
        ones = torch.ones_like(maps["roughness"])
        pictures["occlusionRoughnessMetallic"] = torch.cat([ones, maps["roughness"], maps["metallic"]], dim=-1)
    material: dict[str, Any] = {"pbrMetallicRoughness": surface}
    if not textures.is_flat(maps["normal"]):
        material["normalTexture"] = {"index": len(pictures)}
        pictures["normal"] = maps["normal"]
        direction = to_y_up(cut.tangents[:, :3])
        attributes["TANGENT"] = buffer.column(float32(torch.cat([direction, cut.tangents[:, 3:]], dim=1)))
    document = _document(attributes, indices(cut.faces, buffer), material)
    views = {name: buffer.view(textures.to_png(picture)) for name, picture in pictures.items()}
    return document | {
        "images": [{"bufferView": view, "mimeType": "image/png", "name": name} for name, view in views.items()],
        "textures": [{"sampler": 0, "source": i} for i in range(len(views))],
        "samplers": [SAMPLER],
    }


def _document(attributes: Mapping[str, int], corners: int, material: dict[str, Any]) -> dict[str, Any]:
    primitive = {"attributes": attributes, "indices": corners, "material": 0, "mode": TRIANGLES}
    return {"meshes": [{"primitives": [primitive]}], "materials": [material]}


def indices(faces: Tensor, buffer: Buffer) -> int:
    """The corners of triangles, in two bytes where that is enough; returns the number of their accessor."""
    flat = faces.cpu().numpy().reshape(-1, 1)
    return buffer.column(flat.astype("<u2" if flat.max() < RESTART else "<u4"), INDICES)


def decode(files: Mapping[str, bytes]) -> Triangles:
    """The mesh, turned into our frame. Raises ValueError.

    A file of ours is read as it was written. Of another's, all its meshes are joined, and colours come to the vertices,
    be they there, in a texture or in a factor; white where there are none.
    """
    name, data = next(iter(files.items()))
    glb = read_glb(data, name)
    if not str(glb.part("asset").get("generator")).startswith("sds3d"):
        return joined(name, load(name, data, "glb", process=False), from_y_up, _shades)
    primitive, attributes = glb.primitive, glb.part("meshes", 0, "primitives", 0, "attributes")
    if primitive.get("mode", TRIANGLES) != TRIANGLES:
        raise glb.wrong("its first primitive is not of triangles")
    corners = glb.column(primitive.get("indices"), 1).astype(np.int64)
    if len(corners) % 3:
        raise glb.wrong("its corners are no triangles")
    faces = torch.from_numpy(corners.reshape(-1, 3))
    vertices = _column(glb, attributes, "POSITION", 3)
    if "TEXCOORD_0" in attributes:
        return _textured(glb, vertices, faces, attributes)
    light = _column(glb, attributes, "COLOR_0", 3) if "COLOR_0" in attributes else torch.ones_like(vertices)
    if len(light) != len(vertices):
        raise glb.wrong("its colours are not one for each vertex")
    return to_mesh(name, from_y_up(vertices), faces, linear_to_srgb(light.clamp(0, 1)))


def _shades(part: trimesh.Trimesh) -> Tensor:
    """Colours in sRGB of the vertices of a mesh of another program."""
    visual: Any = part.visual
    if visual.kind != "texture":
        return linear_to_srgb(vertex_colours(part)) if visual.kind == "vertex" else torch.ones(len(part.vertices), 3)
    if getattr(visual.material, "baseColorTexture", None) is None:
        factor = torch.from_numpy(np.array(visual.material.main_color[:3], dtype=np.float64)) / 255
        return linear_to_srgb(factor).expand(len(part.vertices), 3)
    part = part.copy()
    part.visual = visual.to_color()
    return vertex_colours(part)  # A picture is sRGB, unlike factors and colours of vertices.


def _textured(glb: Glb, vertices: Tensor, faces: Tensor, attributes: Mapping[str, Any]) -> TexturedMesh:
    uv, normals = _column(glb, attributes, "TEXCOORD_0", 2), _column(glb, attributes, "NORMAL", 3)
    if not len(vertices) == len(uv) == len(normals):
        raise glb.wrong("its vertices are not columns of one length")
    material = glb.part("materials", 0)
    surface = glb.part("materials", 0, "pbrMetallicRoughness")
    albedo = _picture(glb, surface.get("baseColorTexture"))
    size = len(albedo)
    factors = [_share(glb, surface.get(key, 1.0)) for key in ("roughnessFactor", "metallicFactor")]
    rough, metal = (torch.full((size, size, 1), factor, dtype=torch.float64) for factor in factors)
    if "metallicRoughnessTexture" in surface:
        _, rough, metal = _picture(glb, surface["metallicRoughnessTexture"]).split(1, dim=-1)
    normal = _picture(glb, material["normalTexture"]) if "normalTexture" in material else textures.flat(size)
    maps = {"albedo": albedo, "roughness": rough, "metallic": metal, "normal": normal}
    uv = torch.stack([uv[:, 0], 1 - uv[:, 1]], dim=1)
    return textures.sew(glb.name, from_y_up(vertices), from_y_up(normals), uv, faces, maps)


def _column(glb: Glb, attributes: Mapping[str, Any], name: str, width: int) -> Tensor:
    """An attribute in float64. Raises ValueError for one that is missing or not float32."""
    table = glb.column(attributes.get(name), width)
    if table.dtype != np.dtype("<f4"):
        raise glb.wrong(f"its {name} is not float32")
    return torch.from_numpy(table.astype(np.float64))


def _share(glb: Glb, value: Any) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise glb.wrong(f"{value!r:.40} stands where a number in [0, 1] belongs")
    return float(value)


def _picture(glb: Glb, use: Any) -> Tensor:
    """The picture [S, S, 3] that a material points to. Raises ValueError."""
    texture = glb.part("textures", use.get("index") if isinstance(use, dict) else None)
    image = glb.part("images", texture.get("source"))
    picture = textures.from_png(glb.view(image.get("bufferView")), glb.name)
    return picture.expand(-1, -1, 3)
