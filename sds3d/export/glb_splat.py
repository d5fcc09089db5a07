"""Gaussians as binary glTF with KHR_gaussian_splatting (Khronos, release candidate of 2026).

| attribute                                  | value, float32                                          |
|--------------------------------------------|---------------------------------------------------------|
| POSITION                                   | (x, y, z) -> (y, z, x)                                  |
| COLOR_0                                    | linear rgb and opacity in uint8, for viewers of points  |
| KHR_gaussian_splatting:ROTATION            | unit quaternion, xyzw                                   |
| KHR_gaussian_splatting:SCALE               | standard deviations                                     |
| KHR_gaussian_splatting:OPACITY             | in [0, 1]                                               |
| KHR_gaussian_splatting:SH_DEGREE_0_COEF_0  | (rgb - 0.5) / C0, display sRGB                          |

A viewer without the extension shows coloured points.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..colour import srgb_to_linear
from ..core import Renderer, Representation
from ..representations.gaussians import Gaussians
from .gltf import POINTS, Buffer, read_glb, to_glb
from .rounding import bytes_of, float32, logit
from .splats import C0, Y_UP, Columns, to_columns, to_gaussians

NAME = "KHR_gaussian_splatting"
POSITION, ROTATION, SCALE = "POSITION", f"{NAME}:ROTATION", f"{NAME}:SCALE"
OPACITY, CONSTANT = f"{NAME}:OPACITY", f"{NAME}:SH_DEGREE_0_COEF_0"
WIDTHS = {POSITION: 3, ROTATION: 4, SCALE: 3, OPACITY: 1, CONSTANT: 3}


def encode(rep: Representation, renderer: Renderer, provenance: Mapping[str, str], name: str) -> dict[str, bytes]:
    """One file. Raises TypeError for another representation than Gaussians."""
    columns = to_columns(rep, Y_UP, name)
    opacity = columns.opacity_logits.sigmoid()[:, None]
    buffer = Buffer()
    attributes = {
        POSITION: buffer.positions(float32(columns.means)),
        "COLOR_0": buffer.column(
            bytes_of(255 * torch.cat([srgb_to_linear(columns.rgb), opacity], dim=1)).numpy(), normalized=True
        ),
        ROTATION: buffer.column(float32(columns.quats[:, [1, 2, 3, 0]])),
        SCALE: buffer.column(float32(columns.log_scales.exp())),
        OPACITY: buffer.column(float32(opacity)),
        CONSTANT: buffer.column(float32((columns.rgb - 0.5) / C0)),
    }
    kind = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
    primitive = {"mode": POINTS, "attributes": attributes, "extensions": {NAME: kind}}
    document = {"extensionsUsed": [NAME], "meshes": [{"primitives": [primitive]}]}
    return {name: to_glb(document, buffer, provenance)}


def decode(files: Mapping[str, bytes]) -> Gaussians:
    """The Gaussians of the first primitive, whose columns are float32, turned into our frame. Raises ValueError."""
    name, data = next(iter(files.items()))
    glb = read_glb(data, name)
    attributes = glb.part("meshes", 0, "primitives", 0, "attributes")
    tables = [glb.column(attributes.get(key), width) for key, width in WIDTHS.items()]
    if any(table.dtype != np.dtype("<f4") or len(table) != len(tables[0]) for table in tables):
        raise glb.wrong("its splats are not columns of float32 of one length")
    position, rotation, scale, opacity, dc = (torch.from_numpy(table.astype(np.float64)) for table in tables)
    if not (scale > 0).all():
        raise ValueError(f"{name} holds a splat whose size is no positive number.")
    columns = Columns(position, scale.log(), rotation[:, [3, 0, 1, 2]], logit(opacity[:, 0]), 0.5 + C0 * dc)
    return to_gaussians(columns, Y_UP, name)
