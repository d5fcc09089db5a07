"""A head template that is displaced and painted: its triangles stay, so its blendshapes, landmarks and regions do too.

What a material is made of besides its colour cannot be told from pictures of 64 pixels, and so is set by region:

| region   | roughness |
|----------|-----------|
| eyes     | 0.15      |
| mouth    | 0.30      |
| lips     | 0.45      |
| nose tip | 0.49      |
| forehead | 0.56      |
| skin     | 0.60      |
| scalp    | 0.75      |

and nothing is metallic. Lips, nose tip, forehead and cheeks are the inverse of customary specular constants (0.55, 0.5,
0.4, 0.35); the others are guesses.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core import RenderOutput, Representation, Step
from .head import Identity, Template, head
from .head_mesh import PARTS, HeadMesh, head_mesh
from .head_profile import EYE_CM, IRIS_CM, PUPIL_CM
from .mesh import check_rows, logits_of
from .texture import LARGEST, TexturedMesh, blank, nearest, texels

PART_ROUGHNESS = {"skin": 0.6, "lips": 0.45, "mouth": 0.3, "left eye": 0.15, "right eye": 0.15}
SPOTS = {  # of the skin: centre and reach in centimetres of the measured frame, and roughness
    "nose tip": ((0.0, 0.3, 12.5), 1.5, 0.49),
    "forehead": ((0.0, 8.5, 8.0), 3.6, 0.56),
}
SCALP_ROUGHNESS = 0.75
FEATURES = {  # which expressions move, and which distillation wore off when it was let: centre and reach in centimetres
    "eye": ((3.2, 3.5, 8.9), 2.9),
    "nose": ((0.0, 1.0, 12.0), 2.8),
    "mouth": ((0.0, -3.5, 10.8), 3.0),
    "ear": ((8.0, 1.6, 1.2), 2.4),
}
SPREAD = 0.5  # deviation of the numbers of candidates
LAYOUT = {  # its regions and their colours; all but the first keep one colour each, which a stage changes
    "skin": (0.5, 0.5, 0.5),
    "brow": (0.25, 0.25, 0.25),
    "lips": (0.55, 0.3, 0.28),
    "eye": (0.9, 0.9, 0.9),
    "iris": (0.35, 0.35, 0.35),
    "pupil": (0.05, 0.05, 0.05),
}
SLOW = 0.2  # how fast features change beside the rest; as fast as it, they faded into the skin
BROW_CM = (1.3, 5.4, 6.6, 0.55)  # as the playroom draws it: inner and outer end, height, half of how thick it is
NOT_METALLIC = 1e-3  # a logit is finite
MOUTH_RGB = (0.3, 0.08, 0.08)  # of what no view of a closed mouth shows


class TemplateMesh(TexturedMesh):
    """The head of an identity with textures of S x S texels, of which a stage moves the vertices and the textures.

    identity [12]: the numbers of an `Identity`. seen [S, S, 1]: 1 where a step has drawn from the texel. The eyes stay
    where they are. After a stage's last step, texels that no step has seen take what their twins on the other side
    show. Raises as `TexturedMesh` does, and for numbers that are no identity.
    """

    FIXED = (*TexturedMesh.FIXED, "identity", "seen")
    SHARED = ("offsets", "slopes")  # The regularisers quiet texels that few pixels read; the rest may move at once.
    REACH = 10.0  # less than of other meshes, so that a hairline is one
    identity: Float[Tensor, "12"]
    seen: Float[Tensor, "S S 1"]

    def __init__(self, identity: Identity, size: int) -> None:
        numbers = torch.tensor(astuple(identity))
        template = head(_identity(numbers))
        assert template.uv is not None and template.uv_faces is not None  # The built-in head has places.
        more = {"identity": numbers, "seen": torch.zeros(size, size, 1)}
        super().__init__(template.vertices, template.faces, template.uv, template.uv_faces, {**by_region(size), **more})

    @classmethod
    def check(cls, tensors: Mapping[str, Tensor]) -> None:
        super().check(tensors)
        check_rows("seen", tensors["seen"], torch.Size([*tensors["albedo_logits"].shape[:2], 1]))
        check_rows("identity", tensors["identity"], torch.Size([len(fields(Identity))]))
        _identity(tensors["identity"])

    @property
    def template(self) -> Template:
        """What it was before a stage moved it, with blendshapes, landmarks, regions and licence."""
        return head(_identity(self.identity))

    def reads(self, uv: Float[Tensor, "n 2"]) -> tuple[Int[Tensor, "n 4"], Float[Tensor, "n 4 1"]]:
        """As of any textured mesh; what is read to be learnt from is marked as seen."""
        texel, weight = super().reads(uv)
        if torch.is_grad_enabled():
            self.seen.view(-1)[texel.flatten()] = 1
        return texel, weight

    def diffused(self, values: Float[Tensor, "V c"]) -> Float[Tensor, "V c"]:
        """As of any mesh, and less where the head holds still."""
        return pliancy().to(values) * super().diffused(values)

    def asymmetry(self) -> Tensor:
        """Mean squared difference of the two sides: of albedo in [0, 1], and of offsets in world units."""
        albedo, other = self.albedo_logits.sigmoid().flatten(0, 1), twins(self.size).to(self.faces)
        mirrored = self.offsets * self.offsets.new_tensor([1.0, -1.0, 1.0])
        moved = (self.offsets - mirrored[partners().to(self.faces)]).square().mean()
        return moved + (albedo - albedo[other]).square().mean()

    def update(self, out: RenderOutput, step: Step) -> Mapping[str, float]:
        """As of any mesh; features have one colour each, which changes slowly, and a stage's last step fills."""
        region, before = unfolded(self.size).region.to(self.faces), self.albedo_logits.detach().clone()
        if self.albedo_logits.grad is not None:
            self.albedo_logits.grad = pooled(self.albedo_logits.grad.flatten(0, 1), region).view_as(before)
        numbers = super().update(out, step)
        with torch.no_grad():
            feature = (region > 0).view(self.size, self.size, 1)
            self.albedo_logits.copy_(
                torch.where(feature, torch.lerp(before, self.albedo_logits, SLOW), self.albedo_logits)
            )
        if step.progress == 1:
            self.fill()
        return numbers

    @torch.no_grad()
    def fill(self) -> None:
        """Texels that no step has seen take the numbers of their twins, where these have been seen."""
        other = twins(self.size).to(self.faces)
        seen = self.seen.flatten() > 0
        lost = (~seen & seen[other]).nonzero()[:, 0]
        self.albedo_logits.view(-1, 3)[lost] = self.albedo_logits.view(-1, 3)[other[lost]]
        slopes = self.slopes.view(-1, 2)
        slopes[lost] = slopes[other[lost]] * slopes.new_tensor([-1.0, 1.0])

    def origins(self) -> dict[str, str]:
        """Where its shape and each of its maps come from, in words."""
        begun, flat = by_region(self.size), not self.slopes.any()
        set_by = {"roughness": "heuristic by region", "metallic": "heuristic, none"}
        for name in set_by:
            if not torch.equal(getattr(self, f"{name}_logits").detach().cpu(), begun[f"{name}_logits"]):
                set_by[name] += ", then distilled"
        maps = {
            "albedo": "distilled; of brows, lips, eyes, irises and pupils place and first colour set by region",
            **set_by,
            "normal": "flat" if flat else "distilled",
        }
        numbers = zip(fields(Identity), self.identity.tolist(), strict=True)
        return {
            "template": self.template.licence,
            "identity": ", ".join(f"{number.name} {given:.2f}" for number, given in numbers),
            "maps": "; ".join(f"{name}: {origin}" for name, origin in maps.items()),
        }


