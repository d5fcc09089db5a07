"""Variational score distillation (ProlificDreamer, Wang et al. 2023, arXiv 2305.16213).

| symbol | variable           | equation                                                                            |
|--------|--------------------|-------------------------------------------------------------------------------------|
| x_t    | x.z_t              | alpha x + sigma eps, x the latent of the rendered views                             |
| E      | judged.real        | the guided prediction, Cfg(s): E_base + s (E_cond - E_base)                         |
| E_phi  | judged.eps["fake"] | what an adapter trained on the renders predicts, told prompt and camera; see `fake` |
| w(t)   | WEIGHTS[weighting] | sigma^2                                                                             |
| G      | grad               | w (E - E_phi)                                                                       |

SDS is the case E_phi = eps: an adapter that knows each render by heart. A fresh adapter answers as the prior does, so
the first step has no part but the classifier's, G = w (s - 1) (E_cond - E_base).

Each step costs one forward without gradient (cond, base, fake: 3 rows a view) and `fake.updates` with gradient (1 row).
The authors' third row of the adapter, without a camera, has no weight here; ESD is where it has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core import Condition, Guidance, Guided, Learner, Mix, Prior, Step, Views
from ..schedules import Range
from .fake import Fake, from_camera, judge
from .mix import Cfg
from .weights import WEIGHTS, Weighting, check_conditions, check_times, check_weighting


@dataclass(frozen=True)
class Vsd(Guidance):
    """Descend what the prior's score has and the renders' own score has not.

    mix: how the prior's predictions become one; 7.5 is the authors' scale. weighting: w(t). t: the times in [0, 1] that
    a step draws from; the authors lower the upper end to 0.5 after a fifth of the run. fake: how the adapter is
    trained. Raises ValueError for values out of range.
    """

    mix: Mix = Cfg(7.5)
    weighting: Weighting = "sigma2"
    t: Range = Range(0.02, 0.98)
    fake: Fake = Fake()

    def __post_init__(self) -> None:
        check_weighting(self.weighting)
        check_times(self.t)

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        check_conditions("VSD", self.mix.names, names)
        self.fake.check("VSD", prior, names)

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
        told = from_camera(conditions["cond_plain"], views)
        judged = judge(prior, views, conditions, self.mix, self.t(step.progress), step, fake=(told, state["fake"]))
        weight = WEIGHTS[self.weighting](judged.x.alpha, judged.x.sigma)
        self.fake.fit(state["fake"], prior, judged.z, told, conditions, step)
        return judged.descend(weight, judged.eps["fake"])
