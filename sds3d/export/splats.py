"""Gaussians as the columns of a splat file, in the file's frame, and back.

A frame is named by the rotation (wxyz) from ours, z-up with the front to +x, into it. All numbers are float64 on the
CPU, so that the one rounding is the file's own.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Representation
from ..representations.gaussians import Gaussians, rotation_matrix
from .rounding import logit

C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
Y_DOWN = (0.5, 0.5, -0.5, 0.5)  # (x, y, z) -> (-y, -z, x), as 3DGS trains
Y_UP = (-0.5, 0.5, 0.5, 0.5)  # (x, y, z) -> (y, z, x), as glTF; the same, turned by 180 degrees about z


@dataclass(frozen=True)
class Columns:
    """M splats in a file's frame: standard deviations as natural logarithms, unit quaternions wxyz, rgb in [0, 1]."""

    means: Float[Tensor, "M 3"]
    log_scales: Float[Tensor, "M 3"]
    quats: Float[Tensor, "M 4"]
    opacity_logits: Float[Tensor, "M"]
    rgb: Float[Tensor, "M 3"]


@torch.no_grad()
def to_columns(rep: Representation, frame: tuple[float, ...], file: str) -> Columns:
    """The columns of Gaussians. Raises TypeError for another representation, which `file`, a name, cannot hold."""
    if not isinstance(rep, Gaussians):
        raise TypeError(f"{file} holds Gaussians, given {type(rep).__name__}.")
    own = {name: tensor.detach().double().cpu() for name, tensor in rep.named_parameters()}
    turn = own["quats"].new_tensor(frame)
    return Columns(
        means=own["means"] @ rotation_matrix(turn[None])[0].T,
        log_scales=own["log_scales"],
        quats=multiply(turn, torch.nn.functional.normalize(own["quats"], dim=-1)),
        opacity_logits=own["opacity_logits"],
        rgb=own["colour_logits"].sigmoid(),
    )


def to_gaussians(columns: Columns, frame: tuple[float, ...], name: str) -> Gaussians:
    """The inverse of `to_columns`; quaternions may have any length but 0.

    Colours that no sRGB value has are brought to the nearest that a logit can hold. Raises ValueError, with the name
    of the file, for numbers that are not finite and rotations of length 0.
    """
    for field in fields(columns):
        if not torch.isfinite(getattr(columns, field.name)).all():
            raise ValueError(f"{name} holds numbers that are not finite, in {field.name}.")
    if (columns.quats.norm(dim=-1) < 1e-6).any():
        raise ValueError(f"{name} holds a rotation of length 0.")
    turn = columns.quats.new_tensor(frame)
    back = turn * turn.new_tensor([1, -1, -1, -1])
    tensors = (
        columns.means @ rotation_matrix(turn[None])[0],
        columns.log_scales,
        torch.nn.functional.normalize(multiply(back, columns.quats), dim=-1),
        columns.opacity_logits,
        logit(columns.rgb),
    )
    return Gaussians(*(tensor.float() for tensor in tensors))


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """The Hamilton product of quaternions [..., 4], wxyz."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        dim=-1,
    )
