"""Score distillation sampling (DreamFusion, Poole et al. 2022, arXiv 2209.14988), in its noise and its target form.

| symbol  | variable        | equation                                                        |
|---------|-----------------|-----------------------------------------------------------------|
| x       | z               | the latent of the rendered views                                |
| x_t     | x.z_t           | alpha x + sigma eps                                             |
| E       | mixed           | the guided prediction, Cfg(s): E_base + s (E_cond - E_base)     |
| X       | target          | (x_t - sigma E) / alpha, clamped to the data range where asked  |
| w(t)    | WEIGHTS[weighting]| see `weights`                                                   |
| G, eps  | grad            | w (E - eps)                                                     |
| G, x0   | grad            | lam (x - X) with lam = w alpha / sigma                          |

Without a clamp both forms are one gradient, because E - eps = (alpha / sigma) (x - X). The target form is the gradient
of lam / 2 |x - X|^2 with X held fixed (StableDreamer, Guo et al. 2023, arXiv 2312.02189): it has a picture, X, that
can be looked at and kept within the range of pictures. The weighting "recon" has lam = 1, G = x - X, as MVDream trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..core import Condition, Guidance, Guided, Latent, Learner, Mix, Noised, Prior, Step, Views
from ..diffusion import diffuse, x0_from_eps
from ..schedules import Range
from .mix import Cfg
from .weights import WEIGHTS, Weighting, check_conditions, check_times, check_weighting


@dataclass(frozen=True)
class Sds(Guidance):
    """Descend the weighted score of the noised render.

    form: "eps" compares noises, "x0" compares the render with a clean target. weighting: w(t) of `weights`, the same
    for both forms. clamp: keep the target within the prior's data range; None clamps where the prior has such a
    range (pixels) and the form has a target. mix: how the predictions become one. t: the times in [0, 1] that a step
    draws from, each end a number or a schedule over progress. Raises ValueError for values out of range and for a
    clamp without a target.
    """

    form: Literal["eps", "x0"] = "x0"
    weighting: Weighting = "sigma2"
    clamp: bool | None = None
    mix: Mix = Cfg(4.0)
    t: Range = Range(0.02, 0.98)

    def __post_init__(self) -> None:
        if self.form not in ("eps", "x0"):
            raise ValueError(f'form must be "eps" or "x0", given "{self.form}".')
        check_weighting(self.weighting)
        check_times(self.t)
        if self.clamp and self.form == "eps":
            raise ValueError('clamp bounds the clean target, which only form "x0" has.')

    def bound(self, prior: Prior) -> float | None:
        """The bound on |X|, or None where the target is left free."""
        return prior.data_range if self.form == "x0" and self.clamp is not False else None

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        check_conditions(type(self).__name__.upper(), self.mix.names, names)
        if self.clamp and prior.data_range is None:
            raise ValueError("clamp needs a prior whose latents have a known range (pixels); leave it out.")

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """G at the latent of the views, with its halves for the microscope.

        parts: "prior" = w (E_cond - eps), which a sample already satisfies on average; "classifier" = w (E - E_cond),
        what guidance adds; "clamp", where the target is bounded.
        """
        z = prior.encode(views.image)
        x = self.noised(prior, z, conditions, step)
        eps = prior.predict(x.ask(conditions, *self.mix.names))
        mixed = self.mix(eps, conditions, x, prior.group)
        w = WEIGHTS[self.weighting](x.alpha, x.sigma)
        parts = {"prior": w * (eps["cond"] - x.eps), "classifier": w * (mixed - eps["cond"])}
        return self.descend(prior, z, x, mixed, parts)

    def noised(self, prior: Prior, z: Latent, conditions: Mapping[str, Condition], step: Step) -> Noised:
        """Where the question is asked: the latent under random noise, at a random time."""
        return diffuse(prior, z, step, self.t(step.progress))

    def descend(self, prior: Prior, z: Latent, x: Noised, mixed: Latent, parts: Mapping[str, Latent]) -> Guided:
        """G at z for a guided prediction at x, in this form. parts: what adds up to w (mixed - eps)."""
        w = WEIGHTS[self.weighting](x.alpha, x.sigma)
        free = x0_from_eps(x.z_t, mixed, x.alpha, x.sigma)
        if self.form == "eps":
            return Guided(z, w * (mixed - x.eps), parts, free)
        lam = w * x.alpha / x.sigma
        bound = self.bound(prior)
        target = free if bound is None else free.clamp(-bound, bound)
        if bound is not None:
            parts = {**parts, "clamp": lam * (free - target)}
        return Guided(z, lam * (z.detach() - target), parts, target)
