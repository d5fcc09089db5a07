"""The methods that train no network: their identities on exact priors and random denoisers, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_guidance import image, linear_prior

from sds3d.core import Guidance, Guided, Noised, Query, Step
from sds3d.diffusion import add_noise, ddim_invert, ddim_step, diffuse, level, reached, x0_from_eps
from sds3d.guidance.asd import Asd
from sds3d.guidance.bsd import Bsd, BsdAuto, min_norm_share
from sds3d.guidance.cds import Cds
from sds3d.guidance.csd import Csd
from sds3d.guidance.csm import Csm
from sds3d.guidance.ism import Ism
from sds3d.guidance.mix import Alone, Cfg, PerpNeg, Repel, Rescale, row_dot, spread
from sds3d.guidance.nfsd import Nfsd
from sds3d.guidance.rfds import Rfds, RfdsRev
from sds3d.guidance.sdi import Sdi
from sds3d.guidance.sds import Sds
from sds3d.guidance.weights import WEIGHTS
from sds3d.priors.analytic import AnalyticPrior
from sds3d.priors.flow import AnalyticFlow
from sds3d.schedules import Ramp, Range
from sds3d.testing import GuidanceLaws, analytic_prior, conditions, views

F64 = torch.float64
CLOSE = {"rtol": 1e-8, "atol": 1e-8}
ASKED = {"cond": "red", "uncond": "", "negative": "blue"}
AT = Range(0.6, 0.6)  # one time, so that nothing but the noise is drawn


def flow_prior(std: float = 0.2) -> AnalyticFlow:
    exact = analytic_prior(std=std, dtype=F64)
    return AnalyticFlow(exact.means, exact.std, exact.names)


PRIORS = pytest.mark.parametrize(
    "prior", [analytic_prior(dtype=F64), linear_prior(), flow_prior()], ids=["analytic", "linear", "flow"]
)


def guide(method: Guidance, prior, step=Step(0), asked=ASKED, rows: int = 4, seen=None) -> Guided:  # noqa: B008
    shown = image(rows) if seen is None else seen
    return method(prior, views(shown), conditions(prior, len(shown), asked), step, {})


def asked_at(prior, x: Noised, asked=ASKED) -> Mapping[str, torch.Tensor]:
    """Every prediction at x."""
    return prior.predict(x.ask(conditions(prior, len(x.z_t), asked), *asked))


def noised(prior, t: Range, step=Step(0)) -> tuple[torch.Tensor, Noised]:  # noqa: B008
    """The latent of the views and what `diffuse` makes of it."""
    z = prior.encode(image())
    return z, diffuse(prior, z, step, t(step.progress))


@dataclass(frozen=True, eq=False)
class Recording(AnalyticPrior):
    """Keeps every forward's questions."""

    waves: list[dict[str, Query]] = field(default_factory=list)

    def predict(self, queries):
        self.waves.append(dict(queries))
        return super().predict(queries)


def recording(group: int = 1) -> Recording:
    exact = analytic_prior(group, dtype=F64)
    return Recording(exact.means, exact.std, exact.names, group)


def certain(prior_class: type = AnalyticPrior):
    """A prior that knows two pictures exactly, and the first of them as a view: it predicts the added noise there."""
    exact = analytic_prior(std=0.0, dtype=F64)
    prior = prior_class(exact.means, 0.0, exact.names)
    return prior, prior.decode(prior.means[:1])


# ---- CSD and CSM ----------------------------------------------------------------------------------------------------


@PRIORS
def test_sds_grows_by_csd_with_its_scale(prior):
    """G_SDS(s + 1) - G_SDS(s) = w (E_c - E_0), so CSD is the limit of SDS / s."""
    csd = Csd(t=Range(0.02, 0.98))
    more, less = (guide(Sds("eps", mix=Cfg(s)), prior).grad for s in (8.0, 7.0))
    torch.testing.assert_close(guide(csd, prior).grad, more - less, **CLOSE)
    far = guide(Sds("eps", mix=Cfg(1e9)), prior).grad / 1e9
    torch.testing.assert_close(guide(csd, prior).grad, far, rtol=1e-6, atol=1e-7)


