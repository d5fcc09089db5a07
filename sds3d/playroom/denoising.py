"""What the trainings of all denoisers share: noise levels, noise, and how much an error counts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import network
from .fit import Fit

MAX_WEIGHT = 5.0
SIDE = network.SIZE // network.UNSHUFFLE


class Denoising(Fit):
    """Networks that learn to tell the clean latent of a space."""

    def __init__(
        self, networks: Mapping[str, nn.Module], cache: Any, args: argparse.Namespace, space: network.Space
    ) -> None:
        super().__init__(networks, cache, args)
        self.space = space
        self.alphas = network.scheduler(space).alphas_cumprod.to(self.device)

    def noise(self, rows: int, rng: np.random.Generator) -> Tensor:
        """Standard normal noise [rows, c, 16, 16]."""
        return torch.from_numpy(rng.standard_normal((rows, self.space.channels, SIDE, SIDE), dtype=np.float32))

    def noised(self, z: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The latents [N, c, 16, 16] at the levels of these indices [N]."""
        kept = self.alphas[t.to(self.device)][:, None, None, None]
        return kept.sqrt() * z + (1 - kept).sqrt() * noise.to(self.device)

    def error(self, clean: Tensor, z: Tensor, t: Tensor, counts: Tensor | float = 1.0) -> Tensor:
        """Squared error of the clean latent per row [N], weighted by 1 / sigma^2 <= MAX_WEIGHT: that of v, bounded.

        counts: how much each of its numbers counts.

        1 / sigma^2 is 1 + alpha^2 / sigma^2, so this is min-SNR's weight but for one, whose bound of 5 was found on
        pixels and on latents of unit variance alike (Hang et al. 2023, arXiv 2303.09556): one weight for every space.
        """
        weight = (1 - self.alphas[t.to(self.device)]).reciprocal().clamp_max(MAX_WEIGHT)
        return weight * (counts * (clean.float() - z).square()).mean(dim=(1, 2, 3))

    def logged(self, losses: Tensor, t: Tensor) -> dict[str, Tensor]:
        """The columns of the log: every row's loss, and those under much noise, where only what is told decides."""
        seen = losses.detach().cpu()
        return {"loss": seen, "loss_high_t": seen[t > 850]}
