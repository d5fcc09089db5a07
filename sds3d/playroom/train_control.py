"""Train the embedded ControlNet: `python -m sds3d.playroom.train_control --work FOLDER`.

Beside the frozen `playroom` it learns to draw a face where the landmarks are, on heads of every colour and every extra,
in single views and in four joined ones (ControlNet, Zhang et al. 2023, arXiv 2302.05543). Views count by
`landmarks.fade`, as they do when it is used, and views from behind are not trained on. Pictures are those of
`train_edit`, which may lie in the same FOLDER; the files have "-control" in their names.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cameras import view_word
from ..controls import Landmarks
from ..priors import control
from ..priors.catalogue import WEIGHTS
from ..priors.multiview import OptionalCamera, camera_vector
from ..priors.pixel import PixelCodec
from ..renderers.background import COLOURS as BACKGROUND_RGB
from . import network
from .batches import draw_t
from .data import VIEWS
from .denoising import Denoising
from .edit_pairs import SCENES, Pairs, coloured, group_of
from .fit import fill, parser, run
from .grammar import Head, caption, is_held_out
from .recolour import colours, picture

WIDTHS = (16, 32, 64)  # of the layers that read a drawing of 64 pixels
SEEN = 0.05  # of a view's face, at least


@dataclass(frozen=True)
class Heads:
    """Pictures [N, 64, 64, 3] of heads, a caption each, cameras [N, 16] or None, and rows a head.

    drawn: the landmarks [N, 64, 64, 3]. scale: how much each view's count [N].
    """

    pictures: Tensor
    captions: list[str]
    camera: Tensor | None
    drawn: Tensor
    scale: Tensor
    views: int


class ControlTraining(Denoising):
    """A ControlNet learns to steer the frozen prior to the clean picture."""

    def __init__(self, args: argparse.Namespace, pairs: Pairs) -> None:
        self.unet, self.text = (part.requires_grad_(False).eval().to(args.device) for part in network.load(args.prior))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(args.seed)
            net = control.fresh(self.unet, WIDTHS).train()
        for part in (self.unet, net):
            part.class_embedding = OptionalCamera(part.class_embedding)
        self.unet.to(memory_format=torch.channels_last)
        super().__init__({"net": net}, pairs, args, network.PIXELS)
        self.net = net
        self.codec = PixelCodec(network.SIZE, network.UNSHUFFLE)
        self.tokenizer = network.tokenizer()
        self.landmarks = Landmarks()
        self.heads = [number for number in range(len(pairs.array)) if isinstance(group_of(number)[0], Head)]
        self.told: dict[str, Tensor] = {}
        self.drawings: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Tensor:
        """Token embeddings [N, L, d] of the frozen text encoder, each caption encoded once in a lifetime."""
        for words in dict.fromkeys(captions):
            if words not in self.told:
                padded = self.tokenizer(words, padding="max_length", max_length=network.TEXT_LENGTH, truncation=True)
                ids = torch.tensor([padded["input_ids"]], device=self.device)
                self.told[words] = self.text(input_ids=ids).last_hidden_state[0]
        return torch.stack([self.told[words] for words in captions])

    def drawing(self, group: int) -> tuple[Tensor, Tensor]:
        """The landmarks as a group's cameras see them, and how much they count."""
        if group not in self.drawings:
            image, scale = self.landmarks(self.cache.cameras[group])
            self.drawings[group] = image, torch.as_tensor(scale)
        return self.drawings[group]

    def draw_batch(self, rows: int, rng: np.random.Generator, views: int, camera: bool) -> Heads:
        """Heads of `views` views each, of which at least one shows something of the face."""
        ready = [number for number in self.heads if number < self.cache.ready]
        pictures, captions, poses, drawn, scales = [], [], [], [], []
        while len(captions) < rows:
            group = ready[rng.integers(len(ready))]
            image, scale = self.drawing(group)
            open_views = [view for view in rng.permutation(VIEWS) if scale[view] > SEEN]
            if not open_views:
                continue
            seen = rng.permutation(VIEWS) if views == VIEWS else np.array(open_views[:1])
            scene = int(rng.integers(SCENES))
            spec = coloured(group_of(group)[scene], rng)
            if is_held_out(spec):
                continue
            name = str(rng.choice(list(BACKGROUND_RGB)))
            found = self.cache.read(group, scene, seen)
            over = (1 - found.alpha) * found.alpha.new_tensor(BACKGROUND_RGB[name])
            pictures.append(picture(found, colours(spec)) + over)
            view = self.cache.cameras[group]
            poses.append(camera_vector(view)[seen])
            drawn.append(image[seen])
            scales.append(scale[seen])
            background = f", on {name}" if rng.random() < 0.7 else ""
            dropped = rng.random() < 0.1
            for azimuth in view.azimuth_deg[seen].tolist():
                word = f", {view_word(azimuth)} view" if not camera and rng.random() < 0.8 else ""
                captions.append("" if dropped else f"{caption(spec)}{word}{background}")
        camera_rows = torch.cat(poses) if camera else None
        return Heads(torch.cat(pictures), captions, camera_rows, torch.cat(drawn), torch.cat(scales), views)

    def loss(self, batch: Heads, t: Tensor, noise: Tensor, net: Any = None) -> Tensor:
        """The error per row [N] of the prior under a net, or of the plain prior; see `Denoising.error`."""
        z = self.codec.encode(batch.pictures.to(self.device)).contiguous(memory_format=torch.channels_last)
        asked = (self.noised(z, t, noise), t.to(self.device), self.encode(batch.captions))
        told: dict[str, Any] = {
            "class_labels": OptionalCamera.labels(batch.camera, len(z)).to(self.device),
            "cross_attention_kwargs": {"views": batch.views},
        }
        with torch.autocast(self.device.type, torch.bfloat16):
            more = {}
            if net is not None:
                drawn = batch.drawn.permute(0, 3, 1, 2).to(self.device)
                down, mid = net(*asked, controlnet_cond=drawn, return_dict=False, **told)
                weight = batch.scale[:, None, None, None].to(self.device)
                more["down_block_additional_residuals"] = tuple(weight * part for part in down)
                more["mid_block_additional_residual"] = weight * mid
            clean = self.unet(*asked, return_dict=False, **told, **more)[0]
        return self.error(clean, z, t)

    def losses(self, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        views, camera = (VIEWS, True) if rng.random() < 0.5 else (1, bool(rng.random() < 0.2))
        batch = self.draw_batch(self.args.rows, rng, views, camera)
        t = draw_t(self.args.rows, rng, views)
        losses = self.loss(batch, t, self.noise(len(t), rng), self.net)
        return losses, self.logged(losses, t)

    @torch.no_grad()
    def judge(self) -> dict[str, float]:
        """x0 error of single views at t = 0.9, by the averaged net and by the plain prior."""
        rng = np.random.default_rng(1)
        batch = self.draw_batch(48, rng, 1, camera=False)
        t, noise = torch.full((48,), 900), self.noise(48, rng)
        steered, plain = (self.loss(batch, t, noise, net).mean().item() for net in (self.average[0], None))
        return {"x0": steered, "x0_plain": plain}

    def export(self, folder: Path) -> None:
        """The averaged weights as a ControlNet's folder."""
        net = deepcopy(self.average[0]).cpu()
        net.class_embedding = net.class_embedding.embed
        network.write_half(net.to(memory_format=torch.contiguous_format), folder)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    options = parser("sds3d.playroom.train_control", __doc__, steps=2000, lr=3e-4)
    options.add_argument("--prior", type=Path, default=WEIGHTS, help="the folder of the prior that it steers")
    return options.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    args = arguments(given)
    torch.set_num_threads(args.threads)
    pairs = Pairs(args.work, args.scenes)
    fill(pairs)
    run(ControlTraining(args, pairs), args.work / "train-control.pt", args.work / "control")


if __name__ == "__main__":
    main()
