"""A mesh as Apple's and Pixar's .usdz: y-up, front to +z, metres; its look in textures.

| property             | value                                                                            |
|----------------------|----------------------------------------------------------------------------------|
| points, normals      | (x, y, z) -> (y, z, x), one for each vertex                                      |
| primvars:st          | a place for each corner of a triangle; v runs up, as ours                        |
| UsdPreviewSurface    | diffuseColor in sRGB, roughness, metallic and normal as pictures, or as numbers  |

Colours at vertices are brought into a texture: USD has a place for them, displayColor, but three.js takes the first for
the whole, and others nothing. USD knows no surface without light, so a viewer lights what the prior saw in plain
colours. What is known of the making lies in the layer's custom data. Written and read by usd-core (Pixar), an optional
library.
"""

# The modules of pxr are compiled and bring no types.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import io
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..core import Renderer, Representation
from ..representations.mesh import Mesh
from ..representations.texture import TexturedMesh, unwrap
from . import textures
from .provenance import plain
from .rounding import float32, logit
from .surfaces import from_y_up, is_closed, to_y_up, whole_normals

if TYPE_CHECKING:
    from pxr import Usd, UsdGeom, UsdShade

STAGE = "asset.usdc"
TEXELS = 512  # a side, of the texture that colours of vertices become
ALIGNED, FIELD, PADDING = 64, struct.Struct("<HH"), 0x1986  # a field of a zip's header that says nothing, as pxr's
INPUTS = {"albedo": "diffuseColor", "roughness": "roughness", "metallic": "metallic", "normal": "normal"}


def encode(rep: Representation, renderer: Renderer, provenance: Mapping[str, str], name: str) -> dict[str, bytes]:
    """One file. Raises TypeError for another representation than a mesh."""
    if isinstance(rep, Mesh):
        rep = textured(rep)
    if not isinstance(rep, TexturedMesh):
        raise TypeError(f"{name} holds a mesh, given {type(rep).__name__}.")
    from pxr import Usd, UsdGeom

    with tempfile.TemporaryDirectory() as folder:
        stage = Usd.Stage.CreateNew(str(Path(folder) / STAGE))
        UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
        UsdGeom.SetStageMetersPerUnit(stage, 1.0)
        told = {"generator": "sds3d", **provenance}
        stage.GetRootLayer().customLayerData = {plain(word): plain(said) for word, said in told.items()}
        stage.SetDefaultPrim(UsdGeom.Xform.Define(stage, "/Asset").GetPrim())
        surface = _shape(rep, stage)
        pictures = _look(rep, stage, surface)
        stage.Save()
        return {name: packed({STAGE: (Path(folder) / STAGE).read_bytes(), **pictures})}


