"""Editing terms: DDS, PDS and IESD, by their identities on an exact prior and on random denoisers, in float64."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from test_guidance import image, linear_prior

from sds3d.core import Query, Step
from sds3d.diffusion import diffuse, x0_from_eps
from sds3d.guidance.dds import Dds, ask_pair
from sds3d.guidance.iesd import Iesd
from sds3d.guidance.mix import Cfg, Rescale
from sds3d.guidance.pds import Pds, posterior
from sds3d.guidance.sds import WEIGHTS, Sds
from sds3d.priors.analytic import AnalyticPrior
from sds3d.recipes import build, read
from sds3d.schedules import Range
from sds3d.schema import to_data
from sds3d.testing import GuidanceLaws, analytic_prior, conditions, views

F64 = torch.float64
NAMES = frozenset({"cond", "uncond", "source"})
ASKED = {"cond": "red", "uncond": "", "source": "blue"}
CLOSE = {"rtol": 1e-8, "atol": 1e-8}
PRIORS = pytest.mark.parametrize("prior", [analytic_prior(dtype=F64), linear_prior()], ids=["analytic", "linear"])
EDITS = [Dds(), Dds("sigma2", Rescale(Cfg(5.0), 0.3)), Pds(), Pds(1), Iesd(), Iesd("eps", mix=Rescale(Cfg(5.0), 0.3))]


def source() -> torch.Tensor:
    return image().flip(1)


def guide(method, prior, asked=ASKED, of=None, step=Step(0)):  # noqa: B008, a step is frozen
    seen = views(image(), source() if of is None else of)
    return method(prior, seen, conditions(prior, 4, asked), step, {})


def predictions(prior, mix, t):
    """x, x_s and the guided predictions E, E_s, written out once more with two forwards."""
    z, z_s = prior.encode(image()), prior.encode(source())
    x = diffuse(prior, z, Step(0), t(0.0))
    x_s = diffuse(prior, z_s, Step(0), t(0.0), like=x)
    told = conditions(prior, 4, ASKED)
    e = prior.predict(x.ask(told, "cond", "uncond"))
    e_s = prior.predict(x_s.ask(told, "uncond", cond="source"))
    return z, z_s, x, x_s, mix(e, told, x, 1), mix(e_s, told, x_s, 1)


def changed(prior, **methods):
    """The prior with other methods: for example times in float64, whose levels are as exact as everything else."""
    other = replace(prior)
    for name, method in methods.items():
        object.__setattr__(other, name, method)
    return other


# ---- DDS ------------------------------------------------------------------------------------------------------------


@PRIORS
@pytest.mark.parametrize("weighting", WEIGHTS)
def test_dds_is_the_difference_of_two_scores(prior, weighting):
    dds = Dds(weighting)
    _, _, x, x_s, e, e_s = predictions(prior, dds.mix, dds.t)
    assert torch.equal(x.t, x_s.t) and torch.equal(x.eps, x_s.eps)
    torch.testing.assert_close(guide(dds, prior).grad, WEIGHTS[weighting](x.alpha, x.sigma) * (e - e_s), **CLOSE)


@PRIORS
def test_dds_pulls_toward_the_source_moved_by_what_the_predictions_differ_in(prior):
    """(a / s) (x - X) with X = x_s + X(E) - X(E_s) is the same gradient, and X is the record's target."""
    dds = Dds()
    z, z_s, x, x_s, e, e_s = predictions(prior, dds.mix, dds.t)
    target = z_s + x0_from_eps(x.z_t, e, x.alpha, x.sigma) - x0_from_eps(x_s.z_t, e_s, x.alpha, x.sigma)
    guided = guide(dds, prior)
    torch.testing.assert_close(guided.target, target, **CLOSE)
    torch.testing.assert_close(guided.grad, x.alpha / x.sigma * (z - target), **CLOSE)


@PRIORS
def test_dds_without_the_source_is_sds(prior):
    """Its "edit" part is SDS with w = 1; what is left is minus the SDS of the source."""
    for weighting in ("uniform", "sigma2"):
        parts = guide(Dds(weighting, t=Range(0.1, 0.8)), prior).parts
        sds = Sds("eps", weighting, mix=Cfg(7.5), t=Range(0.1, 0.8))
        torch.testing.assert_close(parts["edit"], guide(sds, prior).grad, **CLOSE)
        told = {**ASKED, "cond": "blue"}
        of_source = sds(prior, views(source()), conditions(prior, 4, told), Step(0), {}).grad
        torch.testing.assert_close(parts["source"], -of_source, **CLOSE)


# ---- PDS ------------------------------------------------------------------------------------------------------------


