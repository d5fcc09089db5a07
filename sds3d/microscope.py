"""The gradient microscope: what a guidance asked, what it was answered, and where it pulls, for one step.

StableDreamer (Guo et al. 2023, arXiv 2312.02189) reads score distillation as a squared distance to a target that can be
looked at. Here every method is shown that way as far as it goes:

| symbol   | field             | what it is                                                                          |
|----------|-------------------|-------------------------------------------------------------------------------------|
| x        | render            | the views that the prior sees                                                       |
| x_t      | answers[i].z_t    | the noised latent of a question                                                     |
| X(E)     | answers[i].x0     | the clean latent that an answer implies, (x_t - sigma E) / alpha                    |
| X        | target            | what the step is the exact L2 gradient toward, where G = k (x - X); else None       |
| G        | gradient          | the gradient at the pixels of the render; parts: the same for each part             |
| cos      | cosines           | between each two parts: whether they agree or fight                                 |

The target is the method's own, made from its predictions by the x0 formula; `residual` says how exactly the gradient
that was applied is the one of k / 2 |x - X|^2. What is asked is seen by a prior that records, so a plug-in that nobody
here has ever read is explained too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .core import Condition, Guidance, Guided, Image, Latent, Learner, Prior, Query, Step, Views
from .diffusion import x0_from_eps
from .priors.wrapped import Wrapped

EXACT = 1e-5  # relative, in single precision: a target with more than this is not what the gradient pulls toward


@dataclass(frozen=True)
class Answer:
    """One question to the prior and its answer. wave: the number of the forward that answered it, from 0."""

    name: str
    wave: int
    t: Float[Tensor, "N"]
    z_t: Latent
    eps: Latent
    x0: Latent


@dataclass(frozen=True, eq=False)
class Recording(Wrapped):
    """A prior that keeps every question and its answer."""

    answers: list[Answer] = field(default_factory=list)

    def predict(self, queries: Mapping[str, Query]) -> dict[str, Latent]:
        answers = self.prior.predict(queries)
        wave = self.answers[-1].wave + 1 if self.answers else 0
        for name, query in queries.items():
            alpha, sigma = (level.to(query.z_t) for level in self.prior.noise_level(query.t))
            x0 = x0_from_eps(query.z_t, answers[name], alpha, sigma)
            self.answers.append(Answer(name, wave, query.t, query.z_t, answers[name], x0))
        return answers


@dataclass(frozen=True)
class Explanation:
    """One step of one guidance, detached from everything: see the table above.

    render: [B, H, W, 3]. guided: as the method returned it. gradient, parts: [B, H, W, 3] at the render's pixels, for
    each view as if it were alone. decode: the prior's, for pictures of latents. method: the guidance as it was written.
    """

    method: str
    step: Step
    render: Image
    source: Image | None
    answers: tuple[Answer, ...]
    guided: Guided
    gradient: Image
    parts: Mapping[str, Image]
    decode: Callable[[Latent], Image] = field(repr=False)

    @property
    def target(self) -> Latent | None:
        """X, or None where the method pulls toward no picture."""
        return self.guided.target

    @property
    def residual(self) -> float | None:
        """The largest of |G - k (x - X)| over the largest of |G|, or None without a target."""
        if self.guided.target is None:
            return None
        pull = self.guided.pull().reshape(-1, *[1] * (self.guided.at.dim() - 1))
        away = self.guided.grad - pull * (self.guided.at - self.guided.target)
        size = self.guided.grad.abs().max()
        return float(away.abs().max() / size) if size > 0 else 0.0

    @property
    def cosines(self) -> dict[tuple[str, str], Float[Tensor, "N"]]:
        """The cosine between each two parts of the gradient at the latent, per row; of parts that are something."""
        flat = {name: part.flatten(1) for name, part in (self.guided.parts or {}).items() if part.any()}
        return {(a, b): torch.cosine_similarity(flat[a], flat[b], dim=1) for a, b in combinations(flat, 2)}

    def numbers(self) -> dict[str, Any]:
        """As plain data: root mean squares at the latent, cosines, mean over rows, and the pull with its residual."""
        guided = self.guided
        sizes = {"gradient": guided.grad, **{f"part {name}": part for name, part in (guided.parts or {}).items()}}
        return {
            "method": self.method,
            "stage": self.step.stage,
            "step": self.step.index,
            "t": [round(t, 4) for t in self.answers[-1].t.tolist()] if self.answers else [],
            "forwards": self.answers[-1].wave + 1 if self.answers else 0,
            "rms": {name: float(f"{size.square().mean().sqrt().item():.4g}") for name, size in sizes.items()},
            "cosines": {f"{a}, {b}": round(float(cosine.mean()), 4) for (a, b), cosine in self.cosines.items()},
            "pull": None if guided.target is None else float(f"{guided.pull().mean().item():.4g}"),
            "residual": self.residual,
        }


def explain(
    guidance: Guidance,
    prior: Prior,
    views: Views,
    conditions: Mapping[str, Condition],
    step: Step,
    state: Mapping[str, Learner] | None = None,
) -> tuple[Guided, Explanation]:
    """Call a guidance once and explain what it did; the first of both is its own answer, untouched.

    The call is made as a term makes it: a method that trains networks trains them. Raises ValueError where the gradient
    would not reach the views.
    """
    if not views.image.requires_grad:
        views = replace(views, image=views.image.detach().requires_grad_())
    recording = Recording(prior)
    guided = guidance(recording, views, conditions, step, {} if state is None else state)
    parts = dict(guided.parts or {})
    return guided, Explanation(
        method=str(guidance),
        step=step,
        render=views.image.detach(),
        source=None if views.source is None else views.source.detach(),
        answers=tuple(recording.answers),
        guided=replace(guided, at=guided.at.detach(), grad=guided.grad.detach(), parts=parts or None),
        gradient=at_pixels(views.image, guided.at, guided.grad),
        parts={name: at_pixels(views.image, guided.at, part) for name, part in parts.items()},
        decode=prior.decode,
    )


def at_pixels(image: Image, at: Latent, grad: Latent) -> Image:
    """A gradient at the latent, carried back through the encoder to the pixels that it moves."""
    if not at.requires_grad:
        raise ValueError("The guidance returned a latent without a graph, so its gradient moves nothing: encode once.")
    return torch.autograd.grad(at, image, grad.to(at), retain_graph=True)[0]


@dataclass(frozen=True, eq=False)
class Microscope(Guidance):
    """A guidance as it is, explained at one step of a run; what it saw is kept in `seen`."""

    guidance: Guidance
    index: int
    seen: list[Explanation] = field(default_factory=list)

    def check(self, prior: Prior, names: frozenset[str]) -> None:
        self.guidance.check(prior, names)

    def init(self, prior: Prior, step: Step) -> Mapping[str, Learner]:
        return self.guidance.init(prior, step)

    def __call__(
        self,
        prior: Prior,
        views: Views,
        conditions: Mapping[str, Condition],
        step: Step,
        state: Mapping[str, Learner],
    ) -> Guided:
        if step.index != self.index:
            return self.guidance(prior, views, conditions, step, state)
        guided, explanation = explain(self.guidance, prior, views, conditions, step, state)
        self.seen.append(explanation)
        return guided
