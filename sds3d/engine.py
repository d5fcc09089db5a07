"""The loop: a recipe is stages, a stage is a representation under one or more guidance terms, a step is four verbs.

    look (draw the views) -> render -> guide (a gradient at what each prior sees) -> update

A `Recipe` is data alone: frozen numbers, priors by name. `run` brings it together with opened priors and a prompt.
Watchers see every step and change nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from . import choosing
from .core import Background, Cameras, Prior, Renderer, RenderOutput, Representation, Step
from .losses import Losses
from .prompts import Prompts
from .terms import Guide, Source, Term

NAME = re.compile(r"[a-z][a-z0-9_-]{0,39}")


@runtime_checkable
class CameraSampler(Protocol):
    """Draws the cameras of a step: `views` of them, in rings of `group`."""

    @property
    def views(self) -> int: ...

    @property
    def group(self) -> int: ...

    def __call__(self, step: Step) -> Cameras: ...


@runtime_checkable
class BackgroundSampler(Protocol):
    """Draws the plain colour behind `views` views, equal within each `group`."""

    def __call__(self, step: Step, views: int, group: int) -> Background: ...


@runtime_checkable
class Start(Protocol):
    """Makes the representation that a stage begins with, from the one before (None at the first stage).

    A start that is a `choosing.Choice` makes what a stage without prompts and priors would begin with.
    """

    def __call__(self, previous: Representation | None, step: Step) -> Representation: ...

    def blank(self, previous: Representation | None) -> Representation:
        """One of the class that the start makes, to load a checkpoint into; previous: blank as well."""
        ...


@runtime_checkable
class Optimise(Protocol):
    """The numbers from which a representation makes its optimisers; only that representation reads them."""


Watcher = Callable[[Step, Representation, Sequence[Term], RenderOutput, Mapping[str, float]], None]


@dataclass(frozen=True)
class Stage:
    """A number of steps with one way of looking, drawing and guiding. steps: 0 keeps what `start` makes."""

    steps: int
    prior: str
    start: Start
    optimise: Optimise
    renderer: Renderer
    cameras: CameraSampler
    background: BackgroundSampler
    guidance: Mapping[str, Guide]
    losses: Losses = field(default_factory=Losses)

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps must be at least 0, given {self.steps}.")
        if not self.guidance:
            raise ValueError("guidance needs at least one term.")
        _check_names(self.guidance, "guidance term")

    def priors(self) -> frozenset[str]:
        """The names of all priors that this stage needs."""
        return frozenset(guide.prior or self.prior for guide in self.guidance.values())

    def walk(self, first: Step, begin: int = 0) -> Iterator[Step]:
        """The steps from `begin` to the stage's end."""
        for index in range(begin, self.steps):
            yield replace(first, index=index, progress=index / max(self.steps - 1, 1))

    def look(self, step: Step, group: int, like: Tensor) -> tuple[Cameras, Background]:
        """The cameras and the background of a step, in the dtype and on the device of `like`."""
        background = self.background(step, self.cameras.views, group)
        return self.cameras(step).to(like), replace(background, rgb=background.rgb.to(like))

    def terms(self, prompts: Prompts, priors: Mapping[str, Prior], first: Step) -> list[Term]:
        """The terms at work, checked against their priors and prompts.

        Raises ValueError for a prior that is not there, for views that do not fill a prior's groups, for what a
        guidance misses, and for words and pictures that a prior cannot be told.
        """
        terms = []
        for name, guide in self.guidance.items():
            prior = _prior(priors, guide.prior or self.prior)
            _check_views(self.cameras, prior, guide.prior or self.prior)
            said = replace(prompts, view_words=guide.view_words and prior.group == 1, behind=guide.behind)
            guide.guidance.check(prior, said.names())
            terms.append(Term(name, guide.guidance, prior, said, guide.weight, guide.look, guide.control))
        cameras, background = self.look(first, joint_group(terms), torch.zeros(()))
        for term in terms:
            term.conditions(cameras, background)
        return terms