@PRIORS
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_pds_is_the_difference_of_two_posterior_noises(prior, stride):
    """z_p = (x_t' - mu) / s with one eps' for both, written out from the definition; not by psi and chi."""
    pds, snap = Pds(stride), prior.snap
    prior = changed(prior, snap=lambda t: snap(t.double()))
    z, z_s, x, x_s, e, e_s = predictions(prior, pds.mix, pds.t)
    unit = 1 / (pds.steps - 1)
    levels = [prior.noise_level(x.t.double() - k * unit) for k in (0, 1, stride)]
    (a, _), (a1, _), (a2, s2) = levels
    beta = 1 - (a / a1) ** 2
    c0 = a2 * beta / (1 - a**2)
    c1 = (a / a1) * (1 - a2**2) / (1 - a**2)
    spread = ((1 - a2**2) / (1 - a**2) * beta).sqrt()
    later = Step(4).normal("later", z)

    def noise(clean, x, e):
        mu = c0 * x0_from_eps(x.z_t, e, x.alpha, x.sigma) + c1 * x.z_t
        return (a2 * clean + s2 * later - mu) / spread

    torch.testing.assert_close(guide(pds, prior).grad, noise(z, x, e) - noise(z_s, x_s, e_s), rtol=1e-6, atol=1e-6)


@PRIORS
def test_pds_of_stride_one_is_dds_times_chi(prior):
    pds = Pds(1)
    guided, x = guide(pds, prior), predictions(prior, pds.mix, pds.t)[2]
    chi = posterior(prior, x.t, 1, pds.steps).chi
    dds = guide(Dds(mix=pds.mix, t=pds.t), prior)
    assert guided.parts["identity"].abs().max() < 1e-8 * guided.grad.abs().max()
    torch.testing.assert_close(guided.grad, chi * dds.grad, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(guided.target, dds.target, rtol=1e-7, atol=1e-8)


@PRIORS
def test_pds_of_equal_predictions_is_the_identity_term(prior):
    """A denoiser that knows the clean picture and a difference that it does not see: E - E_s = 0, G = psi (x - x_s)."""
    blind = changed(prior, eps=lambda query: torch.ones_like(query.z_t))
    guided = guide(Pds(2), blind)
    x = diffuse(blind, blind.encode(image()), Step(0), Pds().t(0.0))
    psi = posterior(blind, x.t, 2, 1000).psi
    assert (psi > 0).all()
    torch.testing.assert_close(guided.grad, psi * (blind.encode(image()) - blind.encode(source())), **CLOSE)


@dataclass(frozen=True, eq=False)
class StableDiffusionLevels(AnalyticPrior):
    """The noise levels of Stable Diffusion: betas scaled linear from 0.00085 to 0.012, 1000 of them."""

    def noise_level(self, t):
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=F64) ** 2
        abar = (1 - betas).cumprod(0)[(t * 999).round().long()].reshape(-1, 1, 1, 1)
        return abar.sqrt(), (1 - abar).sqrt()


def test_pds_has_the_measured_numbers_on_stable_diffusions_levels():
    """psi and chi at stride 2 against figures that were computed apart from this code."""
    exact = analytic_prior(dtype=F64)
    prior = StableDiffusionLevels(exact.means, exact.std, exact.names)
    t = torch.tensor([20, 100, 300, 500, 900]).double() / 999
    numbers = posterior(prior, t, 2, 1000)
    psi, chi = numbers.psi.flatten(), numbers.chi.flatten()
    torch.testing.assert_close(psi, torch.tensor([1.70, 0.318, 0.0798, 0.0322, 0.0062], dtype=F64), rtol=0.01, atol=0)
    torch.testing.assert_close(chi, torch.tensor([0.237, 0.116, 0.084, 0.082, 0.103], dtype=F64), rtol=0.01, atol=0)
    assert posterior(prior, t, 1, 1000).psi.abs().max() < 1e-10


# ---- IESD -----------------------------------------------------------------------------------------------------------


@PRIORS
@pytest.mark.parametrize("form", ["eps", "x0"])
def test_iesd_ends_in_sds_and_is_affine_between(prior, form):
    low, mid, high = (guide(Iesd(form, share=share), prior).grad for share in (0.0, 0.25, 1.0))
    sds = Sds(form, "alpha_sigma2", mix=Cfg(7.5))
    torch.testing.assert_close(high, guide(sds, prior).grad, **CLOSE)
    torch.testing.assert_close(low, guide(sds, prior, {**ASKED, "cond": "blue"}).grad, **CLOSE)
    torch.testing.assert_close(mid, 0.75 * low + 0.25 * high, **CLOSE)
    assert (high - low).abs().max() > 0.01


