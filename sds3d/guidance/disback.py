"""DMD along a path of teachers that leads from the first renders back to the prior.

After DisBack (Zhang et al. 2024, arXiv 2408.15991).

| symbol | variable           | equation                                                                           |
|--------|--------------------|------------------------------------------------------------------------------------|
| E_r    | real               | E + lam (E_path - E_cond): the prior's guided prediction, moved toward the renders |
| E_path | judged.eps["path"] | the adapter as it stood when the path's end was learnt                             |
| lam    | back               | from 1, the path's end, to 0, the prior, over the stage                            |
| G      | grad               | (sigma / alpha) (E_r - E_f) / m, as in `dmd`                                       |

The paper degrades a copy of its teacher on the first pictures of its student, keeps the checkpoints on the way, and
takes them as teachers in reverse order, so that no teacher is far from the student. This form is ours, and untested
elsewhere: the fake of DMD is itself the degraded teacher, copied after each update until progress reaches `degrade`;
the path between it and the prior is straight in the predictions, which makes the teacher's density the geometric mean
of the two, with weights lam and 1 - lam. While the path's end is learnt the two networks are one, and the gradient has
no part but the classifier's. With lam = 0 it is DMD.

Each step costs one forward without gradient (4 rows a view) and `fake.updates` with gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core import Condition, Guidance, Guided, Learner, Mix, Prior, Step, Views
from ..schedules import Number, Ramp, Range, value
from .dmd import matching_weight
from .fake import Fake, add_part, from_camera, judge
from .mix import Cfg
from .weights import check_conditions, check_times


@dataclass(frozen=True)
class Disback(Guidance):
    """Descend toward teachers that go back from the first renders' distribution to the prior's.

    degrade: the progress until which the path's end is learnt. back: lam over progress, 1 at the path's end and 0 at
    the prior. The other fields are those of `Dmd`. Raises ValueError for values out of range.
    """

    degrade: float = 0.1
    back: Number = Ramp(1.0, 0.0, over=(0.1, 0.7))
    mix: Mix = Cfg(1.75)
    t: Range = Range(0.02, 0.98)
    fake: Fake = Fake(updates=5)

    def __post_init__(self) -> None:
        if not 0 <= self.degrade <= 1:
            raise ValueError(f"degrade must lie in [0, 1], given {self.degrade}.")
        for progress in (0.0, 1.0):
            if not 0 <= value(self.back, progress) <= 1:
                given = f"{value(self.back, progress)} at progress {progress:g}"
                raise ValueError(f"back must stay within [0, 1], given {given}.")
        check_times(self.t)

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        check_conditions("DisBack", self.mix.names, names)
        self.fake.check("DisBack", prior, names)

    def init(self, prior: Prior, step: Step) -> Mapping[str, Learner]:
        """Two equal adapters: the fake, and the path's end."""
        return {name: self.fake.learner(prior, step) for name in ("fake", "path")}

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """G at the latent of the views; then the fake is trained on them.

        parts: those of `Judged.descend`, and "back" = (sigma / alpha) lam (E_path - E_cond) / m.
        """
        told, lam = from_camera(conditions["cond_plain"], views), value(self.back, step.progress)
        asked = {name: (told, state[name]) for name in ("fake", "path")}
        judged = judge(prior, views, conditions, self.mix, self.t(step.progress), step, **asked)
        self.fake.fit(state["fake"], prior, judged.z, told, conditions, step)
        if step.progress < self.degrade:
            state["path"].load(state["fake"].state())
        back = lam * (judged.eps["path"] - judged.eps["cond"])
        weight = matching_weight(judged.z, judged.x, judged.real + back, prior.group)
        return add_part(judged.descend(weight, judged.eps["fake"]), "back", weight * back)