@PRIORS
@pytest.mark.parametrize("weighting", WEIGHTS)
def test_csd_with_the_coefficients_of_sds_is_sds(prior, weighting):
    csd = Csd(7.5, -6.5, 0.0, -1.0, weighting, Range(0.02, 0.98))
    torch.testing.assert_close(guide(csd, prior).grad, guide(Sds("eps", weighting, mix=Cfg(7.5)), prior).grad, **CLOSE)


@PRIORS
def test_no_prompt_has_no_classifier(prior):
    silent = {"cond": "", "uncond": "", "negative": ""}
    for method in (Csd(), Csm()):
        assert guide(method, prior, asked=silent).grad.abs().max() == 0


def test_csd_hands_over_to_the_negative_prompt_and_asks_only_what_counts():
    csd = Csd(uncond=Ramp(-1.0, 0.0), negative=Ramp(0.0, -1.0))
    prior = recording()
    for progress, names in (
        (0.0, {"cond", "uncond"}),
        (0.5, {"cond", "uncond", "negative"}),
        (1.0, {"cond", "negative"}),
    ):
        guide(csd, prior, Step(0, progress=progress))
        assert set(prior.waves[-1]) == names
    with pytest.raises(ValueError, match='"negative"'):
        csd.check(prior, frozenset({"cond", "uncond"}))


@PRIORS
def test_csm_is_csd_where_ddim_leads(prior):
    csm = Csm(3.0, steps=3, t=AT)
    z = prior.encode(image())
    told = conditions(prior, 4)
    x, _ = ddim_invert(prior, z, told, Step(9), prior.snap(torch.full((4,), 0.6)), 3, Alone("uncond"))
    e = asked_at(prior, x)
    torch.testing.assert_close(guide(csm, prior).grad, 3 * x.sigma / x.alpha * (e["cond"] - e["uncond"]), **CLOSE)
    assert torch.equal(guide(csm, prior, Step(1)).grad, guide(csm, prior, Step(2)).grad), "no noise is drawn"


# ---- ISM ------------------------------------------------------------------------------------------------------------


@PRIORS
def test_ism_without_an_interval_is_csm(prior):
    ism, csm = Ism(0.0, 3, Cfg(5.0), t=Range(0.1, 0.9)), Csm(5.0, 3, t=Range(0.1, 0.9))
    torch.testing.assert_close(guide(ism, prior).grad, guide(csm, prior).grad, **CLOSE)


@PRIORS
@pytest.mark.parametrize("base", ["uncond", "negative"])
def test_ism_compares_two_points_of_one_walk(prior, base):
    z, told = prior.encode(image()), conditions(prior, 4)
    s, t = (prior.snap(torch.full((4,), c)) for c in (0.5, 0.6))
    x_s, _ = ddim_invert(prior, z, told, Step(0), s, 2, Alone("uncond"))
    e_s = asked_at(prior, x_s)["uncond"]
    x = reached(prior, z, ddim_step(x_s, e_s, *level(prior, t, z)), t)
    e = asked_at(prior, x)
    expected = x.sigma / x.alpha * (e[base] + 7.5 * (e["cond"] - e[base]) - e_s)
    guided = guide(Ism(0.1, 2, Cfg(7.5, base), t=AT), prior)
    torch.testing.assert_close(guided.grad, expected, rtol=1e-5, atol=1e-5)  # 0.6 - 0.1 in single precision
    plain = guide(Ism(0.1, 2, Cfg(1.0, base), t=AT), prior)
    torch.testing.assert_close(plain.grad, plain.parts["interval"], **CLOSE)


def test_ism_begins_at_the_render_where_t_is_less_than_its_interval():
    prior = recording()
    guide(Ism(0.5, 2, t=Range(0.1, 0.3)), prior)
    times = [next(iter(wave.values())).t for wave in prior.waves]
    assert all((t == prior.snap(torch.zeros(4))).all() for t in times[:3]) and (times[3] >= 0.1).all()


