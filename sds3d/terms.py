"""A guidance at work: what its prior sees of a render, what it is told, and the frozen original where one is edited."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from .core import (
    Background,
    Cameras,
    Condition,
    Control,
    Guidance,
    Guided,
    Image,
    Learner,
    Prior,
    Renderer,
    RenderOutput,
    Representation,
    Step,
    Views,
)
from .prompts import SHOWN, BackView, Embeddings, Prompts
from .schedules import Number, value

FAR = 0.2  # the grey of the farthest depth


def _albedo(out: RenderOutput) -> Image:
    return out.rgb if out.albedo is None else out.albedo


def _normal(out: RenderOutput) -> Image:
    """World normals as colour, (n + 1) / 2, fading to grey where nothing is."""
    return (out.alpha * out.normal + 1) / 2


def _depth(out: RenderOutput) -> Image:
    """Nearness as grey, over each view's own range: 1 at the nearest, `FAR` at the farthest, 0 where nothing is.

    So depth estimators and the networks trained on them draw it. The ends of the range have no gradient.
    """
    inside, depth = out.alpha > 0.5, out.depth
    near = torch.where(inside, depth, torch.inf).detach().amin(dim=(1, 2, 3), keepdim=True)
    far = torch.where(inside, depth, -torch.inf).detach().amax(dim=(1, 2, 3), keepdim=True)
    share = ((depth - near) / (far - near).clamp_min(1e-6)).clamp(0, 1)
    return (out.alpha * (1 - (1 - FAR) * share)).expand(-1, -1, -1, 3)


LOOKS: dict[str, Callable[[RenderOutput], Image]] = {
    "rgb": lambda out: out.rgb,
    "albedo": _albedo,
    "normal": _normal,
    "depth": _depth,
}


@runtime_checkable
class ControlSource(Protocol):
    """Draws what steers a prior's ControlNet at each camera, in the cameras' size, and says how much it counts."""

    def __call__(self, cameras: Cameras) -> Control: ...


@dataclass(frozen=True)
class Guide:
    """One guidance of a stage, as data.

    prior: the name of its own prior; None takes the stage's. look: the picture that the prior sees. weight: times its
    gradient. view_words: tell a single-view prior which side it sees. control: one picture for each ControlNet of the
    prior, or none, which leaves it unsteered. behind: what a single-view prior is told of views from behind.
    """

    guidance: Guidance = field(metadata={"inline": True})
    prior: str | None = None
    look: Literal["rgb", "albedo", "normal", "depth"] = "rgb"
    weight: Number = 1.0
    view_words: bool = True
    control: tuple[ControlSource, ...] = field(default=(), metadata={"unsaid": True})
    behind: BackView | None = field(default=None, metadata={"unsaid": True})


@dataclass(frozen=True)
class Source:
    """The asset that is edited, as it was: frozen, and drawn as its stage draws it."""

    rep: Representation
    renderer: Renderer

    @torch.no_grad()
    def image(self, look: str, cameras: Cameras, background: Background, step: Step) -> Image:
        """The picture that a prior would see of it."""
        return LOOKS[look](self.renderer(self.rep, cameras, background, step))


@dataclass
class Term:
    """One guidance at work: with its opened prior, its prompts and the networks that it trains.

    control: what steers the prior. source: what is edited, or None. grad: the last step's gradient, for watchers.
    """

    name: str
    guidance: Guidance
    prior: Prior
    prompts: Prompts
    weight: Number = 1.0
    look: str = "rgb"
    control: tuple[ControlSource, ...] = ()
    learners: Mapping[str, Learner] = field(default_factory=dict)
    source: Source | None = None
    grad: Tensor | None = None

    def __post_init__(self) -> None:
        self.embeddings = Embeddings(self.prior)

    def conditions(self, cameras: Cameras, background: Background, was: Image | None = None) -> dict[str, Condition]:
        """What the prior is told about each view, by the name of the question; every question has the same control.

        was: the source's picture, which only a prior that `reads_source` is shown, in the questions `SHOWN`. Raises
        ValueError for words and pictures that the prior cannot be told.
        """
        texts = self.prompts.texts(cameras, background, self.look)
        if not getattr(self.prior, "reads_source", False):
            texts = {name: rows for name, rows in texts.items() if name not in SHOWN}
        seen = cameras.resized(self.prior.size, self.prior.size)
        control = tuple(source(seen) for source in self.control)
        told = {
            name: self.prior.condition(
                self.embeddings(rows), cameras, reference=was if name in SHOWN else None, control=control
            )
            for name, rows in texts.items()
        }
        weights = self.prompts.weights(cameras)
        return told | {name: replace(told[name], weight=weight) for name, weight in weights.items()}

    def __call__(self, out: RenderOutput, cameras: Cameras, background: Background, step: Step) -> Guided:
        was = None if self.source is None else self.source.image(self.look, cameras, background, step)
        views = Views(LOOKS[self.look](out), out, cameras, was)
        conditions = self.conditions(cameras, background, was)
        guided = self.guidance(self.prior, views, conditions, step.child(self.name), self.learners)
        weight = value(self.weight, step.progress)
        parts = None if guided.parts is None else {name: weight * part for name, part in guided.parts.items()}
        guided = replace(guided, grad=weight * guided.grad, parts=parts)
        self.grad = guided.grad.detach()
        return guided
