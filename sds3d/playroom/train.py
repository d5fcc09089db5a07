"""Train the embedded prior: `python -m sds3d.playroom.train --work FOLDER`.

Pictures are rendered once into FOLDER and may go on being rendered by another process (`--render-only`) while this one
trains. Killed and started again, training goes on from FOLDER/train.pt, which is its own file and never leaves the
machine; `--from-shipped` starts from the package's weights with a fresh optimiser instead.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cameras import view_word
from ..priors.multiview import OptionalCamera, camera_vector
from ..renderers.background import COLOURS as BACKGROUND_RGB
from . import network
from .data import VIEWS, Cache, cameras
from .grammar import Head, Pair, Spec, Thing, Toy, caption
from .muon import Muon

GREY = (0.5, 0.5, 0.5)
MAX_WEIGHT = 5.0
MUON_RATE = 6.0  # Muon's rate over AdamW's


@dataclass(frozen=True)
class Batch:
    """What one step learns from: pictures [N, 64, 64, 3], a caption each, cameras [N, 16] or None, rows a scene."""

    pictures: Tensor
    captions: list[str]
    camera: Tensor | None
    views: int


def opened(spec: Spec, rng: np.random.Generator) -> Spec:
    """The scene's caption with some of its colours left out."""

    def maybe(value: str | None) -> str | None:
        return None if rng.random() < 0.5 else value

    if isinstance(spec, Thing):
        return Thing(spec.shape, maybe(spec.colour))
    if isinstance(spec, Pair):
        first, second = (Thing(thing.shape, maybe(thing.colour)) for thing in (spec.first, spec.second))
        return Pair(first, second, spec.relation)
    if isinstance(spec, Toy):
        return Toy(spec.kind, maybe(spec.colour), maybe(spec.part))
    extras = (spec.glasses, spec.hat, spec.beard, spec.smile)
    return Head(maybe(spec.skin), maybe(spec.hair), maybe(spec.eyes), *extras)


