"""Classifier score distillation (Yu et al. 2023, arXiv 2310.19415): only what guidance adds to the score.

| symbol         | variable           | equation                                                                  |
|----------------|--------------------|---------------------------------------------------------------------------|
| E_c, E_0, E_n  | eps[name]          | told the prompt, the empty prompt, the negative prompt, all at one x_t    |
| c_1            | cond               | coefficient of E_c, 1                                                     |
| c_3            | uncond             | coefficient of E_0, -1; annealed to 0 in the authors' first stage         |
| c_2            | negative           | coefficient of E_n, 0; annealed to -1 there                               |
| c_4            | noise              | coefficient of eps, 0                                                     |
| G              | grad               | w (c_1 E_c + c_3 E_0 + c_2 E_n + c_4 eps)                                 |

The default is the paper's w (E_c - E_0), the limit of SDS / s for an ever larger scale s. The coefficients
(s, 1 - s, 0, -1) are SDS at scale s. The authors also divide G by its norm over the whole batch: see `wrap.Normalise`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..core import Condition, Guidance, Guided, Learner, Prior, Step, Views
from ..diffusion import diffuse
from ..schedules import Number, Ramp, Range, value
from .weights import WEIGHTS, Weighting, check_conditions, check_times, check_weighting


@dataclass(frozen=True)
class Csd(Guidance):
    """Descend a sum of predictions; one forward, with one row for each view and prompt whose coefficient is not 0.

    cond, uncond, negative, noise: coefficients, each a number or a schedule over progress, for example
    `uncond = Ramp(-1, 0), negative = Ramp(0, -1)`, which hands over from the empty to the negative prompt. weighting:
    w(t) of `weights`. t: the times in [0, 1] that a step draws from. Raises ValueError for values out of range.
    """

    cond: Number = 1.0
    uncond: Number = -1.0
    negative: Number = 0.0
    noise: Number = 0.0
    weighting: Weighting = "sigma2"
    t: Range = Range(0.02, Ramp(0.98, 0.5))

    def __post_init__(self) -> None:
        check_weighting(self.weighting)
        check_times(self.t)

    def coefficients(self, progress: float) -> dict[str, float]:
        """The coefficient of each prediction that counts at this progress."""
        named = {name: value(getattr(self, name), progress) for name in ("cond", "uncond", "negative")}
        return {name: number for name, number in named.items() if number != 0}

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        check_conditions("CSD", {**self.coefficients(0.0), **self.coefficients(1.0)}, names)

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """G at the latent of the views. parts: each prediction with its coefficient and weight, and "noise"."""
        z = prior.encode(views.image)
        x = diffuse(prior, z, step, self.t(step.progress))
        coefficients = self.coefficients(step.progress)
        eps = prior.predict(x.ask(conditions, *coefficients))
        w = WEIGHTS[self.weighting](x.alpha, x.sigma)
        parts = {name: number * w * eps[name] for name, number in coefficients.items()}
        parts["noise"] = value(self.noise, step.progress) * w * x.eps
        return Guided(z, torch.stack(list(parts.values())).sum(dim=0), parts)
