"""Guidance by a second network that learns the renders: VSD, ESD, PG-SB, DMD, f-distill, DisBack.

Every identity is held on the exact prior and on random linear denoisers whose adapters answer something arbitrary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from test_guidance import LinearPrior, image

from sds3d.core import Condition, Guidance, Guided, Learner, Noised, Query, Step
from sds3d.diffusion import ddim_sample, diffuse, x0_from_eps
from sds3d.guidance.critic import Critic
from sds3d.guidance.disback import Disback
from sds3d.guidance.dmd import Dmd, matching_weight
from sds3d.guidance.esd import Esd
from sds3d.guidance.f_distill import DIVERGENCES, FDistill
from sds3d.guidance.fake import Fake, from_camera
from sds3d.guidance.mix import Cfg, toward
from sds3d.guidance.pgsb import Pgsb
from sds3d.guidance.sds import Sds
from sds3d.guidance.vsd import Vsd
from sds3d.learners import AdamLearner
from sds3d.priors.analytic import AnalyticPrior
from sds3d.schedules import Ramp, Range
from sds3d.schema import convert, to_data
from sds3d.testing import GuidanceLaws, analytic_prior, conditions, views

F64 = torch.float64
CLOSE = {"rtol": 1e-7, "atol": 1e-9}
FEW = Fake(updates=1)


class Moved(AdamLearner):
    """A learner that answers as a prior does, and something arbitrary beside it once its weights are moved."""

    def __init__(self, prior: AnalyticPrior, lr: float) -> None:
        super().__init__()
        self.prior = prior
        self.shift = torch.nn.Parameter(torch.zeros_like(prior.means[0]))
        self.camera = torch.nn.Parameter(torch.zeros(16, *prior.means.shape[1:], dtype=F64))
        self.optimise(lr, 0.0)

    def forward(self, query: Query) -> torch.Tensor:
        camera = query.condition.camera
        extra = 0 if camera is None else torch.einsum("nk,kchw->nchw", camera.double(), self.camera)
        return self.prior.eps(query) + self.shift + extra


@dataclass(frozen=True, eq=False)
class AdaptedLinear(LinearPrior):
    """A random linear denoiser that can be adapted."""

    def adapter(self, rank: int, lr: float, step: Step) -> Learner:
        return Moved(self, lr)


def linear_prior(group: int = 1) -> AdaptedLinear:
    exact = analytic_prior(dtype=F64)
    return AdaptedLinear(exact.means, exact.std, exact.names, group)


class Answer(Learner):
    """A learner that answers with a given function of the query and never learns."""

    def __init__(self, answer: Callable[[Query], torch.Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, query: Query) -> torch.Tensor:
        return self.answer(query)

    def fit(self, loss: torch.Tensor) -> float:
        return float(loss)

    def state(self) -> dict[str, torch.Tensor]:
        return {}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        pass


PRIORS = pytest.mark.parametrize("prior", [analytic_prior(dtype=F64), linear_prior()], ids=["analytic", "linear"])
STEP = Step(0, "test")


def shaken(learner: Learner, seed: int = 9) -> Learner:
    for name, weight in learner.named_parameters():
        weight.data.add_(0.1 * Step(seed).normal(name, weight[None])[0])
    return learner


def state_of(guidance: Guidance, prior, moved: bool = True) -> dict[str, Learner]:
    """The guidance's learners; moved away from the prior, so that nothing vanishes by chance."""
    learners = dict(guidance.init(prior, STEP))
    return {name: shaken(one, seed) if moved else one for seed, (name, one) in enumerate(learners.items())}


def guide(guidance: Guidance, prior, state: Mapping[str, Learner], rows: int = 4, step: Step = STEP) -> Guided:
    """One call on copies of the learners, which the call trains."""
    return guidance(prior, views(image(rows)), conditions(prior, rows), step, copy.deepcopy(dict(state)))


