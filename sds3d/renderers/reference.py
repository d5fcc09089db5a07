"""Dense float64 oracles of the renderers, for tests and error figures alone: every pixel meets every element.

Written from the definitions, in matrices, with nothing shared with the renderers they judge; the gradients are plain
autograd. Time is pixels times elements.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint

from ..core import Background, Cameras, RenderOutput, Screen
from ..representations.field import Field
from ..representations.gaussians import Gaussians
from ..representations.mesh import Mesh

ROWS = 4  # of the picture that are in memory at once


def _matrix(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _rotation(quats: Tensor) -> Tensor:
    """The matrices [M, 3, 3] that v -> q v q* stands for, quats [M, 4] wxyz, as products of two 4 x 4 matrices."""
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    left = _matrix([[w, -x, -y, -z], [x, w, -z, y], [y, z, w, -x], [z, -y, x, w]])  # q v
    right = _matrix([[w, x, y, z], [-x, w, -z, y], [-y, z, w, -x], [-z, -y, x, w]])  # v q*
    return (left @ right)[:, 1:, 1:]


def _project(local: Tensor, cov: Tensor, K: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel means [M, 2] and covariances [M, 2, 2] of Gaussians in the camera's frame, in front of it."""
    z, zero = local[:, 2], torch.zeros_like(local[:, 2])
    fx, fy, centre = K[0, 0], K[1, 1], K[:2, 2]
    focal = torch.stack([fx, fy])
    margin = 0.3 * size / (2 * focal)
    ray = local[:, :2] / z[:, None]
    ray = torch.minimum(torch.maximum(ray, -centre / focal - margin), (size - centre) / focal + margin)
    J = _matrix([[fx / z, zero, -fx * ray[:, 0] / z], [zero, fy / z, -fy * ray[:, 1] / z]])  # [M, 2, 3]
    homogeneous = local @ K.T
    mean = homogeneous[:, :2] / homogeneous[:, 2:]
    return mean, J @ cov @ J.transpose(1, 2) + 0.3 * torch.eye(2, dtype=z.dtype)


def _composite(points: Tensor, mean: Tensor, precision: Tensor, opacity: Tensor, features: Tensor) -> Tensor:
    """Sums of the features [M, F] along the depth order over points [h, W, 2], and the transmittance: [h, W, F + 1]."""
    shift = points[..., None, :] - mean  # [h, W, M, 2]
    distance = torch.einsum("hwmi,mij,hwmj->hwm", shift, precision, shift)
    alpha = (opacity * torch.exp(-distance / 2)).clamp(max=0.999)
    alpha = torch.where(alpha >= 1 / 255, alpha, 0.0)
    after = torch.cumprod(1 - alpha, dim=-1)
    before = pad(after[..., :-1], (1, 0), value=1.0)
    live = before.detach() > 1e-4
    sums = torch.where(live, alpha * before, 0.0) @ features
    left = torch.where(live, 1 - alpha, 1.0).prod(dim=-1, keepdim=True)
    return torch.cat([sums, left], dim=-1)


