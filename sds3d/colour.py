"""The transfer function of sRGB (IEC 61966-2-1), for lights and for formats whose colours are linear."""

from __future__ import annotations

import torch
from torch import Tensor


def srgb_to_linear(rgb: Tensor) -> Tensor:
    """Display values in [0, 1] to linear light; its gradient is finite everywhere."""
    curve = ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
    return torch.where(rgb <= 0.04045, rgb / 12.92, curve)


def linear_to_srgb(light: Tensor) -> Tensor:
    """The inverse of `srgb_to_linear`."""
    root = light.clamp(min=0.0031308) ** (1 / 2.4)
    return torch.where(light <= 0.0031308, 12.92 * light, 1.055 * root - 0.055)