# ---- NFSD -----------------------------------------------------------------------------------------------------------


@PRIORS
def test_nfsd_takes_the_empty_prompt_alone_at_little_noise(prior):
    for t, threshold in ((0.6, 0.7), (0.6, 0.5)):
        nfsd = Nfsd(4.0, threshold, t=Range(t, t))
        _, x = noised(prior, nfsd.t)
        e = asked_at(prior, x)
        domain = e["uncond"] if t < threshold else e["uncond"] - e["negative"]
        torch.testing.assert_close(
            guide(nfsd, prior).grad, x.sigma**2 * (4 * (e["cond"] - e["uncond"]) + domain), **CLOSE
        )


@PRIORS
def test_nfsd_whose_negative_is_empty_is_csd(prior):
    nfsd, csd = Nfsd(4.0, 0.2, t=Range(0.2, 0.9)), Csd(4.0, -4.0, t=Range(0.2, 0.9))
    asked = {**ASKED, "negative": ""}
    torch.testing.assert_close(guide(nfsd, prior, asked=asked).grad, guide(csd, prior).grad, **CLOSE)


def test_nfsd_whose_negative_knows_the_noise_is_sds():
    """The negative prompt means the very picture that is shown, so E_n = eps."""
    prior, shown = certain()
    asked = {"cond": "blue", "uncond": "", "negative": "red"}
    nfsd = guide(Nfsd(4.0, t=Range(0.3, 0.9)), prior, asked=asked, seen=shown)
    sds = guide(Sds("eps", mix=Cfg(4.0), t=Range(0.3, 0.9)), prior, asked=asked, seen=shown)
    torch.testing.assert_close(nfsd.grad, sds.grad, **CLOSE)


# ---- ASD ------------------------------------------------------------------------------------------------------------


@PRIORS
def test_asd_without_reach_is_the_classifier(prior):
    asd, csd = Asd(0.0, Cfg(7.5), t=Range(0.1, 0.9)), Csd(6.5, -6.5, t=Range(0.1, 0.9))
    torch.testing.assert_close(guide(asd, prior).grad, guide(csd, prior).grad, **CLOSE)


def test_asd_compares_with_a_later_time_of_the_same_noise():
    prior = recording()
    asd = Asd(0.5, Cfg(3.0), t=Range(0.2, 0.6))
    guided = guide(asd, prior, rows=64)
    (wave,) = prior.waves
    z = prior.encode(image(64))
    x = diffuse(prior, z, Step(0), (0.2, 0.6))
    later = add_noise(prior, z, wave["later"].t, x.eps)
    torch.testing.assert_close(wave["later"].z_t, later.z_t, **CLOSE)
    share = (wave["later"].t - x.t) / (0.5 * (x.t - 0.2))
    assert share.min() >= -1e-4 and share.max() < 1 + 1e-4 and 0.3 < share.mean() < 0.7
    told = conditions(prior, 64)
    e, e_later = prior.predict(x.ask(told, "cond", "uncond")), prior.predict(later.ask(told, "cond"))["cond"]
    expected = x.sigma**2 * (e["uncond"] + 3 * (e["cond"] - e["uncond"]) - e_later)
    torch.testing.assert_close(guided.grad, expected, **CLOSE)


# ---- SDI ------------------------------------------------------------------------------------------------------------


@PRIORS
def test_sdi_is_the_render_minus_its_clean_picture(prior):
    sdi = Sdi(steps=3, eta=0.3, mix=Cfg(3.0), inversion=Repel(2.0), t=AT)
    z, told = prior.encode(image()), conditions(prior, 4)
    x, _ = ddim_invert(prior, z, told, Step(0), prior.snap(torch.full((4,), 0.6)), 3, Repel(2.0), 0.3)
    e = asked_at(prior, x)
    clean = x0_from_eps(x.z_t, e["uncond"] + 3 * (e["cond"] - e["uncond"]), x.alpha, x.sigma)
    guided = guide(sdi, prior)
    torch.testing.assert_close(guided.grad, z - clean, **CLOSE)
    torch.testing.assert_close(guided.target, clean, **CLOSE)
    eps_form = guide(replace(sdi, form="eps"), prior)
    torch.testing.assert_close(eps_form.grad, guided.grad, **CLOSE)


