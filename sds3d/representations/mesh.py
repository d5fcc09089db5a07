"""Triangle meshes, one with a colour at each vertex, and their optimiser.

What is optimised is an offset of every vertex from where the mesh began, and what the surface looks like. The triangles
never change, so a rasteriser with gradients at silhouettes moves the surface, and the regularisers `laplacian` and
`normal_consistency` keep it smooth.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..core import RenderOutput, Representation, Step
from ..schedules import Number, Ramp, value
from .adam import adam_

OFFSETS = Ramp(5e-3, 5e-4, curve="exponential")  # these rates suit about 300 steps on an object of radius 1
COLOURS = Ramp(5e-2, 2e-2)
INSIDE = 1e-3  # how near to 0 and 1 a colour comes, whose logit is kept
SWEEPS = 16  # of `Triangles.diffused`
MOMENTUM = 0.8  # share that the running mean of the vertices' gradients keeps at a step
MAX_SUBDIVISIONS = 6  # 81920 triangles


@dataclass(frozen=True)
class MeshOptimise:
    """Rates, numbers or schedules over progress: offsets in world units, colours, which Adam moves, in logits."""

    offsets: Number = OFFSETS
    colours: Number = COLOURS

    def rates(self, progress: float) -> dict[str, float]:
        """The learning rate of each parameter."""
        return {"offsets": value(self.offsets, progress), "colour_logits": value(self.colours, progress)}


@dataclass(frozen=True)
class Edges:
    """The E edges of a mesh: their two ends, and of the one or two triangles beside each the index and the far corner.

    The second column of `faces` and `opposite` is -1 where an edge has one triangle. Where more than two meet, the
    first two are a pair and each other one is a boundary of its own.
    """

    ends: Int[Tensor, "E 2"]
    faces: Int[Tensor, "E 2"]
    opposite: Int[Tensor, "E 2"]


def edges(faces: Int[Tensor, "F 3"]) -> Edges:
    """The edges of triangles, ordered by their ends."""
    corners = torch.arange(3, device=faces.device)
    ends = torch.stack([faces[:, (corners + 1) % 3], faces[:, (corners + 2) % 3]], dim=-1).reshape(-1, 2)
    ends = ends.sort(dim=1).values
    opposite, face = faces.reshape(-1), torch.arange(len(faces), device=faces.device).repeat_interleave(3)
    key, order = torch.sort(ends[:, 0] * (faces.max() + 1) + ends[:, 1], stable=True)
    _, group, counts = torch.unique_consecutive(key, return_inverse=True, return_counts=True)
    rank = torch.arange(len(key), device=key.device) - (counts.cumsum(0) - counts)[group]
    first = order[rank != 1]
    paired = (rank[rank != 1] == 0) & (counts[group[rank != 1]] > 1)

    def both(values: Tensor) -> Tensor:
        second = torch.full_like(first, -1)
        second[paired] = values[order[rank == 1]]
        return torch.stack([values[first], second], dim=-1)

    return Edges(ends[first], both(face), both(opposite))


def ranges(counts: Int[Tensor, "n"]) -> tuple[Tensor, Tensor]:
    """For counts (2, 0, 3) the rows (0, 0, 2, 2, 2) and the places within them (0, 1, 0, 1, 2)."""
    row = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return row, torch.arange(len(row), device=counts.device) - (counts.cumsum(0) - counts)[row]


@dataclass(frozen=True)
class Material:
    """What n points of a surface look like: albedo in [0, 1], the unit normal in the world, which points out of the
    surface, roughness in [0, 1] (a mirror to chalk) and metallic in [0, 1] (glTF's metal-roughness model)."""

    albedo: Float[Tensor, "n 3"]
    normal: Float[Tensor, "n 3"]
    roughness: Float[Tensor, "n 1"]
    metallic: Float[Tensor, "n 1"]


class Rates(Protocol):
    """Numbers of an optimiser: the learning rate of each parameter at a progress in [0, 1]."""

    def rates(self, progress: float) -> dict[str, float]: ...


class Triangles(Representation):
    """V vertices and F triangles, counter-clockwise as seen from outside, which look like a `Material`.

    A kind of mesh names its tensors: `FIXED` stay as they are, `LEARNT` are parameters that are moved, those in
    `SHARED` with one second moment of Adam for the whole tensor (see `adam_`), and `OPTIMISE` is the class of the
    rates. Given tensors are copied.
    """

    FIXED: ClassVar[tuple[str, ...]]
    LEARNT: ClassVar[tuple[str, ...]]
    SHARED: ClassVar[tuple[str, ...]] = ()
    OPTIMISE: ClassVar[type]
    REACH: ClassVar[float] = 20.0  # of `diffused`, in squares of an edge's length
    base: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    offsets: Float[Tensor, "V 3"]

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.check(tensors)
        for name in self.FIXED:
            tensor = tensors[name].detach()
            self.register_buffer(name, tensor.clone() if tensor.is_floating_point() else tensor.long().clone())
        for name in self.LEARNT:
            setattr(self, name, nn.Parameter(tensors[name].detach().clone()))
        self.settle()
        self._optimise: Rates | None = None
        self._moments: dict[str, Tensor] = {}  # "first.offsets", "second.offsets", ...
        self._steps = 0

    @classmethod
    @abstractmethod
    def check(cls, tensors: Mapping[str, Tensor]) -> None:
        """Raise ValueError or TypeError for tensors, named as in `FIXED` and `LEARNT`, that are no such mesh."""

    @abstractmethod
    def material(self, face: Int[Tensor, "n"], weights: Float[Tensor, "n 3"]) -> Material:
        """How the surface looks at n points, given by a triangle and the shares of its corners; differentiable."""

    def __len__(self) -> int:
        """The number of triangles."""
        return self.faces.shape[0]

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]  # a move to a device takes the edges along
        super()._apply(fn, recurse)
        self.settle()
        return self

    def settle(self) -> None:
        """Make what follows from the tensors, which are new."""
        self.edges = edges(self.faces)

    @property
    def vertices(self) -> Float[Tensor, "V 3"]:
        """Where the vertices are, in world units."""
        return self.base + self.offsets

    def face_normals(self) -> Float[Tensor, "F 3"]:
        """Outward normals of the triangles, as long as twice their area."""
        a, b, c = self.vertices[self.faces.T.reshape(-1)].view(3, -1, 3)
        return torch.linalg.cross(b - a, c - a)

    def normals(self) -> Float[Tensor, "V 3"]:
        """Unit normals of the vertices, the mean of their triangles' by area; 0 where these cancel."""
        spread = self.face_normals().repeat_interleave(3, dim=0)
        return normalize(torch.zeros_like(self.base).index_add(0, self.faces.reshape(-1), spread), dim=-1)

    def averaging(self) -> Callable[[Float[Tensor, "V c"]], Float[Tensor, "V c"]]:
        """The function from values at vertices to the mean over each vertex's neighbours; a lone one keeps its own."""
        a, b = self.edges.ends.unbind(1)
        first = torch.ones_like(a, dtype=torch.bool)  # An edge of more than two triangles stands there several times.
        first[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
        a, b = torch.cat([a[first], b[first]]), torch.cat([b[first], a[first]])
        count = torch.bincount(a, minlength=len(self.base))[:, None]

        def mean(values: Float[Tensor, "V c"]) -> Float[Tensor, "V c"]:
            total = torch.zeros_like(values).index_add(0, a, values.index_select(0, b))
            return torch.where(count > 0, total / count.clamp(min=1), values)

        return mean

    def laplacian(self) -> Float[Tensor, "V 3"]:
        """Mean of each vertex's neighbours less the vertex itself (the uniform Laplacian)."""
        return self.averaging()(self.vertices) - self.vertices

    @torch.no_grad()
    def diffused(self, values: Float[Tensor, "V c"]) -> Float[Tensor, "V c"]:
        """Values at the vertices spread over the surface: about (I - `REACH` L)^-1, L the uniform Laplacian.

        A gradient at silhouettes falls on a few vertices; descended as it is, it wrinkles the surface, and spread it
        moves the surface as a whole (Nicolet, Jacobson, Jakob 2021, "Large Steps in Inverse Rendering of Geometry").
        """
        spread, mean = values, self.averaging()
        for _ in range(SWEEPS):  # of Jacobi's method, each of which reaches one edge further
            spread = (values + self.REACH * mean(spread)) / (1 + self.REACH)
        return spread

    def bends(self) -> Float[Tensor, "P"]:
        """1 - cosine of the angle between the normals of each two triangles that share an edge; 0 where flat."""
        pairs = self.edges.faces[self.edges.faces[:, 1] >= 0]
        unit = normalize(self.face_normals(), dim=-1)
        return 1 - (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(dim=-1)

    def prepare(self, optimise: object, step: Step) -> None:
        """Start Adam anew, with numbers of the class `OPTIMISE`; TypeError for others."""
        if not isinstance(optimise, self.OPTIMISE):
            wanted, given = self.OPTIMISE.__name__, type(optimise).__name__
            raise TypeError(f"A {type(self).__name__} is optimised by a {wanted}, given {given}.")
        self._optimise, self._steps = cast(Rates, optimise), 0
        self._moments = {
            f"{moment}.{name}": self.base.new_zeros([1] if shared else getattr(self, name).shape)
            for name in self.LEARNT
            for moment, shared in (("first", False), ("second", name in self.SHARED))
            if (moment, name) != ("second", "offsets")
        }

    def update(self, out: RenderOutput, step: Step) -> Mapping[str, float]:
        """One step on the gradients at hand, which are then dropped. ValueError where `prepare` was not called.

        Adam moves how the surface looks. Its vertices step along the running mean of their gradient, which is spread
        over the surface first (see `diffused`), and the one that moves most steps by the rate: Adam's long memory of
        the first, large gradients would make the last steps too short.
        """
        if self._optimise is None:
            raise ValueError("This mesh has no optimiser yet: call prepare() first.")
        self._steps += 1
        for name, rate in self._optimise.rates(step.progress).items():
            first = self._moments[f"first.{name}"]
            if name == "offsets":
                self._slide(first, rate)
            else:
                adam_(getattr(self, name), first, self._moments[f"second.{name}"], self._steps, rate)
        return {"triangles": len(self)}

    @torch.no_grad()
    def _slide(self, mean: Float[Tensor, "V 3"], length: float) -> None:
        """Move the vertices along the running mean of their spread gradients, the fastest by `length`."""
        if self.offsets.grad is not None:
            mean.lerp_(self.diffused(self.offsets.grad), 1 - MOMENTUM)
            longest = mean.norm(dim=-1).max().clamp_min(torch.finfo(mean.dtype).tiny)
            self.offsets -= length * mean / longest
        self.offsets.grad = None

    def state(self) -> dict[str, Tensor]:
        """All tensors of the mesh; after `prepare` also moments ("first.*", "second.*") and "steps"."""
        tensors = {name: getattr(self, name).detach().clone() for name in (*self.FIXED, *self.LEARNT)}
        if self._optimise is None:
            return tensors
        moments = {name: tensor.clone() for name, tensor in self._moments.items()}
        return {**tensors, **moments, "steps": torch.tensor(self._steps)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `state`; another mesh may come in. Without `prepare` the moments are not taken.

        Raises ValueError for missing tensors, wrong shapes and numbers that are not finite.
        """
        wanted = [*self.FIXED, *self.LEARNT]
        running = [] if self._optimise is None else [*self._moments, "steps"]
        missing = [name for name in (*wanted, *running) if name not in tensors]
        if missing:
            raise ValueError(f'The saved mesh lacks "{missing[0]}".')
        self.check(tensors)
        taken = {name: tensors[name].to(getattr(self, name)) for name in wanted}
        if self._optimise is not None:
            moments = {name: tensors[name].to(self.base).clone() for name in self._moments}
            for name, tensor in moments.items():
                moment, _, parameter = name.partition(".")
                shared = moment == "second" and parameter in self.SHARED
                check_rows(name, tensor, torch.Size([1]) if shared else taken[parameter].shape)
            self._moments, self._steps = moments, int(tensors["steps"])
        for name in self.FIXED:
            setattr(self, name, taken[name].clone())
        for name in self.LEARNT:
            setattr(self, name, nn.Parameter(taken[name].clone(), requires_grad=getattr(self, name).requires_grad))
        self.settle()


class Mesh(Triangles):
    """Triangles with a colour at each vertex, as rough as chalk and no metal.

    Raises ValueError for no triangles, wrong shapes, numbers that are not finite and corners that are no vertex;
    TypeError for other dtypes.
    """

    FIXED = ("base", "faces")
    LEARNT = ("offsets", "colour_logits")
    OPTIMISE = MeshOptimise
    colour_logits: Float[Tensor, "V 3"]

    def __init__(
        self,
        vertices: Float[Tensor, "V 3"],
        faces: Int[Tensor, "F 3"],
        colour_logits: Float[Tensor, "V 3"] | None = None,
    ) -> None:
        zeros = torch.zeros_like(vertices)
        logits = zeros if colour_logits is None else colour_logits
        super().__init__({"base": vertices, "faces": faces, "offsets": zeros, "colour_logits": logits})

    @classmethod
    def check(cls, tensors: Mapping[str, Tensor]) -> None:
        """Vertices, triangles, and columns with a row per vertex."""
        check_triangles(tensors["base"], tensors["faces"])
        for name in cls.LEARNT:
            check_rows(name, tensors[name], tensors["base"].shape)

    @property
    def rgb(self) -> Float[Tensor, "V 3"]:
        """Unshaded colours of the vertices in (0, 1)."""
        return self.colour_logits.sigmoid()

    def material(self, face: Int[Tensor, "n"], weights: Float[Tensor, "n 3"]) -> Material:
        """Colours and normals of the corners, interpolated."""
        corners = torch.cat([self.rgb, self.normals()], dim=1)  # [V, 6]
        values = corners.index_select(0, self.faces[face].reshape(-1)).view(-1, 3, 6)
        albedo, normal = (weights[..., None] * values).sum(dim=1).split(3, dim=1)
        ones = torch.ones_like(albedo[:, :1])
        return Material(albedo, normalize(normal, dim=-1), ones, torch.zeros_like(ones))


@dataclass(frozen=True)
class Sphere:
    """A grey sphere around the origin: an icosahedron whose triangles are split in four, `subdivisions` times."""

    radius: float = 0.6
    subdivisions: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.radius <= 1:
            raise ValueError(f"radius must lie in (0, 1], the object's sphere, given {self.radius}.")
        if not 0 <= self.subdivisions <= MAX_SUBDIVISIONS:
            raise ValueError(f"subdivisions must lie in [0, {MAX_SUBDIVISIONS}], given {self.subdivisions}.")

    def __call__(self, previous: Representation | None, step: Step) -> Representation:
        return icosphere(self.subdivisions, self.radius)

    def blank(self, previous: Representation | None) -> Representation:
        """A mesh of twenty triangles."""
        return icosphere(0)


def icosphere(subdivisions: int, radius: float = 1.0) -> Mesh:
    """A grey sphere of 20 * 4 ** subdivisions triangles with its vertices at `radius`."""
    golden = (1 + 5**0.5) / 2
    signs = torch.tensor([[-1.0, -1], [1, -1], [-1, 1], [1, 1]], dtype=torch.float64) * torch.tensor([1.0, golden])
    flat = torch.cat([torch.zeros(4, 1, dtype=torch.float64), signs], dim=1)  # (0, +-1, +-golden)
    vertices = torch.cat([flat.roll(turn, 1) for turn in range(3)])
    # The triangles are the triples of vertices that are all one edge, of length 2, apart.
    near = (torch.cdist(vertices, vertices) - 2).abs() < 1e-6
    faces = torch.combinations(torch.arange(12), 3)
    faces = faces[near[faces[:, 0], faces[:, 1]] & near[faces[:, 1], faces[:, 2]] & near[faces[:, 0], faces[:, 2]]]
    inward = torch.linalg.det(vertices[faces]) < 0
    faces = torch.where(inward[:, None], faces.flip(1), faces)
    for _ in range(subdivisions):
        vertices, faces = subdivided(vertices, faces)
        vertices = normalize(vertices, dim=-1)
    vertices = radius * normalize(vertices, dim=-1)
    return Mesh(vertices.float(), faces)


def subdivided(vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> tuple[Tensor, Tensor]:
    """The same surface with every triangle split in four at the middles of its edges."""
    pairs = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).sort(dim=1).values
    ends, middle = torch.unique(pairs, dim=0, return_inverse=True)
    ab, bc, ca = (middle + len(vertices)).view(3, -1)
    a, b, c = faces.unbind(1)
    split = [[a, ab, ca], [ab, b, bc], [ca, bc, c], [ab, bc, ca]]
    return torch.cat([vertices, vertices[ends].mean(dim=1)]), torch.cat([torch.stack(f, dim=1) for f in split])


def logits_of(rgb: Tensor) -> Tensor:
    """The logits of colours in [0, 1], those at the ends brought `INSIDE`, where a logit can still learn."""
    return rgb.clamp(INSIDE, 1 - INSIDE).logit()


def check_triangles(vertices: Tensor, faces: Tensor) -> None:
    """Raise ValueError or TypeError for what is no set of at least one triangle between finite vertices."""
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise ValueError(f"vertices must have the shape [V, 3], given {list(vertices.shape)}.")
    check_rows("vertices", vertices, vertices.shape)
    check_corners("faces", faces, len(vertices), "vertices")


def check_corners(name: str, faces: Tensor, count: int, what: str) -> None:
    """Raise for triangles whose corners are not whole numbers in [0, count), and for none."""
    if faces.dtype.is_floating_point or faces.dtype.is_complex or faces.dtype == torch.bool:
        raise TypeError(f"{name} must hold whole numbers, given {faces.dtype}.")
    if faces.ndim != 2 or faces.shape[1] != 3 or len(faces) == 0:
        raise ValueError(f"A mesh needs at least one triangle, {name} [F, 3], given {list(faces.shape)}.")
    low, high = int(faces.min()), int(faces.max())
    if low < 0 or high >= count:
        worst = high if high >= count else low
        raise ValueError(f"A triangle of {name} has the corner {worst}, but there are only {count} {what}, from 0 on.")


def check_rows(name: str, tensor: Tensor, shape: torch.Size) -> None:
    """Raise for a tensor that is not of floating point, of another shape, or not finite."""
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must hold floating-point numbers, given {tensor.dtype}.")
    if tensor.shape != shape:
        raise ValueError(f"{name} must have the shape {list(shape)}, given {list(tensor.shape)}.")
    if not torch.isfinite(tensor).all():
        rows = int((~torch.isfinite(tensor)).any(dim=-1).sum())
        raise ValueError(f"{name} holds numbers that are not finite, in {rows} of {tensor[..., 0].numel()} rows.")
