"""Numbers as files hold them, and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SMALLEST = 1e-6  # how near to 0 and 1 a value comes whose logit is wanted


def float32(table: Tensor) -> np.ndarray:
    """As little-endian float32, without the sign of a zero."""
    return (table.detach().cpu().numpy() + 0.0).astype("<f4")


def bytes_of(values: Tensor) -> Tensor:
    """Rounded to whole numbers from 0 to 255, as uint8."""
    return values.round().clamp(0, 255).to(torch.uint8)


def logit(share: Tensor) -> Tensor:
    """The logit of numbers in [0, 1], finite at both ends; NaN stays NaN."""
    return share.clamp(SMALLEST, 1 - SMALLEST).logit()
