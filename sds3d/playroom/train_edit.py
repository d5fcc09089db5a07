"""Train the embedded edit prior: `python -m sds3d.playroom.train_edit --work FOLDER`.

It begins as the package's `playroom` and learns what InstructPix2Pix does (Brooks et al. 2022, arXiv 2211.09800): shown
pictures and told an instruction, to draw the edited ones. Pairs are exact, by the playroom's ground truth. Pictures,
checkpoint and resumption are as in `train`; the files have "-edit" in their names.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
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
from .denoising import Denoising
from .edit_pairs import EditBatch, Pairs, draw_batch
from .fit import fill, parser, run
from .instructions import vocabulary

DIFFERENT = 0.2  # of a latent's number, in [-1, 1], from which on a place is edited
EDITED, MOST = 1.0, 100.0  # how much a picture's edited numbers count together, and each at most: eyes are small
DROPPED = 0.05  # how often a scene's instruction, its source, and both are left out, for guidance


class EditTraining(Denoising):
    """A UNet and its text encoder learn to tell the clean edited picture."""

    def __init__(self, args: argparse.Namespace, pairs: Pairs) -> None:
        net, text = network.load(args.prior)
        self.unet, self.text = network.told_source(net, text, vocabulary(), args.seed)
        self.unet.class_embedding = OptionalCamera(self.unet.class_embedding)
        super().__init__({"unet": self.unet, "text": self.text}, pairs, args, network.PIXELS)
        self.codec = PixelCodec(network.SIZE, network.UNSHUFFLE)
        self.tokenizer = network.tokenizer(vocabulary())

    def encode(self, text: Any, instructions: list[str]) -> Tensor:
        """Token embeddings [N, L, d], each distinct instruction encoded once."""
        distinct = list(dict.fromkeys(instructions))
        padded = self.tokenizer(distinct, padding="max_length", max_length=network.TEXT_LENGTH, truncation=True)
        hidden = text(input_ids=torch.tensor(padded["input_ids"], device=self.device)).last_hidden_state
        return hidden[[distinct.index(words) for words in instructions]]

    def clean(self, nets: Sequence[Any], x: Tensor, t: Tensor, before: Tensor, batch: EditBatch) -> Tensor:
        """The clean latent after the edit, as a UNet and a text encoder tell it of latents x at t and before it."""
        unet, text = nets
        with torch.autocast(self.device.type, torch.bfloat16):
            return unet(
                torch.cat([x, before], dim=1),
                t.to(self.device),
                self.encode(text, batch.instructions),
                class_labels=OptionalCamera.labels(batch.camera, len(x)).to(self.device),
                cross_attention_kwargs={"views": batch.views},
                return_dict=False,
            )[0]

    def latents(self, batch: EditBatch) -> tuple[Tensor, Tensor]:
        """Before and after [N, 48, 16, 16]."""
        pictures = (x.to(self.device) for x in (batch.before, batch.after))
        before, after = (self.codec.encode(x).contiguous(memory_format=torch.channels_last) for x in pictures)
        return before, after

    def losses(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        # Joined views see one instruction for four pictures, so at first each picture has one of its own.
        joint = rng.random() < 0.5 * min(1.0, self.step / 500)
        views, camera = (VIEWS, True) if joint else (1, bool(rng.random() < 0.5))
        batch = draw_batch(self.cache, self.args.rows, rng, views, camera)
        t = draw_t(self.args.rows, rng, views)
        chance = torch.from_numpy(rng.random(self.args.rows // views).repeat(views))
        silent, shown = (chance < 2 * DROPPED).tolist(), ((chance < DROPPED) | (chance > 3 * DROPPED)).float()
        said = ["" if left_out else words for left_out, words in zip(silent, batch.instructions, strict=True)]
        batch = replace(batch, instructions=said)
        before, z = self.latents(batch)
        x = self.noised(z, t, self.noise(len(t), rng))
        shown = shown.to(self.device)[:, None, None, None]
        edited = ((before - z).abs() > DIFFERENT).float()
        counts = 1 + edited * (EDITED / edited.mean(dim=(1, 2, 3), keepdim=True)).clamp_max(MOST)
        losses = self.error(self.clean((self.unet, self.text), x, t, shown * before, batch), z, t, counts)
        return losses, self.logged(losses, t)

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """Of the averaged weights, x0 error at t = 0.9 with true and with shuffled instructions, and the source's own.

        Taken over the places at which before and after differ.
        """
        rng = np.random.default_rng(1)
        batch = draw_batch(self.cache, 64, rng, VIEWS, camera=True)
        before, z = self.latents(batch)
        t = torch.full((len(z),), 900)
        x = self.noised(z, t, self.noise(len(z), rng))
        differ = ((before - z).abs().amax(dim=1, keepdim=True) > DIFFERENT).expand_as(z)

        def error(said: list[str]) -> float:
            clean = self.clean(self.average, x, t, before, replace(batch, instructions=said))
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
