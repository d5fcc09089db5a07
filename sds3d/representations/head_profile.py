"""The measured head: a lathe surface with eyes and ears in centimetres, its 68 landmarks, and the way into the world.

Profile and landmarks were measured on the neutral mesh of ICT-FaceKit (MIT, (c) 2020 USC): x to the subject's left, y
up, z forward. `rho(az, y)` is the radius about the vertical axis x = 0, z = 2. Eyes and nose are a little larger than
measured, so that they show in a picture of 64 pixels. The playroom draws this head, and the template is a mesh of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

UNIT_CM = 17.0  # centimetres per world unit
CENTRE_CM = (0.0, 1.5, 2.0)  # this point of the measured frame is the world's origin
EYE_CM, EYE_RADIUS_CM = (3.2, 3.5, 8.35), 1.85  # of the left eye; the right one is its mirror image
IRIS_CM, PUPIL_CM = 1.15, 0.5  # how far from the eye's axis they end
EAR_CM, EAR_AXES_CM = (7.7, 1.6, 1.2), (0.9, 2.3, 1.5)  # an ellipsoid each
NECK_CM = -11.0  # where the neck is cut off

# fmt: off
_ROWS_Y = (14.5, 14, 13, 12, 10.5, 9, 7.5, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8, -10, -12)
_RHO = (  # a row per height, a column per 15 degrees of azimuth from the front (0) to the back (180)
    (0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.1),
    (1.8, 1.8, 1.8, 1.9, 2.0, 2.1, 2.4, 2.7, 3.3, 3.9, 4.6, 5.0, 5.2),
    (4.2, 4.2, 4.1, 4.0, 4.0, 4.1, 4.4, 4.8, 5.5, 6.2, 6.7, 7.0, 7.2),
    (5.6, 5.6, 5.4, 5.3, 5.2, 5.3, 5.6, 6.0, 6.7, 7.4, 7.9, 8.2, 8.3),
    (7.0, 7.0, 6.8, 6.6, 6.4, 6.4, 6.7, 7.2, 7.8, 8.5, 9.1, 9.3, 9.4),
    (7.9, 7.9, 7.7, 7.4, 7.1, 7.1, 7.3, 7.8, 8.5, 9.2, 9.7, 10.0, 10.1),
    (8.4, 8.4, 8.2, 7.9, 7.5, 7.4, 7.6, 8.1, 8.8, 9.5, 10.1, 10.4, 10.5),
    (8.7, 8.8, 8.7, 8.1, 7.7, 7.5, 7.7, 8.2, 8.9, 9.6, 10.2, 10.6, 10.7),
    (8.7, 8.5, 8.8, 8.3, 7.7, 7.5, 7.7, 8.2, 8.8, 9.6, 10.2, 10.5, 10.7),
    (8.7, 7.7, 8.5, 8.2, 7.8, 7.5, 7.6, 8.0, 8.7, 9.4, 10.1, 10.5, 10.6),
    (9.2, 7.7, 8.3, 8.1, 7.8, 7.6, 7.5, 7.9, 8.5, 9.2, 9.9, 10.2, 10.4),
    (10.0, 8.0, 8.2, 8.3, 8.0, 7.6, 7.4, 7.7, 8.3, 9.0, 9.6, 9.9, 10.1),
    (10.8, 8.4, 8.5, 8.5, 8.0, 7.5, 7.3, 7.4, 8.0, 8.6, 9.2, 9.5, 9.7),
    (11.1, 8.5, 8.6, 8.4, 7.8, 7.3, 7.2, 7.2, 7.7, 8.2, 8.7, 9.1, 9.2),
    (9.7, 8.6, 8.6, 8.3, 7.6, 7.2, 7.0, 7.0, 7.3, 7.7, 8.2, 8.5, 8.7),
    (9.6, 8.9, 8.5, 8.0, 7.5, 7.0, 6.7, 6.5, 7.0, 7.3, 7.7, 8.1, 8.2),
    (9.7, 9.0, 8.4, 7.8, 7.3, 6.8, 6.4, 6.3, 6.7, 7.0, 7.4, 7.8, 7.9),
    (9.6, 8.7, 8.2, 7.6, 7.0, 6.5, 6.1, 6.2, 6.5, 6.8, 7.2, 7.6, 7.7),
    (9.0, 8.6, 7.9, 7.2, 6.6, 5.9, 5.7, 6.1, 6.4, 6.7, 7.1, 7.6, 7.7),
    (9.0, 8.4, 7.5, 6.6, 5.7, 5.2, 5.4, 6.0, 6.3, 6.6, 7.1, 7.6, 7.7),
    (8.9, 8.2, 6.8, 5.4, 4.7, 4.6, 5.2, 5.9, 6.3, 6.7, 7.3, 7.6, 7.8),
    (7.5, 6.3, 4.6, 4.1, 3.9, 4.2, 5.0, 5.8, 6.4, 6.9, 7.5, 7.8, 7.9),
    (3.3, 3.2, 3.1, 3.1, 3.3, 3.9, 4.9, 5.8, 6.6, 7.2, 7.7, 7.9, 8.0),
    (2.4, 2.4, 2.4, 2.6, 3.0, 3.7, 4.7, 5.8, 6.8, 7.4, 7.9, 8.1, 8.2),
)
_HALF = {  # the subject's right half and the midline of the 68 landmarks, cm
    0: (-7.36, 3.68, 3.66), 1: (-7.28, 1.49, 3.93), 2: (-6.94, -.46, 4.53), 3: (-6.56, -2.36, 5.17),
    4: (-5.72, -4.49, 6.13), 5: (-4.30, -6.21, 7.35), 6: (-3.05, -6.91, 8.77),
    7: (-1.54, -7.26, 10.27), 8: (0, -7.57, 10.43),
    17: (-5.82, 5.20, 7.91), 18: (-4.93, 5.98, 8.99), 19: (-3.79, 6.26, 9.83), 20: (-2.41, 6.19, 10.48),
    21: (-1.17, 5.91, 10.73),
    27: (0, 3.74, 10.73), 28: (0, 2.63, 11.52), 29: (0, 1.61, 12.31), 30: (0, .41, 13.07),
    31: (-1.25, -1.14, 10.87), 32: (-.60, -1.14, 11.42), 33: (0, -1.20, 11.57),
    36: (-4.46, 3.43, 8.60), 37: (-3.87, 3.87, 9.36), 38: (-2.78, 3.94, 9.53), 39: (-1.84, 3.25, 9.20),
    40: (-2.73, 3.08, 9.41), 41: (-3.86, 3.07, 9.23),
    48: (-2.53, -3.52, 10.19), 49: (-1.70, -2.78, 11.22), 50: (-.73, -2.42, 11.73), 51: (0, -2.48, 11.84),
    57: (0, -4.38, 11.55), 58: (-1.03, -4.30, 11.39), 59: (-1.80, -4.06, 10.90),
    60: (-2.21, -3.49, 10.13), 61: (-1.00, -3.30, 11.09), 62: (0, -3.32, 11.28), 66: (0, -3.40, 11.25),
    67: (-1.07, -3.38, 11.04),
}
_MIRROR = {
    **{i: 16 - i for i in range(8)}, 17: 26, 18: 25, 19: 24, 20: 23, 21: 22, 31: 35, 32: 34,
    36: 45, 37: 44, 38: 43, 39: 42, 40: 47, 41: 46, 48: 54, 49: 53, 50: 52, 58: 56, 59: 55, 60: 64, 61: 63, 67: 65,
}
# fmt: on


def to_world(cm: Tensor) -> Tensor:
    """Points of the measured frame in centimetres [..., 3] -> world."""
    x, y, z = (cm - cm.new_tensor(CENTRE_CM)).unbind(-1)
    return torch.stack([z, x, y], dim=-1) / UNIT_CM


def to_cm(world: Tensor) -> Tensor:
    """World points [..., 3] -> the measured frame in centimetres."""
    z, x, y = (world * UNIT_CM).unbind(-1)
    return torch.stack([x, y, z], dim=-1) + world.new_tensor(CENTRE_CM)


def _landmarks() -> Tensor:
    points = dict(_HALF)
    for right, left in _MIRROR.items():
        x, y, z = _HALF[right]
        points[left] = (-x, y, z)
    return to_world(torch.tensor([points[i] for i in range(68)], dtype=torch.float32))


LANDMARKS = _landmarks()  # [68, 3], Multi-PIE order, world

_Y_TOP, _Y_BOTTOM, _GRID_Y = 20.0, -12.0, 257


def _profile() -> Tensor:
    """rho and the length of its distance gradient on a grid [1, 2, 257, 361]: one look-up answers the distance.

    Columns are the degrees from -180 to 180. The table is interpolated linearly and then smoothed. Above the skull the
    radius goes on falling below zero, which keeps the distance positive there.
    """
    half = torch.tensor(_RHO, dtype=torch.float64)
    circle = torch.cat([half.flip(1), half[:, 1:]], dim=1)  # -180 .. 180 in steps of 15
    fine = F.interpolate(circle[:, None], size=361, mode="linear", align_corners=True)[:, 0]
    kernel = torch.tensor([1.0, 4, 9, 14, 16, 14, 9, 4, 1], dtype=torch.float64)
    around = torch.cat([fine[:, -5:-1], fine, fine[:, 1:5]], dim=1)
    fine = F.conv1d(around[:, None], (kernel / kernel.sum())[None, None])[:, 0]
    heights = torch.linspace(_Y_TOP, _Y_BOTTOM, _GRID_Y, dtype=torch.float64)
    known = torch.tensor(_ROWS_Y, dtype=torch.float64)
    above = (known[None, :] > heights[:, None]).sum(1).clamp(1, len(known) - 1)
    top, bottom = known[above - 1], known[above]
    w = ((top - heights) / (top - bottom))[:, None]
    rho = (1 - w) * fine[above - 1] + w * fine[above]
    rho = torch.where(heights[:, None] > known[0], fine[0] - 2.0 * (heights[:, None] - known[0]), rho)
    smooth = torch.tensor([1.0, 4, 6, 4, 1], dtype=torch.float64) / 16
    rho = F.conv1d(F.pad(rho.T[:, None], (2, 2), mode="replicate"), smooth[None, None])[:, 0].T
    d_y = torch.gradient(rho, dim=0)[0] / ((_Y_TOP - _Y_BOTTOM) / (_GRID_Y - 1))
    d_az = torch.gradient(rho, dim=1)[0] / torch.deg2rad(torch.tensor(1.0))
    slope = (1 + d_y**2 + (d_az / rho.clamp_min(2.0)) ** 2).sqrt()
    return torch.stack([rho, slope])[None].float()


_PROFILE = _profile()


def _look_up(azimuth: Tensor, y: Tensor, profile: Tensor) -> tuple[Tensor, Tensor]:
    """Radius and steepness of the bare head at azimuths in (-pi, pi] and heights in centimetres."""
    v = (_Y_TOP - y.clamp(_Y_BOTTOM, _Y_TOP)) / (_Y_TOP - _Y_BOTTOM) * 2 - 1
    at = torch.stack([azimuth / torch.pi, v], dim=-1).reshape(1, 1, -1, 2)
    found = F.grid_sample(profile.to(y), at, mode="bilinear", align_corners=True).reshape(2, *y.shape)
    return found[0], found[1]


def skin_cm(q: Tensor, profile: Tensor = _PROFILE) -> Tensor:
    """Approximate signed distance in centimetres of points q [..., 3] (measured frame) to the bare head."""
    x, y, z = q[..., 0], q[..., 1], q[..., 2] - CENTRE_CM[2]
    rho, steep = _look_up(torch.atan2(x, z), y, profile)
    return torch.maximum((torch.hypot(x, z) - rho) / steep, NECK_CM - y)


def radius_cm(azimuth: Tensor, y: Tensor) -> Tensor:
    """The distance from the axis x = 0, z = 2 to the outermost of skin, ears and eyes, at azimuths in (-pi, pi]."""
    radius = _look_up(azimuth, y, _PROFILE)[0]
    way = torch.stack([azimuth.sin(), torch.zeros_like(y), azimuth.cos()], dim=-1)
    start = torch.stack([torch.zeros_like(y), y, torch.full_like(y, CENTRE_CM[2])], dim=-1)
    for centre, axes in ((EYE_CM, (EYE_RADIUS_CM,) * 3), (EAR_CM, EAR_AXES_CM)):
        for side in (-1.0, 1.0):
            scale = y.new_tensor(axes)
            o, d = (start - y.new_tensor([side * centre[0], *centre[1:]])) / scale, way / scale
            a, b, c = (d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - 1
            inside = b * b - a * c
            far = (inside.clamp(min=0).sqrt() - b) / a  # where the ray from the axis leaves it
            radius = torch.where(inside > 0, torch.maximum(radius, far), radius)
    return radius