def draw_batch(cache: Cache, rows: int, rng: np.random.Generator, views: int, camera: bool) -> Batch:
    """Scenes of `views` views each, on random plain backgrounds; without a camera most have a view word."""
    groups = rng.integers(0, cache.ready, rows // views)
    seen = np.stack([rng.permutation(VIEWS)[:views] for _ in groups])
    colour, alpha, normals = cache.read(groups, seen)
    names = list(BACKGROUND_RGB)
    pictures, captions, poses = [], [], []
    for i, group in enumerate(groups):
        spec = cache.specs[group]
        words = caption(opened(spec, rng) if rng.random() < 0.25 else spec)
        name = names[rng.integers(len(names))]
        rgb, picture = BACKGROUND_RGB[name], colour[i]
        if rng.random() < 0.1:
            words, name, rgb, picture = f"{words}, normals", "grey", GREY, normals[i] * alpha[i]
        pictures.append(picture + (1 - alpha[i]) * torch.tensor(rgb))
        background = f", on {name}" if rng.random() < 0.5 else ""
        view = cameras(int(group))
        poses.append(camera_vector(view)[seen[i]])
        dropped = rng.random() < 0.1  # the empty caption of classifier-free guidance
        for azimuth in view.azimuth_deg[seen[i]].tolist():
            word = f", {view_word(azimuth)} view" if not camera and rng.random() < 0.8 else ""
            captions.append("" if dropped else f"{words}{word}{background}")
    return Batch(torch.cat(pictures), captions, torch.cat(poses) if camera else None, views)


def draw_mode(step: int, rng: np.random.Generator) -> tuple[int, bool]:
    """How many views of a scene a batch holds, and whether it has cameras.

    Four views of one scene teach a text little more than one view does: with six captions in a batch nothing of the
    text was learned in 400 steps, with 24 it showed after 60. So the first steps see each scene once.
    """
    if rng.random() < 0.6 * min(1.0, step / 1000):
        return VIEWS, True
    return 1, bool(rng.random() < 0.5)


def draw_t(rows: int, rng: np.random.Generator, views: int) -> Tensor:
    """Indices of noise levels [rows], half of them above 0.7 T, where the text decides; joint views share one."""
    n = rows // views
    t = np.where(rng.random(n) < 0.5, rng.uniform(700, 1000, n), rng.uniform(0, 1000, n)).astype(np.int64)
    return torch.from_numpy(t.repeat(views))


class Training:
    """The networks, their averages, the optimiser and the random stream: all that a checkpoint holds."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.device = args, torch.device(args.device)
        self.unet, self.text = network.seeded(args.seed) if not args.from_shipped else network.load(args.from_shipped)
        self.unet.class_embedding = OptionalCamera(self.unet.class_embedding)
        self.unet.to(self.device, memory_format=torch.channels_last)
        self.text.to(self.device)
        self.average: Any = deepcopy(nn.ModuleList([self.unet, self.text])).requires_grad_(False)
        self.parameters = [*self.unet.parameters(), *self.text.parameters()]
        named = [*self.unet.named_parameters(), *self.text.named_parameters()]
        matrices = {
            name: p for name, p in named if p.ndim > 1 and not re.search("embeddings|positional|conv_in|conv_out", name)
        }
        rest = [p for name, p in named if name not in matrices]
        self.optimisers: list[torch.optim.Optimizer] = [
            Muon(matrices.values(), lr=args.lr * MUON_RATE),
            torch.optim.AdamW(rest, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01),
        ]
        self.rates = [optimiser.param_groups[0]["lr"] for optimiser in self.optimisers]
        self.step, self.seconds = 0, 0.0
        self.tokenizer = network.tokenizer()
        self.alphas = network.scheduler().alphas_cumprod.to(self.device)
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
        """Squared error of the clean latent per row [N], weighted by 1 / sigma^2 <= MAX_WEIGHT: that of v, bounded."""
        z = F.pixel_unshuffle(2 * batch.pictures.permute(0, 3, 1, 2).to(self.device) - 1, network.UNSHUFFLE)
        z = z.contiguous(memory_format=torch.channels_last)
        t, noise = t.to(self.device), noise.to(self.device)
        alpha, sigma = (level.sqrt()[:, None, None, None] for level in (self.alphas[t], 1 - self.alphas[t]))
        labels = OptionalCamera.labels(batch.camera, len(z)).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16):
            clean = self.unet(
                alpha * z + sigma * noise,
                t,
                self.encode(batch.captions),
                class_labels=labels,
                cross_attention_kwargs={"views": batch.views},
                return_dict=False,
            )[0]
        weight = sigma.square().reciprocal().clamp_max(MAX_WEIGHT).flatten()
        return weight * (clean.float() - z).square().mean(dim=(1, 2, 3))

    def train_step(self, cache: Cache) -> tuple[Tensor, Tensor]:
        """One update; returns times [N] and losses [N]."""
        rng = np.random.default_rng((self.args.seed, self.step))
        views, camera = draw_mode(self.step, rng)
        batch = draw_batch(cache, self.args.rows, rng, views, camera)
        t = draw_t(self.args.rows, rng, views)
        noise = torch.from_numpy(rng.standard_normal((len(t), 48, 16, 16), dtype=np.float32))
        share = rate_share(self.step, self.args)
        for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * share
            optimiser.zero_grad(set_to_none=True)
        losses = self.loss(batch, t, noise)
        losses.mean().backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if not norm.isfinite():
            raise RuntimeError(f"The gradient is not finite at step {self.step}; the last checkpoint is kept.")
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        decay = min(self.args.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, parameter in zip(self.average.parameters(), self.parameters, strict=True):
                mean.lerp_(parameter, 1 - decay)
        return t, losses.detach().cpu()

    def state(self) -> dict:
        return {
            "unet": self.unet.state_dict(),
            "text": self.text.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "step": self.step,
            "seconds": self.seconds,
        }

    def load(self, state: dict) -> None:
        self.unet.load_state_dict(state["unet"])
        self.text.load_state_dict(state["text"])
        self.average.load_state_dict(state["average"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]

    def export(self, folder: Path) -> None:
        """The averaged weights as a diffusers folder."""
        unet, text = deepcopy(self.average).cpu()
        unet.class_embedding = unet.class_embedding.embed
        network.save(folder, unet.to(memory_format=torch.contiguous_format), text)


def rate_share(step: int, args: argparse.Namespace) -> float:
    """A short warm-up, then 1, and a fall to zero over the last part, so that `steps` may be moved later."""
    warm = min(1.0, (step + 1) / 200)
    fall = (args.steps - step) / (args.steps * args.decay_share)
    return warm * min(1.0, max(fall, 0.0))


@torch.no_grad()
def text_gap(training: Training, cache: Cache) -> tuple[float, float]:
    """x0 error at t = 0.9 with true and with shuffled captions: equal numbers mean that the text is not learned."""
    rng = np.random.default_rng(1)
    batch = draw_batch(cache, 32, rng, VIEWS, camera=True)
    t = torch.full((len(batch.captions),), 900)
    noise = torch.from_numpy(rng.standard_normal((len(t), 48, 16, 16), dtype=np.float32))
    shuffled = Batch(batch.pictures, batch.captions[4:] + batch.captions[:4], batch.camera, VIEWS)
    true, false = (training.loss(b, t, noise).mean().item() for b in (batch, shuffled))  # sigma is 0.99 there
    return true, false


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sds3d.playroom.train", description=__doc__)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for pictures, checkpoints and exported weights"
    )
    parser.add_argument("--steps", type=int, default=20000, help="length of the whole schedule")
    parser.add_argument("--until", type=int, help="stop earlier, at this step")
    parser.add_argument("--scenes", type=int, default=12000, help="groups of four views to render")
    parser.add_argument("--render-only", action="store_true", help="fill the cache of pictures and stop")
    parser.add_argument("--rows", type=int, default=24, help="pictures a step, a multiple of four")
    parser.add_argument("--lr", type=float, default=5e-4, help="AdamW's; matrices and kernels get MUON_RATE times it")
    parser.add_argument("--decay-share", type=float, default=0.5, help="part of the schedule in which the rate falls")
    parser.add_argument("--ema", type=float, default=0.9985)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--from-shipped", type=Path, help="start from this prior folder, with a fresh optimiser")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    args = arguments(given)
    torch.set_num_threads(args.threads)
    cache = Cache(args.work, args.scenes)
    if args.render_only or cache.ready == 0:
        cache.fill(lambda done: print(f"rendered {done}/{args.scenes}", flush=True) if done % 500 == 0 else None)
        if args.render_only:
            return
    training, checkpoint = Training(args), args.work / "train.pt"
    if checkpoint.exists():
        training.load(torch.load(checkpoint, map_location=training.device, weights_only=True))
    until = min(args.until or args.steps, args.steps)
    seen: list[tuple[Tensor, Tensor]] = []
    last = time.monotonic()
    while training.step < until:
        seen.append(training.train_step(cache))
        if training.step % 100 == 0 or training.step == until:
            now = time.monotonic()
            training.seconds, last = training.seconds + now - last, now
            t, losses = (torch.cat(column) for column in zip(*seen, strict=True))
            seen.clear()
            line = {"step": training.step, "seconds": round(training.seconds), "loss": round(losses.mean().item(), 5)}
            line["loss_high_t"] = round(losses[t > 850].mean().item(), 5)
            if training.step % 500 == 0:
                line["x0_true"], line["x0_shuffled"] = (round(x, 4) for x in text_gap(training, cache))
            with (args.work / "train.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(line, flush=True)
        if training.step % 500 == 0 or training.step == until:
            fresh = checkpoint.with_suffix(".tmp")
            torch.save(training.state(), fresh)
            fresh.replace(checkpoint)
            training.export(args.work / "prior")


if __name__ == "__main__":
    main()
