"""A head as a template: one mesh with texture places, landmarks and named blendshapes, for every identity.

An identity is a few numbers in [-1, 1]. They warp the space in which the measured head lies, smoothly and alike on both
sides, so surface, eyes, landmarks and blendshapes of every identity stay together: a shape of an identity is where the
warp takes the moved point, less where it takes the point at rest.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from . import expressions, head_points
from .head_mesh import PARTS, HeadMesh, head_mesh
from .head_points import Points
from .head_profile import EYE_CM, IRIS_CM, PUPIL_CM, to_world
from .mesh import Mesh, logits_of
from .texture import TexturedMesh, blank

SMOOTHED = 12  # rings of neighbours over which a landmark's normal is averaged
LICENCE = "shape measured on ICT-FaceKit (MIT, (c) 2020 USC) and MediaPipe's canonical face (Apache-2.0)"


@dataclass(frozen=True)
class Identity:
    """What a head looks like, each in [-1, 1]; 0 is the measured head, which the playroom draws.

    width, length, depth: of the whole head. forehead, brow, chin: how far they come forward. eyes: their size. nose:
    how far it stands out. cheeks: how full they are. mouth, jaw, neck: their width.
    """

    width: float = 0.0
    length: float = 0.0
    depth: float = 0.0
    forehead: float = 0.0
    brow: float = 0.0
    eyes: float = 0.0
    nose: float = 0.0
    cheeks: float = 0.0
    mouth: float = 0.0
    jaw: float = 0.0
    chin: float = 0.0
    neck: float = 0.0

    def __post_init__(self) -> None:
        for number in fields(self):
            given = getattr(self, number.name)
            if not -1 <= given <= 1:
                raise ValueError(f"{number.name} of a head must lie in [-1, 1], given {given}.")

    def warp(self, q: Float[Tensor, "V 3"]) -> Float[Tensor, "V 3"]:
        """Points of the measured frame in centimetres, moved to where this identity has them."""
        x, y, z = q.unbind(-1)
        side = torch.tanh(x)  # a smooth sign
        eye = q.new_tensor(EYE_CM)
        from_eye = torch.stack([x - side * eye[0], y - eye[1], z - eye[2]], dim=-1)
        swell = 0.14 * self.eyes * torch.exp(-from_eye.square().sum(-1) / (2 * 2.6**2))
        below = torch.sigmoid(-(y + 8.5) / 0.8)
        jaw, mouth = _near(q, (0, -6, 7), 4.2), _near(q, (0, -3.4, 11), 2.2)
        cheek, brow = _near_pair(q, (5.2, -1, 8), 2.6), _near_pair(q, (3.0, 6.0, 9.8), 1.8)
        forward = 0.5 * self.cheeks * cheek + 0.6 * self.brow * brow + 0.9 * self.forehead * _near(q, (0, 10.5, 7), 3.6)
        forward = (
            forward + 0.9 * self.nose * _near(q, (0, 0.3, 12.5), 1.7) + 0.8 * self.chin * _near(q, (0, -7.3, 9.8), 2.2)
        )
        wider = 0.08 * self.width + 0.15 * self.jaw * jaw + 0.13 * self.mouth * mouth + 0.12 * self.neck * below
        moved_x = x * (1 + wider) + 0.5 * self.cheeks * side * cheek
        moved_y = y + 0.07 * self.length * (y - eye[1]) - 0.5 * self.chin * _near(q, (0, -7.3, 9.8), 2.2)
        moved_z = z + (0.07 * self.depth + 0.12 * self.neck * below) * (z - 2) + forward
        return torch.stack([moved_x, moved_y, moved_z], dim=-1) + swell[..., None] * from_eye


def _near(q: Tensor, centre: tuple[float, float, float], reach: float) -> Tensor:
    return torch.exp(-(q - q.new_tensor(centre)).square().sum(-1) / (2 * reach**2))


def _near_pair(q: Tensor, centre: tuple[float, float, float], reach: float) -> Tensor:
    x, y, z = centre
    return _near(q, centre, reach) + _near(q, (-x, y, z), reach)


@dataclass(frozen=True)
class Template:
    """A mesh that a head is made of, at rest: vertices in the world, counter-clockwise triangles, places in the square.

    shapes: name -> displacement of every vertex at weight 1. landmarks: the 68 points in iBUG's order. contours: 130
    of MediaPipe's 478 points. regions: name -> its vertices, for masks. licence: words that go with what is made of it.
    """

    vertices: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    uv: Float[Tensor, "T 2"] | None
    uv_faces: Int[Tensor, "F 3"] | None
    shapes: Mapping[str, Float[Tensor, "V 3"]]
    landmarks: Points
    contours: Points
    regions: Mapping[str, Int[Tensor, "n"]]
    licence: str

    def posed(self, weights: Mapping[str, float]) -> Float[Tensor, "V 3"]:
        """The vertices with blendshapes added. Raises ValueError for a shape that the template does not have."""
        vertices = self.vertices
        for name, weight in weights.items():
            if name not in self.shapes:
                close = difflib.get_close_matches(name, self.shapes, n=1)
                hint = f' Did you mean "{close[0]}"?' if close else ""
                known = ", ".join(self.shapes) or "none"
                raise ValueError(f'The template has no blendshape "{name}".{hint} It has: {known}.')
            vertices = vertices + weight * self.shapes[name]
        return vertices

    @torch.no_grad()
    def at(self, points: Points, vertices: Float[Tensor, "V 3"]) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
        """Where points of the posed template are, and which way the face looks there, as unit vectors.

        Normals are averaged over the neighbourhood, because rims of lids and lips look anywhere.
        """
        mesh = Mesh(vertices, self.faces)
        normals, mean = mesh.normals(), mesh.averaging()
        for _ in range(SMOOTHED):
            normals = mean(normals)
        return points.at(vertices, self.faces), normalize(points.at(normals, self.faces), dim=-1)

    def mesh(self, paint: Mapping[str, tuple[float, float, float]] | None = None) -> Mesh:
        """The template at rest, to be optimised; it keeps its vertices' order, so the shapes still fit.

        paint: region -> colour in sRGB, later ones over earlier ones; grey elsewhere. Raises ValueError for a region
        that the template does not have.
        """
        rgb = torch.full_like(self.vertices, 0.5)
        for name, colour in (paint or {}).items():
            if name not in self.regions:
                raise ValueError(f'The template has no region "{name}"; it has: {", ".join(self.regions) or "none"}.')
            rgb[self.regions[name]] = rgb.new_tensor(colour)
        return Mesh(self.vertices, self.faces, logits_of(rgb))

    def textured(self, size: int) -> TexturedMesh:
        """The template at rest with grey textures of `size` texels a side. Raises ValueError without texture places."""
        if self.uv is None or self.uv_faces is None:
            raise ValueError("The template has no texture places (uv), so it cannot be textured; unwrap its mesh.")
        return TexturedMesh(self.vertices, self.faces, self.uv, self.uv_faces, blank(size))


def head(identity: Identity | None = None) -> Template:
    """The template of an identity, by default the head that the playroom draws: in the world, within its sphere."""
    warp = (identity or Identity()).warp
    mesh = head_mesh()
    rest = to_world(warp(mesh.vertices))
    shapes = {name: to_world(warp(mesh.vertices + moved)) - rest for name, moved in _expressions().items()}
    landmarks, contours = _points()
    return Template(
        vertices=rest.float(),
        faces=mesh.faces,
        uv=mesh.uv.float(),
        uv_faces=mesh.uv_faces,
        shapes={name: moved.float() for name, moved in shapes.items()},
        landmarks=landmarks,
        contours=contours,
        regions=_regions(mesh),
        licence=LICENCE,
    )


def _regions(mesh: HeadMesh) -> dict[str, Tensor]:
    """The vertices of each part, and of irises and pupils, which end where the playroom's do."""
    regions = {name: (mesh.part == i).nonzero()[:, 0] for i, name in enumerate(PARTS)}
    for side, x in (("left", EYE_CM[0]), ("right", -EYE_CM[0])):
        rows = regions[f"{side} eye"]
        p = mesh.vertices[rows] - mesh.vertices.new_tensor([x, *EYE_CM[1:]])
        for name, reach in (("iris", IRIS_CM), ("pupil", PUPIL_CM)):
            regions[f"{side} {name}"] = rows[(p[:, 2] > 0) & (p[:, :2].norm(dim=1) < reach)]
    return regions


@functools.cache
def _expressions() -> dict[str, Tensor]:
    mesh = head_mesh()
    return expressions.shapes(mesh.vertices, mesh.part)


@functools.cache
def _points() -> tuple[Points, Points]:
    mesh = head_mesh()
    return head_points.ibug(mesh), head_points.mediapipe(mesh)
