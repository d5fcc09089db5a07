"""The C z-buffer behind the interface of the PyTorch one: float32, on the CPU."""

from __future__ import annotations

import ctypes

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...core import Cameras


def zbuffer(
    local: Float[Tensor, "B V 3"], faces: Int[Tensor, "F 3"], cameras: Cameras, library: ctypes.CDLL
) -> Int[Tensor, "B H W"]:
    """The same pixels as `zbuffer_torch.zbuffer`. The corners of `faces` must be vertices: nothing is checked here."""
    B, H, W = len(local), cameras.height, cameras.width
    local, faces, K = local.detach().contiguous(), faces.long().contiguous(), cameras.K.double()
    lens = torch.cat([K[:, [0, 1], [0, 1]], K[:, :2, 2]], dim=1).contiguous()  # [B, 4]
    fx, fy, cx, cy = lens.T[..., None]  # the rays are (u, v, 1), as in `pixel_rays`
    u = ((torch.arange(W, dtype=K.dtype) + 0.5 - cx) / fx).contiguous()  # [B, W]
    v = ((torch.arange(H, dtype=K.dtype) + 0.5 - cy) / fy).contiguous()  # [B, H]
    depth, ids = K.new_empty(H, W), faces.new_empty(B, H, W)
    vertices, count = ctypes.c_int64(local.shape[1]), ctypes.c_int64(len(faces))
    pointers = (ctypes.c_void_p(t.data_ptr()) for t in (local, faces, lens, u, v, depth, ids))
    library.zbuffer_draw(B, vertices, count, W, H, *pointers)
    return ids