def packed(files: Mapping[str, bytes]) -> bytes:
    """A zip of files as they are, each beginning at a multiple of 64 bytes, as USD asks; the first is the stage."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for file, data in files.items():
            entry = zipfile.ZipInfo(file)  # of 1980, so that equal assets give equal bytes
            space = -(whole.tell() + zipfile.sizeFileHeader + len(file) + FIELD.size) % ALIGNED
            entry.extra = FIELD.pack(PADDING, space) + bytes(space)
            archive.writestr(entry, data)
    return whole.getvalue()


@torch.no_grad()
def textured(mesh: Mesh) -> TexturedMesh:
    """The mesh with the colours of its vertices in a texture, as rough as chalk."""
    vertices = mesh.vertices
    middle = (vertices.amin(dim=0) + vertices.amax(dim=0)) / 2
    unit = (vertices - middle) / (vertices - middle).abs().max().clamp(min=1e-12)  # xatlas drops what is tiny.
    made = unwrap(Mesh(unit, mesh.faces, mesh.colour_logits), TEXELS)
    made.base.copy_(vertices)
    made.roughness_logits.copy_(logit(torch.ones_like(made.roughness_logits)))
    made.metallic_logits.copy_(logit(torch.zeros_like(made.metallic_logits)))
    return made


@torch.no_grad()
def _shape(rep: TexturedMesh, stage: Usd.Stage) -> UsdGeom.Mesh:
    from pxr import UsdGeom, Vt

    surface = UsdGeom.Mesh.Define(stage, "/Asset/Mesh")
    points = Vt.Vec3fArray.FromNumpy(float32(to_y_up(rep.vertices.double())))
    surface.CreatePointsAttr(points)
    surface.CreateExtentAttr(UsdGeom.PointBased.ComputeExtent(points))
    surface.CreateFaceVertexCountsAttr(Vt.IntArray(len(rep.faces), 3))
    surface.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(_whole(rep.faces)))
    surface.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(float32(to_y_up(whole_normals(rep)))))
    surface.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    surface.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    surface.CreateDoubleSidedAttr(not is_closed(rep))
    return surface


@torch.no_grad()
def _look(rep: TexturedMesh, stage: Usd.Stage, surface: UsdGeom.Mesh) -> dict[str, bytes]:
    """The material; returns the pictures that it points to."""
    from pxr import Sdf, UsdGeom, UsdShade, Vt

    kind = Sdf.ValueTypeNames.TexCoord2fArray
    places = UsdGeom.PrimvarsAPI(surface).CreatePrimvar("st", kind, UsdGeom.Tokens.faceVarying)
    places.Set(Vt.Vec2fArray.FromNumpy(float32(rep.uv)))
    places.SetIndices(Vt.IntArray.FromNumpy(_whole(rep.uv_faces)))
    material = UsdShade.Material.Define(stage, "/Asset/Material")
    UsdShade.MaterialBindingAPI.Apply(surface.GetPrim()).Bind(material)
    shader = UsdShade.Shader.Define(stage, "/Asset/Material/Surface")
    shader.CreateIdAttr("UsdPreviewSurface")
    material.CreateSurfaceOutput().ConnectToSource(shader.ConnectableAPI(), "surface")
    pictures = {}
    for key, picture in rep.maps().items():
        value = textures.one_value(picture) if key in ("roughness", "metallic") else None
        if value is not None:
            shader.CreateInput(INPUTS[key], Sdf.ValueTypeNames.Float).Set(value)
        elif key != "normal" or not textures.is_flat(picture):
            pictures[f"{key}.png"] = textures.to_png(picture)
            _paint(stage, shader, key)
    return pictures


def _paint(stage: Usd.Stage, shader: UsdShade.Shader, key: str) -> None:
    """Connect an input of the material with its picture, read at the places of the corners."""
    from pxr import Sdf, UsdShade

    kinds = Sdf.ValueTypeNames
    reader = UsdShade.Shader.Define(stage, "/Asset/Material/Places")
    reader.CreateIdAttr("UsdPrimvarReader_float2")
    reader.CreateInput("varname", kinds.String).Set("st")
    picture = UsdShade.Shader.Define(stage, f"/Asset/Material/{key.capitalize()}")
    picture.CreateIdAttr("UsdUVTexture")
    picture.CreateInput("file", kinds.Asset).Set(f"./{key}.png")
    picture.CreateInput("st", kinds.Float2).ConnectToSource(reader.CreateOutput("result", kinds.Float2))
    picture.CreateInput("sourceColorSpace", kinds.Token).Set("sRGB" if key == "albedo" else "raw")
    for axis in ("wrapS", "wrapT"):
        picture.CreateInput(axis, kinds.Token).Set("clamp")
    if key == "normal":  # of (n + 1) / 2
        picture.CreateInput("scale", kinds.Float4).Set((2.0, 2.0, 2.0, 1.0))
        picture.CreateInput("bias", kinds.Float4).Set((-1.0, -1.0, -1.0, 0.0))
    wide = {"albedo": kinds.Color3f, "normal": kinds.Normal3f}.get(key)
    output = picture.CreateOutput("rgb", kinds.Float3) if wide else picture.CreateOutput("r", kinds.Float)
    shader.CreateInput(INPUTS[key], wide or kinds.Float).ConnectToSource(output)


def _whole(corners: Tensor) -> np.ndarray:
    return corners.cpu().numpy().astype(np.int32).ravel()


def decode(files: Mapping[str, bytes]) -> TexturedMesh:
    """The mesh of a package of ours, turned into our frame. Raises ValueError for another program's, and for damage."""
    from pxr import Tf, Usd, UsdGeom

    name, data = next(iter(files.items()))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "asset.usdz"
        path.write_bytes(data)
        try:
            stage = Usd.Stage.Open(str(path))
        except Tf.ErrorException:
            raise ValueError(f"{name} is no .usdz, or it is damaged.") from None
        told = str(stage.GetRootLayer().customLayerData.get("generator"))
        surface = UsdGeom.Mesh(stage.GetPrimAtPath("/Asset/Mesh"))
        if not told.startswith("sds3d") or not surface:
            raise ValueError(f"{name} is of another program; of .usdz only our own is read, so turn it into a .glb.")
        return _mesh(name, data, surface)