def _identity(numbers: Tensor) -> Identity:
    return Identity(*numbers.tolist())


@functools.cache
def pliancy() -> Float[Tensor, "V 1"]:
    """How much of a displacement reaches each vertex: all on skull, cheeks and jaw, none in eyes and `FEATURES`."""
    mesh = head_mesh()
    q = mesh.vertices
    mirrored = torch.cat([q[:, :1].abs(), q[:, 1:]], dim=1)
    away = torch.stack([(mirrored - q.new_tensor(centre)).norm(dim=1) / reach for centre, reach in FEATURES.values()])
    held = torch.exp(-(away.amin(dim=0) ** 6))  # nearly 1 as far as the reach, nearly 0 beyond
    eyes = torch.isin(mesh.part, torch.tensor([PARTS.index("left eye"), PARTS.index("right eye")]))
    return (1 - held.masked_fill(eyes, 1.0))[:, None].float()


@functools.cache
def partners() -> Int[Tensor, "V"]:
    """Of each vertex the one that a mirror shows."""
    vertices = head_mesh().vertices
    return torch.cdist(vertices * vertices.new_tensor([-1.0, 1.0, 1.0]), vertices).argmin(dim=1)


@functools.cache
def twins(size: int) -> Int[Tensor, "n"]:
    """The flat index of the texel on the head's other side, of each of S x S; its own where no triangle lies."""
    mesh, other = head_mesh(), partners()
    sorted_rows = lambda faces: faces.sort(dim=1).values @ faces.new_tensor([len(other) ** 2, len(other), 1])  # noqa: E731
    keys, order = sorted_rows(mesh.faces).sort()
    wanted = other[mesh.faces]
    face = order[torch.searchsorted(keys, sorted_rows(wanted))]  # the mirrored triangle of each
    corner = (wanted[:, :, None] == mesh.faces[face][:, None]).long().argmax(dim=2)
    places = mesh.uv_faces[face].gather(1, corner)
    at, of, shares = texels(mesh.uv, mesh.uv_faces, size)
    u, v = (shares[..., None] * mesh.uv[places[of]]).sum(dim=1).unbind(-1)
    column, row = ((x * size).floor().long().clamp(0, size - 1) for x in (u, 1 - v))
    found = torch.arange(size * size)
    found[at] = row * size + column
    return found


