"""Whether a file shows what was written into it."""

from __future__ import annotations

from typing import Literal

import torch

from ..core import Background, Cameras, Image, Renderer, RenderOutput, Representation

VISIBLE = 1 / 255  # of alpha
HIGHEST = 100.0  # dB; beyond it lies only rounding


def picture(out: RenderOutput, look: Literal["rgb", "normal"]) -> Image:
    """The colours of a render in [0, 1], or its normals as (n + 1) / 2, white where nothing is."""
    if look == "rgb":
        return out.rgb.clamp(0, 1)
    return out.alpha * (out.normal + 1) / 2 + 1 - out.alpha


@torch.no_grad()
def draw(rep: Representation, renderer: Renderer, cameras: Cameras) -> RenderOutput:
    """The asset over white."""
    like = next(rep.parameters())
    return renderer(rep, cameras.to(like), Background(like.new_ones(len(cameras), 3)))


def psnr(true: RenderOutput, got: RenderOutput, look: Literal["rgb", "normal"] = "rgb") -> float:
    """Peak signal-to-noise ratio in dB, at most 100, of renders over white against the true ones.

    Only pixels that one of the two covers count: a wide empty surround would flatter any file. An asset of which
    nothing is seen is shown by any file that shows nothing.
    """
    covered = (true.alpha > VISIBLE) | (got.alpha > VISIBLE)
    error = (picture(true, look) - picture(got, look)).square() * covered
    mean = error.sum() / (3 * covered.sum()).clamp(min=1)
    return float(-10 * torch.log10(mean.clamp(min=10 ** (-HIGHEST / 10))))
