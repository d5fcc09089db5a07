"""Gaussians as .splat (antimatter15's viewer, MIT): 32 bytes a splat, no header, the frame of a .ply.

| bytes | value                                  |
|-------|----------------------------------------|
| 12    | position, float32                      |
| 12    | standard deviations, float32           |
| 4     | rgb and opacity, times 255             |
| 4     | unit quaternion wxyz, times 128, + 128 |

It has no room for words about its making.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..core import Renderer, Representation
from ..representations.gaussians import Gaussians
from .rounding import bytes_of, logit
from .splats import Y_DOWN, Columns, to_columns, to_gaussians

ROW = np.dtype([("mean", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])


def encode(rep: Representation, renderer: Renderer, provenance: Mapping[str, str], name: str) -> dict[str, bytes]:
    """One file. Raises TypeError for another representation than Gaussians."""
    columns = to_columns(rep, Y_DOWN, name)
    rgba = torch.cat([columns.rgb, columns.opacity_logits.sigmoid()[:, None]], dim=1)
    table = np.empty(len(rgba), ROW)
    table["mean"] = columns.means.numpy() + 0.0
    table["scale"] = columns.log_scales.exp().numpy()
    table["rgba"] = bytes_of(255 * rgba).numpy()
    table["quat"] = bytes_of(128 * columns.quats + 128).numpy()
    return {name: table.tobytes()}


def decode(files: Mapping[str, bytes]) -> Gaussians:
    """The Gaussians, turned into our frame. Raises ValueError for what is empty, cut short, or holds no splats."""
    name, data = next(iter(files.items()))
    if not data or len(data) % ROW.itemsize:
        raise ValueError(f"{name} is empty, cut short or no .splat: {len(data)} bytes are no rows of {ROW.itemsize}.")
    table = np.frombuffer(data, ROW)
    mean, scale, rgba, quat = (torch.from_numpy(table[column].astype(np.float64)) for column in ROW.names or ())
    if not (scale > 0).all():
        raise ValueError(f"{name} holds a splat whose size is no positive number; it is damaged or no .splat.")
    columns = Columns(mean, scale.log(), (quat - 128) / 128, logit(rgba[:, 3] / 255), rgba[:, :3] / 255)
    return to_gaussians(columns, Y_DOWN, name)
