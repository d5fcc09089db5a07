"""The weights w(t) of score distillation, and what every method says before the run.

| name         | w(t)                  | where                                                                    |
|--------------|-----------------------|--------------------------------------------------------------------------|
| sigma2       | sigma^2               | DreamFusion (Poole et al. 2022, arXiv 2209.14988)                        |
| uniform      | 1                     | SJC (Wang et al. 2022, arXiv 2212.00774)                                 |
| alpha_sigma2 | alpha sigma^2         | Fantasia3D (Chen et al. 2023, arXiv 2303.13873)                          |
| recon        | sigma / alpha         | MVDream (Shi et al. 2023, arXiv 2308.16512): G = x - X; also LucidDreamer |
| alpha        | alpha                 | PlacidDreamer (Huang et al. 2024, arXiv 2407.13976)                      |
| flow         | (alpha + sigma) / alpha | rectified flow, G = u - (eps - x); see `rfds`                          |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from torch import Tensor

from ..core import Prior
from ..schedules import Number, Range, value

Weighting = Literal["sigma2", "uniform", "alpha_sigma2", "recon", "alpha", "flow"]

WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigma2": lambda alpha, sigma: sigma**2,
    "uniform": lambda alpha, sigma: sigma.new_ones(sigma.shape),
    "alpha_sigma2": lambda alpha, sigma: alpha * sigma**2,
    "recon": lambda alpha, sigma: sigma / alpha,
    "alpha": lambda alpha, sigma: alpha,
    "flow": lambda alpha, sigma: (alpha + sigma) / alpha,
}


def check_weighting(weighting: str) -> None:
    """Raise ValueError for a weight that the table does not have."""
    if weighting not in WEIGHTS:
        raise ValueError(f'weighting must be one of {", ".join(WEIGHTS)}, given "{weighting}".')


def check_times(t: Range, name: str = "t") -> None:
    """Raise ValueError where a range of times leaves [0, 1] or is empty, at the beginning or the end of a stage."""
    for progress in (0.0, 1.0):
        low, high = t(progress)
        if not 0 <= low <= high <= 1:
            raise ValueError(f"{name} must be a range within [0, 1], given {low} to {high} at progress {progress:g}.")


def check_unit(name: str, number: Number) -> None:
    """Raise ValueError for a number or a schedule that leaves [0, 1]."""
    for progress in (0.0, 1.0):
        if not 0 <= value(number, progress) <= 1:
            raise ValueError(f"{name} must lie in [0, 1], given {value(number, progress)}.")


def check_conditions(method: str, wanted: Iterable[str], names: frozenset[str]) -> None:
    """Raise ValueError for the first condition that a method asks and the prompts do not give."""
    for name in wanted:
        if name not in names:
            known = ", ".join(sorted(names)) or "none"
            raise ValueError(f'{method} needs the condition "{name}", which the prompts do not give; given: {known}.')


def check_steps(steps: int) -> None:
    """Raise ValueError for an inversion of less than one step."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, given {steps}.")


def check_inversion(method: str, prior: Prior) -> None:
    """Raise ValueError for a video prior, along which nothing here walks backwards."""
    if prior.views_per_row > 1:
        raise ValueError(
            f"{method} inverts single pictures; this prior denoises videos of {prior.views_per_row} frames."
        )
