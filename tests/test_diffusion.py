"""The one convention: its identities in float64, the draws of times, and DDIM on a prior that is known exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sds3d.core import Condition, Noised, Step
from sds3d.diffusion import (
    ddim_sample,
    ddim_step,
    diffuse,
    draw_t,
    eps_from_v,
    eps_from_x0,
    v_from_eps,
    x0_from_eps,
)
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
        z = ddim_sample(prior, latent(2), asked, 40, 3.0, prior.data_range)
        assert (z - prior.means[row]).abs().max() < 0.1 and z.abs().max() <= 1


def test_asking_names_what_is_known():
    x = Noised(torch.zeros(1, 1), torch.zeros(1), *(torch.zeros(1, 1) for _ in range(3)))
    known = {"cond": Condition(torch.zeros(1, 1, 1))}
    assert set(x.ask(known, "cond", again="cond")) == {"cond", "again"}
    with pytest.raises(ValueError, match='"uncond".*known are: cond'):
        x.ask(known, "uncond")
