"""Drawing triangle meshes with gradients at silhouettes, on any device; only the z-buffer has several backends.

A z-buffer says which triangle each pixel shows, without gradient. Colours, depths and normals are then interpolated
with gradient, from the ray (u, v, 1) of the pixel and the triangle's corners a, b, c in the camera's frame:

    w_a = d . (b x c),  w_b = d . (c x a),  w_c = d . (a x b),  depth = a . (b x c) / (w_a + w_b + w_c)

so that w / sum(w) are the perspective-correct barycentric coordinates and no triangle needs clipping (Olano and Greer
1997). What a z-buffer has no gradient for is where a surface ends. So each silhouette edge is walked, scanline by
scanline where it is steep and column by column where it is flat. Where it crosses between two pixel centres, at a share
f of the way from the inner to the outer one, the pair is blended as coverage asks: f > 1/2 gives the outer pixel
f - 1/2 of the inner one, f < 1/2 the inner pixel 1/2 - f of the outer one. Walking edges finds the silhouettes of
slivers that hold no pixel centre; asking the triangle in front, as pixel-pair antialiasing does (Laine et al. 2020),
misses them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from ..cameras import world_to_camera
from ..core import Background, Cameras, RenderOutput, Representation, Step
from ..representations.mesh import Edges, Triangles, ranges
from ..representations.texture import TexturedMesh
from . import kernels, zbuffer_pytorch3d, zbuffer_torch
from .kernels import zbuffer as zbuffer_c
from .shading import Light, Lit
from .splats import OUTSIDE
from .zbuffer_torch import NEAR, dot, pixel_rays

BEHIND = 1e-5  # an edge counts as hidden by a surface that is nearer by less than this share: rounding


def backend(like: Tensor) -> kernels.Backend:
    """What finds the nearest triangles for tensors of this dtype and device, and why; all of them show the same pixels.

    The first call may compile the C kernels, or draw a trial picture with pytorch3d.
    """
    if like.is_cuda and like.dtype == torch.float32:
        return zbuffer_pytorch3d.backend(like.device)
    return kernels.backend_for(like)


def zbuffer(local: Float[Tensor, "B V 3"], faces: Int[Tensor, "F 3"], cameras: Cameras) -> Int[Tensor, "B H W"]:
    """The index of the nearest triangle at each pixel centre, -1 where there is none; of two at one depth the first.

    local: vertices in the cameras' frames.
    """
    chosen = backend(local)
    if chosen.name == "pytorch3d":
        return zbuffer_pytorch3d.zbuffer(local, faces, cameras)
    if chosen.library is not None:
        return zbuffer_c.zbuffer(local, faces, cameras, chosen.library)
    return zbuffer_torch.zbuffer(local, faces, cameras)


@dataclass(frozen=True)
class Surface:
    """What the hit pixels show: at [n], their flat index in the batch; depth [n]; weights [n, 3] of the corners;
    face [n]; front [n], 1 where the triangle's outside is seen and -1 where its inside is."""

    at: Tensor
    depth: Tensor
    weights: Tensor
    face: Tensor
    front: Tensor


def intersect(
    local: Float[Tensor, "B V 3"], faces: Int[Tensor, "F 3"], ids: Int[Tensor, "B H W"], K: Float[Tensor, "B 3 3"]
) -> Surface:
    """Depths and barycentric coordinates at the hit pixels, differentiable in the vertices."""
    H, W = ids.shape[1:]
    at = (ids.flatten() >= 0).nonzero()[:, 0]
    face, view = ids.flatten()[at], at // (H * W)
    rows = (view[:, None] * local.shape[1] + faces[face]).reshape(-1)
    a, b, c = local.flatten(0, 1).index_select(0, rows).view(-1, 3, 3).unbind(1)
    ray = pixel_rays(K, view, at % W, at // W % H)
    planes = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=1)
    weights = (planes * ray[:, None]).sum(dim=-1)
    total = weights.sum(dim=1, keepdim=True)
    volume = (a * planes[:, 0]).sum(dim=-1)
    return Surface(at, volume / total[:, 0], weights / total, face, -volume.detach().sign())


@dataclass(frozen=True)
class Crossings:
    """Where silhouettes pass between two neighbouring pixels: flat indices of the inner and the outer pixel [n], and
    the share f [n] of the way from the inner's centre to the outer's, differentiable in the vertices."""

    inner: Tensor
    outer: Tensor
    f: Tensor


