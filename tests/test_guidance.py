"""Score distillation: its identities on exact and random denoisers, and the laws of plug-ins."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sds3d.core import Condition, Guidance, Guided, Noised, Query, Step
from sds3d.diffusion import diffuse, x0_from_eps
from sds3d.guidance.mix import Cfg, Rescale, spread
from sds3d.guidance.sds import WEIGHTS, Sds
from sds3d.priors.analytic import AnalyticPrior
from sds3d.schedules import Ramp, Range
from sds3d.testing import GuidanceLaws, analytic_prior, conditions, views

F64 = torch.float64


@dataclass(frozen=True, eq=False)
class LinearPrior(AnalyticPrior):
    """A random linear denoiser for each condition, for which every identity must hold although it denoises nothing."""

    def eps(self, query: Query) -> torch.Tensor:
        text = query.condition.text[0, 0].double()
        draw = torch.Generator().manual_seed(int(1000 * (text * torch.arange(1, len(text) + 1)).sum()))
        size = query.z_t[0].numel()
        matrix = torch.randn(size, size, generator=draw, dtype=F64) / math.sqrt(size)
        shift = torch.randn(size, generator=draw, dtype=F64)
        return (query.z_t.flatten(1) @ matrix.T + shift).reshape(query.z_t.shape)


def linear_prior(group: int = 1) -> LinearPrior:
    exact = analytic_prior(dtype=F64)
    return LinearPrior(exact.means, exact.std, exact.names, group)


def image(rows: int = 4) -> torch.Tensor:
    return torch.special.ndtr(Step(1).normal("image", torch.zeros(rows, 8, 8, 3, dtype=F64)))  # uniform in [0, 1]


def guide(sds: Guidance, prior, rows: int = 4) -> Guided:
    return sds(prior, views(image(rows)), conditions(prior, rows), Step(0), {})


PRIORS = pytest.mark.parametrize("prior", [analytic_prior(dtype=F64), linear_prior()], ids=["analytic", "linear"])


# ---- identities -----------------------------------------------------------------------------------------------------


@PRIORS
@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_two_forms_are_one_gradient(prior, weight):
    eps, x0 = (guide(Sds(form, weight, clamp=False, mix=Cfg(7.5)), prior).grad for form in ("eps", "x0"))
    torch.testing.assert_close(eps, x0, rtol=1e-9, atol=1e-9)


@PRIORS
@pytest.mark.parametrize("form", ["eps", "x0"])
def test_the_weights_are_those_of_the_table(prior, form):
    sds = Sds(form, mix=Cfg(3.0))
    x = diffuse(prior, prior.encode(image()), Step(0), sds.t(0.0))
    e = prior.predict(x.ask(conditions(prior, 4), "cond", "uncond"))
    difference = e["uncond"] + 3 * (e["cond"] - e["uncond"]) - x.eps
    for weight, w in {"sigma2": x.sigma**2, "uniform": 1.0, "alpha_sigma2": x.alpha * x.sigma**2}.items():
        torch.testing.assert_close(
            guide(replace(sds, weighting=weight), prior).grad, w * difference, rtol=1e-9, atol=1e-9
        )


@PRIORS
def test_recon_is_the_render_minus_its_target(prior):
    sds = Sds("x0", "recon", mix=Cfg(3.0))
    z = prior.encode(image())
    x = diffuse(prior, z, Step(0), sds.t(0.0))
    e = prior.predict(x.ask(conditions(prior, 4), "cond", "uncond"))
    target = x0_from_eps(x.z_t, Cfg(3.0)(e, {}, x, 1), x.alpha, x.sigma)
    torch.testing.assert_close(guide(sds, prior).grad, z - target, rtol=1e-9, atol=1e-9)


@PRIORS
def test_the_gradient_is_affine_in_the_scale(prior):
    low, high, mid = (guide(Sds("eps", mix=Cfg(s)), prior).grad for s in (1.0, 9.0, 5.0))
    torch.testing.assert_close(mid, (low + high) / 2, rtol=1e-9, atol=1e-9)
    x = diffuse(prior, prior.encode(image()), Step(0), (0.02, 0.98))
    e = prior.predict(x.ask(conditions(prior, 4), "cond", "uncond"))
    torch.testing.assert_close(high - low, 8 * x.sigma**2 * (e["cond"] - e["uncond"]), rtol=1e-8, atol=1e-9)


def test_a_perfect_guess_of_the_noise_gives_no_gradient():
    """A prior that is certain of the very picture it is shown predicts the noise that was added."""
    exact = analytic_prior(std=0.0, dtype=F64)
    shown = exact.decode(exact.means[:1])
    for form in ("eps", "x0"):
        guided = Sds(form, mix=Cfg(1.0))(exact, views(shown), conditions(exact, 1), Step(0), {})
        assert guided.grad.abs().max() < 1e-10


@PRIORS
def test_the_x0_form_is_the_gradient_of_its_squared_distance(prior):
    z = prior.encode(image()).requires_grad_()
    x = diffuse(prior, z, Step(0), (0.02, 0.98))
    e = prior.predict(x.ask(conditions(prior, 4), "cond", "uncond"))
    target = x0_from_eps(x.z_t, Cfg(4.0)(e, {}, x, 1), x.alpha, x.sigma)
    lam = x.sigma**2 * x.alpha / x.sigma
    (gradient,) = torch.autograd.grad((lam / 2 * (z - target) ** 2).sum(), z)
    torch.testing.assert_close(guide(Sds("x0", mix=Cfg(4.0)), prior).grad, gradient, rtol=1e-9, atol=1e-9)


@PRIORS
@pytest.mark.parametrize("form", ["eps", "x0"])
def test_the_parts_are_the_prior_and_the_classifier(prior, form):
    guided = guide(Sds(form, mix=Cfg(6.0)), replace(prior, data_range=0.5))
    assert guided.parts is not None and set(guided.parts) == {"prior", "classifier"} | (
        {"clamp"} if form == "x0" else set()
    )
    torch.testing.assert_close(sum(guided.parts.values()), guided.grad, rtol=1e-9, atol=1e-9)


def test_loss_has_the_gradient_over_the_rows():
    at = torch.randn(4, 3, 2, 2, dtype=F64, requires_grad=True)
    grad = torch.randn(4, 3, 2, 2, dtype=F64)
    loss = Guided(at, grad).loss()
    (given,) = torch.autograd.grad(loss, at)
    assert loss.item() == 0 and torch.equal(given, grad / 4)


# ---- the clamp ------------------------------------------------------------------------------------------------------


def test_the_clamp_keeps_the_target_in_range():
    prior = replace(analytic_prior(dtype=F64), data_range=0.5)
    z = prior.encode(image())
    bounded = guide(Sds("x0", "recon", mix=Cfg(20.0)), prior)
    assert (z - bounded.grad).abs().max() <= 0.5 + 1e-12
    free = guide(Sds("x0", "recon", mix=Cfg(20.0), clamp=False), prior)
    assert (z - free.grad).abs().max() > 0.5


def test_the_clamp_follows_the_prior():
    pixels, latents = replace(analytic_prior(), data_range=1.0), analytic_prior()
    assert Sds("x0").bound(pixels) == 1.0 and Sds("x0").bound(latents) is None
    assert Sds("eps").bound(pixels) is None and Sds("x0", clamp=False).bound(pixels) is None
    with pytest.raises(ValueError, match="range"):
        Sds("x0", clamp=True).check(latents, frozenset({"cond", "uncond"}))
    with pytest.raises(ValueError, match="form"):
        Sds("eps", clamp=True)


# ---- mixes ----------------------------------------------------------------------------------------------------------


def noised(rows: int = 8, sigma: float = 0.6) -> Noised:
    draw = torch.Generator().manual_seed(2)
    z_t, eps = (torch.randn(rows, 3, 4, 4, generator=draw, dtype=F64) for _ in range(2))
    level = torch.full((rows, 1, 1, 1), sigma, dtype=F64)
    return Noised(z_t, torch.full((rows,), 0.5), eps, (1 - level**2).sqrt(), level)


def answers(rows: int = 8) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {name: torch.randn(rows, 3, 4, 4, generator=draw, dtype=F64) for name in ("cond", "uncond", "negative")}


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 100))
def test_cfg_is_the_one_convention(scale):
    e = answers()
    for base in ("uncond", "negative"):
        mixed = Cfg(scale, base)(e, {}, noised(), 1)
        torch.testing.assert_close(mixed, (1 - scale) * e[base] + scale * e["cond"], rtol=1e-9, atol=1e-9)
    assert torch.equal(Cfg(0.0)(e, {}, noised(), 1), e["uncond"])


def test_rescale_without_weight_changes_nothing():
    e, x = answers(), noised()
    torch.testing.assert_close(Rescale(Cfg(9.0), 0.0)(e, {}, x, 4), Cfg(9.0)(e, {}, x, 4), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(Rescale(Cfg(1.0), 0.7)(e, {}, x, 4), e["cond"], rtol=1e-10, atol=1e-10)


def test_rescale_gives_each_group_the_spread_of_the_conditional():
    e, x = answers(), noised()
    clean = x0_from_eps(x.z_t, Rescale(Cfg(9.0), 1.0)(e, {}, x, 4), x.alpha, x.sigma)
    plain = x0_from_eps(x.z_t, e["cond"], x.alpha, x.sigma)
    torch.testing.assert_close(spread(clean, 4), spread(plain, 4), rtol=1e-7, atol=0)
    torch.testing.assert_close(spread(plain, 4)[:, 0, 0, 0], plain.reshape(2, -1).std(1).repeat_interleave(4))


def test_rescale_is_mvdreams_reconstruction():
    """G = (1 - k) x + k (sigma / alpha) (E_cfg - eps) with k = phi f + 1 - phi."""
    prior, mix = replace(linear_prior(), group=4), Cfg(8.0)
    z = prior.encode(image())
    x = diffuse(prior, z, Step(0), (0.02, 0.98))
    e = prior.predict(x.ask(conditions(prior, 4), "cond", "uncond"))
    guided, plain = (x0_from_eps(x.z_t, eps, x.alpha, x.sigma) for eps in (mix(e, {}, x, 4), e["cond"]))
    k = 0.5 * (plain.std() + 1e-8) / (guided.std() + 1e-8) + 0.5
    expected = (1 - k) * z + k * x.sigma / x.alpha * (mix(e, {}, x, 4) - x.eps)
    given = guide(Sds("x0", "recon", clamp=False, mix=Rescale(mix, 0.5)), prior).grad
    torch.testing.assert_close(given, expected, rtol=1e-8, atol=1e-8)


# ---- what it converges to -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["eps", "x0"])
def test_it_converges_to_the_mean(form):
    """One picture under 16 noises a step, CFG 1, descended with a falling rate: every pixel is within 1e-2."""
    prior = analytic_prior(std=0.2, dtype=F64)
    asked = conditions(prior, 16, {"cond": "red", "uncond": ""})
    picture, steps = image(1), 300
    for index in range(steps):
        picture.requires_grad_()
        seen = views(picture.expand(16, -1, -1, -1))
        loss = Sds(form, mix=Cfg(1.0))(prior, seen, asked, Step(0, index=index), {}).loss()
        (gradient,) = torch.autograd.grad(loss, picture)
        picture = picture.detach() - gradient / (1 + index / 10)
    assert (prior.encode(picture) - prior.means[:1]).abs().max() < 1e-2


def test_the_expected_gradient_is_that_of_the_weighted_kl():
    """For x in one dimension: E[w (E(x_t) - eps)] = d/dx of the integral of w (sigma / alpha) KL(q(x_t | x) || p_t).

    q(x_t | x) = N(alpha x, sigma^2) and p_t = N(alpha mu, v), so KL = log(sqrt v / sigma) + (sigma^2 + alpha^2
    (x - mu)^2) / 2 v - 1/2. The left side is taken over noise by Gauss-Hermite and over time by Gauss-Legendre
    quadrature of the guidance itself; the right side is a finite difference of the integral.
    """
    mean, std = 0.3, 0.4
    prior = AnalyticPrior(torch.full((1, 3, 1, 1), mean, dtype=F64), std, ("it",))
    nodes, node_weights = torch.as_tensor(legendre(24))
    low, high = 0.05, 0.95
    times = low + (high - low) * (nodes + 1) / 2
    noises, noise_weights = hermite(12)
    x = -0.5

    def kl(x: float) -> torch.Tensor:
        alpha, sigma = (level.flatten() for level in prior.noise_level(times))
        v = alpha**2 * std**2 + sigma**2
        divergence = (v.sqrt() / sigma).log() + (sigma**2 + alpha**2 * (x - mean) ** 2) / (2 * v) - 0.5
        return (node_weights / 2 * sigma**2 * sigma / alpha * divergence).sum()

    expected = torch.zeros((), dtype=F64)
    for t, wt in zip(times, node_weights / 2, strict=True):
        for noise, wn in zip(noises, noise_weights, strict=True):
            sds = Sds("eps", "sigma2", mix=Cfg(1.0), t=Range(float(t), float(t)))
            step = Fixed(float(t), float(noise))
            picture = torch.full((1, 1, 1, 3), (x + 1) / 2, dtype=F64)
            guided = sds(prior, views(picture), conditions(prior, 1, {"cond": "it", "uncond": ""}), step, {})
            expected = expected + wt * wn * guided.grad[0, 0, 0, 0]
    h = 1e-5
    torch.testing.assert_close(expected, (kl(x + h) - kl(x - h)) / (2 * h), rtol=1e-6, atol=1e-9)


@dataclass(frozen=True)
class Fixed(Step):
    """A step whose noise is a given number and whose draws of time are the middle of a range."""

    def __init__(self, t: float, noise: float) -> None:
        Step.__init__(self, 0)
        object.__setattr__(self, "given", (t, noise))

    def normal(self, name, like, fixed=False):
        return torch.full_like(like, self.given[1])

    def uniform(self, name, n, fixed=False):
        return torch.full((n,), 0.5, dtype=F64)


def legendre(n: int):
    import numpy as np

    return np.stack(np.polynomial.legendre.leggauss(n))


def hermite(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes and weights of the expectation over a standard normal number."""
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.as_tensor(nodes), torch.as_tensor(weights / weights.sum())


