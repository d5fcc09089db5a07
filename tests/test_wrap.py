"""Modifiers around guidances, and the mixes of the family: their algebra in float64, their recipes, their laws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_guidance import answers, image, linear_prior, noised

from sds3d.cameras import orbit
from sds3d.core import Background, Condition, Guidance, Guided, Learner, Query, Step
from sds3d.guidance.csd import Csd
from sds3d.guidance.mix import Alone, Cfg, PerpNeg, Repel, Rescale, perpendicular, row_dot
from sds3d.guidance.sds import Sds
from sds3d.guidance.wrap import Average, Blend, Clip, Normalise, Share
from sds3d.priors.analytic import AnalyticPrior
from sds3d.prompts import Prompts
from sds3d.recipes import parse
from sds3d.schedules import Ramp, Range
from sds3d.schema import RecipeError, convert, to_data
from sds3d.terms import Guide, Term
from sds3d.testing import ASKED, GuidanceLaws, analytic_prior, conditions, views

F64 = torch.float64
CLOSE = {"rtol": 1e-8, "atol": 1e-8}
NAMES = frozenset({"cond", "uncond"})
BOTH = Blend((Share(Sds("eps"), 0.5), Share(Csd(), Ramp(0.0, 2.0))))


def guide(method: Guidance, prior=None, step=Step(0), rows: int = 4) -> Guided:  # noqa: B008
    prior = linear_prior() if prior is None else prior
    return method(prior, views(image(rows)), conditions(prior, rows), step, method.init(prior, step))


def weighted(*weights: float | None) -> dict[str, Condition]:
    """Conditions of eight rows whose negatives have these weights."""
    text = torch.zeros(8, 1, 1)
    named = zip(("not_front", "not_side"), weights, strict=True)
    return {name: Condition(text, weight=None if w is None else torch.full((8,), w, dtype=F64)) for name, w in named}


# ---- mixes ----------------------------------------------------------------------------------------------------------


def five(seed: int = 3) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    names = ("cond", "uncond", "negative", "not_front", "not_side")
    return {name: torch.randn(8, 3, 4, 4, generator=draw, dtype=F64) for name in names}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(-4, 0), st.floats(-4, 0), st.floats(0, 50))
def test_perp_neg_adds_only_what_does_not_touch_the_prompt(seed, front, side, scale):
    """E_perp - E_cfg = s P, P is orthogonal to E_cond - E_0 in each row, and P is the sum of the table."""
    e, x = five(seed), noised()
    told = weighted(front, side)
    added = PerpNeg(scale)(e, told, x, 1) - Cfg(scale)(e, told, x, 1)
    classifier = e["cond"] - e["uncond"]
    assert row_dot(added, classifier).abs().max() < 1e-8 * (1 + scale)
    expected = torch.zeros_like(added)
    for name, w in (("not_front", front), ("not_side", side)):
        for row in range(8):
            a, b = (e[name] - e["uncond"])[row].flatten(), classifier[row].flatten()
            expected[row] += (scale * w * (a - (a @ b) / (b @ b) * b)).reshape(3, 4, 4)
    torch.testing.assert_close(added, expected, **CLOSE)


def test_perp_neg_without_weights_or_with_parallel_negatives_is_plain_guidance():
    e, x = five(), noised()
    torch.testing.assert_close(PerpNeg(7.5)(e, weighted(0.0, 0.0), x, 1), Cfg(7.5)(e, {}, x, 1), **CLOSE)
    for factor in (-2.0, 1.0):
        along = e["uncond"] + factor * (e["cond"] - e["uncond"])
        parallel = {**e, "not_front": along, "not_side": along}
        torch.testing.assert_close(PerpNeg(7.5)(parallel, weighted(-1.0, -2.0), x, 1), Cfg(7.5)(e, {}, x, 1), **CLOSE)


def test_perp_neg_keeps_a_users_negative_apart_from_the_empty_prompt():
    e, x = answers(), noised()
    mix = PerpNeg(7.5, negatives=("negative",), strength=0.5)
    assert mix.names == ("cond", "uncond", "negative")
    given = mix(e, {"negative": Condition(torch.zeros(8, 1, 1))}, x, 1)
    against = perpendicular(e["negative"] - e["uncond"], e["cond"] - e["uncond"])
    torch.testing.assert_close(given, Cfg(7.5)(e, {}, x, 1) - 7.5 * 0.5 * against, **CLOSE)


def test_perp_neg_is_finite_where_the_prompt_says_nothing():
    e, x = five(), noised()
    e["cond"] = e["uncond"]
    expected = e["uncond"] - 3 * (e["not_front"] - e["uncond"])
    torch.testing.assert_close(PerpNeg(3.0)(e, weighted(-1.0, 0.0), x, 1), expected, **CLOSE)


def test_a_term_gives_perp_neg_its_weights_by_camera():
    prior = analytic_prior()
    cameras = orbit([0, 90, 180, 270], 10.0, 8)
    term = Term("main", Sds(mix=PerpNeg()), prior, Prompts("red", view_words=True))
    told = term.conditions(cameras, Background(torch.ones(4, 3)))
    assert told["cond"].weight is None
    assert told["not_front"].weight.tolist() == pytest.approx([0.0, -1.574, -1.967, -1.574], abs=1e-3)
    assert told["not_side"].weight.tolist() == pytest.approx([-1.574, 0.0, -0.394, 0.0], abs=1e-3)
    Sds(mix=PerpNeg()).check(prior, term.prompts.names())
    with pytest.raises(ValueError, match='"not_front"'):
        Sds(mix=PerpNeg()).check(prior, Prompts("red").names())


def test_repel_is_guidance_with_the_other_sign_and_alone_is_none():
    e, x = answers(), noised()
    torch.testing.assert_close(Repel(7.5)(e, {}, x, 1), e["uncond"] - 7.5 * (e["cond"] - e["uncond"]), **CLOSE)
    torch.testing.assert_close(
        Repel(2.0, "negative")(e, {}, x, 1) + Cfg(2.0, "negative")(e, {}, x, 1), 2 * e["negative"]
    )
    assert Alone("uncond").names == ("uncond",) and Alone("uncond")(e, {}, x, 1) is e["uncond"]


# ---- modifiers ------------------------------------------------------------------------------------------------------


def test_clip_bounds_every_element_and_leaves_the_rest():
    plain, clipped = guide(Sds("eps")), guide(Clip(Sds("eps"), 0.5))
    assert plain.grad.abs().max() > 0.5 == clipped.grad.abs().max()
    below = plain.grad.abs() <= 0.5
    assert torch.equal(plain.grad[below], clipped.grad[below])
    assert torch.equal(clipped.grad, plain.grad.clamp(-0.5, 0.5)) and clipped.target is None
    assert torch.equal(guide(Clip(Sds("eps"), 1e9)).grad, plain.grad)
    rising = Clip(Sds("eps"), Ramp(0.1, 0.3))
    for progress, bound in ((0.0, 0.1), (0.5, 0.2), (1.0, 0.3)):
        assert float(guide(rising, step=Step(0, progress=progress)).grad.abs().max()) == pytest.approx(bound)
    twice = guide(Clip(rising, 0.05))
    torch.testing.assert_close(sum(twice.parts.values()), twice.grad, **CLOSE)


def test_normalise_gives_each_group_the_norm_one():
    prior = replace(linear_prior(), group=2)
    plain, unit = guide(Sds(), prior), guide(Normalise(Sds()), prior)
    norms = plain.grad.reshape(2, -1).norm(dim=1)
    torch.testing.assert_close(unit.grad.reshape(2, -1).norm(dim=1), torch.ones(2, dtype=F64), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        unit.grad, plain.grad / norms.repeat_interleave(2).reshape(4, 1, 1, 1), rtol=1e-6, atol=0
    )
    assert torch.equal(unit.target, plain.target)


def test_average_is_the_mean_of_independent_draws():
    sds, step = Sds("eps", t=Range(0.1, 0.9)), Step(0)
    each = [guide(sds, step=step.child(f"draw {i}")).grad for i in range(3)]
    torch.testing.assert_close(guide(Average(sds, 3), step=step).grad, torch.stack(each).mean(0), **CLOSE)
    assert not torch.allclose(each[0], each[1])
    torch.testing.assert_close(guide(Average(sds, 1), step=step).grad, each[0], **CLOSE)


def test_average_has_less_variance_in_proportion():
    prior, sds = analytic_prior(dtype=F64), Sds("eps", mix=Cfg(1.0), t=Range(0.5, 0.5))
    spread = []
    for draws in (1, 4):
        grads = [guide(Average(sds, draws), prior, Step(seed), rows=1).grad for seed in range(60)]
        spread.append(torch.stack(grads).var(dim=0).mean())
    assert spread[0] / spread[1] == pytest.approx(4, rel=0.2)


def test_a_sum_of_pulls_is_a_pull_toward_the_weighted_target():
    sds = Sds("x0", t=Range(0.1, 0.9))
    guided = guide(Average(sds, 3))
    each = [guide(sds, step=Step(0).child(f"draw {i}")) for i in range(3)]
    k = torch.stack([one.pull() for one in each])
    torch.testing.assert_close(guided.pull(), k.mean(0), **CLOSE)
    away = guided.pull().reshape(4, 1, 1, 1) * (guided.at - guided.target)
    torch.testing.assert_close(away, guided.grad, **CLOSE)
    assert guide(BOTH, step=Step(0, progress=1.0)).target is None, "CSD has no target, so its sum with SDS has none"


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_blend_is_the_weighted_sum_under_one_noise(progress):
    step = Step(0, progress=progress)
    sds, csd, blend = (guide(method, step=step) for method in (Sds("eps"), Csd(), BOTH))
    torch.testing.assert_close(blend.grad, 0.5 * sds.grad + 2 * progress * csd.grad, **CLOSE)
    torch.testing.assert_close(sum(blend.parts.values()), blend.grad, **CLOSE)


def test_a_blend_of_nothing_yet_is_no_gradient():
    guided = guide(Blend((Share(Sds(), Ramp(0.0, 1.0)),)))
    assert guided.grad.abs().max() == 0 and guided.target.isfinite().all()


def test_blend_of_sds_and_csd_is_sds_at_a_higher_scale():
    t = Range(0.1, 0.9)
    blend = Blend((Share(Sds("eps", mix=Cfg(1.0), t=t)), Share(Csd(t=t), 6.5)))
    torch.testing.assert_close(guide(blend).grad, guide(Sds("eps", mix=Cfg(7.5), t=t)).grad, **CLOSE)


@dataclass(frozen=True, eq=False)
class Counting(AnalyticPrior):
    """Counts its forwards."""

    waves: list[int] = field(default_factory=list)

    def predict(self, queries):
        self.waves.append(sum(len(query.z_t) for query in queries.values()))
        return super().predict(queries)


def test_a_modifier_costs_what_is_inside():
    exact = analytic_prior(dtype=F64)
    for method, rows in ((Clip(), [8]), (Normalise(), [8]), (Average(Sds(), 3), [8] * 3), (BOTH, [8])):
        prior = Counting(exact.means, exact.std, exact.names)
        guide(method, prior)
        assert prior.waves == rows, "a blend's second guidance has weight 0 at the start"
    guide(BOTH, prior, Step(0, progress=0.5))
    assert prior.waves == [8, 8, 8]


class Scale(Learner):
    """One number, as a stand-in for a network."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))

    def forward(self, query: Query) -> torch.Tensor:
        return self.value * query.z_t

    def fit(self, loss: torch.Tensor) -> float:
        return float(loss)

    def state(self) -> dict[str, torch.Tensor]:
        return {"value": self.value.detach()}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.value.data = tensors["value"]


