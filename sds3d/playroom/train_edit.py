"""Train the embedded edit prior: `python -m sds3d.playroom.train_edit --work FOLDER`.

It begins as the package's `playroom` and learns what InstructPix2Pix does (Brooks et al. 2022, arXiv 2211.09800): shown
pictures and told an instruction, to draw the edited ones. Pairs are exact, by the playroom's ground truth. Pictures,
checkpoint and resumption are as in `train`; the files have "-edit" in their names.
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

from ..priors.catalogue import WEIGHTS
from ..priors.multiview import OptionalCamera
from ..priors.pixel import PixelCodec
from . import network
from .batches import draw_t
from .data import VIEWS
from .edit_pairs import EditBatch, Pairs, draw_batch
from .fit import Fit, fill, parser, run
from .instructions import vocabulary
from .train import MAX_WEIGHT

DIFFERENT = 0.2  # of a latent's number, in [-1, 1], from which on a place is edited
DROPPED = 0.05  # how often a scene's instruction, its source, and both are left out, for guidance


class EditTraining(Fit):
    """A UNet and its text encoder learn to tell the clean edited picture."""

    def __init__(self, args: argparse.Namespace, pairs: Pairs) -> None:
        net, text = network.load(args.prior)
        self.unet, self.text = network.told_source(net, text, vocabulary(), args.seed)
        self.unet.class_embedding = OptionalCamera(self.unet.class_embedding)
        super().__init__({"unet": self.unet, "text": self.text}, pairs, args)
        self.codec = PixelCodec(network.SIZE, network.UNSHUFFLE)
        self.tokenizer = network.tokenizer(vocabulary())
        self.alphas = network.scheduler().alphas_cumprod.to(self.device)

    def encode(self, text: Any, instructions: list[str]) -> Tensor:
        """Token embeddings [N, L, d], each distinct instruction encoded once."""
        distinct = list(dict.fromkeys(instructions))
        padded = self.tokenizer(distinct, padding="max_length", max_length=network.TEXT_LENGTH, truncation=True)
        hidden = text(input_ids=torch.tensor(padded["input_ids"], device=self.device)).last_hidden_state
        return hidden[[distinct.index(words) for words in instructions]]

    def loss(self, batch: EditBatch, t: Tensor, noise: Tensor, shown: Tensor) -> Tensor:
        """Squared error of the clean latent per row [N], weighted as in `train`. shown: rows that see their source."""
        with torch.no_grad():
            before, z = (
                self.codec.encode(x.to(self.device)).contiguous(memory_format=torch.channels_last)
                for x in (batch.before, batch.after)
            )
        t, noise, shown = t.to(self.device), noise.to(self.device), shown.to(self.device)
        alpha, sigma = (level.sqrt()[:, None, None, None] for level in (self.alphas[t], 1 - self.alphas[t]))
        labels = OptionalCamera.labels(batch.camera, len(z)).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            clean = self.unet(
                torch.cat([alpha * z + sigma * noise, before * shown[:, None, None, None]], dim=1),
                t,
                self.encode(self.text, batch.instructions),
                class_labels=labels,
                cross_attention_kwargs={"views": batch.views},
                return_dict=False,
            )[0]
        weight = sigma.square().reciprocal().clamp_max(MAX_WEIGHT).flatten()
        return weight * (clean.float() - z).square().mean(dim=(1, 2, 3))

    def losses(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        # Joined views see one instruction for four pictures, so at first each picture has one of its own.
        joint = rng.random() < 0.5 * min(1.0, self.step / 500)
        views, camera = (VIEWS, True) if joint else (1, bool(rng.random() < 0.5))
        batch = draw_batch(self.cache, self.args.rows, rng, views, camera)
        t = draw_t(self.args.rows, rng, views)
        chance = torch.from_numpy(rng.random(self.args.rows // views).repeat(views))
        silent, shown = (chance < 2 * DROPPED).tolist(), ((chance < DROPPED) | (chance > 3 * DROPPED)).float()
        said = ["" if left_out else words for left_out, words in zip(silent, batch.instructions, strict=True)]
        batch = EditBatch(batch.before, batch.after, said, batch.camera, views)
        losses = self.loss(batch, t, self.noise(len(t), rng), shown)
        seen = losses.detach().cpu()
        return losses, {"loss": seen, "loss_high_t": seen[t > 850]}

    def noise(self, rows: int, rng: np.random.Generator) -> Tensor:
        """Standard normal noise [rows, c, 16, 16]."""
        side = network.SIZE // network.UNSHUFFLE
        return torch.from_numpy(rng.standard_normal((rows, network.PIXELS.channels, side, side), dtype=np.float32))

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """Of the averaged weights, x0 error at t = 0.9 with true and with shuffled instructions, and the source's own.

        Taken over the places at which before and after differ.
        """
        rng = np.random.default_rng(1)
        batch = draw_batch(self.cache, 64, rng, VIEWS, camera=True)
        t, noise = torch.full((64,), 900, device=self.device), self.noise(64, rng).to(self.device)
        before, z = (self.codec.encode(x.to(self.device)) for x in (batch.before, batch.after))
        x = self.alphas[900].sqrt() * z + (1 - self.alphas[900]).sqrt() * noise
        differ = ((before - z).abs().amax(dim=1, keepdim=True) > DIFFERENT).expand_as(z)
        unet, text = self.average

        def error(said: list[str]) -> float:
            with torch.autocast(self.device.type, torch.bfloat16):
                clean = unet(
                    torch.cat([x, before], dim=1),
                    t,
                    self.encode(text, said),
                    class_labels=OptionalCamera.labels(batch.camera, 64).to(self.device),
                    cross_attention_kwargs={"views": VIEWS},
                    return_dict=False,
                )[0]
            return (clean.float() - z)[differ].square().mean().item()

        shuffled = batch.instructions[VIEWS:] + batch.instructions[:VIEWS]
        unedited = (before - z)[differ].square().mean().item()
        return {"x0_true": error(batch.instructions), "x0_shuffled": error(shuffled), "x0_unedited": unedited}

    def export(self, folder: Path) -> None:
        """The averaged weights as a diffusers folder."""
        unet, text = deepcopy(self.average).cpu()
        unet.class_embedding = unet.class_embedding.embed
        network.save(folder, unet.to(memory_format=torch.contiguous_format), text, vocabulary=vocabulary())


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    options = parser("sds3d.playroom.train_edit", __doc__, steps=5000, lr=3e-4)
    options.add_argument("--prior", type=Path, default=WEIGHTS, help="the folder that it begins as")
    return options.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    args = arguments(given)
    torch.set_num_threads(args.threads)
    pairs = Pairs(args.work, args.scenes)
    fill(pairs)
    run(EditTraining(args, pairs), args.work / "train-edit.pt", args.work / "prior-edit")


if __name__ == "__main__":
    main()
