"""The C kernel behind the interface of all splat backends: float32, on the CPU, one call a view, threads over views."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...cameras import world_to_camera
from ...core import Cameras
from ..splats_torch import Drawn, Shapes
from .views import address, each_view


def _packed(cameras: Cameras) -> Tensor:
    """[B, 16]: rotation and translation of world to camera, fx, fy, cx, cy; float64, for the depth order."""
    cameras = cameras.to(torch.empty(0, dtype=torch.float64))
    w2c, K = world_to_camera(cameras), cameras.K
    parts = [w2c[:, :3, :3].flatten(1), w2c[:, :3, 3], K[:, [0, 1], [0, 1]], K[:, :2, 2]]
    return torch.cat(parts, dim=1).contiguous()


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(ctx, library, cameras, means2d, *tensors):
        """tensors: means, scales, quats, opacities, rgb. means2d is filled in place, so that it can be a leaf."""
        ctx.set_materialize_grads(False)
        means, scales, quats, opacities, rgb = tensors = tuple(t.contiguous() for t in tensors)
        n, B, H, W = len(means), len(cameras), cameras.height, cameras.width
        packed = _packed(cameras)
        shape = means.new_empty(library.splats_shape_size(n))
        state = means.new_empty(B, library.splats_state_size(n, W, H))
        colour, alpha, depth = means.new_empty(B, H, W, 3), means.new_empty(B, H, W, 1), means.new_empty(B, H, W, 1)
        radii = means.new_empty(B, n)
        library.splats_shape(n, *(address(t) for t in (*tensors, shape)))

        def view(b: int) -> int:
            out = (address(t, b) for t in (colour, alpha, depth, means2d, radii, state))
            return library.splats_forward(n, address(shape), address(rgb), address(packed, b), W, H, *out)

        each_view(B, view)
        ctx.save_for_backward(scales, quats, opacities, shape, packed, state)
        ctx.library, ctx.size = library, (n, B, H, W)
        ctx.mark_non_differentiable(radii)
        return colour, alpha, depth, radii

    @staticmethod
    @once_differentiable
    def backward(ctx, g_colour, g_alpha, g_depth, _):
        scales, quats, opacities, shape, packed, state = ctx.saved_tensors
        library, (n, B, H, W) = ctx.library, ctx.size
        g_colour = state.new_zeros(B, H, W, 3) if g_colour is None else g_colour.contiguous()
        g_alpha = state.new_zeros(B, H, W, 1) if g_alpha is None else g_alpha.contiguous()
        g_depth = None if g_depth is None else g_depth.contiguous()
        gradient, g_means2d = state.new_empty(B, library.splats_gradient_size(n)), state.new_empty(B, n, 2)

        def view(b: int) -> int:
            upstream = (address(t, b) for t in (g_colour, g_alpha, g_depth, state, gradient, g_means2d))
            return library.splats_backward(n, address(shape), address(packed, b), W, H, *upstream)

        each_view(B, view)
        out = [state.new_empty(s) for s in ((n, 3), (n, 3), (n, 4), (n,), (n, 3))]
        library.splats_gather(n, B, *(address(t) for t in (scales, quats, opacities, gradient, *out)))
        return None, None, g_means2d, *out


def draw(shapes: Shapes, cameras: Cameras, library: ctypes.CDLL) -> Drawn:
    """Draw M Gaussians in B views; float32 on the CPU. Differentiable once in all five tensors of `shapes`.

    means2d of the result is a leaf that receives the screen gradient of the backward pass.
    """
    tracked = torch.is_grad_enabled() and any(t.requires_grad for t in shapes.tensors())
    means2d = shapes.means.new_empty(len(cameras), len(shapes.means), 2, requires_grad=tracked)
    colour, alpha, depth, radii = _Draw.apply(library, cameras, means2d, *shapes.tensors())
    return Drawn(colour, alpha, depth, means2d, radii)
