"""A triangle mesh whose look lies in square textures: albedo, roughness, metallic and a normal map; and its unwrapping.

A corner of a triangle has a place (u, v) in the square [0, 1]^2, v up: the texel in row r and column c of S x S has its
middle at u = (c + 1/2) / S, v = 1 - (r + 1/2) / S, as in OBJ and Blender; glTF's v runs down. Textures are read
bilinearly and clamped at the square's border. The frame of the normal map has x along growing u, z out of the surface
and y along growing v ("OpenGL" normal maps, glTF's): y = +-(z x x), - where the triangle lies mirrored in the square.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import max_pool2d, normalize

from ..schedules import Number, Ramp, value
from .mesh import Material, Mesh, Triangles, check_corners, check_rows, check_triangles, logits_of, ranges

WIDTHS = {"albedo_logits": 3, "roughness_logits": 1, "metallic_logits": 1, "slopes": 2}  # channels of each texture
ROUGH, METAL = 1.5, -4.0  # logits to begin with: roughness 0.82, metallic 0.02
ALBEDO = Ramp(5e-2, 1e-2)
PADDING = 3  # texels between charts in xatlas's own picture, which is up to half as large again as asked for
LARGEST = 4096


@dataclass(frozen=True)
class TextureOptimise:
    """Rates of Adam, numbers or schedules over progress: offsets in world units, the others in logits and slopes.

    The vertices stay where they are unless `offsets` says otherwise.
    """

    offsets: Number = 0.0
    albedo: Number = ALBEDO
    roughness: Number = 2e-2
    metallic: Number = 2e-2
    normal: Number = 1e-2

    def rates(self, progress: float) -> dict[str, float]:
        """The learning rate of each parameter."""
        numbers = (self.albedo, self.roughness, self.metallic, self.normal)
        rates = {name: value(number, progress) for name, number in zip(WIDTHS, numbers, strict=True)}
        return {"offsets": value(self.offsets, progress), **rates}


class TexturedMesh(Triangles):
    """Triangles with a place of each corner in textures of S x S texels.

    uv [T, 2] in [0, 1]; uv_faces [F, 3], the rows of uv at the corners of faces. Of the textures, `slopes` are x / z
    and y / z of the normal map's unit vector, and the others logits. Raises ValueError and TypeError as `Mesh` does,
    also for places outside of the square and for textures of different sizes.
    """

    FIXED = ("base", "faces", "uv", "uv_faces")
    LEARNT = ("offsets", *WIDTHS)
    SHARED = (
        LEARNT  # A texel that few pixels read would otherwise take as large a step as any, in the noise's direction.
    )
    OPTIMISE = TextureOptimise
    uv: Float[Tensor, "T 2"]
    uv_faces: Int[Tensor, "F 3"]
    albedo_logits: Float[Tensor, "S S 3"]
    roughness_logits: Float[Tensor, "S S 1"]
    metallic_logits: Float[Tensor, "S S 1"]
    slopes: Float[Tensor, "S S 2"]

    def __init__(
        self,
        vertices: Float[Tensor, "V 3"],
        faces: Int[Tensor, "F 3"],
        uv: Float[Tensor, "T 2"],
        uv_faces: Int[Tensor, "F 3"],
        textures: Mapping[str, Tensor],
    ) -> None:
        """textures: all that `WIDTHS` names; `blank` makes them."""
        mesh = {"base": vertices, "faces": faces, "uv": uv, "uv_faces": uv_faces}
        super().__init__({**mesh, "offsets": torch.zeros_like(vertices), **textures})

    @classmethod
    def check(cls, tensors: Mapping[str, Tensor]) -> None:
        """Vertices, triangles, their places in the square, and square textures of one size."""
        vertices, faces, uv = (tensors[name] for name in ("base", "faces", "uv"))
        check_triangles(vertices, faces)
        check_rows("offsets", tensors["offsets"], vertices.shape)
        check_rows("uv", uv, torch.Size([uv.shape[0] if uv.ndim else 0, 2]))
        check_corners("uv_faces", tensors["uv_faces"], len(uv), "places")
        if tensors["uv_faces"].shape != faces.shape:
            given = list(tensors["uv_faces"].shape)
            raise ValueError(f"uv_faces must have the shape of faces, {list(faces.shape)}, given {given}.")
        if uv.min() < 0 or uv.max() > 1:
            raise ValueError(f"uv must lie in [0, 1], given {float(uv.min()):g} to {float(uv.max()):g}.")
        size = tensors["albedo_logits"].shape[0] if tensors["albedo_logits"].ndim else 0
        if not 1 <= size <= LARGEST:
            raise ValueError(f"A texture must have 1 to {LARGEST} texels a side, given {size}.")
        for name, width in WIDTHS.items():
            check_rows(name, tensors[name], torch.Size([size, size, width]))

    @property
    def size(self) -> int:
        """Texels a side."""
        return self.albedo_logits.shape[0]

    def maps(self) -> dict[str, Tensor]:
        """The textures as pictures [S, S, c] in [0, 1], row 0 at the top (v = 1): what a file holds.

        albedo [S, S, 3] in sRGB, roughness [S, S, 1], metallic [S, S, 1], normal [S, S, 3] as (n + 1) / 2. Texels that
        no triangle reads show what the nearest one that is read shows, so that no smaller copy of a picture has seams.
        """
        columns = torch.cat([getattr(self, name).flatten(0, 1) for name in WIDTHS], dim=1)
        near = nearest(self._read())
        values = _decoded(columns[near.flatten()]).view(self.size, self.size, -1)
        return dict(zip(("albedo", "roughness", "metallic", "normal"), values.split([3, 1, 1, 3], dim=-1), strict=True))

    def _read(self) -> Bool[Tensor, "S S"]:
        """The texels that the surface reads, those beside a chart's border included."""
        charted = torch.zeros(self.size**2, dtype=self.uv.dtype, device=self.uv.device)
        charted[texels(self.uv, self.uv_faces, self.size)[0]] = 1
        return max_pool2d(charted.view(1, self.size, self.size), 3, stride=1, padding=1)[0] > 0

    def tangents(self) -> tuple[Float[Tensor, "F 3"], Float[Tensor, "F 1"]]:
        """Of each triangle the direction in the world of growing u, as long as it comes, and -1 where it is mirrored.

        Both are 0 for a triangle without area in the square.
        """
        p, q, r = self.vertices[self.faces].unbind(1)
        a, b, c = self.uv[self.uv_faces].unbind(1)
        (du, dv), (eu, ev) = (b - a).unbind(-1), (c - a).unbind(-1)
        side = (du * ev - eu * dv).sign()[:, None]
        return side * ((q - p) * ev[:, None] - (r - p) * dv[:, None]), side

    def material(self, face: Int[Tensor, "n"], weights: Float[Tensor, "n 3"]) -> Material:
        """The textures at the points, and the interpolated normal tilted by the normal map."""
        normals = self.normals().index_select(0, self.faces[face].flatten()).view(-1, 3, 3)
        corners = torch.cat([normals, self.uv[self.uv_faces[face]]], dim=-1)  # [n, 3, 5]
        normal, uv = (weights[..., None] * corners).sum(dim=1).split([3, 2], dim=1)
        albedo, roughness, metallic, encoded = self.sample(uv).split([3, 1, 1, 3], dim=1)
        tangents, sides = self.tangents()
        z = normalize(normal, dim=-1)
        x = tangents.index_select(0, face)
        x = normalize(x - (x * z).sum(dim=-1, keepdim=True) * z, dim=-1)
        y = torch.linalg.cross(z, x) * sides[face]
        nx, ny, nz = (2 * encoded - 1).split(1, dim=1)
        return Material(albedo, normalize(nx * x + ny * y + nz * z, dim=-1), roughness, metallic)

    def sample(self, uv: Float[Tensor, "n 2"]) -> Float[Tensor, "n 8"]:
        """albedo, roughness, metallic and normal map in [0, 1] at places; differentiable in places and textures."""
        texel, weight = self.reads(uv)
        columns = torch.cat(
            [getattr(self, name).flatten(0, 1).index_select(0, texel.flatten()) for name in WIDTHS], dim=1
        )
        return (weight * _decoded(columns).view(len(uv), 4, 8)).sum(dim=1)

    def reads(self, uv: Float[Tensor, "n 2"]) -> tuple[Int[Tensor, "n 4"], Float[Tensor, "n 4 1"]]:
        """The flat indices of the four texels around each place, and what part of it each is, differentiable."""
        S = self.size
        at = torch.stack([uv[:, 0], 1 - uv[:, 1]], dim=-1) * S - 0.5  # column, row
        at = at.clamp(0, S - 1)
        low = at.detach().floor().long()
        share = (at - low)[:, None]  # [n, 1, 2]
        step = low.new_tensor([[0, 0], [1, 0], [0, 1], [1, 1]])  # [4, 2]
        column, row = (low[:, None] + step).clamp(max=S - 1).unbind(-1)
        return row * S + column, torch.where(step > 0, share, 1 - share).prod(dim=-1, keepdim=True)


