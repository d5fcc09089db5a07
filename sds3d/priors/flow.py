"""Rectified flow (Liu et al. 2022, arXiv 2209.03003): x_s = (1 - s) x_0 + s eps, with the velocity u = eps - x_0.

| symbol | variable | equation                     |
|--------|----------|------------------------------|
| s      | t        | time, 0 clean, 1 noise       |
| alpha  | alpha    | 1 - s                        |
| sigma  | sigma    | s                            |
| E      | eps      | x_s + (1 - s) u              |
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from .analytic import AnalyticPrior


@dataclass(frozen=True, eq=False)
class AnalyticFlow(AnalyticPrior):
    """A mixture of Gaussians noised along straight lines, with its exact prediction; see `AnalyticPrior`."""

    def noise_level(self, t: Float[Tensor, "N"]) -> tuple[Tensor, Tensor]:
        """1 - s and s [N, 1, 1, 1] in t's dtype."""
        s = self.snap(t).reshape(-1, 1, 1, 1)
        return 1 - s, s
