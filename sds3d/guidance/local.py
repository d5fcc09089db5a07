"""An edit that stays in a region of the world: inside it the guidance within is followed, outside the source is held.

| symbol | variable | equation                                                                              |
|--------|----------|---------------------------------------------------------------------------------------|
| M      |          | how much of the region each pixel shows, in [0, 1]; see `regions`                       |
| x, x_s | z, source | the latents of the edited views and of the frozen source's                            |
| G_e    | edit     | the gradient of the guidance inside                                                   |
| h      | hold     | how firmly the rest is held                                                           |
| G      | grad     | m G_e + h (1 - m) (x - x_s), m the mask M as the latent sees it                        |

What lies behind the surface that a view shows is none of that view's business, so that glasses are not painted onto the
back of the head. For a prior on pixels m is M itself, for one on latents M averaged over the pixels of a place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..core import Condition, Guided, Latent, Learner, Prior, Step, Views
from ..regions import Ball, Region
from .wrap import Wrapper


@dataclass(frozen=True)
class Local(Wrapper):
    """Follow `guidance` inside of a region and hold the frozen source outside; see the table above.

    Raises ValueError for a hold that is negative.
    """

    region: Region = Ball()
    hold: float = 1.0

    def __post_init__(self) -> None:
        if not self.hold >= 0:
            raise ValueError(f"hold must be at least 0, given {self.hold}.")

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        if "source" not in names:
            raise ValueError("A local edit holds an asset near its frozen source, and this term has none.")
        super().check(prior, names)

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """G at the latent of the views. parts: those inside, masked, and "hold". Raises ValueError without a source."""
        if views.source is None:
            raise ValueError("A local edit needs views.source, the frozen original seen by the same cameras.")
        guided = self.guidance(prior, views, conditions, step, state)
        with torch.no_grad():
            source = prior.encode(views.source)
        m = seen_by(prior, self.region.seen(views.cameras, views.out), source)
        held = self.hold * (1 - m) * (guided.at.detach() - source)
        parts = {name: m * part for name, part in (guided.parts or {"whole": guided.grad}).items()}
        return replace(guided, grad=m * guided.grad + held, parts={**parts, "hold": held}, target=None)


def seen_by(prior: Prior, mask: Float[Tensor, "B H W 1"], z: Latent) -> Latent:
    """A mask of pixels as the prior sees it, at the places of its latent z."""
    if prior.data_range is not None:  # Latents are pixels in another order, 2 x - 1.
        return (prior.encode(mask.expand(-1, -1, -1, 3)) + 1) / 2
    mean = adaptive_avg_pool2d(mask.permute(0, 3, 1, 2), (z.shape[-2], z.shape[-1]))
    return mean.to(z).expand_as(z)