@pytest.mark.parametrize("make", [lambda: analytic_prior(std=0.5, dtype=F64), lambda: flow_prior(0.5)])
def test_sdi_on_a_gaussian_has_the_closed_form(make):
    """X = mu + (x - mu) / sqrt(1 + sigma^2 / (alpha s)^2): the walk keeps x's quantile, the mean of x_0 shrinks it."""
    prior = make()
    sdi = Sdi(steps=400, eta=0.0, mix=Cfg(1.0), inversion=Alone("cond"), t=AT)
    guided = guide(sdi, prior, rows=1)
    alpha, sigma = level(prior, torch.full((1,), 0.6), guided.at)
    away = guided.at - prior.means[:1]
    shrunk = away / (1 + (sigma / (alpha * prior.std)) ** 2).sqrt()
    assert (guided.target - prior.means[:1] - shrunk).abs().max() < 5e-3 < 0.1 < (away - shrunk).abs().max()


# ---- CDS ------------------------------------------------------------------------------------------------------------


@PRIORS
def test_cds_without_a_gap_is_nothing(prior):
    assert guide(Cds(0.4, Range(0.0, 0.0)), prior).grad.abs().max() < 1e-9


@PRIORS
def test_cds_follows_the_ode_in_the_variance_exploding_form(prior):
    """z_t = x + u n with u = sigma / alpha, z_r = z_t + (u_r - u_t) E(z_t), G = w (E(z_t) - E(z_r))."""
    cds = Cds(0.3, Range(0.2, 0.2), Cfg(3.0), "sigma2")
    z, told, mix = prior.encode(image()), conditions(prior, 4), Cfg(3.0)
    noise = Step(0).normal("noise", z[:1], fixed=True).expand_as(z)
    t, r = (prior.snap(torch.full((4,), c)) for c in (0.5, 0.3))
    (alpha, sigma), (alpha_r, sigma_r) = level(prior, t, z), level(prior, r, z)
    point = z + sigma / alpha * noise
    x = Noised(alpha * point, t, noise, alpha, sigma)
    e = mix(prior.predict(x.ask(told, "cond", "uncond")), told, x, 1)
    lower = point + (sigma_r / alpha_r - sigma / alpha) * e
    y = Noised(alpha_r * lower, r, noise, alpha_r, sigma_r)
    e_r = mix(prior.predict(y.ask(told, "cond", "uncond")), told, y, 1)
    torch.testing.assert_close(guide(cds, prior).grad, sigma**2 * (e - e_r), rtol=1e-6, atol=1e-6)


def test_cds_keeps_one_noise_for_all_views_and_steps():
    prior = recording()
    cds = Cds(0.3, Range(0.2, 0.2))
    z = prior.encode(image(4))
    for step in (Step(0), Step(0, index=7), replace(Step(0), row=4)):
        guide(cds, prior, step)
        x = prior.waves[-2]["cond"]
        alpha, sigma = level(prior, x.t, z)
        noise = (x.z_t - alpha * z) / sigma
        torch.testing.assert_close(noise, noise[:1].expand_as(noise), **CLOSE)
        torch.testing.assert_close(noise[:1], Step(0).normal("noise", z[:1], fixed=True), **CLOSE)


def test_cds_is_content_with_what_the_prior_is_certain_of():
    prior, shown = certain()
    assert guide(Cds(0.3, mix=Cfg(1.0)), prior, seen=shown).grad.abs().max() < 1e-9


