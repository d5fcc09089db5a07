"""The laws that every guidance keeps, as pytest cases for the authors of plug-ins.

    from sds3d.testing import GuidanceLaws

    class TestMine(GuidanceLaws):
        guidance = ClassifierScore(scale=10.0)

They run on a prior whose score is known exactly, with and without joint groups, so they need no weights and no network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from .core import Condition, Guidance, Guided, Learner, Prior, RenderOutput, Step, Views
from .cost import views
from .priors.analytic import AnalyticPrior

SIZE = 8  # pixels a side
ASKED = {"cond": "red", "uncond": "", "negative": "blue", "source": "blue", "cond_plain": "red"}
ASKED |= {"not_front": "blue", "not_side": ""}


def analytic_prior(group: int = 1, std: float = 0.2, dtype: torch.dtype = torch.float32) -> AnalyticPrior:
    """Two components, "red" and "blue": a disc of that colour on white, `SIZE` pixels a side."""
    ticks = (torch.arange(SIZE, dtype=dtype) + 0.5) / SIZE * 2 - 1
    inside = (ticks[:, None] ** 2 + ticks**2 < 0.5)[None]
    colours = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]], dtype=dtype)[:, :, None, None]
    pictures = torch.where(inside, colours, torch.ones_like(colours))
    return AnalyticPrior(2 * pictures - 1, std, ("red", "blue"), group)


def conditions(prior: Prior, rows: int, names: Mapping[str, str] = ASKED) -> dict[str, Condition]:
    """A condition for each name of a question; `names` maps it to the prompt."""
    return {name: prior.condition(prior.text([prompt] * rows), None) for name, prompt in names.items()}


class GuidanceLaws:
    """Subclass it, name it Test..., and set `guidance`. `rows` must be a multiple of four."""

    guidance: Guidance
    rows: int = 8

    @pytest.fixture(params=[1, 4], ids=["one view", "four views"])
    def prior(self, request: pytest.FixtureRequest) -> Prior:
        """A prior that denoises rows alone, and one that denoises them in groups of four."""
        return analytic_prior(group=request.param)

    def image(self) -> Tensor:
        """The same random views at every call; they take gradients."""
        return torch.special.ndtr(Step(0, "laws").normal("image", torch.zeros(self.rows, SIZE, SIZE, 3)))  # uniform

    def learners(self, prior: Prior) -> Mapping[str, Learner]:
        return self.guidance.init(prior, Step(0, "laws"))

    def guide(self, prior: Prior, image: Tensor, step: Step, first: int = 0) -> Guided:
        """One call with fresh learners on the rows that begin at number `first`."""
        seen = views(self.image(), 1 - self.image())
        rows = slice(first, first + len(image))
        out = RenderOutput(image, seen.out.alpha[rows], seen.out.depth[rows], seen.out.normal[rows])
        part = Views(image, out, seen.cameras[rows], None if seen.source is None else seen.source[rows])
        state = self.learners(prior)
        return self.guidance(prior, part, conditions(prior, len(image)), replace(step, row=first), state)

    def test_it_is_frozen_numbers(self) -> None:
        assert isinstance(self.guidance, Guidance)
        assert dataclasses.is_dataclass(self.guidance), "a guidance is a dataclass"
        with pytest.raises(dataclasses.FrozenInstanceError):
            self.guidance.anything = 1  # type: ignore[attr-defined]
        assert self.guidance == replace(self.guidance) and hash(self.guidance) == hash(replace(self.guidance))

    def test_it_says_before_the_run_what_is_missing(self, prior: Prior) -> None:
        self.guidance.check(prior, frozenset(ASKED))
        with pytest.raises(ValueError, match=r"\w+ .*\w+"):
            self.guidance.check(prior, frozenset())

    def test_the_gradient_has_the_latents_shape_and_is_finite(self, prior: Prior) -> None:
        image = self.image().requires_grad_()
        guided = self.guide(prior, image, Step(0, "laws"))
        assert guided.at.shape == guided.grad.shape == prior.encode(image).shape
        assert guided.grad.dtype == guided.at.dtype == torch.float32
        assert guided.grad.isfinite().all()

    def test_the_gradient_is_detached_and_the_latent_is_not(self, prior: Prior) -> None:
        guided = self.guide(prior, self.image().requires_grad_(), Step(0, "laws"))
        assert not guided.grad.requires_grad and guided.at.requires_grad
        assert all(not part.requires_grad for part in (guided.parts or {}).values())

    def test_the_loss_has_exactly_this_gradient(self, prior: Prior) -> None:
        guided = self.guide(prior, self.image().requires_grad_(), Step(0, "laws"))
        (given,) = torch.autograd.grad(guided.loss(), guided.at)
        torch.testing.assert_close(given, guided.grad / len(guided.at))
        assert guided.loss().item() == 0

    def test_the_parts_add_up(self, prior: Prior) -> None:
        guided = self.guide(prior, self.image(), Step(0, "laws"))
        if guided.parts is not None:
            size = sum(part.abs() for part in guided.parts.values()) + guided.grad.abs()
            assert ((sum(guided.parts.values()) - guided.grad).abs() <= 1e-4 * size.max()).all()

    def test_a_target_is_what_the_gradient_pulls_toward(self, prior: Prior) -> None:
        guided = self.guide(prior, self.image(), Step(0, "laws"))
        if guided.target is not None:
            pull = guided.pull().reshape(-1, *[1] * (guided.at.dim() - 1))
            away = guided.grad - pull * (guided.at - guided.target)
            assert guided.target.shape == guided.at.shape and not guided.target.requires_grad
            assert (away.abs() <= 1e-4 * guided.grad.abs().max()).all(), "grad is k (at - target), one k for each row"

    def test_one_seed_gives_one_gradient(self, prior: Prior) -> None:
        a, b, other = (self.guide(prior, self.image(), Step(seed, "laws")).grad for seed in (3, 3, 4))
        assert torch.equal(a, b), "draw from the step, and keep no state outside of the learners"
        assert not torch.equal(a, other), "draw from the step, so that seeds differ"

    def test_a_batch_is_its_groups(self, prior: Prior) -> None:
        step = Step(5, "laws", index=2, progress=0.4)
        together = self.guide(prior, self.image(), step).grad
        for first in range(0, self.rows, prior.group):
            alone = self.guide(prior, self.image()[first : first + prior.group], step, first).grad
            torch.testing.assert_close(together[first : first + prior.group], alone, rtol=1e-4, atol=1e-5)

    def test_it_works_at_every_progress(self, prior: Prior) -> None:
        for progress in (0.0, 0.5, 1.0):
            step = Step(0, "laws", index=int(10 * progress), progress=progress)
            assert self.guide(prior, self.image(), step).grad.isfinite().all()

    def test_it_leaves_the_world_as_it_was(self, prior: Prior) -> None:
        image = self.image().requires_grad_()
        generator, dtype, threads = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()
        self.guide(prior, image, Step(0, "laws"))
        assert torch.equal(torch.get_rng_state(), generator), "draw from the step, not from torch's global generator"
        assert (torch.get_default_dtype(), torch.get_num_threads()) == (dtype, threads)
        assert torch.is_grad_enabled() and image.grad is None
        assert torch.equal(image, self.image()), "the views must not be changed in place"