@dataclass(frozen=True)
class Learned(Guidance):
    """Multiplies the latent by what its learner knows."""

    number: float = 1.0

    def init(self, prior, step):
        return {"scale": Scale(self.number)}

    def __call__(self, prior, views, conditions, step, state):
        z = prior.encode(views.image)
        return Guided(z, (state["scale"].value * z).detach())


def test_learners_keep_their_names_inside_a_modifier():
    blend = Blend((Share(Learned(2.0)), Share(Average(Clip(Learned(3.0), 1e9), 2), 10.0)))
    assert set(blend.init(linear_prior(), Step(0))) == {"0/scale", "1/scale"}
    guided = guide(blend)
    torch.testing.assert_close(guided.grad, 32.0 * guided.at)


@dataclass(frozen=True)
class Elsewhere(Guidance):
    """Descends at another latent."""

    def __call__(self, prior, views, conditions, step, state):
        z = prior.encode(views.image)[..., ::2]
        return Guided(z, z.detach())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Clip(Sds(), 0.0), "bound must be above 0"),
        (lambda: Clip(Sds(), Ramp(1.0, -1.0)), "bound must be above 0"),
        (lambda: Average(Sds(), 0), "draws must be at least 1"),
        (lambda: Blend(()), "at least one guidance"),
        (lambda: Share(Sds(), -1.0), "weight must be at least 0"),
        (lambda: PerpNeg(negatives=()), "negatives needs at least one"),
        (lambda: PerpNeg(strength=-1.0), "strength must be a finite number"),
        (lambda: PerpNeg(base="empty"), "base must be one of"),
        (lambda: Repel(-1.0), "scale must be a finite number"),
        (lambda: Clip(Sds(mix=Cfg(1.0, "negative"))).check(analytic_prior(), NAMES), '"negative"'),
        (lambda: Blend((Share(Csd(negative=-1.0)),)).check(analytic_prior(), NAMES), '"negative"'),
        (lambda: guide(Blend((Share(Sds()), Share(Elsewhere())))), "latents of one shape only"),
    ],
)
def test_what_cannot_work_is_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


