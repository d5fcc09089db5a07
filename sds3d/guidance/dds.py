"""Delta denoising score (Hertz et al. 2023, arXiv 2304.07090): the edit's score less the same score of the source.

| symbol   | variable          | equation                                                                  |
|----------|-------------------|---------------------------------------------------------------------------|
| x, x_s   | z, source         | the latents of the edited views and of the frozen source's                |
| x_t      | x.z_t, x_source.z_t | alpha x + sigma eps, with one t and one eps for both                    |
| E, E_s   | eps, eps_source   | the guided predictions: the edit's prompt at x_t, the source's at x_s,t   |
| w(t)     | WEIGHTS[weighting]| 1 in the authors' code                                                    |
| G        | grad              | w (E - E_s)                                                               |
| X        | target            | x_s + X(E) - X(E_s)                                                       |

What SDS does to a picture that already fits its prompt is E_s - eps: a bias that blurs and over-saturates. The source
and its prompt measure it, and it is taken away. Because E - eps = (alpha / sigma) (x - X(E)) holds for both, G equals
w (alpha / sigma) (x - X): a pull toward the source moved by what the two clean predictions differ in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

from ..core import Condition, Guidance, Guided, Latent, Learner, Mix, Noised, Prior, Step, Views
from ..diffusion import diffuse, x0_from_eps
from ..schedules import Range
from .mix import Cfg
from .weights import WEIGHTS, Weighting, check_conditions, check_times, check_weighting

T = TypeVar("T")


@dataclass(frozen=True)
class Pair:
    """Edited views and their source under one noise, each with its guided prediction; see the table above."""

    z: Latent
    source: Latent
    x: Noised
    x_source: Noised
    eps: Latent
    eps_source: Latent

    @property
    def delta(self) -> Latent:
        """X(E) - X(E_s): what the edit's prompt sees and the source's does not."""
        level = (self.x.alpha, self.x.sigma)
        return x0_from_eps(self.x.z_t, self.eps, *level) - x0_from_eps(self.x_source.z_t, self.eps_source, *level)


def source_of(named: Mapping[str, T]) -> dict[str, T]:
    """The same by name, with the source's in the place of the edit's: what a mix reads to guide the source."""
    return {**named, "cond": named["source"]}


def check_edit(method: str, mix: Mix, names: frozenset[str]) -> None:
    """Raise ValueError where a term has no frozen source with its prompt, or misses what the mix asks."""
    if "source" not in names:
        raise ValueError(f"{method} compares an asset with a frozen source and its prompt, and this term has none.")
    check_conditions(method, mix.names, names)


def ask_pair(
    prior: Prior, views: Views, conditions: Mapping[str, Condition], mix: Mix, t: tuple[float, float], step: Step
) -> Pair:
    """Noise the views and their source alike and ask about both in one forward.

    The answers are called as the conditions for the views, and "source", "source_uncond" ... for the source. Raises
    ValueError for views without a source.
    """
    if views.source is None:
        raise ValueError("An editing term needs views.source, the frozen original seen by the same cameras.")
    z = prior.encode(views.image)
    with torch.no_grad():
        source = prior.encode(views.source)
    x = diffuse(prior, z, step, t)
    x_source = diffuse(prior, source, step, t, like=x)
    others = [name for name in mix.names if name != "cond"]
    asked_source = x_source.ask(conditions, "source", **{f"source_{name}": name for name in others})
    answers = prior.predict(x.ask(conditions, *mix.names) | asked_source)
    of_source = {"cond": answers["source"], **{name: answers[f"source_{name}"] for name in others}}
    eps = mix(answers, conditions, x, prior.group)
    return Pair(z, source, x, x_source, eps, mix(of_source, source_of(conditions), x_source, prior.group))


@dataclass(frozen=True)
class Dds(Guidance):
    """Descend the difference of two scores; four network rows for each view with the default mix.

    weighting: w(t), see `weights`. mix: how the predictions of each side become one; 7.5 is the authors' scale. t:
    the times in [0, 1] that a step draws from, each end a number or a schedule over progress; 50 to 948 of 1000 in the
    authors' code. Raises ValueError for values out of range.
    """

    weighting: Weighting = "uniform"
    mix: Mix = Cfg(7.5)
    t: Range = Range(0.05, 0.95)

    def __post_init__(self) -> None:
        check_weighting(self.weighting)
        check_times(self.t)

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        check_edit("DDS", self.mix, names)

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """G at the latent of the views. parts: "edit" = w (E - eps), the SDS of the edit; "source" = -w (E_s - eps)."""
        pair = ask_pair(prior, views, conditions, self.mix, self.t(step.progress), step)
        w = WEIGHTS[self.weighting](pair.x.alpha, pair.x.sigma)
        parts = {"edit": w * (pair.eps - pair.x.eps), "source": w * (pair.x.eps - pair.eps_source)}
        return Guided(pair.z, w * (pair.eps - pair.eps_source), parts, pair.source + pair.delta)
