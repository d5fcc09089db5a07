"""What the priors of model folders share: a codec, one forward for all questions of a wave, a hash for the manifest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core import Cameras, Condition, Control, Image, Latent, Query
from . import folder as files

HALF_FROM = 200_000_000  # on a GPU, networks of this many parameters run in half precision


@runtime_checkable
class Codec(Protocol):
    """Between pictures and what the network sees."""

    @property
    def size(self) -> int: ...
    @property
    def data_range(self) -> float | None: ...
    def encode(self, image: Image) -> Latent: ...
    def decode(self, z: Latent) -> Image: ...


@dataclass(frozen=True, eq=False)
class FolderPrior(ABC):
    """A frozen model from a folder; see `core.Prior`, whose other half is its subclass's."""

    name: str
    licence: str
    weights: tuple[Path, ...] = field(repr=False)
    codec: Codec = field(repr=False)

    @property
    def views_per_row(self) -> int:
        return 1

    @property
    def size(self) -> int:
        return self.codec.size

    @property
    def data_range(self) -> float | None:
        """The bound on |z_0|: 1 for pixels, None for the latents of an autoencoder."""
        return self.codec.data_range

    @cached_property
    def sha256(self) -> str:
        """The hash of the weights, for the manifest; it reads every file once."""
        return files.sha256(list(self.weights))

    def encode(self, image: Image) -> Latent:
        return self.codec.encode(image)

    def decode(self, z: Latent) -> Image:
        return self.codec.decode(z)

    def refuse_pictures(self, given: bool) -> None:
        """Raise ValueError where a network that reads text alone is told a picture."""
        if given:
            raise ValueError(f'The prior "{self.name}" reads text, not reference or control pictures.')

    def told_camera(self, cameras: Cameras) -> Tensor | None:
        """The cameras as the network is told them, or None where it is not."""
        return None

    def told_reference(self, reference: Image | None) -> Tensor | None:
        """A reference picture as the network is told it. Raises ValueError where it reads none."""
        self.refuse_pictures(reference is not None)
        return None

    def told_control(self, control: Sequence[Control], rows: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """Control pictures as `rows` rows of the network are told them. Raises ValueError where it reads none."""
        self.refuse_pictures(bool(control))
        return ()

    def condition(
        self,
        text: Tensor,
        cameras: Cameras | None,
        reference: Image | None = None,
        control: Sequence[Control] = (),
    ) -> Condition:
        """text: [N, L, d], or one row for all. Raises ValueError for a picture that this network cannot be told."""
        image = self.told_reference(reference)
        if cameras is not None and text.shape[0] == 1:
            text = text.expand(len(cameras), -1, -1)
        camera = None if cameras is None else self.told_camera(cameras)
        return Condition(text, camera, image, control=self.told_control(control, text.shape[0]))

    def owns(self, adapter: object) -> bool:
        """Whether an adapter is one of this network's, which shares its forward."""
        return False

    @abstractmethod
    def forward(self, queries: Sequence[Query]) -> list[Latent]:
        """eps for each query from one batched forward of the network, with gradient to their adapters."""

    def predict(self, queries: Mapping[str, Query]) -> dict[str, Latent]:
        """eps under the queries' names, from one forward; the network's own adapters have their rows in it.

        A query with another learner in the adapter's place is answered by that learner alone.
        """
        with torch.no_grad():
            answers: dict[str, Latent] = {}
            own: dict[str, Query] = {}
            for name, query in queries.items():
                if query.adapter is not None and not self.owns(query.adapter):
                    answers[name] = query.adapter(query)
                else:
                    own[name] = query
            asked, place = merged(own)
            eps = self.forward(asked) if asked else []
        return {name: eps[place[name]] if name in place else answers[name] for name in queries}


def merged(queries: Mapping[str, Query]) -> tuple[list[Query], dict[str, int]]:
    """The different queries in their order, and where among them each name's is."""
    asked: list[Query] = []
    place: dict[str, int] = {}
    for name, query in queries.items():
        place[name] = next((i for i, known in enumerate(asked) if same(known, query)), len(asked))
        if place[name] == len(asked):
            asked.append(query)
    return asked, place


def same(a: Query, b: Query) -> bool:
    """Whether two queries must get one answer: every tensor equal, the same adapter."""

    def equal(x: object, y: object) -> bool:
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            return x is y or (x.shape == y.shape and x.dtype == y.dtype and torch.equal(x, y))
        if isinstance(x, tuple) and isinstance(y, tuple):
            return len(x) == len(y) and all(map(equal, x, y))
        return x is y or (isinstance(x, float) and x == y)

    inputs = equal(a.z_t, b.z_t) and equal(a.t, b.t) and a.adapter is b.adapter
    return inputs and all(equal(getattr(a.condition, f.name), getattr(b.condition, f.name)) for f in fields(Condition))


def precision(part: Path, device: torch.device) -> torch.dtype:
    """The dtype of the network in a folder on a device: half for a large one on a GPU."""
    large = sum(file.stat().st_size for file in files.weight_files(part)) > 2 * HALF_FROM
    return torch.float16 if device.type == "cuda" and large else torch.float32
