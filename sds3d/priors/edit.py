"""A prior that is shown the picture to be edited and told an instruction (InstructPix2Pix, Brooks et al. 2022).

Its UNet has twice the channels of its latents: first the noised latent of the edited picture, then the clean one of the
source, or zeros where a question shows none. The source's latent is not scaled, as the authors have it (arXiv
2211.09800): an autoencoder's mean itself, pixels as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Image, Latent, Query
from .latent import LatentCodec
from .network import NetworkPrior


@dataclass(frozen=True, eq=False)
class EditPrior(NetworkPrior):
    """A network prior whose conditions may bring the source's picture, as `reference`."""

    @property
    def reads_source(self) -> bool:
        """Whether a condition may bring the picture of what is edited."""
        return True

    @torch.no_grad()
    def told_reference(self, reference: Image | None) -> Latent | None:
        if reference is None:
            return None
        z = self.encode(reference)
        return z / self.codec.scale + self.codec.shift if isinstance(self.codec, LatentCodec) else z

    def shown(self, queries: Sequence[Query]) -> Tensor:
        """The noised latents and beside them the sources'. Raises ValueError for a source with other rows."""
        rows = []
        for query in queries:
            z, source = query.z_t, query.condition.image
            if source is not None and len(source) != len(z):
                raise ValueError(f"{len(source)} source pictures are shown to {len(z)} views.")
            rows.append(torch.cat([z, torch.zeros_like(z) if source is None else source.to(z)], dim=1))
        return torch.cat(rows).to(next(self.unet.parameters()))
