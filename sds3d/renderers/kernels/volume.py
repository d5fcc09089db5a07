"""The C kernel behind the interface of all volume backends: float32, on the CPU, one call a view."""

from __future__ import annotations

import ctypes

import torch
from torch.autograd.function import once_differentiable

from ..volume_torch import SUMS, March, Marched
from .views import address, each_view


class _March(torch.autograd.Function):
    @staticmethod
    def forward(ctx, library, grid, march):
        B, H, W = march.offset.shape
        grid, n = grid.contiguous(), grid.shape[0]
        occupied, origins = march.occupied.contiguous(), march.origins.contiguous()
        directions, offset = march.directions.contiguous(), march.offset.contiguous()
        rows, box = torch.empty(n, n, 2, dtype=torch.int32), torch.empty(3, 2, dtype=torch.int32)
        library.volume_extent(n, address(occupied), address(rows), address(box))
        sums = grid.new_empty(B, H, W, sum(SUMS))
        scalars = ctypes.c_float(march.step), ctypes.c_float(march.stop)

        def view(b: int) -> int:
            field = n, address(grid), address(occupied), address(box)
            rays = H * W, address(origins, b), address(directions, b), address(offset, b)
            return library.volume_forward(*field, *rays, *scalars, address(sums, b))

        each_view(B, view)
        ctx.save_for_backward(grid, occupied, origins, directions, offset, rows, box)
        ctx.library, ctx.scalars = library, scalars
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        grid, occupied, origins, directions, offset, rows, box = ctx.saved_tensors
        (B, H, W), n, library = offset.shape, grid.shape[0], ctx.library
        upstream, gradients, out = upstream.contiguous(), grid.new_empty(B, *grid.shape), torch.empty_like(grid)

        def view(b: int) -> int:
            field = n, address(grid), address(occupied), address(box), address(rows)
            rays = H * W, address(origins, b), address(directions, b), address(offset, b)
            return library.volume_backward(*field, *rays, *ctx.scalars, address(upstream, b), address(gradients, b))

        each_view(B, view)
        library.volume_gather(n, B, address(rows), address(gradients), address(out))
        return None, out, None


def march(rays: March, library: ctypes.CDLL) -> Marched:
    """Follow every ray; float32 on the CPU. Differentiable once, in the grid."""
    return Marched(*_March.apply(library, rays.grid, rays).split(SUMS, dim=-1))
