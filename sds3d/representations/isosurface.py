"""The zero surface of a grid of signed distances as triangles, differentiable in distances and in the grid's offsets.

Naive surface nets (Gibson 1998): a cell that the surface crosses has one vertex, the mean of the crossings of its
edges; an edge of the grid that the surface crosses has one quad, between the four cells around it. Gradients flow
through the crossings, as in deep marching tetrahedra (Shen et al. 2021), which also move the points of the grid. Which
cells and edges are crossed is not differentiable.
"""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

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
    _check(sdf, offsets, radius)
    steps = sdf.new_tensor([2 * radius / (n - 1) for n in sdf.shape])
    if offsets is None:
        offsets = sdf.new_zeros(*sdf.shape, 3)
    # A layer of points outside of the object, one step beyond the grid, closes what leaves it.
    sdf, offsets = pad(sdf, (1,) * 6, value=float(steps.min())), pad(offsets, (0, 0) + (1,) * 6)
    shape = sdf.shape
    axes = [torch.arange(n, dtype=sdf.dtype, device=sdf.device) - 1 for n in shape]
    points = (torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) + offsets) * steps - radius
    strides = (shape[1] * shape[2], shape[2], 1)
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
