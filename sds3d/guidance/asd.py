"""Asynchronous score distillation (ScaleDreamer, Ma et al. 2024, arXiv 2407.02040): compared with a noisier self.

| symbol       | variable      | equation                                                                       |
|--------------|---------------|--------------------------------------------------------------------------------|
| x_t          | x.z_t         | alpha x + sigma eps                                                            |
| d            | delay         | r u (t - t_min), u uniform in [0, 1)                                           |
| x_{t+d}      | later.z_t     | x under the same eps at t + d                                                  |
| E(x_t)       | mixed         | the guided prediction at x_t, Cfg(7.5)                                         |
| E_c(x_{t+d}) | eps["later"]  | told the prompt at t + d                                                       |
| G            | grad          | w (E(x_t) - E_c(x_{t+d}))                                                      |

The prior predicts the noise better at more noise. So E_c at a later time stands for the better denoiser that VSD
trains, with the prior left as it is. At r = 0 it is w (s - 1) (E_c - E_0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core import Condition, Guidance, Guided, Learner, Mix, Prior, Step, Views
from ..diffusion import add_noise, diffuse, draw_shared
from ..schedules import Ramp, Range
from .mix import Cfg
from .weights import WEIGHTS, Weighting, check_conditions, check_times, check_unit, check_weighting


@dataclass(frozen=True)
class Asd(Guidance):
    """Descend the difference to a later time's prediction; one forward of three rows for each view.

    reach: r in [0, 1]. mix: how the predictions at x_t become one. weighting: w(t) of `weights`. t: the times in [0, 1]
    that a step draws from. Raises ValueError for values out of range.
    """

    reach: float = 0.1
    mix: Mix = Cfg(7.5)
    weighting: Weighting = "sigma2"
    t: Range = Range(Ramp(0.5, 0.02), Ramp(0.98, 0.5))

    def __post_init__(self) -> None:
        check_weighting(self.weighting)
        check_times(self.t)
        check_unit("reach", self.reach)

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        check_conditions("ASD", ("cond", *self.mix.names), names)

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """G at the latent of the views.

        parts: "delay" = w (E_cond(x_t) - E_cond(x_{t+d})), "classifier" = w (E - E_cond) at x_t.
        """
        z = prior.encode(views.image)
        t = self.t(step.progress)
        x = diffuse(prior, z, step, t)
        delay = self.reach * draw_shared(prior, z.shape[0], step, "delay").to(x.t) * (x.t - t[0])
        later = add_noise(prior, z, prior.snap((x.t + delay).clamp(0, 1)), x.eps)
        eps = prior.predict(x.ask(conditions, "cond", *self.mix.names) | later.ask(conditions, later="cond"))
        mixed = self.mix(eps, conditions, x, prior.group)
        w = WEIGHTS[self.weighting](x.alpha, x.sigma)
        parts = {"delay": w * (eps["cond"] - eps["later"]), "classifier": w * (mixed - eps["cond"])}
        return Guided(z, w * (mixed - eps["later"]), parts)
