"""Drawing Gaussians: gsplat on CUDA, the C kernel on the CPU in float32, sparse PyTorch everywhere else."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cameras import world_to_camera
from ..core import Background, Cameras, RenderOutput, Representation, Screen, Step
from ..representations.gaussians import Gaussians
from . import kernels, splats_torch
from .kernels import splats as splats_c
from .normals import normals_from_depth
from .splats_torch import Drawn, Shapes

OUTSIDE = 1 / 255  # at and below this alpha a pixel has no depth and no normal


def backend(like: Tensor) -> kernels.Backend:
    """What draws tensors in the dtype and on the device of `like`, and why. The first call may compile the C kernel."""
    if like.is_cuda and like.dtype == torch.float32:
        return _gsplat()
    return kernels.backend_for(like)


@functools.cache
def _gsplat() -> kernels.Backend:
    """gsplat where its CUDA code is built or can be built now, which takes minutes once; else PyTorch."""
    if importlib.util.find_spec("gsplat") is None:
        return kernels.Backend("torch", "the tensors are on CUDA and gsplat is not installed")
    try:
        built = importlib.import_module("gsplat.cuda._backend")._C
    except (ImportError, OSError, RuntimeError) as error:
        return kernels.Backend("torch", f"gsplat's CUDA code cannot be loaded: {' '.join(str(error).split())[:200]}")
    if built is None:
        return kernels.Backend("torch", "gsplat is installed, but there is no CUDA toolkit (nvcc) to build its code")
    return kernels.Backend("gsplat", "the tensors are on CUDA and gsplat is installed")


def draw(shapes: Shapes, cameras: Cameras) -> Drawn:
    """Draw M Gaussians in B views with the backend that suits their dtype and device."""
    chosen = backend(shapes.means)
    if chosen.name == "gsplat":
        return _draw_gsplat(shapes, cameras)
    if chosen.library is not None:
        return splats_c.draw(shapes, cameras, chosen.library)
    return splats_torch.draw(shapes, cameras)


def _draw_gsplat(shapes: Shapes, cameras: Cameras) -> Drawn:
    """gsplat 1.5.3 (Apache-2.0). It leaves out the Gaussian that would end a pixel, where our other backends keep it.

    Numbers that are not finite are gsplat's own affair.
    """
    from gsplat import rasterization

    cameras = cameras.to(shapes.means)
    size = shapes.means.new_tensor([cameras.width, cameras.height])
    sums, alpha, meta = rasterization(
        means=shapes.means,
        quats=shapes.quats,
        scales=shapes.scales,
        opacities=shapes.opacities,
        colors=shapes.rgb,
        viewmats=world_to_camera(cameras),
        Ks=cameras.K,
        width=cameras.width,
        height=cameras.height,
        near_plane=splats_torch.NEAR,
        eps2d=splats_torch.LOW_PASS,
        packed=False,
        render_mode="RGB+D",
    )
    pixels = meta["means2d"]  # [B, M, 2]
    means2d = (2 * pixels.detach() / size - 1).requires_grad_(pixels.requires_grad)
    if pixels.requires_grad:

        def keep(gradient: Tensor) -> None:
            ndc = gradient * size / 2
            means2d.grad = ndc if means2d.grad is None else means2d.grad + ndc

        pixels.register_hook(keep)
    radii = meta["radii"].amax(dim=-1).to(pixels)
    return Drawn(sums[..., :3], alpha, sums[..., 3:], means2d, radii)


@dataclass(frozen=True)
class Splats:
    """Draws `Gaussians`: rgb over the background, alpha, mean depth, normals from depth, and the screen for growth.

    Differentiable in every parameter and in the background. Raises TypeError for another representation.
    """

    def __call__(
        self, rep: Representation, cameras: Cameras, background: Background, step: Step | None = None
    ) -> RenderOutput:
        gaussians = rep.at(cameras.time)
        if not isinstance(gaussians, Gaussians):
            raise TypeError(f"The renderer splats draws Gaussians, given {type(gaussians).__name__}.")
        shapes = Shapes(gaussians.means, gaussians.scales, gaussians.quats, gaussians.opacities, gaussians.rgb)
        drawn = draw(shapes, cameras)
        rgb = drawn.colour + (1 - drawn.alpha) * background.rgb.to(drawn.colour)[:, None, None]
        inside = drawn.alpha > OUTSIDE
        depth = torch.where(inside, drawn.depth / torch.where(inside, drawn.alpha, 1.0), 0.0)
        normal = normals_from_depth(depth, inside, cameras.to(depth))
        return RenderOutput(rgb, drawn.alpha, depth, normal, screen=Screen(drawn.means2d, drawn.radii))
