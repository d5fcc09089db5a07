"""What a step of a guidance asks of a network, measured: forwards, rows, and whether it walks noise backwards.

A guidance is called on tiny views of a prior that is known exactly, wrapped in a counter. What a method asks depends on
its equation alone and not on the prior, so the count holds for every prior that denoises as many views jointly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from .cameras import orbit
from .core import Guidance, Image, Query, RenderOutput, Step, Views
from .priors.analytic import AnalyticPrior
from .trial import Counting

VIEWS, SIZE = 4, 8  # a joint group, and pixels a side
ASKED = {  # the questions that a prompt can ask, with the component of the prior that each means
    "cond": "it",
    "cond_plain": "it",
    "uncond": "",
    "negative": "other",
    "not_front": "other",
    "not_side": "",
    "source": "other",
    "image": "other",  # which is shown the source, so it is another question than "uncond"
    "instruct": "it",
}


@dataclass(frozen=True)
class Spent:
    """What one step asked. forwards: calls of a network in turn, training included. rows: that they saw, per view.

    earliest: the least time that the prior itself was asked at, in [0, 1]. An inversion begins at the least that the
    prior has, and nothing else asks there.
    """

    forwards: int
    rows: float
    earliest: float


@dataclass(frozen=True, eq=False)
class Timed(Counting):
    """A counter that also remembers the times the prior is asked at."""

    times: list[float] = field(default_factory=list)

    def predict(self, queries: Mapping[str, Query]) -> dict[str, torch.Tensor]:
        self.times.extend(float(query.t.min()) for query in queries.values() if query.adapter is None)
        return super().predict(queries)


def exact_prior() -> AnalyticPrior:
    """Two plain pictures, "it" and "other", four views at a time."""
    means = torch.tensor([0.5, -0.5]).reshape(2, 1, 1, 1).expand(2, 3, SIZE, SIZE)
    return AnalyticPrior(means, 0.5, ("it", "other"), group=VIEWS)


def views(image: Image, source: Image | None = None) -> Views:
    """Views [B, H, W, 3] from evenly spaced cameras, as if an opaque object filled them."""
    rows, height = image.shape[:2]
    cameras = orbit([360 * i / rows for i in range(rows)], 15.0, height)
    ones = torch.ones_like(image[..., :1])
    return Views(image, RenderOutput(image, ones, 3 * ones, torch.zeros_like(image)), cameras, source)


def spend(guidance: Guidance, steps: int) -> Iterator[Spent]:
    """What each of a stage's steps asks, one after the other: first steps may ask more than later ones."""
    prior = Timed(exact_prior())
    told = {name: prior.condition(prior.text([prompt] * VIEWS), None) for name, prompt in ASKED.items()}
    image = torch.full((VIEWS, SIZE, SIZE, 3), 0.25)
    seen = views(image, 1 - image)  # another source than the views, since equal questions are merged
    first = Step(0, "cost")
    learners = guidance.init(prior, first)
    for index in range(steps):
        del prior.rows[:], prior.times[:]
        guidance(prior, seen, told, Step(0, "cost", index, index / max(steps - 1, 1)), learners)
        yield Spent(len(prior.rows), sum(prior.rows) / VIEWS, min(prior.times, default=1.0))


def steps_within(guidance: Guidance, rows: float, most: int) -> int:
    """How many steps a guidance can make within a number of network rows per view: at least 1, at most `most`."""
    spent, made = 0.0, 0
    for step in spend(guidance, most):
        spent += step.rows
        if spent > rows:
            break
        made += 1
    return max(made, 1)
