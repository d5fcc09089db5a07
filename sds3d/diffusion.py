"""The one convention of diffusion: x_t = alpha x_0 + sigma eps, and the network answers with eps.

| symbol        | variable      | equation                                                             |
|---------------|---------------|----------------------------------------------------------------------|
| x_t           | z_t           | alpha x_0 + sigma eps                                                |
| X(E)          | x0_from_eps   | (x_t - sigma E) / alpha                                              |
| v-prediction  | eps_from_v    | E = alpha v + sigma x_t (Salimans, Ho 2022)                          |
| DDIM          | ddim_step     | x_t' = alpha' X(E) + sigma' E, eta = 0 (Song et al. 2020)            |
| DDIM, eta     | ddim_std      | sigma_lo / sigma_hi sqrt(sigma_hi^2 - (alpha_hi / alpha_lo)^2 sigma_lo^2) |

A model is variance preserving, alpha^2 + sigma^2 = 1, or a rectified flow, alpha + sigma = 1 (Liu et al. 2022). Only
the two formulas of v-prediction need the former; everything else here holds for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from .core import Condition, Mix, Noised, Prior, Step


def x0_from_eps(z_t: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """X(E) = (x_t - sigma E) / alpha: the clean latent that a noise prediction implies."""
    return (z_t - sigma * eps) / alpha


def eps_from_x0(z_t: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise that a clean latent implies, E = (x_t - alpha x_0) / sigma; sigma must not be 0."""
    return (z_t - alpha * x0) / sigma


