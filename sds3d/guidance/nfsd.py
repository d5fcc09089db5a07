"""Noise-free score distillation (Katzir et al. 2023, arXiv 2310.17590): the noise is taken out by a negative prompt.

| symbol        | variable      | equation                                                                       |
|---------------|---------------|--------------------------------------------------------------------------------|
| E_c, E_0, E_n | eps           | told the prompt, the empty prompt, the negative prompt, all at one x_t         |
| delta_C       | classifier    | E_c - E_0                                                                      |
| delta_D       | domain        | E_0 where t < t_low, else E_0 - E_n                                            |
| G             | grad          | w (s delta_C + delta_D)                                                        |

E_0 - eps is a way into the domain of good pictures plus the noise that the prior could not remove. At low t the noise
is small and E_0 itself is that way; at high t a prompt of bad pictures, E_n, holds the noise alone. The step at t_low
makes G discontinuous in t. The authors published no code; the equation and w = sigma^2 were read in another project's
port (SDS-Bridge, arXiv 2406.09417), and the scale 7.5 is UNVERIFIED.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..core import Condition, Guidance, Guided, Learner, Prior, Step, Views
from ..diffusion import diffuse
from ..schedules import Range
from .weights import WEIGHTS, Weighting, check_conditions, check_times, check_unit, check_weighting


@dataclass(frozen=True)
class Nfsd(Guidance):
    """Descend the classifier and the domain direction; one forward of three rows for each view.

    scale: s. t_low: below it a row's t takes E_0 alone. weighting: w(t) of `weights`. t: the times in [0, 1] that a
    step draws from. Raises ValueError for values out of range.
    """

    scale: float = 7.5
    t_low: float = 0.2
    weighting: Weighting = "sigma2"
    t: Range = Range(0.02, 0.98)

    def __post_init__(self) -> None:
        check_weighting(self.weighting)
        check_times(self.t)
        check_unit("t_low", self.t_low)

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        check_conditions("NFSD", ("cond", "uncond", "negative"), names)

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """G at the latent of the views. parts: "classifier" = w s delta_C, "domain" = w delta_D."""
        z = prior.encode(views.image)
        x = diffuse(prior, z, step, self.t(step.progress))
        eps = prior.predict(x.ask(conditions, "cond", "uncond", "negative"))
        low = (x.t < self.t_low).reshape(x.alpha.shape)
        domain = torch.where(low, eps["uncond"], eps["uncond"] - eps["negative"])
        w = WEIGHTS[self.weighting](x.alpha, x.sigma)
        parts = {"classifier": self.scale * w * (eps["cond"] - eps["uncond"]), "domain": w * domain}
        return Guided(z, parts["classifier"] + parts["domain"], parts)
