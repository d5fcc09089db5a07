"""Variational score distillation under a random guidance scale (PG-SB of SNOOPI, Nguyen et al. 2024, arXiv 2412.02687).

| symbol | variable | equation                                                                             |
|--------|----------|--------------------------------------------------------------------------------------|
| kappa  | kappa    | uniform between two ends, drawn anew at each step, one for each joint group of views |
| E      |          | the prior's prediction: E_base + kappa (E_cond - E_base)                             |
| E_phi  |          | the adapter's: E_phi,uncond + kappa (E_phi,cond - E_phi,uncond), with the same kappa |
| G      | grad     | w (E - E_phi)                                                                        |

No single scale suits every prior; a random one on both sides holds the renders to the prior's distributions under all
of them. A negative prompt may be the prior's base; the adapter's base stays the empty prompt, as the paper advises. So
that the adapter knows the empty prompt, a tenth of its updates are told it (as the code of VSD does). The ends 0.5 and
4 are the paper's for SD 1.5 and 2.1, read there and not in code.

Each step costs one forward without gradient (4 rows a view) and `fake.updates` with gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from ..core import Condition, Guidance, Guided, Learner, Prior, Step, Views
from ..diffusion import draw_shared
from ..schedules import Range
from .fake import Fake, from_camera, judge
from .mix import Cfg, check_base, toward
from .weights import WEIGHTS, Weighting, check_conditions, check_times, check_weighting


@dataclass(frozen=True)
class Pgsb(Guidance):
    """Descend the difference of two guided scores under one random scale.

    scale: between which numbers kappa lies. base: what the prior's guidance starts from. The other fields are those of
    `Vsd`. Raises ValueError for values out of range.
    """

    scale: Range = Range(0.5, 4.0)
    base: Literal["uncond", "negative"] = "uncond"
    weighting: Weighting = "sigma2"
    t: Range = Range(0.02, 0.98)
    fake: Fake = Fake(text_dropout=0.1)

    def __post_init__(self) -> None:
        check_base(self.base)
        for progress in (0.0, 1.0):
            low, high = self.scale(progress)
            if not 0 <= low <= high < float("inf"):
                raise ValueError(
                    f"scale must be a range of at least 0, given {low} to {high} at progress {progress:g}."
                )
        check_weighting(self.weighting)
        check_times(self.t)

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        check_conditions("PG-SB", ("cond", self.base, "uncond"), names)
        self.fake.check("PG-SB", prior, names)

    def init(self, prior: Prior, step: Step) -> Mapping[str, Learner]:
        return {"fake": self.fake.learner(prior, step)}

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """G at the latent of the views, with the parts of `Judged.descend`; then the adapter is trained on them."""
        told, fake = from_camera(conditions["cond_plain"], views), state["fake"]
        asked = {"fake": (told, fake), "fake_uncond": (replace(told, text=conditions["uncond"].text), fake)}
        plain = Cfg(1.0, self.base)
        judged = judge(prior, views, conditions, plain, self.t(step.progress), step, **asked)
        weight = WEIGHTS[self.weighting](judged.x.alpha, judged.x.sigma)
        self.fake.fit(fake, prior, judged.z, told, conditions, step)
        eps, kappa = judged.eps, self.draw(prior, judged.z, step)
        real = toward(eps["cond"], eps[self.base], kappa)
        return replace(judged, real=real).descend(weight, toward(eps["fake"], eps["fake_uncond"], kappa))

    def draw(self, prior: Prior, z: Tensor, step: Step) -> Tensor:
        """kappa [N, 1, ...] for the latents z, one for each joint group."""
        low, high = self.scale(step.progress)
        kappa = low + (high - low) * draw_shared(prior, z.shape[0], step, "kappa")
        return kappa.reshape(-1, *[1] * (z.dim() - 1)).to(z)