def test_the_coded_sign_of_cds_leads_to_the_mean():
    """In expectation over n, G is a positive multiple of x - mu on one Gaussian; the naive sign leads away."""
    prior = analytic_prior(std=0.5, dtype=F64)
    shown = image(1)
    away = prior.encode(shown) - prior.means[:1]
    mean = torch.stack([guide(Cds(0.3, mix=Cfg(1.0)), prior, Step(seed), seen=shown).grad for seed in range(40)]).mean(
        0
    )
    assert (mean * away).sum() / (mean.norm() * away.norm()) > 0.9


# ---- RFDS -----------------------------------------------------------------------------------------------------------


def test_rfds_is_the_residual_of_the_velocity():
    """G = u_cfg - (eps - x) with u = eps - x_0 of each prediction, guided as velocities."""
    prior = flow_prior()
    z, x = noised(prior, AT)
    e = asked_at(prior, x)
    u = {name: eps - x0_from_eps(x.z_t, eps, x.alpha, x.sigma) for name, eps in e.items()}
    expected = u["uncond"] + 5 * (u["cond"] - u["uncond"]) - (x.eps - z)
    for form in ("eps", "x0"):
        torch.testing.assert_close(guide(Rfds(form, mix=Cfg(5.0), t=AT), prior).grad, expected, **CLOSE)
    torch.testing.assert_close(u["cond"] - (x.eps - z), (z - x0_from_eps(x.z_t, e["cond"], x.alpha, x.sigma)) / x.sigma)


def test_a_flow_is_a_diffusion_in_other_units():
    """x_t / (alpha + sigma) is the flow's x_s at s = sigma / (alpha + sigma), and E is the same there."""
    exact = analytic_prior(dtype=F64)
    alpha, sigma = exact.noise_level(torch.tensor([0.6]))
    s = float(sigma / (alpha + sigma))
    for method in (Rfds, RfdsRev):
        diffusion = guide(method(t=AT), exact).grad
        flow = guide(method(t=Range(s, s)), flow_prior()).grad
        torch.testing.assert_close(diffusion, flow, rtol=1e-5, atol=1e-5)  # times are in single precision


def test_rfds_rev_asks_at_the_noise_that_the_prior_sees():
    """eps' = eps + (1 - s) (u_c - (eps - x)), then RFDS with eps'."""
    prior = flow_prior()
    z, x = noised(prior, AT)
    e_c = asked_at(prior, x)["cond"]
    u_c = e_c - x0_from_eps(x.z_t, e_c, x.alpha, x.sigma)
    refined = x.eps + (1 - x.sigma) * (u_c - (x.eps - z))
    y = add_noise(prior, z, x.t, refined)
    e = asked_at(prior, y)
    u = {name: eps - x0_from_eps(y.z_t, eps, y.alpha, y.sigma) for name, eps in e.items()}
    expected = u["uncond"] + 7.5 * (u["cond"] - u["uncond"]) - (refined - z)
    torch.testing.assert_close(guide(RfdsRev(t=AT), prior).grad, expected, **CLOSE)


def test_a_perfect_velocity_is_left_alone():
    prior, shown = certain(AnalyticFlow)
    for method in (Rfds(mix=Cfg(1.0)), RfdsRev(mix=Cfg(1.0))):
        assert guide(method, prior, seen=shown).grad.abs().max() < 1e-9


# ---- BSD ------------------------------------------------------------------------------------------------------------


