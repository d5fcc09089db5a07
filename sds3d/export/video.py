"""A turntable: the object seen once around, as .mp4 (H.264) or as animated .webp.

Its colours, its normals as (n + 1) / 2 of the world's axes, or its depth as grey, over white.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..cameras import turntable
from ..core import Background, Renderer, Representation
from ..files import replacing
from .check import picture
from .provenance import one_line

FRAMES, FPS = 60, 24  # one turn in two and a half seconds
SIZE = 256  # pixels a side; even, as yuv420p needs
BATCH = 4  # frames drawn at once, which bounds the memory
IMAGE_DESCRIPTION = 0x010E  # the Exif tag
FAR_GREY = 0.85  # the lightest grey of a depth, so that the object stands out from white
Look = Literal["rgb", "normal", "depth"]


@torch.no_grad()
def frames(
    rep: Representation, renderer: Renderer, count: int = FRAMES, size: int = SIZE, look: Look = "rgb"
) -> np.ndarray:
    """`count` pictures [count, size, size, 3] as uint8, once around the object on white."""
    like = next(rep.parameters())
    cameras = turntable(count, size).to(like)
    drawn, depths, alphas = [], [], []
    for first in range(0, count, BATCH):
        some = cameras[first : first + BATCH]
        out = renderer(rep, some, Background(like.new_ones(len(some), 3)))
        if look == "depth":
            depths.append(out.depth)
            alphas.append(out.alpha)
        else:
            drawn.append(picture(out, look))
    pictures = grey(torch.cat(depths), torch.cat(alphas)) if look == "depth" else torch.cat(drawn)
    return (pictures * 255).round().to(torch.uint8).cpu().numpy()


def grey(depth: Float[Tensor, "n H W 1"], alpha: Float[Tensor, "n H W 1"]) -> Float[Tensor, "n H W 3"]:
    """Depth as grey over white: black for the nearest of all pictures, `FAR_GREY` for the farthest."""
    inside = depth > 0
    if not inside.any():
        return torch.ones_like(depth).expand(-1, -1, -1, 3)
    near, far = depth[inside].min(), depth[inside].max()
    share = (depth - near) / (far - near).clamp(min=1e-6)
    shown = torch.where(inside, FAR_GREY * share, 1.0)
    return (alpha * shown + 1 - alpha).clamp(0, 1).expand(-1, -1, -1, 3)


def write_film(
    rep: Representation, path: Path, renderer: Renderer, provenance: Mapping[str, str], look: Look = "rgb"
) -> Path:
    """Write the turntable and return the path, whose suffix becomes .webp where PyAV is not installed."""
    pictures = frames(rep, renderer, look=look)
    if path.suffix == ".mp4" and importlib.util.find_spec("av") is not None:
        with replacing(path) as temporary:
            write_mp4(pictures, temporary, provenance)
        return path
    path = path.with_suffix(".webp")
    with replacing(path) as temporary:
        write_webp(pictures, temporary, provenance)
    return path


def write_mp4(pictures: np.ndarray, path: Path, provenance: Mapping[str, str], fps: int = FPS) -> None:
    """H.264, yuv420p, with the index at the start, which is what browsers play.

    pictures: [n, H, W, 3] uint8. Raises ValueError for odd sides, which yuv420p cannot hold.
    """
    import av

    height, width = pictures.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"A video needs even sides, given {width} x {height}.")
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata["comment"] = one_line(provenance)
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_webp(pictures: np.ndarray, path: Path, provenance: Mapping[str, str], fps: int = FPS) -> None:
    """An endless animation, with provenance in its Exif. pictures: [n, H, W, 3] uint8."""
    from PIL import Image

    exif = Image.Exif()
    exif[IMAGE_DESCRIPTION] = one_line(provenance)
    first, *rest = (Image.fromarray(picture) for picture in pictures)
    how = {"duration": round(1000 / fps), "loop": 0, "quality": 90, "exif": exif}
    first.save(path, format="WEBP", save_all=True, append_images=rest, **how)
