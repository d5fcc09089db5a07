"""Entropic score distillation (Wang et al. 2023, arXiv 2401.00909): VSD that rewards views for differing.

| symbol   | variable           | equation                                                   |
|----------|--------------------|------------------------------------------------------------|
| E        | judged.real        | the guided prediction of the prior                         |
| E_phi(c) | judged.eps["fake"] | the adapter's prediction, told the camera                  |
| E_phi    | judged.eps["any"]  | the adapter's prediction of all cameras at once, told none |
| G        | grad               | w (E - lam E_phi - (1 - lam) E_phi(c))                     |

lam = 0 is VSD, whose view at each camera falls onto the mode of the prior; with lam = 1 only the distribution of all
views together must be the prior's. In between it is VSD with the scale 1 - lam on the camera of its adapter. Told no
camera the adapter is asked what camera dropout taught it, so fake.camera_dropout must be above 0.

Each step costs what VSD costs and one more row a view in the first forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..core import Condition, Guidance, Guided, Learner, Mix, Prior, Step, Views
from ..schedules import Range
from .fake import Fake, add_part, from_camera, judge
from .mix import Cfg
from .weights import WEIGHTS, Weighting, check_conditions, check_times, check_weighting


@dataclass(frozen=True)
class Esd(Guidance):
    """Descend the prior's score less a mean of the renders' score and that of their camera.

    lam: the weight of the score without a camera; the authors suggest 0.5 and say that it may vary. The other fields
    are those of `Vsd`. Raises ValueError for values out of range, and where lam is above 0 without camera dropout.
    """

    lam: float = 0.5
    mix: Mix = Cfg(7.5)
    weighting: Weighting = "sigma2"
    t: Range = Range(0.02, 0.98)
    fake: Fake = Fake()

    def __post_init__(self) -> None:
        if not 0 <= self.lam <= 1:
            raise ValueError(f"lam must lie in [0, 1], given {self.lam}.")
        if self.lam and not self.fake.camera_dropout:
            raise ValueError(
                "ESD asks its adapter without a camera, which fake.camera_dropout above 0 alone teaches it."
            )
        check_weighting(self.weighting)
        check_times(self.t)

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        check_conditions("ESD", self.mix.names, names)
        self.fake.check("ESD", prior, names)

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
        """G at the latent of the views; then the adapter is trained on them.

        parts: those of `Vsd`, and "entropy" = w lam (E_phi(c) - E_phi), which drives views away from one another.
        """
        told, fake = from_camera(conditions["cond_plain"], views), state["fake"]
        asked = {"fake": (told, fake), "any": (replace(told, camera=None), fake)}
        judged = judge(prior, views, conditions, self.mix, self.t(step.progress), step, **asked)
        weight = WEIGHTS[self.weighting](judged.x.alpha, judged.x.sigma)
        self.fake.fit(fake, prior, judged.z, told, conditions, step)
        entropy = weight * self.lam * (judged.eps["fake"] - judged.eps["any"])
        return add_part(judged.descend(weight, judged.eps["fake"]), "entropy", entropy)
