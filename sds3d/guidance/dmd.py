"""Distribution matching distillation as guidance (DMD2, Yin et al. 2024, arXiv 2405.14867).

| symbol   | variable           | equation                                                                          |
|----------|--------------------|-----------------------------------------------------------------------------------|
| E_r, X_r | judged.real, clean | the guided prediction of the prior, and the clean latent that it implies          |
| E_f, X_f | judged.eps["fake"] | the prediction of the fake network, an adapter trained on the renders; see `fake` |
| m        |                    | mean of |x - X_r| over a joint group of rows                                      |
| G        | grad               | (X_f - X_r) / m = (sigma / alpha) (E_r - E_f) / m                                 |

It is VSD under another weight: the step is measured in the distance to the prior's own guess, so it does not fade where
the guess is near. The difference is taken between the eps, because X_f - X_r cancels digits at high noise.

Two time scales: DMD2 updates its fake five to ten times for each update of its generator. Here a step draws the asset
once and descends once, so the fake has `fake.updates` rounds of fresh noise on those same views. Giving a gradient at
every k-th step only would not do: Adam moves an asset by its momentum under a gradient of zero too. DMD2's GAN loss
needs real pictures and is left out; its one-step generator is our renderer.

Each step costs one forward without gradient (3 rows a view) and `fake.updates` with gradient (1 row each).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..core import Condition, Guidance, Guided, Learner, Mix, Noised, Prior, Step, Views
from ..diffusion import x0_from_eps
from ..schedules import Range
from .fake import Fake, from_camera, judge
from .mix import Cfg
from .weights import check_conditions, check_times

TINY = 1e-8  # beside a mean distance between latents, which are of the order of 1


def matching_weight(z: Tensor, x: Noised, real: Tensor, group: int) -> Tensor:
    """(sigma / alpha) / m [N, 1, ...] of the table above, one m for each joint group of `group` rows of z."""
    away = (z.detach() - x0_from_eps(x.z_t, real, x.alpha, x.sigma)).abs()
    mean = away.reshape(away.shape[0] // group, -1).mean(1).repeat_interleave(group)
    return x.sigma / x.alpha / (mean.reshape(x.alpha.shape) + TINY)


@dataclass(frozen=True)
class Dmd(Guidance):
    """Descend the normalised difference of what the fake and the prior hold for clean.

    mix: how the prior's predictions become one; DMD2 uses the scale 1.75 for SD 1.5 and 8 for SDXL. t: the times in
    [0, 1] that a step draws from. fake: how the fake network is trained. Raises ValueError for values out of range.
    """

    mix: Mix = Cfg(1.75)
    t: Range = Range(0.02, 0.98)
    fake: Fake = Fake(updates=5)

    def __post_init__(self) -> None:
        check_times(self.t)

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        check_conditions("DMD", self.mix.names, names)
        self.fake.check("DMD", prior, names)

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
        """G at the latent of the views, with the parts of `Judged.descend`; then the fake is trained on them."""
        told = from_camera(conditions["cond_plain"], views)
        judged = judge(prior, views, conditions, self.mix, self.t(step.progress), step, fake=(told, state["fake"]))
        self.fake.fit(state["fake"], prior, judged.z, told, conditions, step)
        weight = matching_weight(judged.z, judged.x, judged.real, prior.group)
        return judged.descend(weight, judged.eps["fake"])
