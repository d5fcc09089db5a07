"""A prior around a prior: what it does not change, it hands on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..core import Cameras, Condition, Control, Image, Latent, Learner, Prior, Query, Step


@dataclass(frozen=True)
class Wrapped:
    """See `core.Prior`. Subclass it and write the methods that differ; what only the inner prior has is found too."""

    prior: Prior

    def __getattr__(self, name: str) -> Any:
        if name == "prior":  # Not there yet while a copy is being made.
            raise AttributeError(name)
        return getattr(self.prior, name)

    @property
    def group(self) -> int:
        return self.prior.group

    @property
    def views_per_row(self) -> int:
        return self.prior.views_per_row

    @property
    def size(self) -> int:
        return self.prior.size

    @property
    def data_range(self) -> float | None:
        return self.prior.data_range

    def encode(self, image: Image) -> Latent:
        return self.prior.encode(image)

    def decode(self, z: Latent) -> Image:
        return self.prior.decode(z)

    def text(self, prompts: Sequence[str]) -> Tensor:
        return self.prior.text(prompts)

    def condition(
        self,
        text: Tensor,
        cameras: Cameras | None,
        reference: Image | None = None,
        control: Sequence[Control] = (),
    ) -> Condition:
        return self.prior.condition(text, cameras, reference, control)

    def noise_level(self, t: Float[Tensor, "N"]) -> tuple[Tensor, Tensor]:
        return self.prior.noise_level(t)

    def snap(self, t: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        return self.prior.snap(t)

    def predict(self, queries: Mapping[str, Query]) -> dict[str, Tensor]:
        return self.prior.predict(queries)

    def adapter(self, rank: int, lr: float, step: Step) -> Learner | None:
        return self.prior.adapter(rank, lr, step)
