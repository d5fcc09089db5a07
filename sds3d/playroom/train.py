"""Train an embedded prior: `python -m sds3d.playroom.train --work FOLDER [--prior latent]`.

Pictures are rendered once into FOLDER and may go on being rendered by another process (`--render-only`) while this one
trains. Killed and started again, training goes on from FOLDER/train.pt, which is its own file and never leaves the
machine; `--from-shipped` starts from the package's weights with a fresh optimiser instead. The latent prior needs the
autoencoder in FOLDER/vae (`python -m sds3d.playroom.autoencoder`); its files have "-latent" in their names.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..priors import folder as files
from ..priors.frozen import Codec
from ..priors.latent import codec_of
from ..priors.multiview import OptionalCamera
from ..priors.pixel import PixelCodec
from . import network
from .batches import Batch, draw_batch, draw_mode, draw_t
from .data import VIEWS, Cache
from .denoising import Denoising
from .fit import fill, parser, run

SPACES = {"pixel": network.PIXELS, "latent": network.LATENTS}


def codec(prior: str, vae: Path, device: torch.device | str = "cpu") -> Codec:
    """From pictures to what the network sees: folded pixels, or the latents of the frozen autoencoder at `vae`.

    Raises FileNotFoundError when the latent prior's autoencoder has not been trained.
    """
    if prior == "pixel":
        return PixelCodec(network.SIZE, network.UNSHUFFLE)
    if not vae.is_dir():
        command = f"python -m sds3d.playroom.autoencoder --work {vae.parent}"
        raise FileNotFoundError(f"The latent prior sees through an autoencoder, and {vae} is missing: run `{command}`.")
    return codec_of(files.load(vae).to(device), network.SIZE // network.UNSHUFFLE)


class Training(Denoising):
    """A UNet and its text encoder learn to tell the clean picture, in pixels or in latents."""

    def __init__(self, args: argparse.Namespace, cache: Cache) -> None:
        self.space, self.vae = SPACES[args.prior], args.work / "vae"
        self.codec = codec(args.prior, self.vae, args.device)
        if args.from_shipped:
            self.unet, self.text = network.load(args.from_shipped, self.space, args.seed)
        else:
            self.unet, self.text = network.seeded(args.seed, self.space)
        self.unet.class_embedding = OptionalCamera(self.unet.class_embedding)
        super().__init__({"unet": self.unet, "text": self.text}, cache, args, self.space)
        self.tokenizer = network.tokenizer()
        self.tokens: dict[str, list[int]] = {}

    def encode(self, captions: list[str]) -> Tensor:
        """Token embeddings [N, L, d] of captions, each distinct one encoded once."""
        distinct = list(dict.fromkeys(captions))
        for words in distinct:
            if words not in self.tokens:
                padded = self.tokenizer(words, padding="max_length", max_length=network.TEXT_LENGTH, truncation=True)
                self.tokens[words] = padded["input_ids"]
        ids = torch.tensor([self.tokens[words] for words in distinct], device=self.device)
        hidden = self.text(input_ids=ids).last_hidden_state
        row = {words: i for i, words in enumerate(distinct)}
        return hidden[[row[words] for words in captions]]

    def loss(self, batch: Batch, t: Tensor, noise: Tensor) -> Tensor:
        """The error per row [N]; see `Denoising.error`."""
        with torch.no_grad():  # in fp32, as a run's renders are encoded
            z = self.codec.encode(batch.pictures.to(self.device)).contiguous(memory_format=torch.channels_last)
        x = self.noised(z, t, noise)
        with torch.autocast(self.device.type, torch.bfloat16):
            clean = self.unet(
                x,
                t.to(self.device),
                self.encode(batch.captions),
                class_labels=OptionalCamera.labels(batch.camera, len(z)).to(self.device),
                cross_attention_kwargs={"views": batch.views},
                return_dict=False,
            )[0]
        return self.error(clean, z, t)

    def losses(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        views, camera = draw_mode(self.step, rng)
        batch = draw_batch(self.cache, self.args.rows, rng, views, camera)
        t = draw_t(self.args.rows, rng, views)
        losses = self.loss(batch, t, self.noise(len(t), rng))
        return losses, self.logged(losses, t)

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """x0 error at t = 0.9 with true and with shuffled captions: equal numbers mean that the text is not learned."""
        rng = np.random.default_rng(1)
        batch = draw_batch(self.cache, 32, rng, VIEWS, camera=True)
        t = torch.full((len(batch.captions),), 900)
        noise = self.noise(len(t), rng)
        shuffled = Batch(batch.pictures, batch.captions[4:] + batch.captions[:4], batch.camera, VIEWS)
        true, false = (self.loss(b, t, noise).mean().item() for b in (batch, shuffled))  # sigma is near 1 there
        return {"x0_true": true, "x0_shuffled": false}

    def state(self) -> dict[str, Any]:
        return super().state() | self.seen_through()

    def load(self, state: dict[str, Any]) -> None:
        """Raises ValueError when the checkpoint was trained on the latents of another autoencoder."""
        if state.get("vae") != self.seen_through().get("vae"):
            raise ValueError(f"The checkpoint saw through another autoencoder than {self.vae}; put that one back.")
        super().load(state)

    def seen_through(self) -> dict[str, str]:
        """The hash of the autoencoder, for a latent prior."""
        return {} if self.space.bounded else {"vae": files.sha256(files.weight_files(self.vae))}

    def export(self, folder: Path) -> None:
        """The averaged weights as a diffusers folder."""
        unet, text = deepcopy(self.average).cpu()
        unet.class_embedding = unet.class_embedding.embed
        vae = None if self.space.bounded else self.vae
        network.save(folder, unet.to(memory_format=torch.contiguous_format), text, vae)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    options = parser("sds3d.playroom.train", __doc__, steps=20000, lr=5e-4)
    options.add_argument("--prior", choices=list(SPACES), default="pixel", help="what the network sees")
    options.add_argument("--render-only", action="store_true", help="fill the cache of pictures and stop")
    options.add_argument("--from-shipped", type=Path, help="start from this prior folder, with a fresh optimiser")
    return options.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    args = arguments(given)
    torch.set_num_threads(args.threads)
    cache = Cache(args.work, args.scenes)
    fill(cache, whole=args.render_only)
    if not args.render_only:
        name = "" if args.prior == "pixel" else f"-{args.prior}"
        run(Training(args, cache), args.work / f"train{name}.pt", args.work / f"prior{name}")


if __name__ == "__main__":
    main()
