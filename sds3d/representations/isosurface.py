"""The zero surface of a grid of signed distances as triangles, and a mesh that is optimised as such a surface.

Naive surface nets (Gibson 1998): a cell that the surface crosses has one vertex, the mean of the crossings of its
edges; an edge of the grid that the surface crosses has one quad, between the four cells around it. Gradients flow
through the crossings, as in deep marching tetrahedra (Shen et al. 2021), which also move the points of the grid. Which
cells and edges are crossed is not differentiable. kaolin's FlexiCubes may take the place of surface nets.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import grid_sample, pad

from ..core import RenderOutput, Representation, Step
from ..schedules import Number, Ramp, value
from .field import LARGEST, points
from .flexicubes import backend, flexicubes
from .mesh import COLOURS, Mesh, check_rows

CORNERS = tuple(itertools.product((0, 1), repeat=3))  # of a cell, in steps along x, y, z
EDGES = tuple(
    (i, j)
    for i, j in itertools.combinations(range(8), 2)
    if sum(a != b for a, b in zip(CORNERS[i], CORNERS[j], strict=True)) == 1
)  # of a cell, as pairs of corners


def surface_nets(
    sdf: Float[Tensor, "X Y Z"], offsets: Float[Tensor, "X Y Z 3"] | None = None, radius: float = 1.0
) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"]]:
    """Vertices in world units and triangles, counter-clockwise as seen from outside, where sdf is not negative.

    The grid's points fill the cube [-radius, radius]^3 evenly; offsets move them, in grid steps within [-0.5, 0.5], so
    that they keep their order. The surface is closed: what lies outside of the grid counts as outside of the object,
    and every directed edge of a triangle has as many opposite ones. Where the object touches itself within one cell
    the surface does so in a vertex or an edge.

    Raises ValueError for wrong shapes, numbers that are not finite, offsets that are too large, and where there is no
    surface at all.
    """
    sdf, points = _closed(sdf, offsets, radius)
    shape, strides = sdf.shape, (sdf.shape[1] * sdf.shape[2], sdf.shape[2], 1)
    values, points, inside = sdf.flatten(), points.view(-1, 3), sdf.detach().flatten() < 0

    base = torch.arange(inside.numel(), device=sdf.device).view(shape)[:-1, :-1, :-1].flatten()
    jumps = base.new_tensor([sum(c * s for c, s in zip(corner, strides, strict=True)) for corner in CORNERS])
    count = inside[base[:, None] + jumps].sum(dim=1)
    cells = base[(count > 0) & (count < 8)]
    vertices = _crossings(cells, jumps, values, points, inside)

    vertex = torch.full_like(inside, -1, dtype=torch.long)
    vertex[cells] = torch.arange(len(cells), device=sdf.device)
    quads = [_quads(inside, strides[axis], strides[axis - 2], strides[axis - 1]) for axis in range(3)]
    return vertices, _triangles(vertices.detach(), vertex[torch.cat(quads)])


Extractor = Literal["nets", "flexicubes"]


def extracted(
    extractor: Extractor, sdf: Float[Tensor, "X Y Z"], offsets: Float[Tensor, "X Y Z 3"] | None = None
) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"]]:
    """The surface in [-1, 1]^3 as of `surface_nets`, by an extractor; ValueError also where kaolin is missing."""
    return surface_nets(sdf, offsets) if extractor == "nets" else flexicubes(*_closed(sdf, offsets, 1.0))


def _closed(sdf: Tensor, offsets: Tensor | None, radius: float) -> tuple[Float[Tensor, "x y z"], Tensor]:
    """The grid with a layer of points around it that are outside of the object, and where all points are: [x, y, z, 3].

    The layer, one step beyond the grid, closes what leaves it. Raises ValueError as `surface_nets` does.
    """
    _check(sdf, offsets, radius)
    steps = sdf.new_tensor([2 * radius / (n - 1) for n in sdf.shape])
    if offsets is None:
        offsets = sdf.new_zeros(*sdf.shape, 3)
    sdf, offsets = pad(sdf, (1,) * 6, value=float(steps.min())), pad(offsets, (0, 0) + (1,) * 6)
    axes = [torch.arange(n, dtype=sdf.dtype, device=sdf.device) - 1 for n in sdf.shape]
    return sdf, (torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) + offsets) * steps - radius


def _crossings(cells: Tensor, jumps: Tensor, values: Tensor, points: Tensor, inside: Tensor) -> Float[Tensor, "V 3"]:
    """The mean of the places at which the edges of each cell meet the surface, linearly between their ends."""
    first, second = jumps.new_tensor(EDGES).T
    a, b = cells[:, None] + jumps[first], cells[:, None] + jumps[second]  # [V, 12]
    crossed = inside[a] != inside[b]
    low, high = values[a], values[b]
    share = torch.where(crossed, low / torch.where(crossed, low - high, 1.0), 0.0)[..., None]
    places = torch.where(crossed[..., None], points[a] + share * (points[b] - points[a]), 0.0)
    return places.sum(dim=1) / crossed.sum(dim=1, keepdim=True)


def _quads(inside: Tensor, along: int, u: int, v: int) -> Int[Tensor, "Q 4"]:
    """The cells around each crossed edge in the direction `along`, in the order that faces outward.

    along, u, v: the strides of three axes that are right-handed in this order.
    """
    low = (inside[:-along] != inside[along:]).nonzero()[:, 0]
    # No edge wraps round the grid: both of its ends lie in the outer layer then, and are outside of the object.
    around = low[:, None] + low.new_tensor([-u - v, -v, 0, -u])
    return torch.where(inside[low][:, None], around, around.flip(1))


def _triangles(vertices: Tensor, quads: Int[Tensor, "Q 4"]) -> Int[Tensor, "F 3"]:
    """Each quad cut along its shorter diagonal."""
    a, b, c, d = vertices[quads].unbind(1)
    longer = (a - c).square().sum(dim=-1) > (b - d).square().sum(dim=-1)
    quads = torch.where(longer[:, None], quads.roll(-1, dims=1), quads)
    return torch.cat([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])


def _check(sdf: Tensor, offsets: Tensor | None, radius: float) -> None:
    if sdf.ndim != 3 or min(sdf.shape) < 2:
        raise ValueError(f"sdf must be a grid [X, Y, Z] of at least 2 points a side, given {list(sdf.shape)}.")
    if not radius > 0:
        raise ValueError(f"radius must be positive, given {radius}.")
    if not sdf.isfinite().all():
        raise ValueError(f"sdf holds numbers that are not finite, in {int((~sdf.isfinite()).sum())} points.")
    if not (sdf < 0).any():
        raise ValueError("The grid holds no surface: no point lies inside, where sdf is negative.")
    if offsets is None:
        return
    if offsets.shape != (*sdf.shape, 3):
        raise ValueError(f"offsets must have the shape {[*sdf.shape, 3]}, given {list(offsets.shape)}.")
    if not offsets.detach().abs().max() <= 0.5:
        raise ValueError("offsets must be finite and lie in [-0.5, 0.5] grid steps, or cells turn inside out.")


SWEEPS = 3  # of `redistanced` after each step, which moves the surface by a cell at most


@dataclass(frozen=True)
class IsosurfaceOptimise:
    """Rates of Adam, numbers or schedules over progress: distances in world units, colours in logits, offsets in steps
    of the grid, whose points stay in their places at 0.

    Few points have large gradients and set the measure for all, so a large rate suits the distances; none moves
    further than a step of the grid. Offsets that fall from 0.02 to 0.002 bring edges and thin parts nearer to exact
    pictures (`benchmarks/fit.py`); what they do to the noisier pull of a prior was not measured.
    """

    distances: Number = Ramp(1.0, 0.1, curve="exponential")
    colours: Number = COLOURS
    offsets: Number = field(default=0.0, metadata={"unsaid": True})

    def rates(self, progress: float) -> dict[str, float]:
        """The learning rate of each parameter."""
        numbers = {"sdf": self.distances, "tints": self.colours, "shifts": self.offsets}
        return {name: value(number, progress) for name, number in numbers.items()}


class Isosurface(Mesh):
    """A mesh that is the zero surface of a grid of signed distances, and can change its topology.

    It is drawn, judged and written as any mesh. `update` carries the gradients of its vertices on to the grid, moves
    the grid and extracts the mesh anew. sdf: [R, R, R] at the points of the cube [-1, 1]^3, negative inside. tints:
    [R, R, R, 3], logits of colours there, of which each vertex takes the linear mean; grey where none are given.
    shifts: [R, R, R, 3], how far each point is moved from its place, in steps of the grid within [-0.5, 0.5].
    extractor: what makes the triangles, surface nets or kaolin's FlexiCubes; no tensor, so the start has to say it.

    Raises ValueError for wrong shapes, numbers that are not finite, a grid without a surface and where kaolin is
    missing; TypeError for other dtypes than floating point.
    """

    FIXED = ()
    LEARNT = ("sdf", "tints", "shifts")
    SHARED = ("sdf",)  # Silhouettes reach few points; each would take as large a step as any, in the noise's direction.
    OPTIMISE = IsosurfaceOptimise
    sdf: Float[Tensor, "R R R"]
    tints: Float[Tensor, "R R R 3"]
    shifts: Float[Tensor, "R R R 3"]

    def __init__(
        self,
        sdf: Float[Tensor, "R R R"],
        tints: Float[Tensor, "R R R 3"] | None = None,
        extractor: Extractor = "nets",
    ) -> None:
        self.extractor: Extractor = extractor
        zeros = sdf.new_zeros(*sdf.shape, 3)
        super(Mesh, self).__init__({"sdf": sdf, "tints": zeros if tints is None else tints, "shifts": zeros})

    @classmethod
    def check(cls, tensors: Mapping[str, Tensor]) -> None:
        """A cube of distances with something inside, and a colour for each."""
        sdf = tensors["sdf"]
        check_rows("sdf", sdf, torch.Size([len(sdf)] * 3 if sdf.ndim else [2, 2, 2]))
        check_rows("tints", tensors["tints"], torch.Size([*sdf.shape, 3]))
        check_rows("shifts", tensors["shifts"], torch.Size([*sdf.shape, 3]))
        _check(sdf, tensors["shifts"], 1.0)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """As of any mesh; one that was saved before grids could move has its points in their places."""
        still = torch.zeros_like(tensors["tints"]) if "tints" in tensors else None
        if still is not None:
            tensors = {"shifts": still, "first.shifts": still, "second.shifts": still, **tensors}
        super().load(tensors)

    def settle(self) -> None:
        """Extract the mesh."""
        with torch.no_grad():
            vertices, faces = extracted(self.extractor, self.sdf)
            logits = interpolated(self.tints, vertices)
            self.inner = vertices  # in the grid as it is read, whose points are in their places
            if self.shifts.any():  # The same cells are crossed, so the vertices keep their order.
                vertices, faces = extracted(self.extractor, self.sdf, self.shifts)
        self.register_buffer("base", vertices)
        self.register_buffer("faces", faces)
        self.offsets, self.colour_logits = nn.Parameter(torch.zeros_like(vertices)), nn.Parameter(logits)
        super().settle()

    def pull(self, moving: bool = False) -> None:
        """Carry the gradients at the vertices over to the grid, beside those that it has.

        A surface of distances s moves by -ds along its normal n, so dL/ds = -(dL/dv . n) at a vertex v (Remelli et al.
        2020, "MeshSDF"), which the corners of v's cell take as they add up to s(v). The derivative of the extraction
        itself grows without bound where an edge of the grid is nearly tangent to the surface, and then few such edges
        would move. moving: the points of the grid too, with the derivative of the extraction, which has a bound there.
        """
        if self.offsets.grad is not None and moving:
            extracted(self.extractor, self.sdf.detach(), self.shifts)[0].backward(self.offsets.grad)
        if self.offsets.grad is not None:
            outward = (self.offsets.grad * self.normals().detach()).sum(dim=-1, keepdim=True)
            interpolated(self.sdf[..., None], self.inner).backward(-outward)
        if self.colour_logits.grad is not None:
            interpolated(self.tints, self.inner).backward(self.colour_logits.grad)
        self.offsets.grad = self.colour_logits.grad = None

    def update(self, out: RenderOutput, step: Step) -> Mapping[str, float]:
        """One Adam step of the grid on the gradients of the vertices; then the mesh is extracted anew.

        The gradient is spread over the surface first, as that of any mesh. Raises ValueError where `prepare` was not
        called, and ArithmeticError where nothing of the object is left.
        """
        if self.offsets.grad is not None:
            self.offsets.grad = self.diffused(self.offsets.grad)
        self.pull(self._moves(step))
        before = self.sdf.detach().clone()
        numbers = super().update(out, step)
        with torch.no_grad():
            longest = 2 / (len(before) - 1)  # Further, and a point would leave the cells that it was pulled from.
            self.sdf.copy_(redistanced(before + (self.sdf - before).clamp(-longest, longest)))
            self.shifts.clamp_(-0.5, 0.5)
        if not (self.sdf < 0).any():
            raise ArithmeticError(
                f'The surface vanished at step {step.index} of stage "{step.stage}"; lower the rate of the distances.'
            )
        self.settle()
        return numbers

    def _moves(self, step: Step) -> bool:
        """Whether the points of the grid move at a step."""
        return self._optimise is not None and self._optimise.rates(step.progress)["shifts"] > 0


def interpolated(grid: Float[Tensor, "X Y Z c"], places: Float[Tensor, "n 3"]) -> Float[Tensor, "n c"]:
    """Values at places in [-1, 1]^3, linear in each direction between the grid's points, and constant beyond them."""
    # The grid's first axis is x, which grid_sample takes for the last.
    channels, at = grid.permute(3, 2, 1, 0)[None], places.detach()[None, None, None]
    return grid_sample(channels, at, padding_mode="border", align_corners=True)[0, :, 0, 0].T