def silhouettes(
    local: Float[Tensor, "B V 3"], edges: Edges, cameras: Cameras, depth: Float[Tensor, "BHW"]
) -> Crossings:
    """Every crossing of a visible silhouette edge. depth: of the flat z-buffer, infinity where nothing is.

    An edge is a silhouette where it has one triangle, or where both of its triangles lie on one side of it. It is
    visible where it is nearer than what the outer pixel shows. Edges that reach behind the camera are left out.
    """
    H, W, V = cameras.height, cameras.width, local.shape[1]
    start, end = local[:, edges.ends[:, 0]], local[:, edges.ends[:, 1]]  # [B, E, 3]
    side = torch.linalg.cross(start, end).detach()
    first = (side * local.detach()[:, edges.opposite[:, 0]]).sum(dim=-1)
    second = (side * local.detach()[:, edges.opposite[:, 1]]).sum(dim=-1)
    second = torch.where(edges.opposite[:, 1] >= 0, second, first)
    outline = (first * second > 0) & (first * second).isfinite()
    view, edge = (outline & (start[..., 2] > NEAR) & (end[..., 2] > NEAR)).nonzero().unbind(1)
    rows = (view[:, None] * V + edges.ends[edge]).reshape(-1)
    start, end = local.flatten(0, 1).index_select(0, rows).view(-1, 2, 3).unbind(1)
    # The edge's line in pixels is N . (x, y, 1) = 0; N grows towards the side where the triangles are.
    plane = torch.linalg.cross(start, end) * first[view, edge].sign()[:, None]
    K = cameras.K[view]
    focal, centre = K[:, [0, 1], [0, 1]], K[:, :2, 2]
    line = plane[:, :2] / focal
    offset = plane[:, 2] - (line * centre).sum(dim=1)
    # A steep edge is walked along y and crosses between columns, a flat one along x and between rows.
    steep = (line[:, 0].abs() >= line[:, 1].abs()).detach()
    along, across = torch.where(steep, line[:, 1], line[:, 0]), torch.where(steep, line[:, 0], line[:, 1])
    flat = torch.stack([start, end], dim=1).detach()
    ends = flat[..., :2] / flat[..., 2:] * focal[:, None] + centre[:, None]  # [n, 2, 2]
    ends = torch.where(steep[:, None], ends[..., 1], ends[..., 0])  # [n, 2], the coordinate that is walked
    length = torch.where(steep, H, W)
    begin = (ends.amin(dim=1) - 0.5).ceil().clamp(min=0)
    stop = torch.minimum((ends.amax(dim=1) - 0.5).ceil(), length.to(ends))
    row, place = ranges((stop - begin).clamp(min=0).long())
    line_number = begin[row].long() + place
    walked = line_number.to(line) + 0.5
    where = -(along[row] * walked + offset[row]) / across[row]  # the coordinate that is crossed
    share = ((walked - ends[row, 0]) / (ends[row, 1] - ends[row, 0])).clamp(0, 1)
    z = 1 / torch.lerp(1 / flat[row, 0, 2], 1 / flat[row, 1, 2], share)
    lower = (where.detach() - 0.5).floor().long()
    upper_inside = across.detach()[row] > 0
    f = where - 0.5 - lower
    f = torch.where(upper_inside, 1 - f, f)
    upright = steep[row]
    kept = (lower >= 0) & (lower + 1 < torch.where(upright, W, H))
    lower = lower.clamp(min=0)
    low = torch.where(upright, line_number * W + lower, lower * W + line_number) + view[row] * H * W
    high = low + torch.where(upright, 1, W)
    inner, outer = torch.where(upper_inside, high, low), torch.where(upper_inside, low, high)
    kept &= z * (1 + BEHIND) < depth[torch.where(kept, outer, 0)]
    return _farthest(Crossings(inner[kept], outer[kept], f[kept]))


def _farthest(crossings: Crossings) -> Crossings:
    """Of several silhouettes between the same two pixels the one that reaches farthest out, the first of equal ones.

    Near the outline of a fine mesh many edges have both of their triangles on one side; the outline is the outermost.
    """
    inner, outer, f = crossings.inner, crossings.outer, crossings.f
    pair = inner * (1 + outer.amax()) + outer if len(outer) else inner
    order = f.detach().argsort(descending=True, stable=True)
    order = order[pair[order].argsort(stable=True)]
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = pair[order][1:] != pair[order][:-1]
    kept = order[first].sort().values
    return Crossings(inner[kept], outer[kept], f[kept])