# ---- numbers and refusals -------------------------------------------------------------------------------------------


def test_times_follow_the_schedule():
    sds = Sds(t=Range(Ramp(0.5, 0.02), Ramp(0.98, 0.4)))
    assert sds.t(0.0) == (0.5, 0.98) and sds.t(1.0) == pytest.approx((0.02, 0.4))
    prior = analytic_prior()
    seen: list[torch.Tensor] = []
    watching = type(
        "Watching", (AnalyticPrior,), {"eps": lambda self, q: seen.append(q.t) or AnalyticPrior.eps(self, q)}
    )
    watched = watching(prior.means, prior.std, prior.names)
    for progress in (0.0, 1.0):
        sds(watched, views(image(64).float()), conditions(prior, 64), Step(0, progress=progress), {})
    assert 0.5 <= seen[0].min() < 0.6 and 0.9 < seen[0].max() <= 0.98
    assert 0.02 <= seen[-1].min() < 0.1 and 0.35 < seen[-1].max() <= 0.4


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Sds(form="noise"), "form"),
        (lambda: Sds(weighting="sigma"), "weighting must be one of sigma2"),
        (lambda: Sds(t=Range(0.5, 0.2)), "t must be a range"),
        (lambda: Sds(t=Range(Ramp(0.5, 0.5), Ramp(0.9, 0.4))), "progress 1"),
        (lambda: Cfg(-1.0), "scale"),
        (lambda: Cfg(float("nan")), "scale"),
        (lambda: Cfg(1.0, "empty"), "base"),
        (lambda: Rescale(Cfg(1.0), 1.5), "phi"),
    ],
)
def test_values_out_of_range_are_refused(make, said, unchecked):
    with pytest.raises(ValueError, match=said):
        make()


