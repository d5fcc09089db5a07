"""Pictures as the latents themselves: 2 x - 1, channels first, k x k pixels folded into the channels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F

from ..core import Image, Latent


@dataclass(frozen=True)
class PixelCodec:
    """size: the picture's side in pixels. fold: k, so that latents are [N, 3 k^2, size / k, size / k] in [-1, 1]."""

    size: int
    fold: int = 1
    data_range: float | None = 1.0

    def encode(self, image: Image) -> Latent:
        return F.pixel_unshuffle(channels_first(image, self.size), self.fold)

    def decode(self, z: Latent) -> Image:
        return channels_last(F.pixel_shuffle(z, self.fold))


def fold_of(channels: int) -> int:
    """k for a network with 3 k^2 channels. Raises ValueError for another number of channels."""
    k = math.isqrt(max(channels // 3, 1))
    if 3 * k * k != channels:
        raise ValueError(
            f"A network without vae/ must have 3 k^2 channels (3, 12, 27, 48, ...), this one has {channels}."
        )
    return k


def channels_first(image: Image, size: int) -> Latent:
    """[B, H, W, 3] in [0, 1] -> [B, 3, size, size] in [-1, 1]; another size is resampled without aliasing.

    Differentiable. Raises ValueError for a picture that is not square.
    """
    if image.shape[1] != image.shape[2]:
        raise ValueError(f"A prior sees square pictures, given {image.shape[2]} x {image.shape[1]}.")
    x = 2 * image.permute(0, 3, 1, 2) - 1
    if image.shape[1] != size:
        x = F.interpolate(x, (size, size), mode="bilinear", antialias=True)
    return x


def channels_last(x: Latent) -> Image:
    """[B, 3, H, W] in [-1, 1] -> [B, H, W, 3], clamped to [0, 1]."""
    return ((x + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1)
