"""Posterior distillation sampling (Koo et al. 2023, arXiv 2311.13831): match the noise of one denoising step.

A denoising step from t to t' draws x_t' from the posterior N(mu, s^2) of DDPM. The noise it would take to land on the
true x_t' is z_p = (x_t' - mu(x_t, E)) / s, and PDS descends z_p of the edit less z_p of the source. eps and the noise
of x_t' are shared by both, so the latter cancels and is never drawn.

| symbol       | variable   | equation                                                                          |
|--------------|------------|-----------------------------------------------------------------------------------|
| abar, abar'  |            | alpha^2 at t, and at t' = t - stride / (steps - 1)                                |
| beta         | beta       | 1 - abar / abar_1, with abar_1 one step back whatever the stride                   |
| c_0          | c0         | sqrt(abar') beta / (1 - abar)                                                     |
| c_1          | c1         | sqrt(1 - beta) (1 - abar') / (1 - abar)                                           |
| mu           |            | c_0 X(E) + c_1 x_t                                                                |
| s            | spread     | sqrt((1 - abar') / (1 - abar) beta)                                               |
| psi          | psi        | (sqrt(abar') - c_0 - c_1 alpha) / s, the pull back to the source                   |
| chi          | chi        | c_0 (sigma / alpha) / s, the strength of the edit                                 |
| G            | grad       | psi (x - x_s) + chi (E - E_s), with x_s and E_s of the source                     |
| X            | target     | x_s + c_0 / (sqrt(abar') - c_1 alpha) (X(E) - X(E_s))                             |

With stride 1 the posterior is consistent, psi is 0 and PDS is chi(t) times DDS. The identity term that the method is
known for comes from the authors' code, which takes beta of one step and a t' two steps back: hence the default stride.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Condition, Guidance, Guided, Learner, Mix, Prior, Step, Views
from ..schedules import Range
from .dds import ask_pair, check_edit
from .mix import Cfg
from .weights import check_times


@dataclass(frozen=True)
class Posterior:
    """The numbers of one denoising step, each [N, 1, ...] in float64: see the table above."""

    psi: Tensor
    chi: Tensor
    reach: Tensor  # c_0 / (sqrt(abar') - c_1 alpha): how far the target goes from the source along the edit


def posterior(prior: Prior, t: Float[Tensor, "N"], stride: int, steps: int) -> Posterior:
    """The coefficients of PDS at times t on a grid of `steps` noise levels, `stride` of them back."""
    unit = 1 / (steps - 1)
    abar, one_back, before = (prior.noise_level(t.double() - k * unit)[0] ** 2 for k in (0, 1, stride))
    beta = 1 - abar / one_back
    c0 = before.sqrt() * beta / (1 - abar)
    c1 = (1 - beta).sqrt() * (1 - before) / (1 - abar)
    spread = ((1 - before) / (1 - abar) * beta).sqrt()
    rest = before.sqrt() - c1 * abar.sqrt()
    return Posterior((rest - c0) / spread, c0 * ((1 - abar) / abar).sqrt() / spread, c0 / rest)


@dataclass(frozen=True)
class Pds(Guidance):
    """Descend the difference of two posterior noises; four network rows for each view with the default mix.

    stride: noise levels from t to t'; 1 has no identity term, more has more of it. steps: the noise levels of the grid
    on which a step is counted. mix: how the predictions of each side become one; the authors take a scale of 100 with
    Stable Diffusion, which overshoots with small priors. t: the times in [0, 1] that a step draws from, each end a
    number or a schedule over progress. Raises ValueError for values out of range.
    """

    stride: int = 2
    steps: int = 1000
    mix: Mix = Cfg(7.5)
    t: Range = Range(0.02, 0.98)

    def __post_init__(self) -> None:
        if not 1 <= self.stride < self.steps:
            raise ValueError(f"stride must be 1 to {self.steps - 1}, given {self.stride}.")
        check_times(self.t)
        lowest = min(self.t(progress)[0] for progress in (0.0, 1.0))
        if lowest <= self.stride / (self.steps - 1):
            raise ValueError(f"t must stay {self.stride} steps of {self.steps} above 0, given {lowest:g}.")

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        check_edit("PDS", self.mix, names)
        ends = torch.tensor([end for progress in (0.0, 1.0) for end in self.t(progress)], dtype=torch.float64)
        (alpha, sigma), (before, _) = (prior.noise_level(ends - k / (self.steps - 1)) for k in (0, 1))
        if ((alpha**2 + sigma**2 - 1).abs() > 1e-4).any():
            raise ValueError("PDS needs a variance-preserving prior, alpha^2 + sigma^2 = 1, which this one is not.")
        if (alpha >= before).any():
            raise ValueError(f"PDS with steps = {self.steps} needs a prior with as many noise levels; set steps to it.")

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """G at the latent of the views. parts: "identity" = psi (x - x_s), "edit" = chi (E - E_s)."""
        pair = ask_pair(prior, views, conditions, self.mix, self.t(step.progress), step)
        numbers = posterior(prior, pair.x.t, self.stride, self.steps)
        psi, chi, reach = (number.to(pair.z) for number in (numbers.psi, numbers.chi, numbers.reach))
        parts = {
            "identity": psi * (pair.z.detach() - pair.source),
            "edit": chi * (pair.eps - pair.eps_source),
        }
        return Guided(pair.z, parts["identity"] + parts["edit"], parts, pair.source + reach * pair.delta)