def _view(
    rep: Gaussians, c2w: Tensor, K: Tensor, height: int, width: int, ndc: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of rgb and z and the transmittance [H, W, 5], means2d [M, 2], radii [M]. ndc: zeros, for the gradient."""
    size = K.new_tensor([width, height])
    R, t = torch.linalg.inv(c2w)[:3].split([3, 1], dim=1)
    local = rep.means @ R.T + t[:, 0]
    kept = (local[:, 2] > 0.01).nonzero()[:, 0]
    kept = kept[torch.argsort(local[kept, 2], stable=True)]
    half = R @ _rotation(rep.quats[kept]) @ torch.diag_embed(rep.scales[kept])
    mean, cov = _project(local[kept], half @ half.transpose(1, 2), K, size)
    means2d, radii = torch.zeros_like(ndc), torch.zeros_like(ndc[:, 0])
    means2d[kept] = 2 * mean.detach() / size - 1
    radii[kept] = 3 * torch.linalg.eigvalsh(cov.detach())[:, -1].sqrt()
    features = torch.cat([rep.rgb[kept], local[kept, 2:]], dim=1)
    columns = (mean + ndc[kept] * size / 2, torch.linalg.inv(cov), rep.opacities[kept], features)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    points = torch.stack([x, y], dim=-1).to(K)
    strips = [checkpoint(_composite, strip, *columns, use_reentrant=False) for strip in points.split(ROWS)]
    return torch.cat(strips), means2d, radii


def _normals(depth: Tensor, inside: Tensor, cameras: Cameras) -> Tensor:
    """World normals [B, H, W, 3]: the cross product of the surface's tangents along the picture's rows and columns.

    A pixel's slope is the mean of the two changes of depth towards its neighbours that are inside, each weighted by
    1 / (change^2 + footprint^2), where the footprint is a pixel's width at the distance of the world's origin.
    """
    B, H, W = depth.shape
    world = torch.zeros(B, H, W, 3, dtype=depth.dtype)
    for b, y, x in inside.nonzero().tolist():
        K, z = cameras.K[b], depth[b, y, x]
        slopes = []
        for axis, (dy, dx) in enumerate([(0, 1), (1, 0)]):
            foot = cameras.radius[b] / K[axis, axis]
            top, bottom = torch.zeros_like(z), torch.zeros_like(z)
            for sign in (1, -1):
                v, u = y + sign * dy, x + sign * dx
                if 0 <= v < H and 0 <= u < W and inside[b, v, u]:
                    change = sign * (depth[b, v, u] - z)
                    top, bottom = top + change / (change**2 + foot**2), bottom + 1 / (change**2 + foot**2)
            slopes.append(top / bottom if bottom > 0 else top)
        back = torch.linalg.inv(K)
        ray = back @ K.new_tensor([x + 0.5, y + 0.5, 1.0])
        tangents = [slope * ray + z * back[:, axis] for axis, slope in enumerate(slopes)]
        normal = torch.linalg.cross(tangents[1], tangents[0])
        world[b, y, x] = cameras.c2w[b, :3, :3] @ (normal / normal.norm())
    return world


def splats(rep: Gaussians, cameras: Cameras, background: Background, normals: bool = True) -> RenderOutput:
    """What `Splats` must return for float64 Gaussians. Normals are slow and may be left out; they are 0 then."""
    if rep.means.dtype != torch.float64:
        raise TypeError(f"The oracle takes float64, given {rep.means.dtype}.")
    cameras = cameras.to(rep.means)
    H, W = cameras.height, cameras.width
    ndc = torch.zeros(len(cameras), len(rep), 2, dtype=torch.float64, requires_grad=True)
    views = [_view(rep, cameras.c2w[b], cameras.K[b], H, W, ndc[b]) for b in range(len(cameras))]
    sums, means2d, radii = (torch.stack(part) for part in zip(*views, strict=True))
    alpha = 1 - sums[..., 4:]
    rgb = sums[..., :3] + sums[..., 4:] * background.rgb.to(sums)[:, None, None]
    inside = alpha > 1 / 255
    depth = torch.where(inside, sums[..., 3:4] / torch.where(inside, alpha, 1.0), 0.0)
    normal = _normals(depth[..., 0], inside[..., 0], cameras) if normals else torch.zeros_like(rgb)
    with torch.no_grad():
        ndc += means2d  # The leaf that took the gradient now says where the Gaussians fell, as Screen promises.
    return RenderOutput(rgb, alpha, depth, normal, screen=Screen(ndc, radii))


def _crossing(p: Tensor, q: Tensor, walked: float, axis: int) -> tuple[Tensor, Tensor] | None:
    """Where the projected edge from p to q (x, y, z) meets the line (coordinate `axis`) = walked: place and depth."""
    if not min(p[axis], q[axis]) <= walked < max(p[axis], q[axis]):
        return None
    share = (walked - p[axis]) / (q[axis] - p[axis])
    return p[1 - axis] + share * (q[1 - axis] - p[1 - axis]), 1 / ((1 - share) / p[2] + share / q[2])


Pixel = tuple[int, int]  # row, column


def _blends(screen: Tensor, faces: list[list[int]], depth: Tensor) -> list[tuple[Pixel, Pixel, Tensor]]:
    """For a view (target pixel, source pixel, weight) of every visible crossing of a silhouette edge."""
    H, W = depth.shape
    beside: dict[tuple[int, int], list[int]] = {}
    for a, b, c in faces:
        for i, j, k in ((a, b, c), (b, c, a), (c, a, b)):
            beside.setdefault((min(i, j), max(i, j)), []).append(k)
    found = []
    for (i, j), far in beside.items():
        p, q = screen[i], screen[j]
        normal = torch.stack([p[1] - q[1], q[0] - p[0]]).detach()
        sides = [float(normal @ (screen[k, :2] - p[:2]).detach()) for k in far]
        if min(sides) <= 0 <= max(sides):
            continue
        axis = 1 if normal[0].abs() >= normal[1].abs() else 0
        towards = 1 if float(normal[1 - axis]) * sides[0] > 0 else -1
        for line in range((W, H)[axis]):
            met = _crossing(p, q, line + 0.5, axis)
            if met is None:
                continue
            lower = math.floor(float(met[0].detach()) - 0.5)
            inner, outer = (lower + 1, lower) if towards > 0 else (lower, lower + 1)
            if min(inner, outer) < 0 or max(inner, outer) >= (W, H)[1 - axis]:
                continue
            (inside, beyond) = ((line, inner), (line, outer)) if axis == 1 else ((inner, line), (outer, line))
            if met[1] >= depth[beyond]:
                continue
            covered = (inner + 0.5 - met[0]).abs() - 0.5  # how far the surface reaches past the pixels' border
            found.append((beyond, inside, covered) if covered > 0 else (inside, beyond, -covered))
    return found


def raster(rep: Mesh, cameras: Cameras, background: Background) -> RenderOutput:
    """What `Raster` without a light must return for a float64 `Mesh` in front of every camera.

    Rays meet every triangle (Moeller and Trumbore 1997), and silhouettes are walked in the projected picture.
    """
    cameras = cameras.to(rep.base)
    vertices, faces = rep.vertices, rep.faces
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    area = torch.linalg.cross(b - a, c - a)
    incident = (faces[:, :, None] == torch.arange(len(vertices))).any(dim=1).to(area)  # [F, V]
    normals = incident.T @ area
    values = torch.cat([torch.ones_like(normals[:, :1]), rep.rgb, normals / normals.norm(dim=1, keepdim=True)], dim=1)
    images = []
    for c2w, K in zip(cameras.c2w, cameras.K, strict=True):
        y, x = torch.meshgrid(torch.arange(cameras.height) + 0.5, torch.arange(cameras.width) + 0.5, indexing="ij")
        ray = torch.stack([x, y, torch.ones_like(x)], dim=-1).to(K) @ torch.linalg.inv(K).T @ c2w[:3, :3].T
        ray = ray[:, :, None]  # [H, W, 1, 3]
        h = torch.linalg.cross(ray.expand(-1, -1, len(faces), -1), (c - a).expand(*ray.shape[:2], -1, -1))
        det = ((b - a) * h).sum(-1)
        s = c2w[:3, 3] - a
        u, r = (s * h).sum(-1) / det, torch.linalg.cross(s, b - a)
        v, t = (ray * r).sum(-1) / det, ((c - a) * r).sum(-1) / det
        t = torch.where((u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0), t, torch.inf)
        depth, face = t.min(dim=-1)
        hit = depth.isfinite()
        at = [w.gather(2, face[..., None]) for w in (1 - u - v, u, v)]
        shown = torch.stack([w * values[faces[face, k]] for k, w in enumerate(at)]).sum(dim=0)
        facing = det.gather(2, face[..., None]).sign().detach()
        unit = shown[..., 4:] / shown[..., 4:].norm(dim=-1, keepdim=True) * facing
        shown = torch.cat([shown[..., :4], unit, torch.where(hit, depth, 0.0)[..., None]], dim=-1) * hit[..., None]
        local = (vertices - c2w[:3, 3]) @ c2w[:3, :3]
        screen = local @ K.T
        screen = torch.cat([screen[:, :2] / screen[:, 2:], local[:, 2:]], dim=1)
        blends = _blends(screen, faces.tolist(), depth.detach())
        asked: dict[tuple[int, int], Tensor] = {}
        for target, _, weight in blends:
            asked[target] = asked.get(target, torch.zeros_like(weight)) + weight
        change = torch.zeros_like(shown)
        for target, source, weight in blends:
            part = weight / asked[target].clamp(min=1) * (shown[source] - shown[target])
            change = change.index_put(tuple(torch.tensor(i) for i in target), part, accumulate=True)
        images.append(shown + change)
    alpha, rgb, normal, depth = torch.stack(images).split([1, 3, 3, 1], dim=-1)
    inside = alpha > 1 / 255
    return RenderOutput(
        rgb + (1 - alpha) * background.rgb.to(rgb)[:, None, None],
        alpha,
        torch.where(inside, depth / torch.where(inside, alpha, 1.0), 0.0),
        torch.where(inside, normal / torch.where(inside, normal, 1.0).norm(dim=-1, keepdim=True), 0.0),
    )


def _hats(places: Tensor, count: int) -> Tensor:
    """The hat functions of `count` grid points on a line, at places in steps: [..., count]."""
    return (1 - (places[..., None] - torch.arange(count).to(places)).abs()).clamp_min(0)


def _marched(rep: Field, origin: Tensor, direction: Tensor, offset: Tensor, step: float, stop: float) -> Tensor:
    """The nine sums of `Marched` [P, 9] along P rays from one origin, at every sample out to the cube's far side."""
    R = rep.resolution
    k = torch.arange(math.ceil((float(origin.norm()) + math.sqrt(3)) / step) + 1)
    length = direction.norm(dim=-1, keepdim=True)
    t = (k + offset[:, None]) * step  # [P, K]
    points = (origin + t[..., None] * (direction / length)[:, None]).detach().requires_grad_()
    places = (points + 1) * (R - 1) / 2
    raw = torch.einsum("pki,pkj,pkl,ijlc->pkc", *(_hats(p, R) for p in places.unbind(-1)), rep.grid)
    (slope,) = torch.autograd.grad(raw[..., 0].sum(), points, create_graph=True)
    x, y, z = places.detach().floor().long().clamp(0, R - 2).unbind(-1)
    drawn = (points.detach().abs() <= 1).all(dim=-1) & rep.occupied[x, y, z]
    density = torch.where(drawn, 25 * torch.log1p(torch.exp(raw[..., 0])), 0.0)
    alpha = 1 - torch.exp(-density * step)
    before = pad(torch.cumprod(1 - alpha, dim=1)[:, :-1], (1, 0), value=1.0)
    weight = torch.where(before.detach() > stop, alpha * before, 0.0)[..., None]
    normal = -slope / (slope.square().sum(-1, keepdim=True) + 1e-12).sqrt()
    away = torch.einsum("pki,pi->pk", normal, direction / length).clamp(min=0) ** 2
    parts = (1 / (1 + torch.exp(-raw[..., 1:])), torch.ones_like(weight), (t / length)[..., None], normal)
    return (weight * torch.cat([*parts, away[..., None]], dim=-1)).sum(1)


def volume(
    rep: Field, cameras: Cameras, background: Background, samples: int, stop: float, offset: Tensor
) -> RenderOutput:
    """What `Volume` must return for a float64 field; offset: [B, H, W], each ray's shift in steps."""
    if rep.grid.dtype != torch.float64:
        raise TypeError(f"The oracle takes float64, given {rep.grid.dtype}.")
    cameras = cameras.to(rep.grid)
    H, W = cameras.height, cameras.width
    y, x = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)], dim=-1).to(rep.grid)
    images = []
    for c2w, K, u in zip(cameras.c2w, cameras.K, offset.to(rep.grid), strict=True):
        direction = (pixels @ torch.linalg.inv(K).T @ c2w[:3, :3].T).reshape(-1, 3)
        sums = _marched(rep, c2w[:3, 3], direction, u.flatten(), 2 * math.sqrt(3) / samples, stop)
        images.append(sums.reshape(H, W, 9))
    colour, alpha, depth, normal, away = torch.stack(images).split([3, 1, 1, 3, 1], dim=-1)
    inside = alpha > 1 / 255
    return RenderOutput(
        colour + (1 - alpha) * background.rgb.to(colour)[:, None, None],
        alpha,
        torch.where(inside, depth / torch.where(inside, alpha, 1.0), 0.0),
        torch.where(inside, normal / (normal.square().sum(-1, keepdim=True) + 1e-12).sqrt(), 0.0),
        away=away,
    )