def test_missing_conditions_are_refused_before_the_run():
    with pytest.raises(ValueError, match='"negative"'):
        Sds(mix=Cfg(4.0, "negative")).check(analytic_prior(), frozenset({"cond", "uncond"}))


# ---- the laws, and that they catch what they should -----------------------------------------------------------------


class TestSdsEps(GuidanceLaws):
    guidance = Sds("eps")


class TestSdsX0(GuidanceLaws):
    guidance = Sds("x0", "recon", mix=Rescale(Cfg(10.0), 0.5), t=Range(Ramp(0.5, 0.02), Ramp(0.98, 0.4)))


class TestSdsNegative(GuidanceLaws):
    guidance = Sds(mix=Cfg(7.0, "negative"))


@dataclass(frozen=True)
class Broken(Guidance):
    """Breaks one law at a time."""

    how: str = ""

    def __call__(self, prior, views, conditions: dict[str, Condition], step, state) -> Guided:
        z = prior.encode(views.image)
        noise = torch.randn_like(z) if self.how == "global" else step.normal("noise", z)
        grad = z.detach() + noise
        if self.how == "shape":
            grad = grad[:, :1]
        if self.how == "batch":
            grad = grad - grad.mean()
        if self.how == "attached":
            grad = grad * z
        if self.how == "infinite":
            grad = grad / 0
        if self.how == "detached":
            z = z.detach()
        if self.how == "parts":
            return Guided(z, grad, {"half": grad / 2})
        return Guided(z, grad)


@pytest.mark.parametrize(
    ("how", "law"),
    [
        ("global", "test_it_leaves_the_world_as_it_was"),
        ("global", "test_one_seed_gives_one_gradient"),
        ("shape", "test_the_gradient_has_the_latents_shape_and_is_finite"),
        ("infinite", "test_the_gradient_has_the_latents_shape_and_is_finite"),
        ("batch", "test_a_batch_is_its_groups"),
        ("attached", "test_the_gradient_is_detached_and_the_latent_is_not"),
        ("detached", "test_the_gradient_is_detached_and_the_latent_is_not"),
        ("parts", "test_the_parts_add_up"),
    ],
)
def test_the_laws_catch_a_broken_guidance(how, law):
    laws = type("Laws", (GuidanceLaws,), {"guidance": Broken(how)})()
    with pytest.raises(AssertionError):
        getattr(laws, law)(analytic_prior())
    whole = type("Laws", (GuidanceLaws,), {"guidance": Broken()})()
    getattr(whole, law)(analytic_prior())