def _decoded(columns: Float[Tensor, "n 7"]) -> Float[Tensor, "n 8"]:
    """Parameters of texels, in the order of `WIDTHS`, as albedo, roughness, metallic and normal map in [0, 1]."""
    unit = normalize(torch.cat([columns[:, 5:], torch.ones_like(columns[:, :1])], dim=1), dim=-1)
    return torch.cat([columns[:, :5].sigmoid(), (unit + 1) / 2], dim=1)


def blank(size: int) -> dict[str, Tensor]:
    """Textures of S x S texels: grey, rather rough, no metal, flat."""
    values = dict(zip(WIDTHS, (0.0, ROUGH, METAL, 0.0), strict=True))
    return {name: torch.full((size, size, width), values[name]) for name, width in WIDTHS.items()}


@torch.no_grad()
def texels(uv: Float[Tensor, "T 2"], uv_faces: Int[Tensor, "F 3"], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The texels whose middle lies in a triangle: flat index [n], the triangle [n], the shares [n, 3] of its corners.

    A texel comes once for each triangle that holds it, which is one but on shared edges and in overlapping charts.
    """
    places = torch.stack([uv[:, 0], 1 - uv[:, 1]], dim=-1).double() * size
    corners = places[uv_faces]  # [F, 3, 2]
    low = (corners.amin(dim=1) - 0.5).ceil().clamp(min=0).long()
    high = ((corners.amax(dim=1) - 0.5).floor() + 1).clamp(max=size).long()
    extent = (high - low).clamp(min=0)
    face, place = ranges(extent.prod(dim=1))
    column, row = low[face, 0] + place % extent[face, 0], low[face, 1] + place // extent[face, 0]
    away = corners[face] - torch.stack([column, row], dim=-1)[:, None] - 0.5  # [n, 3, 2]
    x, y = away.unbind(-1)
    areas = x.roll(-1, 1) * y.roll(-2, 1) - x.roll(-2, 1) * y.roll(-1, 1)  # opposite each corner
    total = areas.sum(dim=1, keepdim=True)
    inside = (areas * total.sign() >= 0).all(dim=1) & (total[:, 0] != 0)
    return (row * size + column)[inside], face[inside], (areas / total)[inside].to(uv)


@torch.no_grad()
def nearest(marked: Bool[Tensor, "S S"]) -> Int[Tensor, "S S"]:
    """The flat index of the nearest marked texel for each texel; without any mark each texel's own.

    First along the columns, then along the rows, where the columns' squared distances add up (Saito and Toriwaki 1994).
    """
    S = len(marked)
    line = torch.arange(S, device=marked.device)
    if not marked.any():
        return line[:, None] * S + line
    row, far = line[:, None].expand(S, S), 4 * S  # further than any texel
    above = torch.where(marked, row, -far).cummax(dim=0).values
    below = torch.where(marked, row, 2 * far).flip(0).cummin(dim=0).values.flip(0)
    closest = torch.where(row - above <= below - row, above, below)
    along = (closest - row).float().square()
    across = (line[:, None] - line).float().square()
    columns = torch.stack([(across + squared).argmin(dim=1) for squared in along])
    return closest.gather(1, columns) * S + columns


@torch.no_grad()
def unwrap(mesh: Mesh, size: int) -> TexturedMesh:
    """The same mesh with its colours in textures of `size` texels a side, unwrapped into charts by xatlas.

    Charts lie apart, so that no bilinear reading crosses from one to another, and they may be mirrored. On very rough
    surfaces xatlas lets a few slivers overlap. Roughness, metallic and normal map begin as in `blank`. Not
    differentiable. Raises ValueError for a size that is too small to hold the charts apart or too
    large, and ImportError, with the remedy, where xatlas is missing.
    """
    if not 16 <= size <= LARGEST:
        raise ValueError(f"A mesh is unwrapped into 16 to {LARGEST} texels a side, given {size}.")
    try:
        import xatlas
    except ImportError:
        raise ImportError('Meshes are unwrapped by xatlas: pip install "sds3d[mesh]".') from None
    atlas, packing = xatlas.Atlas(), xatlas.PackOptions()
    packing.resolution, packing.padding = size, PADDING
    vertices = mesh.vertices.detach()
    atlas.add_mesh(vertices.cpu().float().numpy(), mesh.faces.cpu().int().numpy().view("uint32"))
    atlas.generate(pack_options=packing)
    _, corners, places = atlas[0]
    # One scale for both axes: xatlas scales its picture, which need not be square, to [0, 1]^2.
    longest = max(atlas.width, atlas.height)
    scale = vertices.new_tensor([atlas.width / longest, atlas.height / longest])
    uv = torch.from_numpy(places).to(vertices) * scale
    uv_faces = torch.from_numpy(corners.astype("int64")).to(mesh.faces)
    at, face, weights = texels(uv, uv_faces, size)
    rgb = (weights[..., None] * mesh.rgb[mesh.faces[face]]).sum(dim=1)
    marked = torch.zeros(size * size, dtype=torch.bool, device=vertices.device)
    marked[at] = True
    colours = rgb.new_zeros(size * size, 3)
    colours[at] = rgb
    logits = logits_of(colours[nearest(marked.view(size, size))])
    textures = {name: texture.to(vertices) for name, texture in blank(size).items()} | {"albedo_logits": logits}
    return TexturedMesh(vertices, mesh.faces, uv, uv_faces, textures)
