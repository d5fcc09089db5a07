"""How sure a mean over few seeds is: percentile bootstrap intervals (Efron 1979), of a mean and of a paired difference.

With few seeds these intervals are too short, and with one there is none; they tell what resampling can tell, no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Int
from torch import Tensor

from ..core import Step

DRAWS, LEVEL = 2000, 0.95


@cache
def picks(count: int) -> Int[Tensor, "draws count"]:
    """Which of `count` values each resample takes; the same at every call."""
    like = torch.zeros(DRAWS, count, dtype=torch.float64)
    uniform = torch.special.ndtr(Step(0, "bootstrap").normal("pick", like))
    return (uniform * count).long().clamp(max=count - 1)


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean, or None for fewer than two values."""
    if len(values) < 2:
        return None
    means = torch.tensor(values, dtype=torch.float64)[picks(len(values))].mean(dim=1)
    low, high = torch.quantile(means, torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)).tolist()
    return low, high


def paired(a: Sequence[float], b: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of a - b, value by value, or None for fewer than two pairs."""
    return interval([x - y for x, y in zip(a, b, strict=True)])