def eps_from_v(z_t: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E = alpha v + sigma x_t for a v-prediction model."""
    return alpha * v + sigma * z_t


def v_from_eps(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """v = alpha eps - sigma x_0: the target a v-prediction model is trained on."""
    return alpha * eps - sigma * x0


def draw_shared(prior: Prior, n: int, step: Step, name: str) -> Tensor:
    """One uniform number in [0, 1) per row, on the CPU; a group takes its first row's.

    Raises ValueError when n is not a multiple of the prior's group.
    """
    if n % prior.group:
        raise ValueError(f"This prior denoises {prior.group} views jointly; {n} rows are not a multiple of it.")
    return step.uniform(name, n)[torch.arange(n) // prior.group * prior.group]


def draw_t(prior: Prior, n: int, step: Step, t: tuple[float, float]) -> Tensor:
    """One time per row, uniform in [t_min, t_max], snapped to the prior's grid; a group takes its first row's.

    Raises ValueError when n is not a multiple of the prior's group or the range is not within [0, 1].
    """
    low, high = t
    if not 0 <= low <= high <= 1:
        raise ValueError(f"t must be a range within [0, 1], given {low} to {high}.")
    return prior.snap(low + (high - low) * draw_shared(prior, n, step, "t"))


def level(prior: Prior, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at t [N], each [N, 1, ...] in the dtype and on the device of the latents `like`."""
    alpha, sigma = prior.noise_level(t)
    return alpha.to(like), sigma.to(like)


def add_noise(prior: Prior, z: Tensor, t: Tensor, eps: Tensor) -> Noised:
    """z [N, c, *s] under the noise eps at the times t [N]; z is detached."""
    alpha, sigma = level(prior, t, z)
    return Noised(alpha * z.detach() + sigma * eps, t, eps, alpha, sigma)


def reached(prior: Prior, z: Tensor, z_t: Tensor, t: Tensor) -> Noised:
    """z_t at the times t [N], read as a noising of z: its eps is what lies between, (z_t - alpha z) / sigma."""
    alpha, sigma = level(prior, t, z)
    return Noised(z_t, t, eps_from_x0(z_t, z.detach(), alpha, sigma), alpha, sigma)


def diffuse(prior: Prior, z: Tensor, step: Step, t: tuple[float, float], like: Noised | None = None) -> Noised:
    """Noise z [N, c, *s] to a random time in the range t. `like` reuses another batch's times and noise.

    Not differentiable: the returned z_t is detached, as every score-distillation gradient wants it.
    """
    z = z.detach()
    if like is not None:
        return Noised(like.alpha * z + like.sigma * like.eps, like.t, like.eps, like.alpha, like.sigma)
    return add_noise(prior, z, draw_t(prior, z.shape[0], step, t).to(z.device), step.normal("eps", z))


def ddim_step(x: Noised, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The deterministic DDIM move of x to the level (alpha, sigma), given the prediction eps at x."""
    return alpha * x0_from_eps(x.z_t, eps, x.alpha, x.sigma) + sigma * eps


def ddim_std(low: tuple[Tensor, Tensor], high: tuple[Tensor, Tensor]) -> Tensor:
    """The spread of the noise that eta = 1 adds between two levels (alpha, sigma), of which `high` has more noise."""
    (alpha_low, sigma_low), (alpha_high, sigma_high) = low, high
    variance = sigma_high**2 - (alpha_high / alpha_low) ** 2 * sigma_low**2
    return sigma_low / sigma_high * variance.clamp_min(0).sqrt()


@torch.no_grad()
def ddim_invert(
    prior: Prior,
    z: Tensor,
    conditions: Mapping[str, Condition],
    step: Step,
    t: Tensor,
    steps: int,
    mix: Mix,
    eta: float = 0.0,
) -> tuple[Noised, list[tuple[Noised, Tensor]]]:
    """Walk DDIM backwards from clean z [N, c, *s] to the times t [N]: the noise that the prior itself would take away.

    The grid is t k / steps in every row, k = 0 ... steps, so every row costs the same `steps` forwards. At k = 0 stands
    z itself, at alpha = 1 and sigma = 0 exactly, whatever the prior's least level is, where the network is asked: X(E)
    is then z, and no step divides by a sigma that vanishes. mix: the guidance of the walk. eta: how much fresh noise
    follows each step, in units of `ddim_std`; it comes on top, as in SDI's code, and 0 draws nothing.

    Returns where it arrived, read as a noising of z, and each place it was asked at with the guided prediction there.
    Raises ValueError for less than one step.
    """
    if steps < 1:
        raise ValueError(f"An inversion needs at least one step, given {steps}.")
    z = z.detach()
    one = z.new_ones(z.shape[0], *[1] * (z.dim() - 1))
    here = Noised(z, prior.snap(0 * t), torch.zeros_like(z), one, 0 * one)
    asked = []
    for k in range(steps):
        alpha, sigma = level(prior, here.t, z)
        seen = replace(here, alpha=alpha, sigma=sigma)  # What the network takes it for; a mix may divide by sigma.
        eps = mix(prior.predict(seen.ask(conditions, *mix.names)), conditions, seen, prior.group)
        asked.append((here, eps))
        to = prior.snap(t * ((k + 1) / steps))  # The last factor is 1, so the walk ends at t to the bit.
        there = level(prior, to, z)
        z_t = ddim_step(here, eps, *there)
        if eta:
            z_t = z_t + eta * ddim_std((here.alpha, here.sigma), there) * step.normal(f"eta {k}", z)
        here = reached(prior, z, z_t, to)
    return here, asked


@torch.no_grad()
def ddim_sample(prior: Prior, noise: Tensor, conditions: Mapping[str, Condition], mix: Mix, steps: int) -> Tensor:
    """Draw clean latents from pure noise [N, c, *s] by DDIM under a guidance.

    Times run from 1 to 0 in equal steps, snapped to the prior's grid. x_0 is kept within the prior's data range at each
    step where it has one.
    """
    bound = prior.data_range
    grid = prior.snap(torch.linspace(1, 0, steps + 1)[:-1])
    ones = torch.ones(noise.shape[0])
    z, x0 = noise, noise
    for i, t in enumerate(grid):
        alpha, sigma = level(prior, ones * t, noise)
        x = Noised(z, (ones * t).to(noise.device), noise, alpha, sigma)
        eps = mix(prior.predict(x.ask(conditions, *mix.names)), conditions, x, prior.group)
        x0 = x0_from_eps(z, eps, alpha, sigma)
        if bound is not None:
            x0 = x0.clamp(-bound, bound)
            eps = eps_from_x0(z, x0, alpha, sigma)
        if i + 1 < steps:
            alpha, sigma = level(prior, ones * grid[i + 1], noise)
            z = alpha * x0 + sigma * eps
    return x0