@torch.no_grad()
def redistanced(sdf: Float[Tensor, "R R R"], sweeps: int = SWEEPS) -> Float[Tensor, "R R R"]:
    """The same surface in a grid over [-1, 1]^3 whose numbers become distances: |gradient| = 1.

    A point beside the surface, which crosses its edges at x, y and z steps away, takes the distance of the plane
    through these places, d^-2 = x^-2 + y^-2 + z^-2. Every sweep then mends one more layer: a point takes the distance
    that its nearer neighbour along each axis tells, a <= b <= c, by the upwind differences of Rouy and Tourin (1992),

        (d - a)^2 + max(0, d - b)^2 + max(0, d - c)^2 = h^2,   h the step of the grid.
    """
    length, n = 2 / (len(sdf) - 1), len(sdf)
    inside, closer = sdf < 0, torch.zeros_like(sdf)  # closer: the sum of the inverse squares
    for axis in range(3):
        low, high = sdf.narrow(axis, 0, n - 1), sdf.narrow(axis, 1, n - 1)
        crossed = inside.diff(dim=axis)
        share = torch.where(crossed, low / torch.where(crossed, low - high, 1.0), torch.inf)
        along = [torch.full_like(sdf, torch.inf) for _ in range(2)]
        along[0].narrow(axis, 0, n - 1).copy_(share)
        along[1].narrow(axis, 1, n - 1).copy_(torch.where(crossed, 1 - share, torch.inf))
        closer += torch.minimum(*along) ** -2
    beside = closer > 0
    away = torch.where(beside, length * closer**-0.5, sdf.abs())
    for _ in range(sweeps):
        wide = pad(away, (1,) * 6, value=torch.inf)
        lines = [wide[:, 1:-1, 1:-1], wide[1:-1, :, 1:-1], wide[1:-1, 1:-1]]
        nearer = [torch.minimum(line.narrow(k, 0, n), line.narrow(k, 2, n)) for k, line in enumerate(lines)]
        a, b, c = torch.stack(nearer).sort(dim=0).values.unbind(0)
        one = a + length
        two = (a + b + (2 * length**2 - (a - b).square()).clamp_min(0).sqrt()) / 2
        three, squares = a + b + c, a.square() + b.square() + c.square()
        three = (three + (three.square() - 3 * (squares - length**2)).clamp_min(0).sqrt()) / 3
        away = torch.where(beside, away, torch.where(one <= b, one, torch.where(two <= c, two, three)))
    # A point on the surface stays on its side.
    return torch.where(inside, -away.clamp_min(torch.finfo(sdf.dtype).tiny), away)


@dataclass(frozen=True)
class Shell:
    """A grey sphere around the origin as signed distances. resolution: points a side of the grid.

    extractor: what makes triangles of them, also as they change; ValueError for flexicubes where kaolin is missing.
    """

    radius: float = 0.6
    resolution: int = 48
    extractor: Extractor = field(default="nets", metadata={"unsaid": True})

    def __post_init__(self) -> None:
        if not 0 < self.radius <= 1:
            raise ValueError(f"radius must lie in (0, 1], the object's sphere, given {self.radius}.")
        if not 8 <= self.resolution <= LARGEST:
            raise ValueError(f"resolution must lie in [8, {LARGEST}], given {self.resolution}.")
        if self.extractor == "flexicubes":
            backend()

    def __call__(self, previous: Representation | None, step: Step) -> Representation:
        sdf = points(self.resolution, torch.zeros(())).norm(dim=-1) - self.radius
        return Isosurface(sdf, extractor=self.extractor)

    def blank(self, previous: Representation | None) -> Representation:
        """A surface on the smallest grid."""
        return Isosurface(-torch.ones(2, 2, 2), extractor=self.extractor)
