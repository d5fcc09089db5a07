"""Fewer triangles for the same surface, and surfaces that touch themselves taken apart.

Triangles are taken away by collapsing the edges that cost the least squared distance to the planes around them
(Garland and Heckbert 1997), by the library fast-simplification. What was closed stays closed, but an iso-surface, and
more so a simplified one, may touch itself along an edge, where four triangles meet. Most programs call that a hole, so
`manifold` gives each of the two sheets its own copy of the edge: nothing moves.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize


def simplified(
    vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"], count: int
) -> tuple[Float[Tensor, "W 3"], Int[Tensor, "G 3"]]:
    """The surface with at most about `count` triangles, taken apart where it touches itself. Not differentiable.

    Raises ValueError for a count below 4, and ImportError, with the remedy, where the library is missing.
    """
    if count < 4:
        raise ValueError(f"A closed surface has at least 4 triangles, given {count}.")
    if len(faces) > count:
        try:
            import fast_simplification
        except ImportError:
            raise ImportError('Meshes are simplified by fast-simplification: pip install "sds3d[mesh]".') from None
        points, triangles, *_ = fast_simplification.simplify(
            vertices.detach().cpu().float().numpy(), faces.cpu().int().numpy(), target_count=count
        )
        vertices = torch.from_numpy(points).to(vertices)
        faces = torch.from_numpy(triangles).to(faces)
    return manifold(vertices.detach(), faces)


def manifold(
    vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]
) -> tuple[Float[Tensor, "W 3"], Int[Tensor, "G 3"]]:
    """The same closed surface in which every edge has two triangles and every vertex one fan of them.

    Where more triangles meet at an edge, those are neighbours between which the solid lies. An edge that is still met
    twice, since its sheets hang together at both of its ends, is cut in two at its middle.
    Raises ValueError for a surface that is not closed.
    """
    first, second, a, b = neighbours(vertices, faces)
    # Corner 3 f + k is the k-th of triangle f. Corners of one vertex in neighbouring triangles become one again.
    corner = 3 * torch.arange(len(faces), device=faces.device)[:, None] + torch.arange(3, device=faces.device)
    ends = [[corner[face][faces[face] == vertex[:, None]] for face in (first, second)] for vertex in (a, b)]
    one, other = (torch.cat(side) for side in zip(*ends, strict=True))
    name = corner.flatten()
    while True:
        least = torch.minimum(name[one], name[other])
        grown = name.scatter_reduce(0, one, least, "amin").scatter_reduce(0, other, least, "amin")
        grown = grown[grown]
        if torch.equal(grown, name):
            break
        name = grown
    kept, place = name.unique(return_inverse=True)
    vertices, renamed = vertices[faces.flatten()[kept]], place.view(-1, 3)
    a, b = (place[side[0]] for side in ends)
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    _, edge, met = torch.unique(low * len(vertices) + high, return_inverse=True, return_counts=True)
    seen = set()
    for pair in (met[edge] > 1).nonzero()[:, 0].tolist():
        if int(edge[pair]) in seen:
            return manifold(*halved(vertices, renamed, int(first[pair]), int(second[pair]), int(a[pair]), int(b[pair])))
        seen.add(int(edge[pair]))
    return vertices, renamed


def halved(vertices: Tensor, faces: Tensor, one: int, other: int, a: int, b: int) -> tuple[Tensor, Tensor]:
    """Two triangles whose common edge from a to b is cut in two at its middle."""
    middle = len(vertices)
    vertices = torch.cat([vertices, (vertices[[a, b]].mean(dim=0))[None]])
    faces = faces.clone()
    more = []
    for face in (one, other):
        triangle = faces[face].clone()
        more.append(torch.where(triangle == a, middle, triangle))
        faces[face] = torch.where(triangle == b, middle, triangle)
    return vertices, torch.cat([faces, torch.stack(more)])


def neighbours(
    vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]
) -> tuple[Int[Tensor, "E"], Int[Tensor, "E"], Int[Tensor, "E"], Int[Tensor, "E"]]:
    """Pairs of triangles that share an edge, and the edge's two ends; at an edge of 2 k triangles there are k pairs."""
    tail, head = faces.flatten(), faces.roll(-1, dims=1).flatten()  # half edge 3 f + k leads from corner k to the next
    low, high = torch.minimum(tail, head), torch.maximum(tail, head)
    edge, place = torch.unique(low * (faces.max() + 1) + high, return_inverse=True)
    forward = tail == low
    balance = torch.zeros_like(edge).index_add(0, place, torch.where(forward, 1, -1))
    if (balance != 0).any():
        raise ValueError(f"The surface is not closed: {int((balance != 0).sum())} of its edges lack a triangle.")
    count = torch.bincount(place)[place]
    one, other = (half.nonzero()[:, 0] for half in ((count == 2) & forward, (count == 2) & ~forward))
    one, other = one[place[one].argsort()], other[place[other].argsort()]
    crowded = (count > 2).nonzero()[:, 0]
    pairs = []
    for name in place[crowded].unique():
        here = crowded[place[crowded] == name]
        pairs += matched(here, forward[here], angles(vertices, faces, here, low[here[0]], high[here[0]]))
    more = torch.tensor(pairs, dtype=one.dtype, device=one.device).view(-1, 2)
    one, other = torch.cat([one, more[:, 0]]), torch.cat([other, more[:, 1]])
    return one // 3, other // 3, low[one], high[one]


def angles(vertices: Tensor, faces: Tensor, halves: Int[Tensor, "n"], low: Tensor, high: Tensor) -> Float[Tensor, "n"]:
    """The angle of each half edge's triangle around the edge from low to high, counter-clockwise."""
    along = normalize(vertices[high] - vertices[low], dim=0)
    third = vertices[faces[halves // 3, (halves + 2) % 3]] - vertices[low]
    u = normalize(torch.linalg.cross(along, torch.eye(3).to(along)[along.abs().argmin()]), dim=0)
    return torch.atan2(third @ torch.linalg.cross(along, u), third @ u)


def matched(halves: Int[Tensor, "n"], forward: Tensor, angle: Float[Tensor, "n"]) -> list[tuple[int, int]]:
    """Half edges of one edge in pairs, a forward one first: like brackets, of which a backward one opens.

    Counter-clockwise from a triangle whose half edge runs backward to the next that runs forward lies the solid.
    """
    order = angle.argsort(stable=True).tolist()
    pairs, open_ones, done = [], [], set()
    for i in order + order:  # twice round, since a bracket may close behind the cut at 180 degrees
        if i in done:
            continue
        if not forward[i]:
            open_ones.append(i)
        elif open_ones:
            partner = open_ones.pop()
            done |= {i, partner}
            open_ones = [j for j in open_ones if j not in done]
            pairs.append((int(halves[i]), int(halves[partner])))
    return pairs