@dataclass(frozen=True)
class Asked:
    """What a guidance sees at STEP, asked here question by question."""

    z: torch.Tensor
    x: Noised
    eps: dict[str, torch.Tensor]

    def mixed(self, mix: Cfg) -> torch.Tensor:
        return mix(self.eps, {}, self.x, 1)

    def clean(self, eps: torch.Tensor) -> torch.Tensor:
        return x0_from_eps(self.x.z_t, eps, self.x.alpha, self.x.sigma)


def ask(prior, state: Mapping[str, Learner], rows: int = 4) -> Asked:
    """cond, uncond; of each learner its answer with the camera, and "_any" without, "_uncond" with no prompt."""
    asked, z = conditions(prior, rows), prior.encode(image(rows))
    x = diffuse(prior, z, STEP, (0.02, 0.98))
    eps = prior.predict(x.ask(asked, "cond", "uncond", "negative"))
    told = from_camera(asked["cond_plain"], views(image(rows)))
    blank = replace(told, text=asked["uncond"].text)
    with torch.no_grad():
        for name, learner in state.items():
            if not isinstance(learner, Critic):
                eps[name] = learner(Query(x.z_t, x.t, told))
                eps[f"{name}_any"] = learner(Query(x.z_t, x.t, replace(told, camera=None)))
                eps[f"{name}_uncond"] = learner(Query(x.z_t, x.t, blank))
    return Asked(z, x, eps)


# ---- VSD ------------------------------------------------------------------------------------------------------------


@PRIORS
def test_vsd_is_the_difference_of_two_scores_in_both_forms(prior):
    guidance = Vsd(Cfg(7.5))
    state = state_of(guidance, prior)
    asked, grad = ask(prior, state), guide(guidance, prior, state).grad
    real, w = asked.mixed(Cfg(7.5)), asked.x.sigma**2
    torch.testing.assert_close(grad, w * (real - asked.eps["fake"]), **CLOSE)
    lam = w * asked.x.alpha / asked.x.sigma
    torch.testing.assert_close(grad, lam * (asked.clean(asked.eps["fake"]) - asked.clean(real)), rtol=1e-6, atol=1e-7)
    assert (asked.eps["fake"] - asked.eps["fake_any"]).abs().max() > 1e-3  # it was told the camera


@PRIORS
def test_a_fake_that_guesses_the_guided_score_leaves_nothing(prior):
    asked = conditions(prior, 4)

    def cfg(query: Query) -> torch.Tensor:
        base, cond = (prior.eps(replace(query, condition=asked[name])) for name in ("uncond", "cond"))
        return base + 7.5 * (cond - base)

    for guidance in (Vsd(Cfg(7.5)), Dmd(Cfg(7.5))):
        assert guide(guidance, prior, {"fake": Answer(cfg)}).grad.abs().max() < 1e-9


@PRIORS
def test_a_fake_that_knows_the_noise_makes_it_sds(prior):
    z = prior.encode(image())

    def noise(query: Query) -> torch.Tensor:
        alpha, sigma = prior.noise_level(query.t)
        return (query.z_t - alpha * z) / sigma

    vsd = guide(Vsd(Cfg(3.0)), prior, {"fake": Answer(noise)}).grad
    sds = guide(Sds("eps", mix=Cfg(3.0)), prior, {}).grad
    torch.testing.assert_close(vsd, sds, rtol=1e-6, atol=1e-6)
    dmd, asked = guide(Dmd(Cfg(3.0)), prior, {"fake": Answer(noise)}).grad, ask(prior, {})
    away = z - asked.clean(asked.mixed(Cfg(3.0)))
    torch.testing.assert_close(dmd, away / away.abs().mean((1, 2, 3), keepdim=True), rtol=1e-6, atol=1e-6)


