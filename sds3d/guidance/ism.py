"""Interval score matching (LucidDreamer, Liang et al. 2023, arXiv 2311.11284): scores of one trajectory are compared.

| symbol    | variable   | equation                                                                             |
|-----------|------------|--------------------------------------------------------------------------------------|
| s         | before     | max(t - delta, 0)                                                                    |
| x_s       | x_s.z_t    | x inverted to s by DDIM with the empty prompt                                        |
| E_0(x_s)  | eps_s      | told the empty prompt at x_s                                                         |
| x_t       | x.z_t      | one more DDIM step from x_s to t with E_0(x_s)                                       |
| E(x_t)    | mixed      | the guided prediction at x_t, Cfg(7.5)                                               |
| G         | grad       | w (E(x_t) - E_0(x_s)), w = sigma / alpha                                             |

At delta = 0 with the empty prompt as the base it is s w (E_c - E_0) at x_t, which is CSM. In the authors' code the base
of E is the negative prompt while the inversion and E_0(x_s) take the empty one: give the mix base "negative" for that.
The authors begin the inversion with a little random noise and walk in strides of 200 of 1000; here it begins at x
itself and every row takes equally many equal steps. They multiply G by 0.1, which is a term's weight here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core import Condition, Guidance, Guided, Learner, Mix, Prior, Step, Views
from ..diffusion import ddim_invert, ddim_step, draw_t, level, reached
from ..schedules import Number, Ramp, Range, value
from .mix import Alone, Cfg
from .weights import (
    WEIGHTS,
    Weighting,
    check_conditions,
    check_inversion,
    check_steps,
    check_times,
    check_unit,
    check_weighting,
)

WARM = Range(0.02, Ramp(0.98, 0.5, over=(0.0, 0.3)))  # the authors' times, over 1500 of their 5000 steps


@dataclass(frozen=True)
class Ism(Guidance):
    """Descend an interval's difference of scores: `steps` + 1 forwards of one row a view in turn, then one of two rows.

    interval: delta in [0, 1], a number or a schedule over progress. steps: of the inversion to s. mix: how the
    predictions at x_t become one. weighting: w(t) of `weights`. t: the times in [0, 1] that a step draws from. Raises
    ValueError for values out of range.
    """

    interval: Number = Ramp(0.1, 0.08, over=(0.0, 0.3))
    steps: int = 4
    mix: Mix = Cfg(7.5)
    weighting: Weighting = "recon"
    t: Range = WARM

    def __post_init__(self) -> None:
        check_weighting(self.weighting)
        check_times(self.t)
        check_steps(self.steps)
        check_unit("interval", self.interval)

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        check_conditions("ISM", ("cond", "uncond", *self.mix.names), names)
        check_inversion("ISM", prior)

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """G at the latent of the views.

        parts: "interval" = w (E_cond(x_t) - E_0(x_s)), "classifier" = w (E - E_cond) at x_t.
        """
        z = prior.encode(views.image)
        t = draw_t(prior, z.shape[0], step, self.t(step.progress)).to(z.device)
        before = prior.snap((t - value(self.interval, step.progress)).clamp_min(0))
        x_s, _ = ddim_invert(prior, z, conditions, step, before, self.steps, Alone("uncond"))
        eps_s = prior.predict(x_s.ask(conditions, "uncond"))["uncond"]
        x = reached(prior, z, ddim_step(x_s, eps_s, *level(prior, t, z)), t)
        eps = prior.predict(x.ask(conditions, "cond", *self.mix.names))
        mixed = self.mix(eps, conditions, x, prior.group)
        w = WEIGHTS[self.weighting](x.alpha, x.sigma)
        parts = {"interval": w * (eps["cond"] - eps_s), "classifier": w * (mixed - eps["cond"])}
        return Guided(z, w * (mixed - eps_s), parts)