@dataclass(frozen=True)
class Unfolded:
    """The measured head in S x S texels: of each the point in centimetres, its roughness, its part and its region, or
    those of the nearest texel in a triangle."""

    q: Float[Tensor, "n 3"]
    rough: Float[Tensor, "n 1"]
    part: Int[Tensor, "n"]
    region: Int[Tensor, "n"]


@functools.cache
def unfolded(size: int) -> Unfolded:
    """See there."""
    mesh = head_mesh()
    at, face, shares = texels(mesh.uv, mesh.uv_faces, size)
    if not len(at):  # A texture of one texel may have none; any point will do.
        at, face, shares = at.new_zeros(1), face.new_zeros(1), shares.new_full((1, 3), 1 / 3)
    marked, row = torch.zeros(size * size, dtype=torch.bool), torch.zeros(size * size, dtype=torch.long)
    marked[at], row[at] = True, torch.arange(len(at))
    row = row[nearest(marked.view(size, size)).flatten()]
    corners = mesh.faces[face[row]]
    values = torch.cat([mesh.vertices, roughness(mesh)[:, None]], dim=1)
    q, rough = (shares[row][..., None] * values[corners]).sum(dim=1).split([3, 1], dim=1)
    part = mesh.part[corners].amax(dim=1)  # PARTS: a triangle between two belongs to what lies further in
    return Unfolded(q, rough, part, layout(q, part))


@functools.cache
def by_region(size: int) -> dict[str, Tensor]:
    """Textures to begin with: the layout of a face, its mouth dark inside, and a roughness for each region."""
    head, textures = unfolded(size), blank(size)
    rgb = torch.tensor(list(LAYOUT.values()))[head.region]
    rgb[head.part == PARTS.index("mouth")] = torch.tensor(MOUTH_RGB)
    textures["albedo_logits"] = logits_of(rgb).view(size, size, 3)
    textures["roughness_logits"] = logits_of(head.rough.float()).view(size, size, 1)
    textures["metallic_logits"] = logits_of(torch.full((size, size, 1), NOT_METALLIC))
    return textures


