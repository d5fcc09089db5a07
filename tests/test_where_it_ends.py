"""Where score distillation ends: at stable zeros that quadrature finds, and with 256 particles of one Gaussian."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from test_learners import Fast

from sds3d.core import Condition, Guidance, Step
from sds3d.guidance.bsd import Bsd
from sds3d.guidance.csd import Csd
from sds3d.guidance.esd import Esd
from sds3d.guidance.fake import Fake
from sds3d.guidance.mix import Cfg
from sds3d.guidance.sds import Sds
from sds3d.guidance.vsd import Vsd
from sds3d.priors.analytic import AnalyticPrior
from sds3d.schedules import Range
from sds3d.testing import analytic_prior, conditions, views

F64 = torch.float64


# ---- stable zeros ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nodes(Step):
    """A step that draws the nodes of a quadrature: row i has the i-th time and the i-th noise."""

    def __init__(self, u: torch.Tensor, noise: torch.Tensor) -> None:
        Step.__init__(self, 0)
        object.__setattr__(self, "given", (u, noise))

    def normal(self, name, like, fixed=False):
        return self.given[1].reshape(like.shape)

    def uniform(self, name, n, fixed=False):
        return self.given[0]


def three() -> AnalyticPrior:
    """One pixel whose first channel has three likely values; its other two channels are plain Gaussians at 0."""
    means = torch.zeros(3, 3, 1, 1, dtype=F64)
    means[:, 0, 0, 0] = torch.tensor([-1.0, 0.1, 0.7])
    return AnalyticPrior(means, 0.15, ("low", "middle", "high"))


def pixel(value: float, rows: int) -> torch.Tensor:
    return torch.tensor([value / 2 + 0.5, 0.5, 0.5], dtype=F64).expand(rows, 1, 1, 3)


def expected_gradient(method: Guidance, prior: AnalyticPrior, value: float, prompt: str) -> float:
    """The first channel's gradient at (value, 0, 0), over time by Gauss-Legendre and noise by Gauss-Hermite."""
    import numpy as np

    u, wu = (torch.as_tensor(part) for part in np.polynomial.legendre.leggauss(12))
    n, wn = (torch.as_tensor(part) for part in np.polynomial.hermite_e.hermegauss(7))
    grid = torch.stack(torch.meshgrid((u + 1) / 2, n, n, n, indexing="ij"), -1).reshape(-1, 4)
    weight = torch.einsum("a,b,c,d->abcd", wu / wu.sum(), *[wn / wn.sum()] * 3).reshape(-1)
    told = {
        name: Condition(prior.text([text]).expand(len(grid), -1, -1))
        for name, text in (("cond", prompt), ("uncond", ""))
    }
    step = Nodes(grid[:, 0], grid[:, 1:])
    return float(weight @ method(prior, views(pixel(value, len(grid))), told, step, {}).grad[:, 0, 0, 0])


def stable_zeros(method: Guidance, prior: AnalyticPrior, prompt: str) -> list[float]:
    """Where the expected gradient passes from negative to positive within [-1.5, 1.5], by bisection."""
    grid = torch.linspace(-1.5, 1.5, 21).tolist()
    values = [expected_gradient(method, prior, value, prompt) for value in grid]
    zeros = []
    for low, high, before, after in zip(grid, grid[1:], values, values[1:], strict=False):
        if before < 0 <= after:
            for _ in range(8):
                middle = (low + high) / 2
                low, high = (middle, high) if expected_gradient(method, prior, middle, prompt) < 0 else (low, middle)
            zeros.append((low + high) / 2)
    return zeros