# ---- recipes --------------------------------------------------------------------------------------------------------

RECIPE = """
kind: clip
bound: {from: 0.5, to: 2}
guidance:
  kind: blend
  of:
    - {kind: sds, form: eps, mix: {kind: perp_neg, scale: 7.5, strength: 0.5}, weight: {from: 1, to: 0}}
    - kind: average
      draws: 2
      guidance: {kind: normalise, guidance: {kind: bsd, base: negative}}
    - {kind: sdi, inversion: {kind: repel, scale: 5}, mix: {kind: rescale, mix: {kind: alone}}}
weight: 0.1
view_words: false
"""


def test_modifiers_are_written_in_a_recipe():
    built = convert(parse(RECIPE), Guide, "", {})
    assert (built.weight, built.view_words, built.guidance.bound) == (0.1, False, Ramp(0.5, 2.0))
    first, second, third = built.guidance.guidance.of
    assert first == Share(Sds("eps", mix=PerpNeg(7.5, strength=0.5)), Ramp(1.0, 0.0))
    assert (second.weight, second.guidance.draws, second.guidance.guidance.guidance.base) == (1.0, 2, "negative")
    assert third.guidance.inversion == Repel(5.0) and third.guidance.mix == Rescale(Alone())
    assert convert(to_data(built), Guide, "", {}) == built, "the manifest holds the whole recipe"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{kind: blend}", "of.*missing"),
        ("{kind: blend, of: [{kind: sdss}]}", 'of\\[0\\].*Did you mean "sds"'),
        ("{kind: clip, guidance: {kind: sds, from: eps}}", 'guidance.*"from".*Did you mean "form"'),
        ("{kind: average, draws: 0}", "draws must be at least 1"),
    ],
)
def test_a_mistake_in_a_nested_recipe_is_placed(text, said):
    with pytest.raises(RecipeError, match=said):
        convert(parse(text), Guide, "", {})


# ---- the laws -------------------------------------------------------------------------------------------------------


class TestPerpNeg(GuidanceLaws):
    guidance = Sds(mix=PerpNeg())


class TestClip(GuidanceLaws):
    guidance = Clip(Sds(), Ramp(0.1, 0.5))


class TestNormalise(GuidanceLaws):
    guidance = Normalise(Csd())


class TestAverage(GuidanceLaws):
    guidance = Average(Sds("x0", "recon"))


class TestBlend(GuidanceLaws):
    guidance = BOTH


def test_the_laws_ask_for_what_perp_neg_needs():
    assert set(PerpNeg().names) <= set(ASKED)