def pooled(values: Float[Tensor, "n c"], region: Int[Tensor, "n"]) -> Float[Tensor, "n c"]:
    """The mean over each region of the layout but the first, whose texels keep their own."""
    count = torch.bincount(region, minlength=len(LAYOUT)).clamp(min=1)[:, None]
    mean = values.new_zeros(len(LAYOUT), values.shape[1]).index_add(0, region, values) / count
    return torch.where(region[:, None] > 0, mean[region], values)


def roughness(mesh: HeadMesh) -> Float[Tensor, "V"]:
    """The roughness of each vertex, as the table at the top says, in the measured frame."""
    q, skin = mesh.vertices, mesh.part == PARTS.index("skin")
    rough = torch.tensor([PART_ROUGHNESS.get(name, PART_ROUGHNESS["skin"]) for name in PARTS], dtype=q.dtype)[mesh.part]
    for centre, reach, value in SPOTS.values():
        near = torch.exp(-(q - q.new_tensor(centre)).square().sum(dim=1) / (2 * reach**2)) * skin
        rough = torch.lerp(rough, rough.new_full((), value), near)
    scalp = torch.sigmoid(2 * (q[:, 1] - 9.6 + 1.5 * (2.0 - q[:, 2]).clamp(min=0))) * skin
    return torch.lerp(rough, rough.new_full((), SCALP_ROUGHNESS), scalp)


def layout(q: Float[Tensor, "n 3"], part: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """The region of each point of the measured head, as its number in `LAYOUT`: where a face has its features."""
    regions = list(LAYOUT)
    x, y, z = q[:, 0].abs(), q[:, 1], q[:, 2]
    inner, outer, height, thick = BROW_CM
    arch = (y - height + 0.06 * (x - 3.0).square()).abs() < thick
    found = torch.full_like(part, regions.index("skin"))
    found[(part == PARTS.index("skin")) & (z > 4) & (x > inner) & (x < outer) & arch] = regions.index("brow")
    found[part == PARTS.index("lips")] = regions.index("lips")
    eye = torch.isin(part, torch.tensor([PARTS.index(f"{side} eye") for side in ("left", "right")]))
    found[eye] = regions.index("eye")
    off = torch.hypot(x - EYE_CM[0], y - EYE_CM[1])
    for name, reach in (("iris", IRIS_CM), ("pupil", PUPIL_CM)):
        found[eye & (z > EYE_CM[2]) & (off < reach)] = regions.index(name)
    return found


@dataclass(frozen=True)
class ChosenHead:
    """That of `count` heads which suits the prompt best: the measured one, and others of identities drawn around it.

    The engine chooses, see `choosing`. texels: a side, of the textures. clip: the folder of a CLIP model that judges
    them; without one the stage's prior does.
    """

    SUBJECT = "head"  # all that it makes

    count: int = 16
    texels: int = 256
    clip: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or not 1 <= self.texels <= LARGEST:
            raise ValueError(
                f"count must be at least 1 and texels in [1, {LARGEST}], given {self.count} and {self.texels}."
            )

    def candidates(self, step: Step) -> list[TemplateMesh]:
        """The heads to choose from, each with its identity in its state."""
        like = torch.empty(self.count, len(fields(Identity)))
        numbers = (SPREAD * step.child("candidates").normal("identity", like)).clamp(-1, 1)
        numbers[0] = 0
        return [TemplateMesh(_identity(row), self.texels) for row in numbers]

    def __call__(self, previous: Representation | None, step: Step) -> Representation:
        """The measured head."""
        return TemplateMesh(Identity(), self.texels)

    def blank(self, previous: Representation | None) -> Representation:
        """The measured head with textures of one texel."""
        return TemplateMesh(Identity(), 1)