@PRIORS
def test_iesd_of_one_prompt_does_not_depend_on_the_share(prior):
    grads = [guide(Iesd(share=share), prior, {**ASKED, "cond": "blue"}).grad for share in (0.0, 0.4, 1.0)]
    torch.testing.assert_close(grads[0], grads[1], **CLOSE)
    torch.testing.assert_close(grads[0], grads[2], **CLOSE)


# ---- what all keep --------------------------------------------------------------------------------------------------


@PRIORS
@pytest.mark.parametrize("method", [Dds(), Dds("sigma2"), Pds(1), Pds(3)], ids=str)
def test_nothing_to_edit_gives_no_gradient(prior, method):
    """The source itself under its own prompt: exactly zero, because the noise is shared."""
    guided = guide(method, prior, {**ASKED, "cond": "blue"}, of=image())
    assert torch.equal(guided.grad, torch.zeros_like(guided.grad))


@PRIORS
@pytest.mark.parametrize("method", EDITS, ids=str)
def test_the_parts_and_the_target_are_the_gradient(prior, method):
    guided = guide(method, prior)
    torch.testing.assert_close(sum(guided.parts.values()), guided.grad, **CLOSE)
    pull = guided.pull().reshape(-1, 1, 1, 1)
    at = guided.at.detach().requires_grad_()
    (squared,) = torch.autograd.grad((pull / 2 * (at - guided.target) ** 2).sum(), at)
    assert (pull > 0).all()
    torch.testing.assert_close(squared, guided.grad, rtol=1e-6, atol=1e-6)


@dataclass(frozen=True, eq=False)
class Counting(AnalyticPrior):
    """Notes the names and the rows of every forward."""

    waves: list = field(default_factory=list)

    def predict(self, queries: dict[str, Query]):
        self.waves.append({name: len(query.z_t) for name, query in queries.items()})
        return super().predict(queries)


@pytest.mark.parametrize(
    ("method", "names"),
    [
        (Dds(), {"cond", "uncond", "source", "source_uncond"}),
        (Pds(), {"cond", "uncond", "source", "source_uncond"}),
        (Iesd(), {"cond", "uncond", "source"}),
    ],
    ids=str,
)
def test_one_forward_with_the_fewest_rows(method, names):
    exact = analytic_prior()
    prior = Counting(exact.means, exact.std, exact.names)
    method(prior, views(image().float(), source().float()), conditions(prior, 4, ASKED), Step(0), {})
    assert prior.waves == [dict.fromkeys(prior.waves[0], 4)] and set(prior.waves[0]) == names


@pytest.mark.parametrize("method", EDITS, ids=str)
def test_what_a_term_lacks_is_refused_before_the_run(method):
    prior, name = analytic_prior(), type(method).__name__.upper()
    method.check(prior, NAMES)
    with pytest.raises(ValueError, match=f"{name} .*source"):
        method.check(prior, NAMES - {"source"})
    with pytest.raises(ValueError, match=f'{name} needs the condition "uncond"'):
        method.check(prior, NAMES - {"uncond"})


def test_views_without_a_source_are_refused():
    prior = analytic_prior()
    with pytest.raises(ValueError, match=r"views\.source"):
        ask_pair(prior, views(image().float()), conditions(prior, 4, ASKED), Cfg(), (0.1, 0.9), Step(0))


@dataclass(frozen=True, eq=False)
class Coarse(AnalyticPrior):
    """A hundred noise levels."""

    def snap(self, t):
        return (super().snap(t) * 99).round() / 99


def test_pds_refuses_a_grid_that_the_prior_does_not_have():
    exact = analytic_prior(dtype=F64)
    prior = Coarse(exact.means, exact.std, exact.names)
    with pytest.raises(ValueError, match="as many noise levels"):
        Pds().check(prior, NAMES)
    Pds(steps=100, t=Range(0.05, 0.9)).check(prior, NAMES)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Dds("sigma"), "weighting must be one of sigma2"),
        (lambda: Dds(t=Range(0.5, 0.2)), "t must be a range"),
        (lambda: Pds(0), "stride must be 1 to 999"),
        (lambda: Pds(5, t=Range(0.005, 0.9)), "5 steps of 1000 above 0"),
        (lambda: Iesd(share=1.5), r"share must lie in \[0, 1\]"),
        (lambda: Iesd("eps", clamp=True), "clamp"),
    ],
)
def test_values_out_of_range_are_refused(make, said, unchecked):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("method", EDITS, ids=str)
def test_a_recipe_can_say_it(method):
    data = read("gaussians")
    data["stages"]["shape"]["guidance"] = {"main": to_data(method)}
    assert build(data).stages["shape"].guidance["main"].guidance == method


class TestDds(GuidanceLaws):
    guidance = Dds()


class TestPds(GuidanceLaws):
    guidance = Pds()


class TestIesd(GuidanceLaws):
    guidance = Iesd()