def antialias(image: Float[Tensor, "N c"], crossings: Crossings) -> Float[Tensor, "N c"]:
    """Blend the pairs of pixels at silhouettes; a pixel that is asked for more than itself shares itself out."""
    moved = crossings.f - 0.5
    to = torch.where(moved.detach() > 0, crossings.outer, crossings.inner)
    source = torch.where(moved.detach() > 0, crossings.inner, crossings.outer)
    weight = moved.abs()
    total = weight.new_zeros(len(image)).index_add(0, to, weight)
    weight = weight / total.clamp(min=1)[to]
    change = weight[:, None] * (image.index_select(0, source) - image.index_select(0, to))
    return image.index_add(0, to, change)


@dataclass(frozen=True)
class Raster:
    """Draws `Triangles`: rgb over the background, alpha, depth, normals that face the camera, and albedo where lit.

    light: None shows the plain colours. Differentiable in vertices, colours and background, but not twice. Both sides
    of a triangle are drawn. Raises TypeError for another representation.
    """

    light: Light | None = None

    def __call__(
        self, rep: Representation, cameras: Cameras, background: Background, step: Step | None = None
    ) -> RenderOutput:
        mesh = rep.at(cameras.time)
        if not isinstance(mesh, Triangles):
            raise TypeError(f"The renderer raster draws a mesh, given {type(mesh).__name__}.")
        vertices = mesh.vertices
        cameras = cameras.to(vertices)
        B, H, W = len(cameras), cameras.height, cameras.width
        w2c = world_to_camera(cameras)
        # Summed in a fixed order, where a product of matrices would have other bits in a batch than alone.
        local = dot(w2c[:, None, :3, :3], vertices[:, None]) + w2c[:, None, :3, 3]
        ids = zbuffer(local, mesh.faces, cameras)
        surface = intersect(local, mesh.faces, ids, cameras.K)
        material = mesh.material(surface.face, surface.weights)
        normal = material.normal * surface.front[:, None]
        ones = torch.ones_like(surface.depth)[:, None]
        columns = [ones, surface.depth[:, None], normal, material.albedo]
        if self.light is not None:
            view = surface.at // (H * W)
            ray = dot(
                cameras.c2w[view, :3, :3], pixel_rays(cameras.K, view, surface.at % W, surface.at // W % H)[:, None]
            )
            columns.append(self.light(Lit(replace(material, normal=normal), normalize(-ray, dim=-1), view), B, step))
        shown = torch.cat(columns, dim=1)
        image = shown.new_zeros(B * H * W, shown.shape[1]).index_copy(0, surface.at, shown)
        far = local.new_full((B * H * W,), torch.inf).index_copy(0, surface.at, surface.depth.detach())
        image = antialias(image, silhouettes(local, mesh.edges, cameras, far)).view(B, H, W, -1)
        alpha, depth, normal, albedo = image[..., :8].split([1, 1, 3, 3], dim=-1)
        inside = alpha > OUTSIDE
        behind = (1 - alpha) * background.rgb.to(alpha)[:, None, None]
        return RenderOutput(
            rgb=image[..., -3:] + behind,
            alpha=alpha,
            depth=torch.where(inside, depth / torch.where(inside, alpha, 1.0), 0.0),
            normal=torch.where(inside, normalize(torch.where(inside, normal, 1.0), dim=-1), 0.0),
            albedo=None if self.light is None else albedo + behind,
            uv=places(mesh, surface, ids) if isinstance(mesh, TexturedMesh) else None,
        )


@torch.no_grad()
def places(mesh: TexturedMesh, surface: Surface, ids: Int[Tensor, "B H W"]) -> Float[Tensor, "B H W 2"]:
    """Where in the square of textures each pixel looks; -1 where it shows no triangle."""
    uv = (surface.weights[..., None] * mesh.uv[mesh.uv_faces[surface.face]]).sum(dim=1)
    return uv.new_full((ids.numel(), 2), -1.0).index_copy(0, surface.at, uv).view(*ids.shape, 2)
