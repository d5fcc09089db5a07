"""kaolin's FlexiCubes (Shen et al. 2023) as an extractor of iso-surfaces. kaolin is imported here alone, when used.

Read in its source, kaolin/ops/conversions/flexicubes/flexicubes.py at 24b7fdd of github.com/NVIDIAGameWorks/kaolin and
kaolin/non_commercial/flexicubes/flexicubes.py at 3ddbb6c, and in its documentation. It was not run: no kaolin was at
hand. kaolin has wheels on NVIDIA's own index alone; what PyPI has of that name is a placeholder without code.

- `kaolin.ops.conversions.FlexiCubes` is under Apache 2.0 (its header, of 2025). `kaolin.non_commercial.FlexiCubes`, the
  older one (since kaolin 0.15), is under NVIDIA's licence for research and evaluation alone; it says that it has moved
  to the other for a change of licence, and is not used.
- `FlexiCubes(device)(voxelgrid_vertices, scalar_field, cube_idx, resolution)` gives vertices, faces and a regulariser.
  Negative numbers are inside, triangles are counter-clockwise as seen from where numbers are positive. Points may be
  moved. The corner k of a cube lies k & 1, k >> 1 & 1 and k >> 2 & 1 steps along x, y and z; cubes follow each other
  with z the fastest. Sums are made in float32. Edges at the grid's border have no faces.
- `construct_voxel_grid` orders points and cubes so too, but rounds the points to 1e-5 to find equal ones; we count.

Its weights of cubes (alpha, beta, gamma), which the paper optimises, are left at 1. A vertex is the mean of crossings
then, as in surface nets, but each sheet of the surface in a cell has one of its own (dual marching cubes, Nielson
2004), so that sheets which meet within a cell stay apart.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

LEAST = 1e-20  # of a number's size, in world units: far below any distance, and far above what float32 flushes to 0


def backend() -> Any:
    """kaolin's class. Raises ValueError, with what to install, where it cannot be imported."""
    try:
        from kaolin.ops.conversions import FlexiCubes  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError) as error:  # OSError: it was built for another CUDA
        raise ValueError(
            "The extractor flexicubes takes kaolin with kaolin.ops.conversions.FlexiCubes, of 2025 or later "
            f"({error}): install the wheel for your torch and CUDA from "
            "https://nvidia-kaolin.s3.us-east-2.amazonaws.com/index.html (PyPI has none), or say extractor: nets."
        ) from error
    return FlexiCubes


def flexicubes(
    sdf: Float[Tensor, "X Y Z"], points: Float[Tensor, "X Y Z 3"]
) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"]]:
    """Vertices in the units of points and triangles, counter-clockwise as seen from outside, where sdf is not negative.

    The surface is closed where the outer layer of the grid is outside. Differentiable in both, in float32.

    Raises ValueError where kaolin is missing.
    """
    extract = backend()(device=sdf.device)
    strides, (x, y, z) = (sdf.shape[1] * sdf.shape[2], sdf.shape[2], 1), sdf.shape
    base = torch.arange(sdf.numel(), device=sdf.device).view(x, y, z)[:-1, :-1, :-1].reshape(-1, 1)
    jumps = base.new_tensor([sum(k >> axis & 1 and stride for axis, stride in enumerate(strides)) for k in range(8)])
    values = sdf.flatten().float()
    # FlexiCubes counts a 0 as outside, but winds triangles by "> 0". The gradient takes no notice of the move off 0.
    apart = torch.where(sdf.flatten() < 0, values.clamp(max=-LEAST), values.clamp(min=LEAST))
    values = values + (apart - values).detach()
    vertices, faces, _ = extract(points.reshape(-1, 3).float(), values, base + jumps, [x - 1, y - 1, z - 1])
    return vertices.to(sdf.dtype), faces
