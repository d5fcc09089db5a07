"""Balanced score distillation (PlacidDreamer, Huang et al. 2024, arXiv 2407.13976): two objectives, neither sacrificed.

| symbol | variable   | the code's variant, `Bsd`                             | the automatic variant, `BsdAuto` |
|--------|------------|-------------------------------------------------------|----------------------------------|
| c      | classifier | lam (E_c - E_b), lam = 15                             | E_c - E_b                        |
| d      | smoothing  | E_b                                                   | 1.25 (E_b - eps)                 |
| w      | w          | alpha                                                 | 5.12 sigma rms(E_b - eps)        |
| a      | share      | clamp(<d - c, d> / <d - c, d - c>, 0, 1), in each row | the same                         |
| g      |            | a c + (1 - a) d                                       | the same                         |
| G      | grad       | w g = w (a c + (1 - a) d)                             | the same                         |

g is the point of least norm between c and d (MGDA, Desideri 2012): <g, c> and <g, d> are both at least <g, g>, so a
step along it makes neither objective worse. A larger lam does not mean more of the prompt: once lam (E_c - E_b) is
longer than d it lowers the classifier's share, down to 0.

Read in the authors' code, where b is the negative prompt; the command line's lam has no effect there and 15 is fixed.
Their weight of the automatic variant takes one norm over a batch of four latents of 4 x 64 x 64 numbers, divided by 50;
here each row has its own root mean square, which gives the same number, 256 / 50 = 5.12, for rows alike, so that a view
does not depend on its batch. They multiply G by 0.1, which is a term's weight here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..core import Condition, Guidance, Guided, Latent, Learner, Noised, Prior, Step, Views
from ..diffusion import diffuse
from ..schedules import Range
from .ism import WARM
from .mix import check_base, row_dot
from .weights import WEIGHTS, Weighting, check_conditions, check_times, check_weighting


def min_norm_share(c: Latent, d: Latent) -> Tensor:
    """a [N, 1, ...] in [0, 1] for which a c + (1 - a) d is shortest, in each row; 1/2 where c and d are one."""
    away = d - c
    length = row_dot(away, away)
    share = row_dot(away, d) / length.clamp_min(1e-300)
    return share.clamp(0, 1).where(length > 0, 0.5).to(d)


@dataclass(frozen=True)
class Balanced(Guidance):
    """What both variants share: one forward of two rows for each view. base: "uncond" or "negative", b of the table."""

    base: str = "uncond"
    t: Range = WARM

    def __post_init__(self) -> None:
        check_base(self.base)
        check_times(self.t)

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        check_conditions("BSD", ("cond", self.base), names)

    @abstractmethod
    def objectives(self, x: Noised, cond: Latent, base: Latent) -> tuple[Latent, Latent, Tensor]:
        """c, d and w, given the two predictions at x."""

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """G at the latent of the views. parts: "classifier" = w a c, "smoothing" = w (1 - a) d."""
        z = prior.encode(views.image)
        x = diffuse(prior, z, step, self.t(step.progress))
        eps = prior.predict(x.ask(conditions, "cond", self.base))
        classifier, smoothing, w = self.objectives(x, eps["cond"], eps[self.base])
        share = min_norm_share(classifier, smoothing)
        parts = {"classifier": w * share * classifier, "smoothing": w * (1 - share) * smoothing}
        return Guided(z, parts["classifier"] + parts["smoothing"], parts)


@dataclass(frozen=True)
class Bsd(Balanced):
    """The code's variant, without the drawn noise in the smoothing objective.

    ratio: lam. weighting: w(t) of `weights`. t: the times in [0, 1] that a step draws from. Raises ValueError for
    values out of range.
    """

    ratio: float = 15.0
    weighting: Weighting = "alpha"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weighting(self.weighting)
        if not 0 <= self.ratio < float("inf"):
            raise ValueError(f"ratio must be a finite number of at least 0, given {self.ratio}.")

    def objectives(self, x: Noised, cond: Latent, base: Latent) -> tuple[Latent, Latent, Tensor]:
        return self.ratio * (cond - base), base, WEIGHTS[self.weighting](x.alpha, x.sigma)


@dataclass(frozen=True)
class BsdAuto(Balanced):
    """The automatic variant: the classifier unscaled, and a weight from how far the smoothing objective is from met.

    smoothing, strength: 1.25 and 5.12 of the table.
    """

    smoothing: float = 1.25
    strength: float = 5.12

    def objectives(self, x: Noised, cond: Latent, base: Latent) -> tuple[Latent, Latent, Tensor]:
        error = base - x.eps
        spread = (row_dot(error, error) / error[0].numel()).sqrt().to(x.sigma)
        return cond - base, self.smoothing * error, self.strength * x.sigma * spread