@PRIORS
def test_a_fake_that_ignores_the_prompt_leaves_the_classifier_times_the_scale(prior):
    blank = conditions(prior, 4)["uncond"]
    state = {"fake": Answer(lambda query: prior.eps(replace(query, condition=blank)))}
    asked = ask(prior, {})
    expected = 7.5 * asked.x.sigma**2 * (asked.eps["cond"] - asked.eps["uncond"])
    torch.testing.assert_close(guide(Vsd(Cfg(7.5)), prior, state).grad, expected, **CLOSE)


@PRIORS
def test_a_fresh_fake_leaves_the_classifier_times_the_scale_less_one(prior):
    guidance = Vsd(Cfg(7.5))
    asked = ask(prior, {})
    expected = 6.5 * asked.x.sigma**2 * (asked.eps["cond"] - asked.eps["uncond"])
    given = guide(guidance, prior, state_of(guidance, prior, moved=False))
    torch.testing.assert_close(given.grad, expected, **CLOSE)
    assert given.parts is not None and given.parts["prior"].abs().max() == 0


def test_a_fake_that_fits_each_render_makes_it_sds():
    """The best denoiser of a Dirac at x predicts the noise; here by the weights of the exact prior's adapter."""
    prior = analytic_prior(dtype=F64)
    one = replace(prior, means=prior.means[:1], names=("red",))
    guidance = Vsd(Cfg(1.0))
    state = state_of(guidance, one, moved=False)
    fake = state["fake"]
    fake.shift.data.copy_(one.encode(image(1))[0] - one.means[0])
    fake.log_scale.data.fill_(-40)
    asked = {name: one.condition(one.text([""]), None) for name in ("cond", "uncond", "cond_plain")}
    vsd, sds = (g(one, views(image(1)), asked, STEP, state).grad for g in (guidance, Sds("eps", mix=Cfg(1.0))))
    torch.testing.assert_close(vsd, sds, rtol=1e-6, atol=1e-6)


# ---- ESD ------------------------------------------------------------------------------------------------------------


@PRIORS
def test_esd_is_vsd_with_less_of_the_camera(prior):
    state = state_of(Vsd(), prior)
    asked = ask(prior, state)
    real, w = asked.mixed(Cfg(7.5)), asked.x.sigma**2
    for lam in (0.0, 0.3, 1.0):
        fake = lam * asked.eps["fake_any"] + (1 - lam) * asked.eps["fake"]
        torch.testing.assert_close(guide(Esd(lam), prior, state).grad, w * (real - fake), **CLOSE)
        scaled_camera = asked.eps["fake_any"] + (1 - lam) * (asked.eps["fake"] - asked.eps["fake_any"])
        torch.testing.assert_close(fake, scaled_camera, **CLOSE)
    assert torch.equal(guide(Esd(0.0), prior, state).grad, guide(Vsd(), prior, state).grad)
    assert (guide(Esd(1.0), prior, state).grad - guide(Vsd(), prior, state).grad).abs().max() > 1e-3


@PRIORS
def test_without_anything_learnt_of_cameras_lam_is_irrelevant(prior):
    state = state_of(Esd(), prior, moved=False)
    state["fake"].shift.data.add_(0.1)
    grads = [guide(Esd(lam), prior, state).grad for lam in (0.0, 0.5, 1.0)]
    torch.testing.assert_close(grads[0], grads[1], **CLOSE)
    torch.testing.assert_close(grads[0], grads[2], **CLOSE)


# ---- PG-SB ----------------------------------------------------------------------------------------------------------


@PRIORS
@pytest.mark.parametrize("base", ["uncond", "negative"])
def test_pgsb_puts_one_scale_on_both_sides(prior, base):
    guidance = Pgsb(base=base)
    state = state_of(guidance, prior)
    asked = ask(prior, state)
    kappa = guidance.draw(prior, asked.z, STEP)
    real = asked.eps[base] + kappa * (asked.eps["cond"] - asked.eps[base])
    fake = asked.eps["fake_uncond"] + kappa * (asked.eps["fake"] - asked.eps["fake_uncond"])
    torch.testing.assert_close(guide(guidance, prior, state).grad, asked.x.sigma**2 * (real - fake), **CLOSE)


