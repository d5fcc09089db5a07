"""Latents of an autoencoder (Stable Diffusion, Rombach et al. 2022): the posterior's mean, shifted and scaled."""

from __future__ import annotations

from dataclasses import dataclass

from ..core import Image, Latent
from .folder import Network
from .pixel import channels_first, channels_last


@dataclass(frozen=True, eq=False)
class LatentCodec:
    """vae: a frozen AutoencoderKL. size: the picture's side in pixels. z = (mean - shift) scale."""

    vae: Network
    size: int
    scale: float
    shift: float = 0.0
    data_range: float | None = None

    def encode(self, image: Image) -> Latent:
        """Differentiable through the encoder; computes in the autoencoder's dtype, returns the picture's."""
        x = channels_first(image, self.size)
        mean = self.vae.encode(x.to(next(self.vae.parameters()))).latent_dist.mean
        return ((mean - self.shift) * self.scale).to(image)

    def decode(self, z: Latent) -> Image:
        latent = z.to(next(self.vae.parameters())) / self.scale + self.shift
        return channels_last(self.vae.decode(latent).sample.to(z))


def codec_of(vae: Network, sample_size: int) -> LatentCodec:
    """The codec of an autoencoder for a network with latents of `sample_size` x `sample_size`."""
    config = vae.config
    side = sample_size * 2 ** (len(config.block_out_channels) - 1)
    return LatentCodec(vae, side, float(config.scaling_factor), float(config.shift_factor or 0.0))
