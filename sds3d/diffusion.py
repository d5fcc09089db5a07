"""The one convention of diffusion: x_t = alpha x_0 + sigma eps, alpha^2 + sigma^2 = 1, the network answers with eps.

| symbol        | variable     | equation                                     |
|---------------|--------------|----------------------------------------------|
| x_t           | z_t          | alpha x_0 + sigma eps                        |
| X(E)          | x0_from_eps  | (x_t - sigma E) / alpha                      |
| v-prediction  | eps_from_v   | E = alpha v + sigma x_t (Salimans, Ho 2022)  |
| DDIM          | ddim_step    | x_t' = alpha' X(E) + sigma' E, eta = 0 (Song et al. 2020) |
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .core import Condition, Noised, Prior, Step


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


def draw_t(prior: Prior, n: int, step: Step, t: tuple[float, float]) -> Tensor:
    """One time per row, uniform in [t_min, t_max], snapped to the prior's grid; a group takes its first row's.

    Raises ValueError when n is not a multiple of the prior's group or the range is not within [0, 1].
    """
    low, high = t
    if not 0 <= low <= high <= 1:
        raise ValueError(f"t must be a range within [0, 1], given {low} to {high}.")
    if n % prior.group:
        raise ValueError(f"This prior denoises {prior.group} views jointly; {n} rows are not a multiple of it.")
    u = step.uniform("t", n)
    first = torch.arange(n) // prior.group * prior.group
    return prior.snap(low + (high - low) * u[first])


def diffuse(prior: Prior, z: Tensor, step: Step, t: tuple[float, float], like: Noised | None = None) -> Noised:
    """Noise z [N, c, *s] to a random time in the range t. `like` reuses another batch's times and noise.

    Not differentiable: the returned z_t is detached, as every score-distillation gradient wants it.
    """
    z = z.detach()
    if like is not None:
        return Noised(like.alpha * z + like.sigma * like.eps, like.t, like.eps, like.alpha, like.sigma)
    times = draw_t(prior, z.shape[0], step, t).to(z.device)
    eps = step.normal("eps", z)
    alpha, sigma = (level.to(z) for level in prior.noise_level(times))
    return Noised(alpha * z + sigma * eps, times, eps, alpha, sigma)


def ddim_step(x: Noised, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The deterministic DDIM move of x to the level (alpha, sigma), given the prediction eps at x."""
    return alpha * x0_from_eps(x.z_t, eps, x.alpha, x.sigma) + sigma * eps


@torch.no_grad()
def ddim_sample(
    prior: Prior,
    noise: Tensor,
    conditions: Mapping[str, Condition],
    steps: int,
    scale: float,
    clamp: float | None = None,
) -> Tensor:
    """Draw clean latents from pure noise [N, c, *s] by DDIM with classifier-free guidance.

    conditions holds "cond" and "uncond". scale: E_uncond + scale (E_cond - E_uncond). clamp: bound on |x_0| at each
    step, for pixel priors; None leaves it free. Times run from 1 to 0 in equal steps, snapped to the prior's grid.
    """
    grid = prior.snap(torch.linspace(1, 0, steps + 1)[:-1])
    ones = torch.ones(noise.shape[0])
    z, x0 = noise, noise
    for i, t in enumerate(grid):
        alpha, sigma = (level.to(noise) for level in prior.noise_level(ones * t))
        x = Noised(z, (ones * t).to(noise.device), noise, alpha, sigma)
        answers = prior.predict(x.ask(conditions, "cond", "uncond"))
        eps = answers["uncond"] + scale * (answers["cond"] - answers["uncond"])
        x0 = x0_from_eps(z, eps, alpha, sigma)
        if clamp is not None:
            x0 = x0.clamp(-clamp, clamp)
            eps = eps_from_x0(z, x0, alpha, sigma)
        if i + 1 < steps:
            alpha, sigma = (level.to(noise) for level in prior.noise_level(ones * grid[i + 1]))
            z = alpha * x0 + sigma * eps
    return x0