@PRIORS
def test_pgsb_is_vsd_where_the_scales_are_the_teachers_and_one(prior):
    state = state_of(Vsd(), prior)
    asked, w = ask(prior, state), ask(prior, {}).x.sigma ** 2
    one = torch.ones(4, 1, 1, 1, dtype=F64)
    real = toward(asked.eps["cond"], asked.eps["uncond"], 7.5 * one)
    fake = toward(asked.eps["fake"], asked.eps["fake_uncond"], one)
    torch.testing.assert_close(w * (real - fake), guide(Vsd(Cfg(7.5)), prior, state).grad, **CLOSE)
    still = guide(Pgsb(Range(1.0, 1.0)), prior, state).grad
    torch.testing.assert_close(still, guide(Vsd(Cfg(1.0)), prior, state).grad, **CLOSE)


@PRIORS
def test_a_fresh_fake_leaves_nothing_under_any_common_scale(prior):
    guidance = Pgsb()
    assert guide(guidance, prior, state_of(guidance, prior, moved=False)).grad.abs().max() < 1e-9


def test_kappa_is_drawn_anew_for_each_group_and_follows_its_range():
    guidance, prior = Pgsb(Range(Ramp(0.5, 2.0), Ramp(4.0, 2.0))), analytic_prior(group=4)
    z = torch.zeros(400, 3, 2, 2)
    kappa = guidance.draw(prior, z, STEP)
    assert kappa.shape == (400, 1, 1, 1) and len(kappa.unique()) == 100
    assert 0.5 <= kappa.min() < 0.7 and 3.8 < kappa.max() <= 4.0 and abs(kappa.mean() - 2.25) < 0.4
    assert not torch.equal(kappa, guidance.draw(prior, z, replace(STEP, index=1)))
    assert (guidance.draw(prior, z, replace(STEP, progress=1.0)) == 2).all()


# ---- DMD ------------------------------------------------------------------------------------------------------------


