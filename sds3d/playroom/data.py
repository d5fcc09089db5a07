"""Training pictures: groups of four views of every scene that is not held out, rendered once into a cache folder."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..cameras import Orbit
from ..core import Cameras, Step
from .grammar import Spec, heads, is_held_out, pairs, things, toys
from .render import render
from .scenes import build

VIEWS, SIZE = 4, 64
ORBIT = Orbit(views=VIEWS, size=SIZE)
CHANNELS = 7  # colour times alpha, alpha, and the normal as (n + 1) / 2
SHARES = {"thing": 0.10, "pair": 0.36, "toy": 0.24, "head": 0.30}  # of the training groups


def training_specs() -> dict[str, list[Spec]]:
    """Every determined scene that a prior may be trained on, by kind."""
    kinds = {"thing": things(), "pair": pairs(), "toy": toys(), "head": heads()}
    return {kind: [spec for spec in specs if not is_held_out(spec)] for kind, specs in kinds.items()}


def schedule() -> Iterator[Spec]:
    """Scenes in the order in which they are rendered, without end, the kinds interleaved by their shares."""
    rng = np.random.default_rng(0)
    specs = training_specs()
    decks: dict[str, list[int]] = {kind: [] for kind in specs}
    for _ in itertools.count():
        kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
        if not decks[kind]:
            decks[kind] = rng.permutation(len(specs[kind])).tolist()
        yield specs[kind][decks[kind].pop()]


def cameras(group: int) -> Cameras:
    """The four cameras of a group: they follow from its number alone."""
    return ORBIT(Step(seed=0, stage="playroom-data", index=group))


def render_group(spec: Spec, group: int) -> np.ndarray:
    """[4, 64, 64, 7] bytes: colour over black, alpha, normal."""
    out = render(build(spec), cameras(group), torch.zeros(VIEWS, 3), samples=2)
    picture = torch.cat([out.rgb, out.alpha, (out.normal + 1) / 2], dim=-1)
    return (picture.clamp(0, 1) * 255).round().byte().numpy()


class Store:
    """A memory-mapped folder of rendered groups that one process fills while another reads.

    shape: of one group, in bytes. draw: a group's number -> its bytes.
    """

    def __init__(
        self, folder: Path, name: str, groups: int, shape: tuple[int, ...], draw: Callable[[int], np.ndarray]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.count = folder / f"{name}-{groups}.u8", folder / f"{name}-{groups}.json"
        self.array = np.memmap(
            self.path, np.uint8, "r+" if self.path.exists() else "w+", shape=(groups, *shape, CHANNELS)
        )
        self.draw = draw

    @property
    def ready(self) -> int:
        """How many groups can be read."""
        return json.loads(self.count.read_text())["ready"] if self.count.exists() else 0

    def fill(self, progress=lambda done: None) -> None:
        """Render what is missing; killed and started again, it goes on where it was."""
        for group in range(self.ready, len(self.array)):
            self.array[group] = self.draw(group)
            if group % 25 == 24 or group + 1 == len(self.array):
                self.array.flush()
                fresh = self.count.with_suffix(".tmp")
                fresh.write_text(json.dumps({"ready": group + 1, "time": time.time(), "orbit": asdict(ORBIT)}))
                fresh.replace(self.count)
                progress(group + 1)


class Cache(Store):
    """Four views of each scene of `schedule`."""

    def __init__(self, folder: Path, groups: int) -> None:
        self.specs = list(itertools.islice(schedule(), groups))
        super().__init__(
            folder, "groups", groups, (VIEWS, SIZE, SIZE), lambda group: render_group(self.specs[group], group)
        )

    def read(self, groups: np.ndarray, views: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Views [n, v] of groups [n]: colour times alpha [n, v, 64, 64, 3], alpha [..., 1] and normals (n + 1) / 2, as
        floats in [0, 1]."""
        pictures = torch.from_numpy(self.array[groups[:, None], views]).float() / 255
        return pictures[..., :3], pictures[..., 3:4], pictures[..., 4:]