def _mesh(name: str, data: bytes, surface: UsdGeom.Mesh) -> TexturedMesh:
    from pxr import UsdGeom

    points, normals = (_table(name, attr, 3) for attr in (surface.GetPointsAttr(), surface.GetNormalsAttr()))
    faces = _table(name, surface.GetFaceVertexIndicesAttr(), 3).long()
    if int(faces.min()) < 0 or int(faces.max()) >= len(points):
        raise ValueError(f"{name} holds a corner that is no vertex.")
    places = UsdGeom.PrimvarsAPI(surface).GetPrimvar("st")
    uv, corners = _table(name, places, 2), _table(name, places.GetIndicesAttr(), 3).long()
    if (
        corners.shape != faces.shape
        or int(corners.min()) < 0
        or int(corners.max()) >= len(uv)
        or len(normals) != len(points)
    ):
        raise ValueError(f"{name} holds a corner without a place in its texture, or a vertex without a normal.")
    # Each corner becomes a vertex, of which `sew` makes one again where they lie at one place.
    flat, own = faces.flatten(), torch.arange(faces.numel()).view(-1, 3)
    maps = _maps(name, data, surface)
    return textures.sew(name, from_y_up(points[flat]), from_y_up(normals[flat]), uv[corners.flatten()], own, maps)


def _table(name: str, attribute: Any, width: int) -> Tensor:
    """The value of an attribute as a table in float64. Raises ValueError where there is none."""
    value = attribute.Get() if attribute else None
    table = np.asarray([] if value is None else value, dtype=np.float64).reshape(-1)
    if not len(table) or len(table) % width:
        raise ValueError(f"{name} is damaged: its mesh lacks what it should hold.")
    return torch.from_numpy(table.reshape(-1, width))


def _maps(name: str, data: bytes, surface: UsdGeom.Mesh) -> dict[str, Tensor]:
    """The maps of the bound material, as `TexturedMesh.maps`. Raises ValueError."""
    from pxr import UsdShade

    material, _ = UsdShade.MaterialBindingAPI(surface.GetPrim()).ComputeBoundMaterial()
    shader = material.ComputeSurfaceSource()[0] if material else None
    if not shader:
        raise ValueError(f"{name} is damaged: its mesh has no material.")
    found: dict[str, Tensor] = {}
    for key, word in INPUTS.items():
        given = shader.GetInput(word)
        if given and given.HasConnectedSource():
            file = UsdShade.Shader(given.GetConnectedSources()[0][0].source).GetInput("file").Get()
            found[key] = textures.from_png(_unpacked(name, data, file.path), name)
        elif given and isinstance(given.Get(), float):
            found[key] = torch.full((1, 1, 1), given.Get(), dtype=torch.float64)
    if "albedo" not in found:
        raise ValueError(f"{name} is damaged: its material has no colours.")
    size = len(found["albedo"])
    missing = {"roughness": torch.ones(1, 1, 1), "metallic": torch.zeros(1, 1, 1), "normal": textures.flat(size)}
    return {key: value.double().expand(size, size, -1) for key, value in (missing | found).items()}


def _unpacked(name: str, data: bytes, path: str) -> bytes:
    """A file of the package, which keeps its files as they are. Raises ValueError."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entry = archive.getinfo(path.removeprefix("./"))
            if entry.compress_type == zipfile.ZIP_STORED:
                return archive.read(entry)
    except (KeyError, zipfile.BadZipFile, EOFError):
        pass
    raise ValueError(f"{name} is damaged: its picture {path} cannot be read.")