@dataclass(frozen=True)
class Recipe:
    """Named stages in order, and the formats that the asset is written in."""

    stages: Mapping[str, Stage]
    about: str = ""
    exports: tuple[str, ...] = ("ply", "mp4")

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("stages needs at least one stage.")
        _check_names(self.stages, "stage")


@dataclass(frozen=True)
class Saved:
    """Where a run stood: the next step's index in a stage, and every tensor of its state by name."""

    stage: str
    index: int
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Outcome:
    """What `run` ends with. done: every step was made; else `stop` asked for the end before step `index`."""

    rep: Representation
    stage: str
    index: int
    done: bool


def _check_names(names: Mapping[str, object], what: str) -> None:
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(
                f'The {what} name "{name}" must be a-z, 0-9, "_" and "-", begin with a letter, at most 40.'
            )


def _prior(priors: Mapping[str, Prior], name: str) -> Prior:
    if name not in priors:
        raise ValueError(f'The prior "{name}" is not open; open are: {", ".join(priors) or "none"}.')
    return priors[name]


def _check_views(cameras: CameraSampler, prior: Prior, name: str) -> None:
    if cameras.views % prior.group or (prior.group > 1 and cameras.group != prior.group):
        raise ValueError(
            f'The prior "{name}" denoises {prior.group} views jointly: cameras.views ({cameras.views}) must be a '
            f"multiple of it and cameras.group ({cameras.group}) equal to it."
        )


def joint_group(terms: Sequence[Term]) -> int:
    """The number of neighbouring views that share a background: the joint group of all priors."""
    return math.lcm(*(term.prior.group for term in terms))


def require_finite(rep: Representation, step: Step) -> None:
    """Raise ArithmeticError with the name of the first parameter that is, or whose gradient is, not finite."""
    named = [(f'value of "{name}"', p.detach()) for name, p in rep.named_parameters()]
    named += [(f'gradient of "{name}"', p.grad) for name, p in rep.named_parameters() if p.grad is not None]
    # One non-finite element makes a sum non-finite, and sums are far cheaper than a test of each element.
    finite = torch.stack([tensor.sum() for _, tensor in named]).isfinite()
    if not finite.all():
        what = named[int(finite.logical_not().nonzero()[0])][0]
        raise ArithmeticError(
            f'The {what} is not finite at step {step.index} of stage "{step.stage}"; the run stopped before it was '
            "used. Lower the learning rates or the guidance scale."
        )


def started(
    stage: Stage, previous: Representation | None, terms: Sequence[Term], first: Step, device: str | torch.device
) -> Representation:
    """What a stage starts from: what its start makes, or the first of the best of what it lets choose from."""
    if not isinstance(stage.start, choosing.Choice):
        return stage.start(previous, first).to(device)
    candidates, scores = ranked(stage, stage.start, terms, first, device)
    return candidates[int(scores.argmax())]


def ranked(
    stage: Stage, start: choosing.Choice, terms: Sequence[Term], first: Step, device: str | torch.device
) -> tuple[list[Representation], Float[Tensor, "n"]]:
    """The candidates of a choice, and how well each suits what the first term's prompts, or its prior, say."""
    candidates = [rep.to(device) for rep in start.candidates(first)]
    like, group = next(candidates[0].parameters()).detach(), joint_group(terms)
    looks = [choosing.Look(*stage.look(replace(first, index=k), group, like), t) for k, t in enumerate(choosing.TIMES)]
    return candidates, choosing.scores(start, candidates, terms[0], stage.renderer, looks, first.child("choice"))


def never() -> bool:
    """The stop of a run that nobody interrupts."""
    return False


