"""Priors from diffusers folders: codecs, one forward for all questions, views and cameras, and the catalogue."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import tiny
import torch

from sds3d.cameras import orbit
from sds3d.core import Condition, Noised, Query, Step
from sds3d.diffusion import ddim_sample, diffuse, v_from_eps, x0_from_eps
from sds3d.guidance.mix import Cfg
from sds3d.priors import catalogue
from sds3d.priors.analytic import AnalyticPrior
from sds3d.priors.catalogue import open_prior
from sds3d.priors.multiview import camera_vector
from sds3d.priors.network import open_folder
from sds3d.priors.text import TextReader
from sds3d.testing import analytic_prior, conditions

PICTURE = Step(0).uniform("picture", 4 * 16 * 16 * 3).reshape(4, 16, 16, 3)


@pytest.fixture(scope="session")
def priors(folders):
    return {name: open_folder(folder) for name, folder in folders.items()}


def count_forwards(prior) -> list[int]:
    """The rows of each forward of a prior's network, as they happen."""
    rows: list[int] = []
    prior.unet.register_forward_hook(lambda module, given, output: rows.append(given[0].shape[0]))
    return rows


def ask(prior, rows: int = 4, seed: int = 0) -> tuple[Noised, dict[str, Condition]]:
    cameras = orbit([10.0 + 90 * i for i in range(rows)], 15.0, 16)
    asked = {
        name: prior.condition(prior.text([text]), cameras) for name, text in (("cond", "a red cube"), ("uncond", ""))
    }
    return diffuse(prior, prior.encode(PICTURE[:rows]), Step(seed), (0.1, 0.9)), asked


ALL = pytest.mark.parametrize("name", ["pixel", "views", "latent", "latent-v", "sample"])


# ---- the convention -------------------------------------------------------------------------------------------------


@ALL
def test_eps_is_what_the_network_means(priors, name):
    """The wrapper's eps against the network's own output, turned by the identities of each parameterisation."""
    prior = priors[name]
    x, asked = ask(prior)
    index = (x.t.double() * 999).round().long()
    squared = prior.alphas_cumprod[index].reshape(-1, 1, 1, 1)
    alpha, sigma = squared.sqrt().float(), (1 - squared).sqrt().float()
    torch.testing.assert_close((alpha, sigma), (x.alpha, x.sigma), rtol=1e-6, atol=0)
    raw: list[torch.Tensor] = []
    hook = prior.unet.register_forward_hook(lambda module, given, output: raw.append(output[0]))
    eps = prior.predict(x.ask(asked, "cond"))["cond"]
    hook.remove()
    x0 = x0_from_eps(x.z_t, eps, alpha, sigma)
    meant = {"epsilon": eps, "v_prediction": v_from_eps(x0, eps, alpha, sigma), "sample": x0}[prior.prediction]
    torch.testing.assert_close(meant, raw[0], rtol=1e-4, atol=1e-4)


@ALL
def test_noise_levels_are_variance_preserving_on_the_trained_grid(priors, name):
    prior = priors[name]
    t = torch.linspace(0, 1, 77)
    snapped = prior.snap(t)
    assert torch.equal(prior.snap(snapped), snapped) and (snapped - t).abs().max() < 1.6e-3
    alpha, sigma = prior.noise_level(snapped)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(77, 1, 1, 1))
    assert (alpha.flatten().diff() <= 0).all() and alpha.shape == (77, 1, 1, 1) and alpha.min() > 9e-4
    assert torch.equal(prior.noise_level(t)[0], alpha)


