"""Textures as PNG, and textured meshes as files want them: one vertex for each place in the square.

A vertex on a seam has several places, and a mesh file with one index for each corner must repeat it. `cut` does that,
and `sew` makes one vertex of them again.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..representations.texture import TexturedMesh
from .rounding import bytes_of, logit
from .surfaces import whole_normals

FLAT = 0.5 / 255  # how far a map may stray from one value and still be written as that value
STEEPEST = 1e-2  # the least z of a normal map's vector


@dataclass(frozen=True)
class Cut:
    """N vertices in our frame, each with a unit normal, a place in the square (v up) and a unit tangent.

    source: of each the mesh's vertex that it repeats. The fourth number of a tangent is -1 where the surface lies
    mirrored in the square, else 1, as in glTF.
    """

    source: Int[Tensor, "N"]
    vertices: Float[Tensor, "N 3"]
    normals: Float[Tensor, "N 3"]
    uv: Float[Tensor, "N 2"]
    tangents: Float[Tensor, "N 4"]
    faces: Int[Tensor, "F 3"]


@torch.no_grad()
def cut(mesh: TexturedMesh) -> Cut:
    """The mesh cut open at its seams, in float64 on the CPU."""
    along, sides = (tensor.double().cpu() for tensor in mesh.tangents())
    mirrored = (sides < 0).long().expand(-1, 3)
    corners = torch.stack([mesh.faces.cpu(), mesh.uv_faces.cpu(), mirrored], dim=-1).reshape(-1, 3)
    kept, faces = torch.unique(corners, dim=0, return_inverse=True)
    normals = whole_normals(mesh)[kept[:, 0]]
    tangents = torch.zeros_like(normals).index_add(0, faces, along.repeat_interleave(3, dim=0))
    tangents = tangents - (tangents * normals).sum(dim=-1, keepdim=True) * normals
    # Where the square says nothing of a direction, any will do that lies in the surface.
    axis = torch.eye(3, dtype=normals.dtype)[normals.abs().argmin(dim=-1)]
    lost = tangents.norm(dim=-1, keepdim=True) < 1e-12
    tangents = torch.where(lost, torch.linalg.cross(normals, axis), tangents)
    tangents = torch.nn.functional.normalize(tangents, dim=-1)
    handed = 1.0 - 2.0 * kept[:, 2:].double()
    return Cut(
        source=kept[:, 0],
        vertices=mesh.vertices.double().cpu()[kept[:, 0]],
        normals=normals,
        uv=mesh.uv.double().cpu()[kept[:, 1]],
        tangents=torch.cat([tangents, handed], dim=1),
        faces=faces.view(-1, 3),
    )


def sew(
    name: str,
    vertices: Float[Tensor, "N 3"],
    normals: Float[Tensor, "N 3"] | None,
    uv: Float[Tensor, "N 2"],
    faces: Int[Tensor, "F 3"],
    maps: Mapping[str, Tensor],
) -> TexturedMesh:
    """A textured mesh of what `cut` and `TexturedMesh.maps` made.

    Vertices at one place are one; where normals are given, only if these are equal too, so that surfaces that touch
    stay apart. Raises ValueError, with the file's name, for what is no mesh.
    """
    told = vertices if normals is None else torch.cat([vertices, normals], dim=1)
    if int(faces.max()) >= len(told) or not torch.isfinite(told).all():
        raise ValueError(f"{name} holds a corner that is no vertex, or numbers that are not finite.")
    kept, whole = torch.unique(told, dim=0, return_inverse=True)
    x, y, z = (2 * maps["normal"] - 1).split(1, dim=-1)
    textures = {
        "albedo_logits": logit(maps["albedo"]),
        "roughness_logits": logit(maps["roughness"]),
        "metallic_logits": logit(maps["metallic"]),
        "slopes": torch.cat([x, y], dim=-1) / z.clamp(min=STEEPEST),
    }
    single = {key: texture.float() for key, texture in textures.items()}
    try:
        return TexturedMesh(kept[:, :3].float(), whole[faces], uv.clamp(0, 1).float(), faces, single)
    except ValueError as error:
        raise ValueError(f"{name} holds no mesh that can be drawn: {error}") from None


def one_value(picture: Float[Tensor, "S S c"]) -> float | None:
    """The value that a map has everywhere, or None."""
    low, high = float(picture.min()), float(picture.max())
    return (low + high) / 2 if high - low <= 2 * FLAT else None


def is_flat(normal: Float[Tensor, "S S 3"]) -> bool:
    """Whether a normal map tilts nothing that a byte could say."""
    return bool((normal - normal.new_tensor([0.5, 0.5, 1.0])).abs().max() <= FLAT)


def flat(size: int) -> Float[Tensor, "S S 3"]:
    """A normal map that tilts nothing."""
    return torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64).expand(size, size, 3)


def to_png(picture: Float[Tensor, "S S c"]) -> bytes:
    """A PNG of values in [0, 1], grey for one channel."""
    from PIL import Image

    values = bytes_of(255 * picture.detach().cpu()).numpy()
    file = io.BytesIO()
    Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values).save(file, "PNG", optimize=True)
    return file.getvalue()


def from_png(data: bytes, name: str) -> Float[Tensor, "S S c"]:
    """The values of a PNG in float64, three channels, or one where it is grey. Raises ValueError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if picture.width != picture.height:
                raise ValueError(f"{name} has a texture that is not square: {picture.width} x {picture.height}.")
            values = np.asarray(picture.convert("L" if picture.mode == "L" else "RGB"), dtype=np.float64)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} has a texture that cannot be read: {' '.join(str(error).split())[:200]}.") from None
    return torch.from_numpy(values.reshape(*values.shape[:2], -1) / 255)
