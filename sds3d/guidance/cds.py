"""Consistency distillation sampling (Consistent3D, Wu et al. 2024, arXiv 2401.09050): two points of one ODE path agree.

| symbol | variable  | equation                                                                                  |
|--------|-----------|-------------------------------------------------------------------------------------------|
| n      | noise     | one fixed standard normal latent for all views and steps                                  |
| x_t    | x.z_t     | alpha x + sigma n                                                                         |
| E(x_t) | ahead     | the guided prediction at x_t                                                              |
| x_r    | behind.z_t| one deterministic step of the guided ODE from t down to r < t                             |
| E(x_r) | after     | the guided prediction at x_r                                                              |
| G      | grad      | w (E(x_t) - E(x_r))                                                                       |

The authors write the ODE for x_t / alpha over u = sigma / alpha, where a step is Euler's; that is DDIM's step here. The
sign is that of their code. Differentiating the distance of the two clean predictions with the networks held fixed gives
the opposite one; on a Gaussian the coded sign leads to the mean. Read in their code for Stable Diffusion: r falls from
0.7 to 0.1 with the root of progress, t - r is drawn from [0.1, 0.3), the scale falls from 101 to 51, |G| is clamped
(see `wrap.Clip`); later stages take w = sigma^2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..core import Condition, Guidance, Guided, Learner, Mix, Prior, Step, Views
from ..diffusion import add_noise, ddim_step, draw_t, level, reached
from ..schedules import Number, Ramp, Range, value
from .mix import Cfg
from .weights import WEIGHTS, Weighting, check_conditions, check_times, check_unit, check_weighting


@dataclass(frozen=True)
class Cds(Guidance):
    """Descend the change of the prediction along the ODE; two forwards in turn, of two rows for each view.

    r: the lower time in [0, 1], a number or a schedule over progress. gap: t - r is drawn from this range. mix: how the
    predictions become one, at both times. weighting: w(t) of `weights`. Raises ValueError for values out of range.
    """

    r: Number = Ramp(0.7, 0.1, curve="sqrt")
    gap: Range = Range(0.1, 0.3)
    mix: Mix = Cfg(7.5)
    weighting: Weighting = "uniform"

    def __post_init__(self) -> None:
        check_weighting(self.weighting)
        check_times(self.gap, "gap")
        check_unit("r", self.r)

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        check_conditions("CDS", ("cond", *self.mix.names), names)

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """G at the latent of the views.

        parts: "conditional" = w times the change of E_cond, "classifier" = w times the change of E - E_cond.
        """
        z = prior.encode(views.image)
        r, gap = value(self.r, step.progress), self.gap(step.progress)
        t = draw_t(prior, z.shape[0], step, (min(r + gap[0], 1.0), min(r + gap[1], 1.0))).to(z.device)
        noise = replace(step, row=0).normal("noise", z[:1], fixed=True).expand_as(z)
        x = add_noise(prior, z, t, noise)
        eps = prior.predict(x.ask(conditions, "cond", *self.mix.names))
        ahead = self.mix(eps, conditions, x, prior.group)
        lower = prior.snap(t.new_full(t.shape, r))
        behind = reached(prior, z, ddim_step(x, ahead, *level(prior, lower, z)), lower)
        eps_behind = prior.predict(behind.ask(conditions, "cond", *self.mix.names))
        after = self.mix(eps_behind, conditions, behind, prior.group)
        w = WEIGHTS[self.weighting](x.alpha, x.sigma)
        conditional = w * (eps["cond"] - eps_behind["cond"])
        grad = w * (ahead - after)
        return Guided(z, grad, {"conditional": conditional, "classifier": grad - conditional})