@ALL
def test_a_prior_keeps_the_dtype_of_its_latents(priors, name):
    prior = priors[name]
    x, asked = ask(prior)
    double = replace(x, z_t=x.z_t.double(), alpha=x.alpha.double(), sigma=x.sigma.double())
    a, b = (prior.predict(y.ask(asked, "cond"))["cond"] for y in (x, double))
    assert (a.dtype, b.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
    assert prior.encode(PICTURE.double()).dtype == torch.float64


def test_sampling_runs_end_to_end(priors):
    prior = priors["views"]
    _, asked = ask(prior)
    z = ddim_sample(prior, Step(0).normal("z", prior.encode(PICTURE)), asked, Cfg(4.0), 3)
    assert z.abs().max() <= 1 and prior.decode(z).shape == (4, 16, 16, 3)


# ---- codecs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pixel", "views"])
def test_pixels_come_back(priors, name):
    prior = priors[name]
    z = prior.encode(PICTURE)
    assert z.shape == (4, 12, 8, 8) and prior.size == 16 and prior.data_range == 1.0
    torch.testing.assert_close(prior.decode(z), PICTURE)
    torch.testing.assert_close(z[:, 0], 2 * PICTURE[:, ::2, ::2, 0] - 1)  # red at even pixels is the first channel


def test_pictures_of_another_size_are_resampled_with_gradient(priors):
    prior = priors["pixel"]
    large = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    z = prior.encode(large)
    assert z.shape == (1, 12, 8, 8)
    assert z.detach().std() < 0.5  # without averaging it would keep the 1.15 / 2 of uniform noise
    (gradient,) = torch.autograd.grad(z.sum(), large)
    assert (gradient != 0).float().mean() > 0.9
    with pytest.raises(ValueError, match="square"):
        prior.encode(large[:, :32])


def test_latents_are_the_scaled_mean(priors):
    prior = priors["latent"]
    picture = PICTURE.clone().requires_grad_()
    z = prior.encode(picture)
    mean = prior.codec.vae.encode(2 * PICTURE.permute(0, 3, 1, 2) - 1).latent_dist.mean
    torch.testing.assert_close(z, mean * 0.18215)
    assert z.shape == (4, 4, 8, 8) and prior.size == 16 and prior.data_range is None
    assert torch.autograd.grad(z.sum(), picture)[0].abs().sum() > 0
    assert prior.decode(z).shape == (4, 16, 16, 3) and 0 <= prior.decode(z).min() <= prior.decode(z).max() <= 1


# ---- one forward ----------------------------------------------------------------------------------------------------


@ALL
def test_all_questions_share_one_forward(priors, name):
    prior = priors[name]
    x, asked = ask(prior)
    rows = count_forwards(prior)
    other = diffuse(prior, prior.encode(1 - PICTURE), Step(1), (0.1, 0.9))
    together = prior.predict(x.ask(asked, "cond", "uncond") | other.ask(asked, far="cond"))
    assert rows == [12] and set(together) == {"cond", "uncond", "far"}
    for key, queries in {"cond": x.ask(asked, "cond"), "far": other.ask(asked, far="cond")}.items():
        torch.testing.assert_close(together[key], prior.predict(queries)[key], rtol=1e-4, atol=1e-5)


def test_equal_questions_are_asked_once(priors):
    prior = priors["views"]
    x, asked = ask(prior)
    rows = count_forwards(prior)
    again = replace(x, z_t=x.z_t.clone())
    answers = prior.predict(x.ask(asked, "cond", twin="cond") | again.ask(asked, copy="cond"))
    assert (
        rows == [4] and torch.equal(answers["cond"], answers["twin"]) and torch.equal(answers["cond"], answers["copy"])
    )
    silent = {"told": asked["cond"], "not": replace(asked["cond"], camera=None)}
    prior.predict(x.ask(silent, "told", "not"))
    assert rows == [4, 8]


def test_predictions_carry_no_gradient(priors):
    prior = priors["pixel"]
    x, asked = ask(prior)
    z_t = x.z_t.clone().requires_grad_()
    eps = prior.predict(replace(x, z_t=z_t).ask(asked, "cond"))["cond"]
    assert not eps.requires_grad and not any(p.requires_grad for p in prior.unet.parameters())
    ((z_t - eps) ** 2).sum().backward()  # an inference-mode tensor would fail here


def test_an_adapter_answers_for_itself(priors):
    prior = priors["pixel"]
    x, asked = ask(prior)

    class Doubling(torch.nn.Module):
        def forward(self, query: Query) -> torch.Tensor:
            return 2 * query.z_t

    rows = count_forwards(prior)
    query = replace(x.ask(asked, "cond")["cond"], adapter=Doubling())
    answers = prior.predict({"fake": query, **x.ask(asked, "cond")})
    assert rows == [4] and list(answers) == ["fake", "cond"] and torch.equal(answers["fake"], 2 * x.z_t)


def test_pictures_are_refused_where_only_text_is_read(priors):
    prior = priors["pixel"]
    x, asked = ask(prior)
    with pytest.raises(ValueError, match="reads text"):
        prior.condition(prior.text([""]), None, reference=PICTURE)
    with pytest.raises(ValueError, match="reads text"):
        prior.predict(x.ask({"cond": replace(asked["cond"], control=((PICTURE, torch.ones(4)),))}, "cond"))


# ---- views and cameras ----------------------------------------------------------------------------------------------


def test_permuting_the_views_permutes_the_answer(priors):
    prior = priors["views"]
    assert prior.group == 4
    x, asked = ask(prior)
    order = torch.tensor([2, 0, 3, 1])
    moved = Noised(*(part[order] for part in (x.z_t, x.t, x.eps, x.alpha, x.sigma)))
    condition = replace(asked["cond"], camera=asked["cond"].camera[order])
    a = prior.predict(x.ask(asked, "cond"))["cond"]
    b = prior.predict(moved.ask({"cond": condition}, "cond"))["cond"]
    torch.testing.assert_close(b, a[order], rtol=1e-4, atol=1e-5)


def test_views_of_one_object_are_joined_and_objects_are_not(priors):
    prior = priors["views"]
    picture = torch.cat([PICTURE, PICTURE.flip(1)])
    cameras = orbit([90.0 * i for i in range(4)] * 2, 15.0, 16)
    asked = {"cond": prior.condition(prior.text(["a red cube"]), cameras)}
    x = diffuse(prior, prior.encode(picture), Step(0), (0.5, 0.5))
    eps = prior.predict(x.ask(asked, "cond"))["cond"]
    touched = x.z_t.clone()
    touched[0] += 1
    moved = (prior.predict(replace(x, z_t=touched).ask(asked, "cond"))["cond"] - eps).abs().flatten(1).amax(1)
    assert (moved[:4] > 1e-5).all() and (moved[4:] < 1e-6).all()
    with pytest.raises(ValueError, match="4 views"):
        prior.predict({"cond": Query(x.z_t[:3], x.t[:3], Condition(asked["cond"].text[:3]))})


def test_one_view_without_a_camera_leaves_the_class_embedding_out(folders):
    """Bit for bit what the network gives without any class embedding, which differs from a camera of zeros."""
    single = open_folder(folders["views"], single=True)
    assert single.group == 1
    x, asked = ask(single, rows=3)
    assert asked["cond"].camera is None
    eps = single.predict(x.ask(asked, "cond"))["cond"]
    bare = open_folder(folders["views"], single=True)
    embed = bare.unet.class_embedding.embed
    bare.unet.class_embedding = None
    assert torch.equal(eps, bare.predict(x.ask(asked, "cond"))["cond"])
    zeros = {"cond": replace(asked["cond"], camera=torch.zeros(3, 16))}
    assert embed(torch.zeros(1, 16)).abs().sum() > 0
    assert (single.predict(x.ask(zeros, "cond"))["cond"] - eps).abs().max() > 1e-6


def test_the_camera_is_told(priors):
    prior = priors["views"]
    x, asked = ask(prior)
    torch.testing.assert_close(asked["cond"].camera, camera_vector(orbit([10.0 + 90 * i for i in range(4)], 15.0, 16)))
    turned = {"cond": replace(asked["cond"], camera=asked["cond"].camera.flip(0))}
    a, b = (prior.predict(x.ask(c, "cond"))["cond"] for c in (asked, turned))
    assert (a - b).abs().max() > 1e-6


def test_the_camera_vector_is_mvdreams():
    """Azimuth 0 sees the front from +x: right is +y, up +z, backward +x, and the translation has length 1."""
    expected = torch.tensor([[0, 0, 1, 1.0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(camera_vector(orbit([0.0], 0.0, 8)).reshape(4, 4), expected, rtol=0, atol=1e-6)


# ---- text -----------------------------------------------------------------------------------------------------------


def test_text_is_padded_cached_and_alone(priors):
    prior = priors["pixel"]
    both = prior.text(["a red cube", "a blue cone"])
    assert both.shape == (2, 12, 16) and both.dtype == torch.float32
    assert torch.equal(both[1:], prior.text(["a blue cone"]))
    with pytest.raises(ValueError, match="23 tokens and this prior reads 12"):
        prior.text(["a red cube on top of a blue cube on top of a red cone on top of a blue cone"])


def test_a_prior_may_refuse_words(folders):
    def check(prompt: str) -> None:
        if "dragon" in prompt:
            raise ValueError("no dragons")

    prior = open_folder(folders["pixel"], check_words=check)
    prior.text(["a red cube", ""])
    with pytest.raises(ValueError, match="no dragons"):
        prior.text(["a red cube", "a dragon"])
    open_folder(folders["pixel"]).text(["a dragon"])  # read as sub-words


def test_a_tokenizer_larger_than_its_encoder_is_refused(priors):
    reader = priors["pixel"].reader
    tokens = tiny.tokenizer()
    tokens.add_tokens(["dragon"])
    with pytest.raises(ValueError, match="belong together"):
        TextReader(tokens, reader.encoder)


# ---- the catalogue --------------------------------------------------------------------------------------------------


def test_unknown_names_get_the_nearest():
    with pytest.raises(ValueError, match="Did you mean playroom"):
        open_prior("playrom")
    with pytest.raises(FileNotFoundError, match="no prior folder"):
        open_prior("./nowhere")
    with pytest.raises(ValueError, match="hub id"):
        open_prior("a b/c")


def test_hub_models_come_from_the_cache_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="hf download nobody/nothing"):
        open_prior("nobody/nothing")


def test_a_folder_is_opened_by_its_path(folders):
    assert open_prior(str(folders["pixel"])).name == "pixel"
    assert open_prior(folders["views"]).group == 4


def test_the_playroom_is_one_model_seen_in_two_ways(folders, monkeypatch):
    for name in ("playroom", "playroom-single"):
        entry = replace(catalogue.CATALOGUE[name], place=folders["views"])
        monkeypatch.setitem(catalogue.CATALOGUE, name, entry)
    four, one = open_prior("playroom"), open_prior("playroom-single")
    assert (four.name, four.group, one.name, one.group) == ("playroom", 4, "playroom-single", 1)
    assert four.sha256 == one.sha256
    for prior in (four, one):
        prior.text(["a red cube, front view", ""])
        with pytest.raises(ValueError, match="does not know: dragon, conee.*Close words: cone"):
            prior.text(["a dragon on a conee"])


def test_the_embedded_prior_opens_and_answers():
    prior = open_prior("playroom")
    assert (prior.group, prior.size, prior.data_range, prior.prediction) == (4, 64, 1.0, "sample")
    cameras = orbit([0.0, 90.0, 180.0, 270.0], 15.0, 64)
    asked = {
        name: prior.condition(prior.text([text]), cameras) for name, text in (("cond", "a red cube"), ("uncond", ""))
    }
    x = diffuse(prior, prior.encode(torch.ones(4, 64, 64, 3)), Step(0), (0.5, 0.5))
    rows = count_forwards(prior)
    assert prior.predict(x.ask(asked, "cond", "uncond"))["cond"].isfinite().all() and rows == [8]
    assert prior.licence.lower() == catalogue.CATALOGUE["playroom"].licence.lower()


# ---- the analytic prior ---------------------------------------------------------------------------------------------


def test_the_analytic_score_is_that_of_the_mixture():
    prior = analytic_prior(dtype=torch.float64)
    z = prior.encode(Step(2).uniform("z", 3 * 192).reshape(3, 8, 8, 3).double())
    x = diffuse(prior, z, Step(0), (0.2, 0.8))
    condition = conditions(prior, 3)["uncond"]
    z_t = x.z_t.clone().requires_grad_()
    variance = (x.alpha**2 * prior.std**2 + x.sigma**2).flatten()
    distance = (z_t[:, None] - x.alpha[:, None] * prior.means).square().flatten(2).sum(2)
    log_density = torch.logsumexp(-distance / (2 * variance[:, None]), dim=1)
    (score,) = torch.autograd.grad(log_density.sum(), z_t)
    eps = prior.predict({"all": Query(x.z_t, x.t, condition)})["all"]
    torch.testing.assert_close(eps, -x.sigma * score, rtol=1e-9, atol=1e-9)


def test_the_analytic_prior_samples_its_own_mean():
    prior = analytic_prior(std=0.1, dtype=torch.float64)
    noise = Step(0).normal("z", prior.means.new_zeros(16, 3, 8, 8))
    asked = conditions(prior, 16, {"cond": "red", "uncond": ""})
    z = ddim_sample(prior, noise, asked, Cfg(1.0), 200)
    assert (z.mean(0) - prior.means[0]).abs().max() < 0.12
    assert abs((z - prior.means[0]).std() / 0.1 - 1) < 0.1


def test_the_analytic_prior_reads_its_names():
    prior = analytic_prior()
    assert torch.equal(prior.text(["red", "", "a blue disc"])[:, 0], torch.tensor([[1, 0], [0.5, 0.5], [0, 1]]))
    with pytest.raises(ValueError, match="red, blue"):
        prior.text(["redder"])
    with pytest.raises(ValueError, match="names"):
        AnalyticPrior(torch.zeros(2, 3, 4, 4), 0.1, ("a",))
    with pytest.raises((ValueError, TypeError), match="means"):  # TypeError where shapes are checked
        AnalyticPrior(torch.zeros(2, 3), 0.1, ("a", "b"))


def test_importing_the_catalogue_is_cheap():
    """The heavy libraries are imported when a prior is opened, not before."""
    import subprocess
    import sys

    heavy = ("diffusers", "transformers", "av")
    code = f"import sys, sds3d.priors.catalogue, sds3d.export; print([m for m in {heavy} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert answer.stdout.strip() == "[]"