def fit(
    stage: Stage,
    rep: Representation,
    terms: Sequence[Term],
    first: Step,
    begin: int = 0,
    watchers: Sequence[Watcher] = (),
    stop: Callable[[], bool] = never,
) -> int:
    """Move `rep` along the terms' gradients from step `begin` on; returns the index of the next step.

    first: the stage's seed and name. stop is asked after each step, so a step is whole or not begun.
    """
    group, like = joint_group(terms), next(rep.parameters()).detach()
    for step in stage.walk(first, begin):
        cameras, background = stage.look(step, group, like)
        out = stage.renderer(rep, cameras, background, step)
        loss = stage.losses(rep, out, step) + sum(term(out, cameras, background, step).loss() for term in terms)
        loss.backward()
        require_finite(rep, step)
        numbers = rep.update(out, step)
        for watch in watchers:
            watch(step, rep, terms, out, numbers)
        if stop():
            return step.index + 1
    return stage.steps


def check(recipe: Recipe, prompts: Prompts, priors: Mapping[str, Prior]) -> None:
    """Raise ValueError for what would stop a run before its first step; see `Stage.terms`."""
    for name, stage in recipe.stages.items():
        stage.terms(prompts, priors, Step(0, name))
        choosing.check(stage.start)


def run(
    recipe: Recipe,
    prompts: Prompts,
    priors: Mapping[str, Prior],
    seed: int = 0,
    device: str | torch.device = "cpu",
    watchers: Sequence[Watcher] = (),
    stop: Callable[[], bool] = never,
    saved: Saved | None = None,
) -> Outcome:
    """Make an asset: every stage in order, or from where `saved` stood.

    priors: opened, by the names that the recipe uses. Prompts with a source edit what the first stage starts from, and
    every term sees it as it was beside what it has become. Raises ValueError, before the first step, for what does not
    fit together; ArithmeticError for a number that is not finite.
    """
    firsts = {name: Step(seed, name) for name in recipe.stages}
    if saved is not None and saved.stage not in firsts:
        raise ValueError(f'The checkpoint stands in stage "{saved.stage}", which this recipe does not have.')
    made = {name: stage.terms(prompts, priors, firsts[name]) for name, stage in recipe.stages.items()}
    source = None
    if prompts.source is not None:  # What the first stage starts from, as it was, for the terms that edit it.
        begins, begun = next(iter(recipe.stages.items()))
        was = started(begun, None, made[begins], firsts[begins], device)
        source = Source(was.requires_grad_(False), begun.renderer)
    rep: Representation | None = None
    outcome = None
    for name, stage in recipe.stages.items():
        if saved is None:
            rep = started(stage, rep, made[name], firsts[name], device)
        else:
            rep = stage.start.blank(rep).to(device)
        if saved is not None and name != saved.stage:
            continue  # Its result lies in the checkpoint.
        terms, begin = made[name], 0
        for term in terms:
            term.source, term.learners = source, term.guidance.init(term.prior, firsts[name].child(term.name))
        rep.prepare(stage.optimise, firsts[name])
        if saved is not None:
            restore(saved.tensors, rep, terms)
            begin, saved = saved.index, None
        end = fit(stage, rep, terms, firsts[name], begin, watchers, stop)
        outcome = Outcome(rep, name, end, done=end >= stage.steps and name == list(recipe.stages)[-1])
        if end < stage.steps or (stop() and not outcome.done):
            return outcome
    assert outcome is not None  # A recipe has at least one stage.
    require_finite(outcome.rep, replace(firsts[outcome.stage], index=outcome.index))
    return outcome


def tensors(rep: Representation, terms: Sequence[Term]) -> dict[str, Float[Tensor, ...]]:
    """Every tensor of a stage's state, by name: the representation's and each trained network's, with their moments."""
    named = {f"rep/{name}": tensor for name, tensor in rep.state().items()}
    for term in terms:
        for learner, module in term.learners.items():
            named |= {f"learners/{term.name}/{learner}/{name}": tensor for name, tensor in module.state().items()}
    return named


def restore(saved: Mapping[str, Tensor], rep: Representation, terms: Sequence[Term]) -> None:
    """The inverse of `tensors`."""

    def below(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in saved.items() if name.startswith(prefix)}

    rep.load(below("rep/"))
    for term in terms:
        for learner, module in term.learners.items():
            module.load(below(f"learners/{term.name}/{learner}/"))
