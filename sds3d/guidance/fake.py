"""The fake: an adapter of the prior's network that learns, during the run, how the renders are distributed.

| symbol      | variable     | equation                                                                             |
|-------------|--------------|--------------------------------------------------------------------------------------|
| y           | "cond_plain" | the prompt without words of view, since the camera is told apart from it             |
| c           | told         | the camera: the prior's own encoding, else the 16 numbers of camera-to-world         |
| E_phi(y, c) | eps["fake"]  | the adapter's prediction                                                             |
| L_phi       | Fake.fit     | mean of w(t) (E_phi(x_t; y, c) - eps)^2 over t in [0, 1] and fresh noise, x a render |

Where the adapter is the best denoiser of the renders, -E_phi / sigma is the score of their distribution, and a method
that descends E - E_phi moves one distribution onto the other (VSD, Wang et al. 2023, arXiv 2305.16213). L_phi reaches
no render: views are detached.

The published losses have w = 1 in what their network answers, eps or v. Ours is sigma^2 in eps: it stays bounded
whether a network answers eps, v or the clean picture, and its best denoiser is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ..core import Condition, Guided, Learner, Mix, Noised, Prior, Query, Step, Views
from ..diffusion import diffuse
from .weights import check_conditions


@dataclass(frozen=True)
class Fake:
    """How the fake is trained.

    rank: of its low-rank layers. lr: of its AdamW; the authors of VSD use 1e-4 over 25,000 steps, a stage here has
    hundreds. updates: how many after each gradient, each with times and noise of its own; more of them keep the fake
    near its renders (the two time scales of DMD2). camera_dropout, text_dropout: the chance that an update tells no
    camera, or the empty prompt, to the whole batch. Raises ValueError for values out of range.
    """

    rank: int = 4
    lr: float = 1e-3
    updates: int = 1
    camera_dropout: float = 0.1
    text_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("rank", 1), ("updates", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, given {getattr(self, name)}.")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr must be a finite number above 0, given {self.lr}.")
        for name in ("camera_dropout", "text_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], given {getattr(self, name)}.")

    def check(self, method: str, prior: Prior, names: frozenset[str]) -> None:
        """Raise ValueError for a prior without an adapter, and for prompts without what the fake is told."""
        needed = ("cond_plain", "uncond") if self.text_dropout else ("cond_plain",)
        check_conditions(method, needed, names)
        if prior.adapter(self.rank, self.lr, Step(0)) is None:
            raise ValueError(f"{method} trains an adapter of the prior's network, and this prior offers none.")

    def learner(self, prior: Prior, step: Step) -> Learner:
        """A fresh adapter, which answers as the prior does. Raises ValueError where the prior offers none."""
        learner = prior.adapter(self.rank, self.lr, step.child("fake"))
        if learner is None:
            raise ValueError("A fake is an adapter of the prior's network, and this prior offers none.")
        return learner

    def fit(
        self,
        learner: Learner,
        prior: Prior,
        z: Tensor,
        told: Condition,
        conditions: Mapping[str, Condition],
        step: Step,
    ) -> None:
        """Train the fake on renders z [N, c, *s] that were seen under `told`; conditions: for the empty prompt."""
        for index in range(self.updates):
            draw = step.child(f"fake {index}")
            x = diffuse(prior, z, draw, (0.0, 1.0))
            condition = told
            if draw.uniform("text", 1) < self.text_dropout:
                condition = replace(condition, text=conditions["uncond"].text)
            if draw.uniform("camera", 1) < self.camera_dropout:
                condition = replace(condition, camera=None)
            error = x.sigma * (learner(Query(x.z_t, x.t, condition)) - x.eps)
            learner.fit(error.square().mean())


def from_camera(condition: Condition, views: Views) -> Condition:
    """The condition with its camera; of a prior that tells none, the pose from camera to world, row by row."""
    if condition.camera is not None:
        return condition
    return replace(condition, camera=views.cameras.c2w.flatten(1))


@dataclass(frozen=True)
class Judged:
    """Views noised once, and what was answered at them: eps by name, and real, which the mix makes of the prior's."""

    z: Tensor
    x: Noised
    eps: Mapping[str, Tensor]
    real: Tensor

    def descend(self, weight: Tensor, fake: Tensor) -> Guided:
        """G = weight (real - fake) at z.

        parts: "prior" = weight (cond - fake), which renders that are samples satisfy on average; "classifier" =
        weight (real - cond), what guidance adds.
        """
        cond = self.eps["cond"]
        parts = {"prior": weight * (cond - fake), "classifier": weight * (self.real - cond)}
        return Guided(self.z, weight * (self.real - fake), parts)


def add_part(guided: Guided, name: str, part: Tensor) -> Guided:
    """The gradient with one more part."""
    return Guided(guided.at, guided.grad + part, {**(guided.parts or {}), name: part})


def judge(
    prior: Prior,
    views: Views,
    conditions: Mapping[str, Condition],
    mix: Mix,
    t: tuple[float, float],
    step: Step,
    **fakes: tuple[Condition, Learner],
) -> Judged:
    """Noise the views and ask the prior what the mix needs and each named fake under its condition: one forward."""
    z = prior.encode(views.image)
    x = diffuse(prior, z, step, t)
    asked = {name: Query(x.z_t, x.t, condition, learner) for name, (condition, learner) in fakes.items()}
    eps = prior.predict(x.ask(conditions, *mix.names) | asked)
    return Judged(z, x, eps, mix(eps, conditions, x, prior.group))
