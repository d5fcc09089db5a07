"""Train the autoencoder of the latent prior: `python -m sds3d.playroom.autoencoder --work FOLDER`.

It learns from the pictures in FOLDER, the prior's own, and is written to FOLDER/vae, from where
`python -m sds3d.playroom.train --prior latent` reads it. Killed and started again, it goes on from
FOLDER/autoencoder.pt.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..cameras import orbit
from ..core import Image, Latent
from ..priors.latent import LatentCodec
from ..priors.pixel import channels_first
from . import network
from .batches import draw_batch
from .bench import held_out
from .data import Cache
from .fit import Fit, fill, parser, run
from .measures import psnr
from .render import render
from .scenes import build

KL_WEIGHT = 1e-2  # see `Autoencoding`
JUDGED, MEASURED = 16, 128  # held-out scenes of the figures, training pictures behind shift and scale


def seeded(seed: int) -> Any:
    """A fresh autoencoder whose initial weights follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network.autoencoder()


def reconstruction(decoded: Tensor, x: Tensor) -> Float[Tensor, "N"]:
    """mean |y - x| + mean (y - x)^2 of each row: the first keeps edges sharp, the second forgives no large fault."""
    error = decoded - x
    return (error.abs() + error.square()).flatten(1).mean(dim=1)


def divergence(mean: Tensor, logvar: Tensor) -> Float[Tensor, "N"]:
    """KL(N(mean, exp logvar), N(0, 1)) of each row, per number of the latent (Kingma, Welling 2013)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).mean(dim=1)


def standardised(means: Latent) -> tuple[float, float]:
    """shift and scale for which (means - shift) scale has mean 0 and variance 1 over all its numbers."""
    return float(means.double().mean()), float(1 / means.double().std(correction=0))


class Autoencoding(Fit):
    """An encoder and a decoder that keep a picture through 16 x 16 x 4 numbers (Kingma, Welling 2013, arXiv 1312.6114).

    | symbol    | variable     | equation                                                                |
    |-----------|--------------|-------------------------------------------------------------------------|
    | x         | x            | pictures in [-1, 1]: colours on plain backgrounds, a tenth of normals   |
    | q         | mean, logvar | N(mean, exp logvar), the encoder's answer to x                          |
    | y         | decoded      | the decoder's picture of z = mean + exp(logvar / 2) e, e normal         |
    | L         | losses       | mean abs(y - x) + mean (y - x)^2 + beta mean KL(q, N(0, 1))             |

    At its best spread, beta is what the noise of z costs in the picture, because the KL falls by 1 when every spread
    grows by the factor e: so beta = 0.01 leaves noise of about one part in 200 of the range of colours, which nobody
    sees, and no finer trace can be hidden in the latents, which a diffusion model would have to learn.
    """

    def __init__(self, args: argparse.Namespace, cache: Cache) -> None:
        self.vae = seeded(args.seed)
        super().__init__({"vae": self.vae}, cache, args)

    def losses(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        batch = draw_batch(self.cache, self.args.rows, rng, views=1, camera=False)
        x = channels_first(batch.pictures.to(self.device), network.SIZE).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16):
            posterior = self.vae.encode(x).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            noise = torch.from_numpy(rng.standard_normal(mean.shape, dtype=np.float32)).to(self.device)
            decoded = self.vae.decode(mean + (logvar / 2).exp() * noise).sample
        error, spread = reconstruction(decoded.float(), x), divergence(mean, logvar)
        losses = error + KL_WEIGHT * spread
        return losses, {"loss": losses.detach().cpu(), "error": error.detach().cpu(), "kl": spread.detach().cpu()}

    @cached_property
    def judged(self) -> tuple[Image, Tensor]:
        """Views [N, 64, 64, 3] of held-out scenes, then their normals, and the objects' masks [N, 64, 64, 1]."""
        cameras, grey = orbit([0, 90, 180, 270], 15.0, network.SIZE), torch.full((4, 3), 0.5)
        outs = [render(build(spec), cameras, grey, samples=2) for spec in held_out(JUDGED)]
        normals = [(out.normal + 1) / 2 * out.alpha + grey[0] * (1 - out.alpha) for out in outs]
        masks = torch.cat([out.alpha > 0.5 for out in outs])
        return torch.cat([*(out.rgb for out in outs), *normals]), torch.cat([masks, masks])

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """PSNR in dB of the averaged weights on held-out scenes: of whole pictures, and inside the object alone."""
        images, inside = self.judged
        codec = LatentCodec(self.average[0], network.SIZE, scale=1.0)
        drawn = codec.decode(codec.encode(images.to(self.device))).cpu()
        return {"psnr": psnr(drawn, images, torch.ones_like(inside)), "psnr_inside": psnr(drawn, images, inside)}

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """The averaged weights in fp16, with shift and scale measured on training pictures."""
        vae = deepcopy(self.average[0]).cpu().to(memory_format=torch.contiguous_format)
        batch = draw_batch(self.cache, MEASURED, np.random.default_rng(2), views=1, camera=False)
        means = LatentCodec(vae, network.SIZE, scale=1.0).encode(batch.pictures)
        shift, scale = standardised(means)
        vae.register_to_config(shift_factor=shift, scaling_factor=scale)
        network.write_half(vae, folder)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    return parser("sds3d.playroom.autoencoder", __doc__, steps=4000, lr=5e-4).parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    args = arguments(given)
    torch.set_num_threads(args.threads)
    cache = Cache(args.work, args.scenes)
    fill(cache)
    run(Autoencoding(args, cache), args.work / "autoencoder.pt", args.work / "vae")


if __name__ == "__main__":
    main()