@PRIORS
@pytest.mark.parametrize("group", [1, 4])
def test_dmd_is_the_normalised_difference_of_clean_latents(prior, group):
    prior = replace(prior, group=group)
    guidance = Dmd(Cfg(1.75), fake=FEW)
    state = state_of(guidance, prior)
    asked = ask(prior, state, 8)
    real, fake = asked.clean(asked.mixed(Cfg(1.75))), asked.clean(asked.eps["fake"])
    mean = (asked.z - real).abs().reshape(8 // group, -1).mean(1).repeat_interleave(group)[:, None, None, None]
    grad = guide(guidance, prior, state, 8).grad
    torch.testing.assert_close(grad, (fake - real) / mean, rtol=1e-6, atol=1e-6)
    size = (fake - real).abs().reshape(8 // group, -1).mean(1) / (asked.z - real).abs().reshape(8 // group, -1).mean(1)
    torch.testing.assert_close(grad.abs().reshape(8 // group, -1).mean(1), size, rtol=1e-6, atol=1e-6)


@PRIORS
def test_dmd_does_not_change_with_the_unit_of_distance(prior):
    """x - X_r and X_f - X_r ten times as long give the same gradient."""
    state = state_of(Vsd(), prior)
    asked = ask(prior, state)
    real = asked.mixed(Cfg(1.75))
    clean = asked.clean(real)

    def grad(factor: float) -> torch.Tensor:
        weight = matching_weight(clean + factor * (asked.z - clean), asked.x, real, 1)
        return weight * factor * (real - asked.eps["fake"])

    torch.testing.assert_close(grad(10.0), grad(1.0), rtol=1e-6, atol=1e-9)


# ---- f-distill ------------------------------------------------------------------------------------------------------

F = {
    "rkl": lambda r: -r.log(),
    "kl": lambda r: r * r.log(),
    "js": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    "sf": lambda r: (r + 1) * ((r + 1) / (2 * r)).log(),
    "sh": lambda r: 1 - r.sqrt(),
    "jf": lambda r: (r - 1) * r.log(),
    "neyman": lambda r: (1 - r) ** 2 / r,
    "pearson": lambda r: (r - 1) ** 2,
}
QUICK = {"samples": 8, "sample_steps": 2, "fake": FEW}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_h_is_the_curvature_of_its_divergence(name):
    """h(r) = r^2 f''(r) up to a factor, and f is convex with f(1) = 0."""
    r = torch.linspace(0.1, 20, 50, dtype=F64).requires_grad_()
    (first,) = torch.autograd.grad(F[name](r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    ratio = (r**2 * second / DIVERGENCES[name](r)).detach()
    torch.testing.assert_close(ratio, ratio[:1].expand(50), rtol=1e-9, atol=0)
    assert ratio[0] > 0 and abs(F[name](torch.ones((), dtype=F64))) < 1e-12
    slope = DIVERGENCES[name](r.detach()).diff()
    rising = {"kl": 1, "js": 1, "sh": 1, "jf": 1, "pearson": 1, "rkl": 0, "sf": -1, "neyman": -1}[name]
    assert (slope.sign() == rising).all()


def walk(guidance: Guidance, prior, steps: int, state: dict[str, Learner] | None = None) -> list[torch.Tensor]:
    """The gradients of some steps on still views."""
    state = dict(guidance.init(prior, STEP)) if state is None else state
    asked, seen = conditions(prior, 4), views(image())
    return [guidance(prior, seen, asked, replace(STEP, index=i), state).grad for i in range(steps)]


@PRIORS
def test_reverse_kl_is_dmd_at_every_step(prior):
    given, expected = walk(FDistill("rkl", **QUICK), prior, 4), walk(Dmd(fake=FEW), prior, 4)
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


class Undecided(Critic):
    """A critic whose logit is one number, whatever it sees."""

    def judge(self, prior, renders, condition, step) -> None:
        self.offset.data.fill_(1.2)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_constant_logit_is_dmd_under_any_divergence(name):
    prior, guidance = linear_prior(), FDistill(name, **QUICK)
    state = dict(guidance.init(prior, STEP))
    state["critic"] = Undecided([3, 8, 8], 8, 1e-3, torch.zeros((), dtype=F64), STEP)
    state["critic"].offset.data.fill_(1.2)
    for one, other in zip(walk(guidance, prior, 3, state), walk(Dmd(fake=FEW), prior, 3), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@PRIORS
@pytest.mark.parametrize("name", ["js", "kl", "neyman"])
def test_f_distill_weighs_dmd_by_the_ratio_over_its_mean(prior, name):
    guidance = FDistill(name, **QUICK)
    state = state_of(guidance, prior)
    critic = state["critic"]
    h = torch.tensor([0.4, 0.8], dtype=F64)
    critic.average(h, 0.9)
    asked = ask(prior, state)
    r = critic.ratio(Query(asked.x.z_t, asked.x.t, Condition(torch.zeros(4, 1, 1))), 1)
    assert r.std() > 1e-3
    weight = (DIVERGENCES[name](r) / 0.6)[:, None, None, None]
    dmd = guide(Dmd(fake=FEW), prior, {"fake": state["fake"]}).grad
    torch.testing.assert_close(guide(guidance, prior, state).grad, weight * dmd, **CLOSE)


def test_the_weights_are_one_on_average():
    """Over a long stream of ratios of one distribution, h over its running mean has the mean 1."""
    critic = Critic([3, 8, 8], 4, 1e-3, torch.zeros((), dtype=F64), STEP)
    draw, seen = torch.Generator().manual_seed(0), []
    for _ in range(500):
        h = DIVERGENCES["js"]((torch.randn(8, generator=draw, dtype=F64)).exp())
        seen.append(critic.relative(h, 0.9))
        critic.average(h, 0.9)
    assert abs(torch.stack(seen).mean() - 1) < 0.01 and torch.stack(seen).std() > 0.2


def test_real_samples_are_the_priors_own_and_drawn_once():
    prior, guidance = (
        analytic_prior(std=0.05, dtype=F64),
        FDistill(samples=8, sample_steps=12, sample_scale=1.0, fake=FEW),
    )
    state = dict(guidance.init(prior, STEP))
    critic = state["critic"]
    walk(guidance, prior, 2, state)
    drawn = [
        ddim_sample(prior, sampled.normal("noise", prior.encode(image())), conditions(prior, 4), Cfg(1.0), 12)
        for sampled in (STEP.child("samples"), replace(STEP, index=1).child("samples"))
    ]
    assert critic.full and torch.equal(critic.reals, torch.cat(drawn))
    assert (critic.reals - prior.means[0]).abs().max() < 0.5  # "red", which the views are not
    walk(guidance, prior, 3, state)
    assert torch.equal(critic.reals, torch.cat(drawn))


def test_a_warm_critic_sees_a_batch_as_its_groups():
    prior, guidance = replace(analytic_prior(dtype=F64), group=4), FDistill("kl", **QUICK)
    state = state_of(guidance, prior)
    state["critic"].average(torch.tensor([0.7], dtype=F64), 0.9)
    asked, seen, picture = conditions(prior, 8), views(image(8)), image(8)
    together = guidance(prior, seen, asked, STEP, copy.deepcopy(state)).grad
    for first in (0, 4):
        rows = slice(first, first + 4)
        part = replace(views(picture[rows]), cameras=seen.cameras[rows])
        alone = guidance(prior, part, conditions(prior, 4), replace(STEP, row=first), copy.deepcopy(state)).grad
        torch.testing.assert_close(together[rows], alone, **CLOSE)


# ---- DisBack --------------------------------------------------------------------------------------------------------


@PRIORS
def test_a_path_of_one_teacher_is_dmd(prior):
    given = walk(Disback(back=0.0, fake=FEW), prior, 3)
    for one, other in zip(given, walk(Dmd(fake=FEW), prior, 3), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@PRIORS
def test_at_the_paths_end_teacher_and_fake_are_one(prior):
    """Without guidance there is no gradient then, however much both have learnt."""
    guidance = Disback(mix=Cfg(1.0), fake=Fake(lr=0.1, updates=2))
    for grad in walk(guidance, prior, 3):
        assert grad.abs().max() < 1e-9


@PRIORS
def test_the_teacher_walks_straight_back_to_the_prior(prior):
    state = state_of(Disback(), prior)
    asked = ask(prior, state)
    for progress, lam in ((0.1, 1.0), (0.4, 0.5), (0.7, 0.0), (1.0, 0.0)):
        real = asked.mixed(Cfg(1.75)) + lam * (asked.eps["path"] - asked.eps["cond"])
        weight = matching_weight(asked.z, asked.x, real, 1)
        given = guide(Disback(fake=FEW), prior, state, step=replace(STEP, progress=progress))
        torch.testing.assert_close(given.grad, weight * (real - asked.eps["fake"]), rtol=1e-6, atol=1e-8)


def test_the_paths_end_is_learnt_at_first_and_then_kept():
    prior, guidance = analytic_prior(dtype=F64), Disback(degrade=0.5, fake=Fake(lr=0.1, updates=1))
    state = dict(guidance.init(prior, STEP))
    asked, seen, shifts = conditions(prior, 4), views(image()), []
    for index in range(4):
        guidance(prior, seen, asked, replace(STEP, index=index, progress=index / 4), state)
        shifts.append((state["path"].shift.clone(), state["fake"].shift.clone()))
    assert torch.equal(*shifts[0]) and torch.equal(*shifts[1]) and shifts[1][0].abs().max() > 0.05
    assert torch.equal(shifts[2][0], shifts[1][0]) and torch.equal(shifts[3][0], shifts[1][0])
    assert not torch.equal(shifts[3][1], shifts[1][1])


# ---- the fake -------------------------------------------------------------------------------------------------------


class Listening(Answer):
    """A learner that keeps the queries it is trained on."""

    def __init__(self) -> None:
        super().__init__(lambda query: query.z_t)
        self.heard: list[Query] = []

    def forward(self, query: Query) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.heard.append(query)
        return self.answer(query)


def test_the_fake_hears_prompt_and_camera_but_for_the_dropouts():
    prior, learner = analytic_prior(), Listening()
    asked, seen = conditions(prior, 4), views(image().float())
    told = from_camera(asked["cond_plain"], seen)
    assert told.camera is not None and torch.equal(told.camera, seen.cameras.c2w.flatten(1))
    own = replace(asked["cond_plain"], camera=torch.ones(4, 3))
    assert from_camera(own, seen) is own
    Fake(updates=400, camera_dropout=0.1, text_dropout=0.2).fit(
        learner, prior, prior.encode(image().float()), told, asked, STEP
    )
    silent = sum(query.condition.camera is None for query in learner.heard)
    blank = sum(torch.equal(query.condition.text, asked["uncond"].text) for query in learner.heard)
    assert len(learner.heard) == 400 and 20 < silent < 60 and 50 < blank < 110
    times = torch.stack([query.t[0] for query in learner.heard])
    assert times.min() < 0.02 and times.max() > 0.98 and len(times.unique()) == 400


def test_the_fakes_loss_is_the_noise_error_times_sigma_squared():
    prior, losses = analytic_prior(dtype=F64), []
    z, asked = prior.encode(image()), conditions(prior, 4)
    learner = Answer(lambda query: query.z_t)
    learner.fit = lambda loss: losses.append(loss)
    Fake(camera_dropout=0.0).fit(learner, prior, z, asked["cond_plain"], asked, STEP)
    x = diffuse(prior, z, STEP.child("fake 0"), (0.0, 1.0))
    torch.testing.assert_close(losses[0], (x.sigma**2 * (x.z_t - x.eps) ** 2).mean(), **CLOSE)


@dataclass(frozen=True, eq=False)
class Counting(AnalyticPrior):
    """Counts the questions of each forward."""

    def predict(self, queries):
        WAVES.append(len(queries))
        return super().predict(queries)


WAVES: list[int] = []


@pytest.mark.parametrize(
    ("guidance", "rows"),
    [
        (Vsd(fake=Fake(updates=2)), 3),
        (Esd(fake=Fake(updates=2)), 4),
        (Pgsb(fake=Fake(updates=2)), 4),
        (Dmd(fake=Fake(updates=2)), 3),
        (FDistill(samples=4, sample_steps=5, fake=Fake(updates=2)), 3),
        (Disback(fake=Fake(updates=2)), 4),
    ],
    ids=lambda value: type(value).__name__,
)
def test_forwards_and_rows_are_those_that_are_documented(guidance, rows):
    exact = analytic_prior()
    prior = Counting(exact.means, exact.std, exact.names)
    state = dict(guidance.init(prior, STEP))
    fits: list[bool] = []
    state["fake"].register_forward_hook(lambda *_: fits.append(torch.is_grad_enabled()))
    for index, sampling in ((0, 5 if isinstance(guidance, FDistill) else 0), (1, 0)):
        WAVES.clear()
        fits.clear()
        guidance(prior, views(image().float()), conditions(prior, 4), replace(STEP, index=index), state)
        assert [rows] + [2] * sampling == WAVES and sum(fits) == 2


# ---- numbers, refusals, laws ----------------------------------------------------------------------------------------

METHODS = [Vsd(), Esd(), Pgsb(), Dmd(), FDistill(), Disback()]
EACH = pytest.mark.parametrize("guidance", METHODS, ids=lambda guidance: type(guidance).__name__)
NAMES = frozenset({"cond", "uncond", "cond_plain"})


@dataclass(frozen=True, eq=False)
class Closed(AnalyticPrior):
    """A prior that offers no adapter."""

    def adapter(self, rank: int, lr: float, step: Step) -> Learner | None:
        return None


@EACH
def test_what_is_missing_is_said_before_the_run(guidance):
    prior = analytic_prior()
    guidance.check(prior, NAMES)
    for name in ("cond", "uncond", "cond_plain"):
        with pytest.raises(ValueError, match=f'needs the condition "{name}", which the prompts do not give'):
            guidance.check(prior, NAMES - {name})
    closed = Closed(prior.means, prior.std, prior.names)
    with pytest.raises(ValueError, match="trains an adapter of the prior's network, and this prior offers none"):
        guidance.check(closed, NAMES)
    with pytest.raises(ValueError, match="offers none"):
        guidance.init(closed, STEP)


@EACH
def test_a_recipe_writes_each_with_its_fake(guidance):
    data = to_data(guidance)
    assert data["fake"]["rank"] == 4 and convert(data, Guidance, "guidance", {}) == guidance
    with pytest.raises(ValueError, match='guidance.fake.rnak: .*Did you mean "rank"'):
        convert({**data, "fake": {"rnak": 4}}, Guidance, "guidance", {})
    with pytest.raises(ValueError, match="guidance.fake: rank must be at least 1"):
        convert({**data, "fake": {"rank": 0}}, Guidance, "guidance", {})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Fake(rank=0), "rank must be at least 1"),
        (lambda: Fake(updates=-1), "updates must be at least 0"),
        (lambda: Fake(lr=0.0), "lr"),
        (lambda: Fake(camera_dropout=1.5), "camera_dropout must lie"),
        (lambda: Vsd(weighting="sigma"), "weighting must be one of"),
        (lambda: Vsd(t=Range(0.5, 0.2)), "t must be a range"),
        (lambda: Esd(lam=-0.1), "lam must lie"),
        (lambda: Esd(fake=Fake(camera_dropout=0.0)), "camera_dropout above 0"),
        (lambda: Pgsb(scale=Range(4.0, 0.5)), "scale must be a range"),
        (lambda: Pgsb(base="empty"), "base must be one of"),
        (lambda: Dmd(t=Range(0.5, 1.2)), "t must be a range"),
        (lambda: FDistill("tv"), "divergence must be one of rkl"),
        (lambda: FDistill(samples=0), "samples must be at least 1"),
        (lambda: FDistill(critic_lr=-1.0), "critic_lr"),
        (lambda: FDistill(samples=6).check(analytic_prior(group=4), NAMES), "multiple of it, given 6"),
        (lambda: FDistill().check(replace(analytic_prior(), views_per_row=8), NAMES), "videos"),
        (lambda: Disback(degrade=1.5), "degrade must lie"),
        (lambda: Disback(back=Ramp(1.0, -0.5)), "back must stay within"),
    ],
)
def test_values_out_of_range_are_refused(make, said, unchecked):
    with pytest.raises(ValueError, match=said):
        make()


class TestVsd(GuidanceLaws):
    guidance = Vsd()


class TestEsd(GuidanceLaws):
    guidance = Esd(1.0)


class TestPgsb(GuidanceLaws):
    guidance = Pgsb(base="negative", fake=Fake(updates=2, text_dropout=0.5))

    def learners(self, prior):
        return {"fake": shaken(self.guidance.init(prior, STEP)["fake"])}  # fresh, it leaves nothing: see above


class TestDmd(GuidanceLaws):
    guidance = Dmd(fake=Fake(updates=2))


class TestFDistill(GuidanceLaws):
    guidance = FDistill("kl", **QUICK)


class TestDisback(GuidanceLaws):
    guidance = Disback(fake=FEW)
