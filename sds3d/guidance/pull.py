"""The pull toward the source: what an edit does not ask for stays as it was (the latent regulariser of editing).

| symbol | variable | equation                                                          |
|--------|----------|-------------------------------------------------------------------|
| x, x_s | z, source | the latents of the edited views and of the frozen source's        |
| G      | grad     | x - x_s                                                           |
| X      | target   | x_s                                                               |

It asks no prior anything but to encode, so it is the one identity term that every prior has: HeadSculpt holds an
identity by a network that sees the picture of the source, which few priors have. As a term of its own beside an editing
term it has a weight of its own: `pull: {kind: pull, weight: 0.05}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..core import Condition, Guidance, Guided, Learner, Prior, Step, Views


@dataclass(frozen=True)
class Pull(Guidance):
    """Descend the squared distance of the views' latent to the source's, halved; no network row."""

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        if "source" not in names:
            raise ValueError("The pull holds an asset near its frozen source, and this term has none.")

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """G at the latent of the views. Raises ValueError for views without a source."""
        if views.source is None:
            raise ValueError("The pull needs views.source, the frozen original seen by the same cameras.")
        z = prior.encode(views.image)
        with torch.no_grad():
            source = prior.encode(views.source)
        return Guided(z, z.detach() - source, target=source)
