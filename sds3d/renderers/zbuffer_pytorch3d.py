"""The nearest triangle at each pixel centre, by pytorch3d's rasteriser on CUDA. Optional; nothing is compiled here.

Only which triangle a pixel shows is asked of it; interpolation and silhouettes stay ours, so that the pictures are the
same. Its coordinates x and y grow to the left and upwards and span [-1, 1] along the picture's shorter side; z is the
depth in the camera's frame. At blur 0 it leaves out pixels whose centre lies on an edge, and a crack opens between two
triangles that share it; a blur far below a pixel takes them in.
"""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core import Cameras
from . import zbuffer_torch
from .kernels import Backend
from .zbuffer_torch import NEAR

BLUR = 1e-12  # the square of a distance in its coordinates: above float32's rounding, far below a pixel


def zbuffer(local: Float[Tensor, "B V 3"], faces: Int[Tensor, "F 3"], cameras: Cameras) -> Int[Tensor, "B H W"]:
    """The pixels of `zbuffer_torch.zbuffer`, but where a centre lies within float32's rounding of an edge."""
    from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
    from pytorch3d.structures import Meshes

    local, K, H, W = local.detach(), cameras.K.to(local)[:, None], cameras.height, cameras.width
    pixel = local[..., :2] / local[..., 2:] * K[..., [0, 1], [0, 1]] + K[..., :2, 2]
    corners = torch.cat([(pixel.new_tensor([W, H]) - 2 * pixel) / min(H, W), local[..., 2:]], dim=-1)
    finite = corners.isfinite().all(dim=-1)
    # A triangle with a bad corner shrinks to a point, which is not drawn.
    drawn = finite[:, faces].all(dim=-1, keepdim=True)
    meshes = Meshes(torch.where(finite[..., None], corners, 0.0), torch.where(drawn, faces, 0))
    ids = rasterize_meshes(
        meshes,
        image_size=(H, W),
        blur_radius=BLUR,
        faces_per_pixel=1,
        max_faces_per_bin=2 * len(faces),  # never too few: each triangle is cut in two at the most
        perspective_correct=True,
        z_clip_value=NEAR,
    )[0][..., 0]
    return torch.where(ids >= 0, ids % len(faces), -1)  # its triangles are numbered through the batch


@functools.cache
def backend(device: torch.device) -> Backend:
    """pytorch3d where it draws a trial picture as we do, else PyTorch; and why."""
    local, faces, cameras = _trial(device)
    try:
        found, true = (draw(local, faces, cameras) for draw in (zbuffer, zbuffer_torch.zbuffer))
        same = torch.equal(found.where(found != 1, 0), true.where(true != 1, 0))  # either half may have the diagonal
    except (ImportError, AttributeError, OSError, RuntimeError, TypeError, ValueError) as error:
        return Backend("torch", f"pytorch3d is not used: {' '.join(str(error).split())[:200]}")
    if not same:
        return Backend("torch", "pytorch3d is not used: it draws a trial picture otherwise than we do")
    return Backend("pytorch3d", f"the tensors are on {device.type} and pytorch3d is installed")


def _trial(device: torch.device) -> tuple[Tensor, Tensor, Cameras]:
    """A square with its diagonal through pixel centres, a nearer triangle, one through the camera's plane, one bad."""
    corners = [[-2, -2, 4], [2, -2, 4], [2, 2, 4], [-2, 2, 4], [-1.7, -0.4, 3], [1.1, -0.9, 3.3], [0.3, 1.6, 2.9]]
    corners += [[0.2, 1.1, -1.0], [0.9, 1.3, 5.0], [-1.3, 1.2, 5.0], [torch.nan, 0.0, 1.0]]
    faces = [[0, 1, 2], [0, 2, 3], [4, 5, 6], [7, 8, 9], [1, 2, 10]]
    once = torch.tensor(corners, dtype=torch.float32, device=device)
    K = torch.tensor([[[8.0, 0, 5], [0, 8.0, 4], [0, 0, 1]]], device=device).repeat(2, 1, 1)
    pose = torch.eye(4, device=device).repeat(2, 1, 1)
    mirrored = once * once.new_tensor([-1, 1, 1])
    return torch.stack([once, mirrored]), torch.tensor(faces, device=device), Cameras(pose, K, 8, 10)
