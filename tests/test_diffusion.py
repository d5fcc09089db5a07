"""The one convention: its identities in float64, the draws of times, and DDIM on a prior that is known exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sds3d.core import Condition, Noised, Step
from sds3d.diffusion import (
    add_noise,
    ddim_invert,
    ddim_sample,
    ddim_std,
    ddim_step,
    diffuse,
    draw_t,
    eps_from_v,
    eps_from_x0,
    level,
    reached,
    v_from_eps,
    x0_from_eps,
)
from sds3d.guidance.mix import Alone, Cfg, Rescale
from sds3d.priors.flow import AnalyticFlow
from sds3d.testing import analytic_prior, conditions

F64 = torch.float64


def parts(angle: float, seed: int):
    """x_0, eps, alpha, sigma and x_t at a noise angle."""
    draw = torch.Generator().manual_seed(seed)
    x0, eps = (torch.randn(2, 3, 4, 4, generator=draw, dtype=F64) for _ in range(2))
    alpha, sigma = (
        level.reshape(1, 1, 1, 1)
        for level in (torch.tensor(angle, dtype=F64).cos(), torch.tensor(angle, dtype=F64).sin())
    )
    return x0, eps, alpha, sigma, alpha * x0 + sigma * eps


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 1.55), st.integers(0, 1000))
def test_the_parameterisations_are_one_another(angle, seed):
    x0, eps, alpha, sigma, z_t = parts(angle, seed)
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(x0_from_eps(z_t, eps, alpha, sigma), x0, **close)
    torch.testing.assert_close(eps_from_x0(z_t, x0, alpha, sigma), eps, **close)
    v = v_from_eps(x0, eps, alpha, sigma)
    torch.testing.assert_close(eps_from_v(z_t, v, alpha, sigma), eps, **close)
    torch.testing.assert_close(alpha * z_t - sigma * v, x0, **close)


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 1.55), st.integers(0, 1000))
def test_a_difference_of_noises_is_one_of_clean_latents(angle, seed):
    """I1: E - eps = (alpha / sigma) (x - X(E)); I2: E_a - E_b = (alpha / sigma) (X(E_b) - X(E_a))."""
    x0, eps, alpha, sigma, z_t = parts(angle, seed)
    a, b = (torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed + i), dtype=F64) for i in (1, 2))
    clean_a, clean_b = (x0_from_eps(z_t, e, alpha, sigma) for e in (a, b))
    torch.testing.assert_close(a - eps, alpha / sigma * (x0 - clean_a), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(a - b, alpha / sigma * (clean_b - clean_a), rtol=1e-9, atol=1e-9)


def latent(rows: int) -> torch.Tensor:
    return Step(7).normal("z", torch.zeros(rows, 3, 8, 8, dtype=F64))


def test_diffuse_is_alpha_z_plus_sigma_eps_and_detached():
    prior = analytic_prior()
    z = latent(4).requires_grad_()
    x = diffuse(prior, z, Step(0), (0.1, 0.9))
    torch.testing.assert_close(x.z_t, x.alpha * z + x.sigma * x.eps, rtol=0, atol=0)
    assert not x.z_t.requires_grad and x.alpha.dtype == F64
    torch.testing.assert_close(x.alpha**2 + x.sigma**2, torch.ones(4, 1, 1, 1, dtype=F64), rtol=1e-6, atol=0)


def test_like_shares_time_and_noise():
    prior = analytic_prior()
    x = diffuse(prior, latent(4), Step(0), (0.1, 0.9))
    y = diffuse(prior, latent(4) + 1, Step(0).child("other"), (0.1, 0.9), like=x)
    assert torch.equal(x.eps, y.eps) and torch.equal(x.t, y.t)
    torch.testing.assert_close(y.z_t - x.z_t, x.alpha.expand_as(x.z_t))


def test_times_are_uniform_and_shared_by_a_group():
    alone, grouped = analytic_prior(), analytic_prior(group=4)
    t = draw_t(alone, 4000, Step(0), (0.2, 0.6))
    assert t.min() >= 0.2 and t.max() <= 0.6 and abs(t.mean() - 0.4) < 0.01
    t = draw_t(grouped, 16, Step(0), (0.2, 0.6)).reshape(4, 4)
    assert torch.equal(t, t[:, :1].expand(4, 4)) and len(t[:, 0].unique()) == 4
    with pytest.raises(ValueError, match="4 views jointly"):
        draw_t(grouped, 6, Step(0), (0.2, 0.6))
    for low, high in ((-0.1, 0.5), (0.5, 1.1), (0.6, 0.5)):
        with pytest.raises(ValueError, match="range within"):
            draw_t(alone, 1, Step(0), (low, high))


def test_a_batch_diffuses_as_its_groups_do():
    prior = analytic_prior(group=4)
    x = diffuse(prior, latent(8), Step(3), (0.1, 0.9))
    second = diffuse(prior, latent(8)[4:], replace(Step(3), row=4), (0.1, 0.9))
    assert torch.equal(x.z_t[4:], second.z_t) and torch.equal(x.t[4:], second.t)


def test_a_ddim_step_keeps_a_known_noise():
    """With the true noise, DDIM moves along alpha x_0 + sigma eps."""
    prior = analytic_prior()
    z = latent(2)
    x = diffuse(prior, z, Step(0), (0.7, 0.7))
    alpha, sigma = (level.double() for level in prior.noise_level(torch.full((2,), 0.3)))
    torch.testing.assert_close(ddim_step(x, x.eps, alpha, sigma), alpha * z + sigma * x.eps)
    torch.testing.assert_close(ddim_step(x, x.eps, x.alpha, x.sigma), x.z_t)


def test_ddim_reaches_the_component_that_is_asked():
    prior = replace(analytic_prior(std=0.01, dtype=F64), data_range=1.0)
    for row, name in enumerate(prior.names):
        asked = conditions(prior, 2, {"cond": name, "uncond": ""})
        z = ddim_sample(prior, latent(2), asked, Cfg(3.0), 40)
        assert (z - prior.means[row]).abs().max() < 0.1 and z.abs().max() <= 1


# ---- inversion ------------------------------------------------------------------------------------------------------


def flow(std: float) -> AnalyticFlow:
    exact = analytic_prior(std=std, dtype=F64)
    return AnalyticFlow(exact.means, exact.std, exact.names)


def invert(prior, t: float, steps: int, mix=Alone("cond"), step=Step(0), eta: float = 0.0, rows: int = 2):  # noqa: B008
    z = latent(rows)
    return z, ddim_invert(prior, z, conditions(prior, rows), step, torch.full((rows,), t), steps, mix, eta)


@pytest.mark.parametrize(
    "make", [lambda: analytic_prior(std=0.5, dtype=F64), lambda: flow(0.5)], ids=["cosine", "flow"]
)
def test_inversion_follows_the_ode_of_a_gaussian(make):
    """x_t = alpha mu + sqrt(v) / s (x_0 - mu), v = alpha^2 s^2 + sigma^2, with an error in proportion to the step."""
    prior = make()
    errors = []
    for steps in (20, 40):
        z, (x, _) = invert(prior, 0.7, steps)
        exact = x.alpha * prior.means[0] + (x.alpha**2 + (x.sigma / prior.std) ** 2).sqrt() * (z - prior.means[0])
        errors.append(float((x.z_t - exact).abs().max() / exact.abs().max()))
    assert errors[1] < 0.05 and errors[0] / errors[1] == pytest.approx(2, rel=0.15)


def test_inversion_walks_an_even_grid_from_the_clean_latent():
    prior = analytic_prior(dtype=F64)
    mix = Cfg(3.0, "negative")
    z, (x, asked) = invert(prior, 0.6, 3, mix)
    assert [float(here.t[0]) for here, _ in asked] == pytest.approx([1e-3, 0.2, 0.4]) and x.t[0] == prior.snap(x.t)[0]
    start = asked[0][0]
    assert torch.equal(start.z_t, z) and (start.alpha == 1).all() and (start.sigma == 0).all()
    assert start.alpha.shape == start.sigma.shape == (2, 1, 1, 1)
    places = [*(here for here, _ in asked), x]
    told = conditions(prior, 2)
    for (here, eps), there in zip(asked, places[1:], strict=True):
        e = prior.predict(here.ask(told, "cond", "negative"))
        torch.testing.assert_close(eps, e["negative"] + 3 * (e["cond"] - e["negative"]))
        torch.testing.assert_close(there.z_t, ddim_step(here, eps, there.alpha, there.sigma))
        torch.testing.assert_close(there.z_t, there.alpha * z + there.sigma * there.eps)
    assert float(x.t[0]) == float(torch.tensor(0.6)), "the walk ends at t to the bit"


def test_inversion_keeps_what_the_prior_is_certain_of():
    """A prior that knows the very picture puts no noise into it: x_t = alpha x_0 on the whole way."""
    prior = analytic_prior(std=0.0, dtype=F64)
    z = prior.means[:1]
    x, _ = ddim_invert(prior, z, conditions(prior, 1), Step(0), torch.tensor([0.8]), 5, Alone("cond"))
    torch.testing.assert_close(x.z_t, x.alpha * z, rtol=0, atol=0.02)


def test_inversion_draws_only_the_noise_of_eta():
    prior = analytic_prior(dtype=F64)
    still = [invert(prior, 0.6, 3, step=Step(seed))[1][0].z_t for seed in (0, 1)]
    moved = [invert(prior, 0.6, 3, step=Step(seed), eta=0.3)[1][0].z_t for seed in (0, 1)]
    assert torch.equal(*still) and not torch.equal(*moved)
    _, (x, asked) = invert(prior, 0.6, 1, eta=1.0, rows=40)
    added = x.z_t - ddim_step(*asked[0], x.alpha, x.sigma)
    assert added.abs().max() == 0, "a clean latent has no noise to exchange"
    _, (x, asked) = invert(prior, 0.6, 2, eta=1.0, rows=40)
    here, eps = asked[1]
    added = x.z_t - ddim_step(here, eps, x.alpha, x.sigma)
    std = ddim_std((here.alpha, here.sigma), (x.alpha, x.sigma))
    assert float(added.std() / std[0]) == pytest.approx(1, abs=0.05)
    vp = here.sigma / x.sigma * (1 - (x.alpha / here.alpha) ** 2).sqrt()
    torch.testing.assert_close(std, vp, rtol=1e-5, atol=0)


def test_a_batch_is_inverted_as_its_groups_are():
    prior = analytic_prior(group=4, dtype=F64)
    told = conditions(prior, 8)
    t = torch.tensor([0.3] * 4 + [0.8] * 4)
    whole, _ = ddim_invert(prior, latent(8), told, Step(1), t, 3, Alone("cond"), 0.5)
    second, _ = ddim_invert(
        prior, latent(8)[4:], conditions(prior, 4), replace(Step(1), row=4), t[4:], 3, Alone("cond"), 0.5
    )
    torch.testing.assert_close(whole.z_t[4:], second.z_t)


def test_a_mix_that_divides_by_sigma_can_guide_an_inversion():
    _, (x, _) = invert(analytic_prior(dtype=F64), 0.5, 2, Rescale(Cfg(3.0), 0.5))
    assert x.z_t.isfinite().all() and x.eps.isfinite().all()


def test_an_inversion_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="at least one step, given 0"):
        invert(analytic_prior(dtype=F64), 0.5, 0)


def test_what_is_reached_is_a_noising_of_where_it_began():
    prior = analytic_prior(dtype=F64)
    z, eps = latent(4), Step(1).normal("eps", latent(4))
    x = add_noise(prior, z, torch.full((4,), 0.4), eps)
    y = reached(prior, z, x.z_t, x.t)
    torch.testing.assert_close(y.eps, eps)
    assert torch.equal(y.z_t, x.z_t) and torch.equal(y.alpha, level(prior, x.t, z)[0])


def test_asking_names_what_is_known():
    x = Noised(torch.zeros(1, 1), torch.zeros(1), *(torch.zeros(1, 1) for _ in range(3)))
    known = {"cond": Condition(torch.zeros(1, 1, 1))}
    assert set(x.ask(known, "cond", again="cond")) == {"cond", "again"}
    with pytest.raises(ValueError, match='"uncond".*known are: cond'):
        x.ask(known, "uncond")
