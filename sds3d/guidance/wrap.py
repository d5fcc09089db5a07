"""Modifiers: guidances around guidances. Each passes the questions of the one inside on and changes its gradient; but
`Nasa` changes a question.

| class     | equation                                                                                        |
|-----------|-------------------------------------------------------------------------------------------------|
| Clip      | clamp(G, -c, c), element by element (Debiased-SDS, Hong et al. 2023, arXiv 2303.15413)          |
| Normalise | G / (norm G + 1e-8), over one joint group (over the batch in CSD's code, arXiv 2310.19415)      |
| Average   | the mean of G under k independent draws of time and noise                                       |
| Blend     | sum_i w_i G_i, with weights over progress                                                       |
| Nasa      | G with Z+ - a Z- for Z+, what "cond" reads of the text (Nguyen et al. 2024, arXiv 2412.02687)   |

A sum of pulls k_i (x - X_i) is one pull, toward the mean of the X_i weighted by k_i; so where the guidances inside have
targets, a sum of them has one, and the clipped gradient has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from ..core import Condition, Guidance, Guided, Latent, Learner, Prior, Step, Views
from ..schedules import Number, Ramp, value
from .mix import check_scale, row_dot
from .sds import Sds
from .weights import check_conditions


def weighted(guided: Sequence[Guided], weights: Sequence[float]) -> Guided:
    """sum_i w_i G_i, w_i >= 0, at the first one's latent; parts of one name are added.

    The gradient of a guidance without parts is the part "whole". Raises ValueError where the latents differ in shape.
    """
    at = guided[0].at
    if any(one.at.shape != at.shape for one in guided):
        shapes = ", ".join(str(list(one.at.shape)) for one in guided)
        raise ValueError(f"Gradients can be added at latents of one shape only, given {shapes}.")
    grad, parts = torch.zeros_like(at), {}
    for one, weight in zip(guided, weights, strict=True):
        grad = grad + weight * one.grad
        for name, part in (one.parts or {"whole": one.grad}).items():
            parts[name] = parts.get(name, 0) + weight * part
    return Guided(at, grad.detach(), parts, weighted_target(guided, weights))


def weighted_target(guided: Sequence[Guided], weights: Sequence[float]) -> Latent | None:
    """The one target of a weighted sum of pulls, or None where a gradient has none."""
    targets = [one.target for one in guided if one.target is not None]
    if len(targets) < len(guided):
        return None
    pulls = torch.stack([weight * one.pull() for one, weight in zip(guided, weights, strict=True)])  # [n, N]
    total = pulls.sum(dim=0)
    shares = (pulls / total).where(total > 0, 1 / len(guided))  # Where nothing pulls, any target is as good.
    return (shares.reshape(*shares.shape, *[1] * (targets[0].dim() - 1)) * torch.stack(targets)).sum(dim=0)


@dataclass(frozen=True)
class Wrapper(Guidance):
    """A guidance that keeps the needs and the learners of the one inside."""

    guidance: Guidance = Sds()

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        self.guidance.check(prior, names)

    def init(self, prior: Prior, step: Step) -> Mapping[str, Learner]:
        return self.guidance.init(prior, step)


@dataclass(frozen=True)
class Clip(Wrapper):
    """Keep every element of the gradient within [-bound, bound].

    bound: c, a number or a schedule over progress. The authors let it grow: from 2 to 8 with Stable Diffusion's
    latents and from 0.5 to 2 with pixels, which is the default. Raises ValueError for a bound that is not positive.
    """

    bound: Number = Ramp(0.5, 2.0)

    def __post_init__(self) -> None:
        for progress in (0.0, 1.0):
            if not value(self.bound, progress) > 0:
                raise ValueError(f"bound must be above 0, given {value(self.bound, progress)}.")

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """The clipped gradient. parts: those inside, and "clip", what was cut off, with its sign turned."""
        guided = self.guidance(prior, views, conditions, step, state)
        bound = value(self.bound, step.progress)
        grad = guided.grad.clamp(-bound, bound)
        parts = dict(guided.parts or {"whole": guided.grad})
        parts["clip"] = parts.get("clip", 0) + grad - guided.grad
        return Guided(guided.at, grad, parts)


@dataclass(frozen=True)
class Normalise(Wrapper):
    """Give the gradient of each joint group of views the norm 1."""

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """The gradient of unit length, its parts likewise scaled; a target stays where it is."""
        guided = self.guidance(prior, views, conditions, step, state)
        square = row_dot(guided.grad, guided.grad)
        joint = square.reshape(-1, prior.group).sum(dim=1).repeat_interleave(prior.group).reshape(square.shape)
        unit = (1 / (joint.sqrt() + 1e-8)).to(guided.grad)
        parts = None if guided.parts is None else {name: unit * part for name, part in guided.parts.items()}
        return replace(guided, grad=unit * guided.grad, parts=parts)


@dataclass(frozen=True)
class Average(Wrapper):
    """The mean gradient under several draws of time and noise: less variance for as many times the forwards.

    draws: k. Raises ValueError for less than one.
    """

    draws: int = 2

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws must be at least 1, given {self.draws}.")

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """The mean of k calls, each with a child of the step."""
        each = [self.guidance(prior, views, conditions, step.child(f"draw {i}"), state) for i in range(self.draws)]
        return weighted(each, [1 / self.draws] * self.draws)


@dataclass(frozen=True)
class Nasa(Wrapper):
    """Ask "cond" away from "negative" (negative-away attention of SNOOPI; Z in `priors.nasa`), without any training.

    The negative prompt works within the one question: it costs no row, so methods that ask no base can have one, and
    no other question changes. At a = 0 nothing does.

    scale: a, a number or a schedule over progress. The paper steers a one-step generator, with 0.1 for SD 1.5, 0.2 for
    SD 2.1 and 0.5 for PixArt, read there and not in code; to steer a teacher's E_cond is ours, and no figure stands
    behind it yet. Too large a scale destroys the picture. Raises ValueError for a negative scale.
    """

    scale: Number = 0.1

    def __post_init__(self) -> None:
        for progress in (0.0, 1.0):
            check_scale(value(self.scale, progress))

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        super().check(prior, names)
        check_conditions("NASA", ("cond", "negative"), names)
        if not getattr(prior, "reads_away", False):
            raise ValueError("NASA steers a network's attention to its text, and this prior has none.")

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """The gradient of the guidance inside, told a "cond" that reads away from "negative"."""
        away = (conditions["negative"].text, value(self.scale, step.progress))
        return self.guidance(prior, views, {**conditions, "cond": replace(conditions["cond"], away=away)}, step, state)


@dataclass(frozen=True)
class Share:
    """A guidance of a blend and its weight, a number of at least 0 or a schedule over progress."""

    guidance: Guidance = field(metadata={"inline": True})
    weight: Number = 1.0

    def __post_init__(self) -> None:
        for progress in (0.0, 1.0):
            if not value(self.weight, progress) >= 0:
                raise ValueError(f"weight must be at least 0, given {value(self.weight, progress)}.")


@dataclass(frozen=True)
class Blend(Guidance):
    """A weighted sum of guidances that see one prior, one time and one noise.

    of: the guidances with their weights; one whose weight is 0 at a step costs nothing there. Terms of a stage blend
    too, with a prior and a noise each. Raises ValueError for an empty list.
    """

    of: tuple[Share, ...]

    def __post_init__(self) -> None:
        if not self.of:
            raise ValueError("of needs at least one guidance.")

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        for share in self.of:
            share.guidance.check(prior, names)

    def init(self, prior: Prior, step: Step) -> Mapping[str, Learner]:
        """The learners of all, called by the number of their guidance: "0/lora"."""
        return {
            f"{i}/{name}": learner
            for i, share in enumerate(self.of)
            for name, learner in share.guidance.init(prior, step.child(str(i))).items()
        }

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        """The weighted sum; parts of one name are added."""
        weights = [value(share.weight, step.progress) for share in self.of]
        active = [i for i, weight in enumerate(weights) if weight > 0] or [0]
        each = [self.of[i].guidance(prior, views, conditions, step, learners_of(state, i)) for i in active]
        return weighted(each, [weights[i] for i in active])


def learners_of(state: Mapping[str, Learner], number: int) -> dict[str, Learner]:
    """The learners of one guidance of a blend, under its own names."""
    prefix = f"{number}/"
    return {name.removeprefix(prefix): learner for name, learner in state.items() if name.startswith(prefix)}