@pytest.mark.parametrize(
    ("method", "rate"),
    [
        (Sds("eps", mix=Cfg(1.0), t=Range(0.05, 0.6)), 2.0),
        (Csd(t=Range(0.05, 0.6)), 2.0),
        (Bsd(t=Range(0.05, 0.6)), 0.3),
    ],
    ids=["sds", "csd", "bsd"],
)
def test_it_ends_at_a_stable_zero_of_its_expected_gradient(method, rate):
    prior, prompt, rows, steps = three(), "middle", 24, 120
    zeros = stable_zeros(method, prior, prompt)
    assert zeros
    told = conditions(prior, rows, {"cond": prompt, "uncond": ""})
    ends = []
    for start in (-0.3, 0.5):
        at = torch.tensor([start, 0.0, 0.0], dtype=F64)
        for index in range(steps):
            seen = views((at / 2 + 0.5).expand(rows, 1, 1, 3))
            grad = method(prior, seen, told, Step(0, index=index), {}).grad.mean(0).flatten()
            at = at - rate / (1 + index / 10) * grad
        ends.append(float(at[0]))
    for end in ends:
        assert min(abs(end - zero) for zero in zeros) < 0.05, (ends, zeros)


# ---- 256 particles of one Gaussian ----------------------------------------------------------------------------------

STEP = Step(0, "test")
PARTICLES, SPREAD = 256, 0.5


def settle(guidance: Guidance, start: float, steps: int = 300, rate: float = 0.15) -> torch.Tensor:
    """The covariance [3, 3] where particles end that begin with the spread `start`; their number is their camera.

    A particle is a picture of one pixel. The start has no correlation, because the adapter's Gaussian has one spread.
    """
    prior = AnalyticPrior(torch.full((1, 3, 1, 1), 0.2, dtype=F64), SPREAD, ("it",), camera_size=PARTICLES)
    drawn = Step(4).normal("start", torch.zeros(PARTICLES, 3, dtype=F64))
    drawn = drawn - drawn.mean(0)
    white = drawn @ torch.linalg.cholesky(torch.linalg.inv(torch.cov(drawn.T)))
    place = (start * white - 0.3).reshape(PARTICLES, 1, 1, 3)
    asked = conditions(prior, PARTICLES, {"cond": "it", "uncond": "", "cond_plain": "it"})
    asked["cond_plain"] = replace(asked["cond_plain"], camera=torch.eye(PARTICLES, dtype=F64))
    state, seen = dict(guidance.init(prior, STEP)), views(place)
    for index in range(steps):
        guided = guidance(prior, replace(seen, image=(place + 1) / 2), asked, Fast(0, index=index), state)
        place = place - rate * min(1.0, 3 * (1 - index / steps)) * guided.grad.permute(0, 2, 3, 1)
    return torch.cov(place.reshape(PARTICLES, 3).T)


def strays(covariance: torch.Tensor, variance: float) -> float:
    """How far a covariance is from a variance in every direction: the largest relative error."""
    return float((torch.linalg.eigvalsh(covariance) / variance - 1).abs().max())


LEARN = Fake(lr=0.05, updates=2, camera_dropout=0.5)


@pytest.mark.parametrize("guidance", [Sds("eps", mix=Cfg(1.0)), Vsd(Cfg(1.0), fake=LEARN)], ids=["sds", "vsd"])
def test_particles_collapse_under_a_score_that_knows_each_of_them(guidance, unchecked):
    assert torch.linalg.eigvalsh(settle(guidance, SPREAD)).max() < 0.01 * SPREAD**2


def test_particles_keep_the_covariance_under_the_score_of_all_of_them(unchecked):
    """They begin half again as wide as the prior, and end as wide."""
    assert strays(settle(Esd(1.0, Cfg(1.0), fake=LEARN), 0.8), SPREAD**2) < 0.1


def test_between_the_two_the_covariance_is_known(unchecked):
    """At one time t the particles rest where 1 / v(s) = lam / v(S), v(s) = alpha^2 s^2 + sigma^2.

    So S^2 = lam s^2 - (1 - lam) sigma^2 / alpha^2: told each particle in part, they gather in part.
    """
    lam, t = 0.8, 0.2
    alpha, sigma = (float(level) for level in analytic_prior().noise_level(torch.tensor([t])))
    expected = lam * SPREAD**2 - (1 - lam) * sigma**2 / alpha**2
    given = settle(Esd(lam, Cfg(1.0), "uniform", Range(t, t), LEARN), SPREAD, 250, 0.08)
    # The adapter has one spread, so it holds the mean over directions alone.
    assert abs(float(given.trace()) / 3 / expected - 1) < 0.05 and expected < 0.75 * SPREAD**2
