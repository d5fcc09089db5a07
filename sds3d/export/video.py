"""A turntable: the object seen once around, as .mp4 (H.264), or as animated .webp where PyAV is not installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ..cameras import turntable
from ..core import Background, Renderer, Representation
from ..files import replacing

FRAMES, FPS = 60, 24  # one turn in two and a half seconds
SIZE = 256  # pixels a side; even, as yuv420p needs
BATCH = 4  # frames drawn at once, which bounds the memory


@torch.no_grad()
def frames(rep: Representation, renderer: Renderer, count: int = FRAMES, size: int = SIZE) -> np.ndarray:
    """`count` pictures [count, size, size, 3] as uint8, once around the object on white."""
    like = next(rep.parameters())
    cameras = turntable(count, size).to(like)
    drawn = []
    for first in range(0, count, BATCH):
        some = cameras[first : first + BATCH]
        out = renderer(rep, some, Background(like.new_ones(len(some), 3)))
        drawn.append((out.rgb.clamp(0, 1) * 255).round().to(torch.uint8).cpu())
    return torch.cat(drawn).numpy()


def write(rep: Representation, path: Path, renderer: Renderer, provenance: Mapping[str, str]) -> Path:
    """Write the turntable and return the path, whose suffix becomes .webp where PyAV is not installed."""
    pictures = frames(rep, renderer)
    if importlib.util.find_spec("av") is not None:
        with replacing(path) as temporary:
            write_mp4(pictures, temporary, provenance)
        return path
    path = path.with_suffix(".webp")
    with replacing(path) as temporary:
        write_webp(pictures, temporary)
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
        container.metadata["comment"] = "; ".join(f"{word}: {said}" for word, said in provenance.items())
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_webp(pictures: np.ndarray, path: Path, fps: int = FPS) -> None:
    """An endless animation. pictures: [n, H, W, 3] uint8."""
    from PIL import Image

    first, *rest = (Image.fromarray(picture) for picture in pictures)
    first.save(path, format="WEBP", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0, quality=90)
