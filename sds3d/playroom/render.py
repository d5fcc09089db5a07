"""Exact pictures of playroom scenes by sphere tracing: colour, alpha, depth and normal at any camera."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ..cameras import rays
from ..core import Cameras, RenderOutput
from .scenes import Scene

BOUND = 1.12  # every scene lies within a sphere of this radius
LIGHT = (0.55, -0.35, 0.76)  # a fixed world direction toward the light, so that shading is a property of the surface
AMBIENT, DIFFUSE = 0.66, 0.40


def render(scene: Scene, cameras: Cameras, background: Float[Tensor, "B 3"], samples: int = 3) -> RenderOutput:
    """The ground truth of a scene: B views over plain colours [B, 3] in [0, 1].

    samples: each pixel is the mean of samples x samples rays, so silhouettes are antialiased. Depth is camera z, the
    mean over the pixel's hits; both depth and normal are 0 where nothing is hit. Runs on the cameras' device.
    """
    t, points, normals, image = cast(scene, cameras, samples)
    albedo = scene.albedo(points)
    alpha = image(torch.ones_like(points[:, :1]))
    over = (1 - alpha) * background[:, None, None, :].to(alpha)
    normal = image(normals)
    normal = normal / normal.norm(dim=-1, keepdim=True).clamp_min(1e-6) * (alpha > 0)
    return RenderOutput(
        rgb=image(shade(albedo, normals)) + over,
        alpha=alpha,
        depth=image(t[:, None]) / alpha.clamp_min(1e-6),
        normal=normal,
        albedo=image(albedo) + over,
    )


def cast(
    scene: Scene, cameras: Cameras, samples: int
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n 3"], Float[Tensor, "n 3"], Callable[[Tensor], Tensor]]:
    """Where samples x samples rays a pixel hit a scene: camera z, points and unit normals of the n hits.

    The last is the function that makes pictures [B, H, W, c] of values [n, c] of the hits: a pixel is the mean of its
    rays, 0 where they miss.
    """
    origins, directions = rays(cameras, samples)
    shape = directions.shape[:3]
    o, d = origins.reshape(-1, 3), directions.reshape(-1, 3)
    t = trace(scene, o, d)
    hit = t.isfinite()
    points = o[hit] + t[hit, None] * d[hit]

    def image(values: Tensor) -> Tensor:
        full = o.new_zeros(len(o), values.shape[-1])
        full[hit] = values
        full = full.view(*shape[:1], cameras.height, samples, cameras.width, samples, -1)
        return full.mean(dim=(2, 4))

    return t[hit], points, surface_normals(scene, points), image


def shade(albedo: Float[Tensor, "n 3"], normals: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
    """A soft light from a fixed direction of the world; the result stays in [0, 1]."""
    light = torch.nn.functional.normalize(albedo.new_tensor(LIGHT), dim=0)
    return (albedo * (AMBIENT + DIFFUSE * (normals @ light))[:, None]).clamp(0, 1)


def trace(scene: Scene, o: Tensor, d: Tensor, steps: int = 96, tolerance: float = 1e-3) -> Float[Tensor, "n"]:
    """The parameter t of the first hit along o + t d, infinity where a ray misses.

    Steps are shortened a little, because a union with carved parts is only a bound on the distance.
    """
    length = d.norm(dim=-1)
    middle = -(o * d).sum(-1) / length**2
    gap = BOUND**2 - (o + middle[:, None] * d).square().sum(-1)
    half = gap.clamp_min(0).sqrt() / length
    result = torch.full_like(middle, torch.inf)
    active = torch.nonzero(gap > 0).squeeze(-1)
    t, end = (middle - half)[active], (middle + half)[active]
    start, way, speed = o[active], d[active], 0.92 / length[active]
    for _ in range(steps):
        distance = scene.distance(start + t[:, None] * way)
        near = distance < tolerance
        result[active[near]] = t[near]
        t = t + distance * speed
        on = ~near & (t < end)
        active, t, end, start, way, speed = active[on], t[on], end[on], start[on], way[on], speed[on]
        if len(active) == 0:
            break
    return result


def surface_normals(scene: Scene, p: Float[Tensor, "n 3"], h: float = 2e-3) -> Float[Tensor, "n 3"]:
    """Unit gradients of the distance, by differences over a tetrahedron of size h."""
    corners = p.new_tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
    gradient = torch.stack([scene.distance(p + h * corner)[:, None] * corner for corner in corners]).sum(dim=0)
    return torch.nn.functional.normalize(gradient, dim=-1)