def two(seed: int, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    c, d = (torch.randn(rows, 2, 2, 2, generator=draw, dtype=F64) for _ in range(2))
    return c, d


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_the_shortest_point_harms_neither_objective(seed, ratio):
    c, d = two(seed)
    c = ratio * c
    share = min_norm_share(c, d)
    g = share * c + (1 - share) * d
    square = row_dot(g, g)
    assert ((share >= 0) & (share <= 1)).all()
    for objective in (c, d):
        assert (row_dot(g, objective) >= square - 1e-9 * row_dot(objective, objective)).all()
    for other in torch.linspace(0, 1, 11, dtype=F64):
        point = other * c + (1 - other) * d
        assert (row_dot(point, point) >= square * (1 - 1e-12)).all()


def test_the_shortest_point_at_its_corners():
    c, d = two(0)
    d = d - row_dot(c, d) / row_dot(c, c) * c
    torch.testing.assert_close(min_norm_share(c, d), row_dot(d, d) / (row_dot(c, c) + row_dot(d, d)), **CLOSE)
    assert torch.equal(min_norm_share(c, c), torch.full((3, 1, 1, 1), 0.5, dtype=F64))
    assert (min_norm_share(1e-9 * c, c) == 1).all() and (min_norm_share(1e9 * c, c) == 0).all()
    shares = [float(min_norm_share(ratio * c, d)[0]) for ratio in (0.01, 1.0, 100.0)]
    assert shares[0] > shares[1] > shares[2], "a larger ratio lowers the classifier's share"
    half = torch.full((1, 4, 64, 64), 60.0).half()
    assert min_norm_share(half, -half) == 0.5, "in half precision a dot product of a latent overflows"


@PRIORS
@pytest.mark.parametrize("base", ["uncond", "negative"])
def test_bsd_is_the_shortest_point_in_each_row(prior, base):
    bsd, auto = Bsd(base, AT, 15.0), BsdAuto(base, AT)
    _, x = noised(prior, AT)
    e = asked_at(prior, x)
    b, error = e[base], e[base] - x.eps
    rms = error.flatten(1).square().mean(1).sqrt().reshape(-1, 1, 1, 1)
    for method, c, d, w in (
        (bsd, 15 * (e["cond"] - b), b, x.alpha),
        (auto, e["cond"] - b, 1.25 * error, 5.12 * x.sigma * rms),
    ):
        rows = []
        for row in range(4):  # the shortest point, one row at a time
            difference = (d - c)[row].flatten()
            a = float((difference @ d[row].flatten() / (difference @ difference)).clamp(0, 1))
            rows.append(a * c[row] + (1 - a) * d[row])
        torch.testing.assert_close(guide(method, prior).grad, w * torch.stack(rows), **CLOSE)


def test_the_automatic_weight_is_the_authors_for_rows_alike():
    """Their weight is the norm of E_b - eps over four latents of 4 x 64 x 64 numbers, times sigma / 50."""
    error = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0)).expand(4, -1, -1, -1)
    sigma = torch.full((4, 1, 1, 1), 0.7)
    x = Noised(error, torch.zeros(4), torch.zeros_like(error), sigma, sigma)
    _, _, w = BsdAuto().objectives(x, error, error)
    torch.testing.assert_close(w, (error.norm() * sigma / 50), rtol=1e-5, atol=0)


# ---- MVDream --------------------------------------------------------------------------------------------------------


def test_mvdream_is_the_render_minus_its_rescaled_target():
    """G = x - k X(E) with k = phi f + 1 - phi; Sds in the x0 form with weighting "recon" and a Rescale mix."""
    prior = replace(linear_prior(), group=4)
    sds = Sds("x0", "recon", clamp=False, mix=Rescale(Cfg(8.0), 0.5))
    z, x = noised(prior, sds.t)
    e = asked_at(prior, x)
    clean, plain = (x0_from_eps(x.z_t, eps, x.alpha, x.sigma) for eps in (Cfg(8.0)(e, {}, x, 4), e["cond"]))
    k = 0.5 * (spread(plain, 4) + 1e-8) / (spread(clean, 4) + 1e-8) + 0.5
    guided = guide(sds, prior)
    torch.testing.assert_close(guided.grad, z - k * clean, **CLOSE)
    torch.testing.assert_close(guided.target, k * clean, **CLOSE)
    assert (k - 1).abs().max() > 0.01


