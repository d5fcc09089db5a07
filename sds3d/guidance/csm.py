"""Classifier score matching (TV-3DG, 2024, arXiv 2410.21299): no difference term, and no random noise.

| symbol   | variable   | equation                                                                              |
|----------|------------|---------------------------------------------------------------------------------------|
| x_t      | x.z_t      | x inverted to t by DDIM with the empty prompt, `ddim_invert`                            |
| E_c, E_0 | eps        | told the prompt and the empty prompt at x_t                                           |
| G        | grad       | s w (E_c - E_0), w = sigma / alpha                                                    |

SDS is a difference term w (E_0 - eps) and a classifier term s w (E_c - E_0). CSM keeps the latter alone, and asks where
the prior's own noising of the render leads, so that a step is a function of the render and of t. It is CSD at another
x_t, and ISM without its interval.

UNVERIFIED: the method has no public code and only the paper's abstract was at hand. The equation is derived from that;
s, w, t and the number of steps are LucidDreamer's (see `ism`). Its image prompt and its second guidance are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core import Condition, Guidance, Guided, Learner, Prior, Step, Views
from ..diffusion import ddim_invert, draw_t
from ..schedules import Range
from .ism import WARM
from .mix import Alone
from .weights import WEIGHTS, Weighting, check_conditions, check_inversion, check_steps, check_times, check_weighting


@dataclass(frozen=True)
class Csm(Guidance):
    """Descend the classifier term on inverted noise: `steps` forwards of one row a view in turn, then one of two rows.

    scale: s. steps: of the inversion. weighting: w(t) of `weights`. t: the times in [0, 1] that a step draws from.
    Raises ValueError for values out of range.
    """

    scale: float = 7.5
    steps: int = 4
    weighting: Weighting = "recon"
    t: Range = WARM

    def __post_init__(self) -> None:
        check_weighting(self.weighting)
        check_times(self.t)
        check_steps(self.steps)

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        check_conditions("CSM", ("cond", "uncond"), names)
        check_inversion("CSM", prior)

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """G at the latent of the views."""
        z = prior.encode(views.image)
        t = draw_t(prior, z.shape[0], step, self.t(step.progress)).to(z.device)
        x, _ = ddim_invert(prior, z, conditions, step, t, self.steps, Alone("uncond"))
        eps = prior.predict(x.ask(conditions, "cond", "uncond"))
        w = WEIGHTS[self.weighting](x.alpha, x.sigma)
        return Guided(z, self.scale * w * (eps["cond"] - eps["uncond"]))
