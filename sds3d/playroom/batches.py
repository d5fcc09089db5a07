"""What one step of training learns from: pictures with a caption each, a way of seeing them, and a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..cameras import view_word
from ..priors.multiview import camera_vector
from ..renderers.background import COLOURS as BACKGROUND_RGB
from .data import VIEWS, Cache, cameras
from .grammar import Head, Pair, Spec, Thing, Toy, caption

GREY = (0.5, 0.5, 0.5)


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

    Four views of one scene teach a text little more than one view does: with four captions in a batch nothing of the
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