# ---- forwards -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "rows"),
    [
        (Sds(), [2]),
        (Sds(mix=PerpNeg(negatives=("negative",))), [3]),
        (Csd(), [2]),
        (Csd(negative=-0.5, uncond=-0.5), [3]),
        (Csm(steps=4), [1, 1, 1, 1, 2]),
        (Ism(steps=4), [1, 1, 1, 1, 1, 2]),
        (Nfsd(), [3]),
        (Asd(), [3]),
        (Bsd(), [2]),
        (BsdAuto("negative"), [2]),
        (Cds(), [2, 2]),
        (Sdi(steps=10), [2] * 11),
        (Rfds(), [2]),
        (RfdsRev(), [1, 2]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Guidance) else "",
)
def test_a_step_costs_the_forwards_and_rows_that_it_says(method, rows):
    prior = recording(group=4)
    guide(method, prior)
    assert [sum(len(query.z_t) for query in wave.values()) / 4 for wave in prior.waves] == rows


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Csd(weighting="sigma"), "weighting must be one of"),
        (lambda: Csd(t=Range(0.5, 0.2)), "t must be a range"),
        (lambda: Csm(steps=0), "steps must be at least 1"),
        (lambda: Ism(steps=0), "steps must be at least 1"),
        (lambda: Ism(interval=Ramp(0.1, 1.1)), "interval must lie"),
        (lambda: Nfsd(t_low=-0.1), "t_low must lie"),
        (lambda: Asd(reach=1.5), "reach must lie"),
        (lambda: Bsd(ratio=-1.0), "ratio must be"),
        (lambda: Bsd(base="empty"), "base must be one of"),
        (lambda: BsdAuto(t=Range(-0.5, 0.2)), "t must be a range"),
        (lambda: Cds(gap=Range(0.3, 0.1)), "gap must be a range"),
        (lambda: Cds(r=1.2), "r must lie"),
        (lambda: Sdi(eta=-0.1), "eta must be"),
        (lambda: Sdi(steps=0), "steps must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(make, said, unchecked):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("method", [Csm(), Ism(), Sdi()], ids=lambda method: type(method).__name__)
def test_inversion_on_a_video_prior_is_refused(method):
    with pytest.raises(ValueError, match="videos of 8 frames"):
        method.check(replace(analytic_prior(), views_per_row=8), frozenset(ASKED))


@pytest.mark.parametrize(
    ("method", "lacking"),
    [
        (Nfsd(), "negative"),
        (Bsd("negative"), "negative"),
        (Ism(mix=Cfg(7.5, "negative")), "negative"),
        (Asd(mix=Cfg(7.5, "negative")), "negative"),
        (Cds(mix=Cfg(7.5, "negative")), "negative"),
        (Sdi(inversion=Repel(7.5, "negative")), "negative"),
        (Rfds(mix=PerpNeg()), "not_front"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Guidance) else "",
)
def test_a_missing_condition_is_named(method, lacking):
    with pytest.raises(ValueError, match=f'needs the condition "{lacking}"'):
        method.check(analytic_prior(), frozenset({"cond", "uncond"}))


# ---- the laws -------------------------------------------------------------------------------------------------------


class TestCsd(GuidanceLaws):
    guidance = Csd(uncond=Ramp(-1.0, 0.0), negative=Ramp(0.0, -1.0), noise=-0.1)


class TestCsm(GuidanceLaws):
    guidance = Csm(steps=2)


class TestIsm(GuidanceLaws):
    guidance = Ism(steps=2, mix=Cfg(7.5, "negative"))


class TestNfsd(GuidanceLaws):
    guidance = Nfsd()


class TestAsd(GuidanceLaws):
    guidance = Asd()


class TestBsd(GuidanceLaws):
    guidance = Bsd()


class TestBsdAuto(GuidanceLaws):
    guidance = BsdAuto("negative")


class TestSdi(GuidanceLaws):
    guidance = Sdi(steps=2)


class TestCds(GuidanceLaws):
    guidance = Cds()


class TestRfds(GuidanceLaws):
    guidance = Rfds()


class TestRfdsRev(GuidanceLaws):
    guidance = RfdsRev()
