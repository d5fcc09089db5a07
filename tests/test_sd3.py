"""Stable Diffusion 3 from a folder, on a tiny random one: the text, the flow, RFDS, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from sds3d.cameras import orbit
from sds3d.core import Condition, Noised, RenderOutput, Step, Views
from sds3d.diffusion import ddim_sample, diffuse, x0_from_eps
from sds3d.guidance.mix import Cfg
from sds3d.guidance.rfds import Rfds
from sds3d.guidance.vsd import Vsd
from sds3d.priors.catalogue import open_prior
from sds3d.priors.sd3 import Sd3Prior, open_sd3
from sds3d.schedules import Range

PICTURE = Step(0).uniform("picture", 2 * 16 * 16 * 3).reshape(2, 16, 16, 3)
CAMERAS = orbit([10.0, 190.0], 15.0, 16)
PROMPTS = ["a red cube", "a blue cone on top of a cube"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sd3")
    return {"with T5": tiny.save_sd3(root / "whole"), "without T5": tiny.save_sd3(root / "light", t5=False)}


@pytest.fixture(scope="module")
def prior(folders) -> Sd3Prior:
    return open_sd3(folders["with T5"])


def ask(prior: Sd3Prior) -> tuple[Noised, dict[str, Condition]]:
    told = {name: prior.condition(prior.text([text]), CAMERAS) for name, text in (("cond", PROMPTS[0]), ("uncond", ""))}
    return diffuse(prior, prior.encode(PICTURE), Step(0), (0.1, 0.9)), told


def velocity(prior: Sd3Prior, x: Noised, prompt: str) -> Tensor:
    """The network's own answer, asked as its authors' pipeline asks."""
    text = prior.text([prompt]).expand(2, -1, -1)
    told = {"encoder_hidden_states": text[:, 1:], "pooled_projections": text[:, 0, :40]}
    with torch.no_grad():
        return prior.transformer(x.z_t, timestep=1000 * x.t, **told, return_dict=False)[0]


@pytest.mark.parametrize("kind", ["with T5", "without T5"])
def test_text_is_what_the_authors_pipeline_reads(folders, kind):
    from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline

    prior = open_sd3(folders[kind])
    first, second = prior.clips
    pipeline = StableDiffusion3Pipeline(
        transformer=prior.transformer,
        scheduler=None,
        vae=None,
        text_encoder=first.encoder,
        tokenizer=first.tokenizer,
        text_encoder_2=second.encoder,
        tokenizer_2=second.tokenizer,
        text_encoder_3=prior.t5.encoder if prior.t5 else None,
        tokenizer_3=prior.t5.tokenizer if prior.t5 else None,
    )
    with torch.no_grad():
        states, _, pooled, _ = pipeline.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
    text = prior.text(PROMPTS)
    torch.testing.assert_close(text[:, 1:], states, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(text[:, 0, :40], pooled, rtol=1e-5, atol=1e-6)
    assert not text[:, 0, 40:].any() and (text[0] - text[1]).abs().max() > 0.1
    assert torch.equal(prior.text(PROMPTS[::-1]), text.flip(0)), "a prompt's bits do not depend on its neighbours"


def test_eps_is_what_the_velocity_means(prior):
    x, told = ask(prior)
    u = velocity(prior, x, PROMPTS[0])
    eps = prior.predict(x.ask(told, "cond"))["cond"]
    s = x.t.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(eps, x.z_t + (1 - s) * u)
    torch.testing.assert_close(x0_from_eps(x.z_t, eps, x.alpha, x.sigma), x.z_t - s * u, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close((x.alpha, x.sigma), (1 - s, s))
    assert u.std() > 0.1


def test_the_flow_ends_before_its_clean_latent_is_lost(prior):
    t = torch.linspace(0, 1, 33)
    alpha, sigma = prior.noise_level(t)
    torch.testing.assert_close(alpha + sigma, torch.ones(33, 1, 1, 1))
    assert torch.equal(prior.snap(prior.snap(t)), prior.snap(t)) and alpha.min() >= 9e-4
    assert torch.equal(prior.snap(t)[:-1], t[:-1])


def test_all_questions_share_one_forward(prior):
    rows: list[int] = []
    hook = prior.transformer.register_forward_hook(lambda module, given, output: rows.append(len(given[0])))
    x, told = ask(prior)
    together = prior.predict(x.ask(told, "cond", "uncond", again="cond"))
    hook.remove()
    assert rows == [4] and torch.equal(together["cond"], together["again"])
    for name in ("cond", "uncond"):
        alone = prior.predict(x.ask(told, name))[name]
        torch.testing.assert_close(together[name], alone, rtol=1e-4, atol=1e-5)
    assert (together["cond"] - together["uncond"]).abs().max() > 1e-3, "the text is heard"


def test_latents_are_shifted_and_scaled(prior):
    mean = prior.codec.vae.encode(2 * PICTURE.permute(0, 3, 1, 2) - 1).latent_dist.mean
    torch.testing.assert_close(prior.encode(PICTURE), (mean - 0.0609) * 1.5305)
    assert (prior.size, prior.data_range, prior.group, prior.views_per_row) == (16, None, 1, 1)


def test_rfds_descends_the_networks_own_velocity(prior):
    """G = u_cfg - (eps - x), with u from the network itself."""
    x, told = ask(prior)
    s = 0.4
    picture = PICTURE.clone().requires_grad_()
    blank = torch.zeros(2, 16, 16, 1)
    views = Views(picture, RenderOutput(picture, blank, blank, torch.zeros_like(PICTURE)), CAMERAS)
    guided = Rfds(mix=Cfg(5.0), t=Range(s, s))(prior, views, told, Step(3), {})
    x = diffuse(prior, guided.at, Step(3), (s, s))
    cond, uncond = (velocity(prior, x, prompt) for prompt in (PROMPTS[0], ""))
    expected = uncond + 5 * (cond - uncond) - (x.eps - guided.at.detach())
    torch.testing.assert_close(guided.grad, expected, rtol=1e-4, atol=1e-4)
    guided.loss().backward()
    assert picture.grad is not None and picture.grad.abs().sum() > 0


def test_sampling_and_the_catalogue(folders, prior):
    again = open_prior(folders["with T5"])
    assert isinstance(again, Sd3Prior) and again.sha256 == prior.sha256 and again.licence == "unknown"
    _, told = ask(prior)
    z = ddim_sample(prior, Step(0).normal("z", prior.encode(PICTURE)), told, Cfg(4.0), 3)
    assert prior.decode(z).shape == (2, 16, 16, 3) and z.isfinite().all()


def test_a_method_that_needs_an_adapter_says_so(prior):
    with pytest.raises(ValueError, match="adapter"):
        Vsd().check(prior, frozenset({"cond", "uncond", "cond_plain"}))


def test_pictures_and_long_prompts_are_refused(prior):
    with pytest.raises(ValueError, match="reference or control"):
        prior.condition(prior.text([""]), CAMERAS, reference=PICTURE)
    with pytest.raises(ValueError, match="tokens"):
        prior.text(["a red cube " * 5])


def change(file: Path, **pairs: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **pairs}))


DAMAGES = {
    "Flux": (lambda f: change(f / "transformer/config.json", _class_name="FluxTransformer2DModel"), "FluxTransf"),
    "no vae": (lambda f: shutil.rmtree(f / "vae"), "vae"),
    "no second tokenizer": (lambda f: shutil.rmtree(f / "tokenizer_2"), "tokenizer_2/"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), "scheduler_config"),
    "another vae": (lambda f: change(f / "vae/config.json", latent_channels=16), "16"),
    "another encoder": (
        lambda f: change(f / "text_encoder/config.json", architectures=["CLIPTextModel"]), "CLIPTextModelWithProjection"
    ),
    "two encoders of one": (
        lambda f: (shutil.rmtree(f / "text_encoder_2"), shutil.copytree(f / "text_encoder", f / "text_encoder_2")),
        "do not belong",
    ),
    "own code": (lambda f: change(f / "text_encoder_3/config.json", auto_map={}), "auto_map"),
    "T5 of noise": (lambda f: (f / "tokenizer_3/tokenizer.json").write_text("{"), "T5 tokenizer"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_opened_is_refused_in_a_sentence(folders, tmp_path, damage):
    folder = tmp_path / "model"
    shutil.copytree(folders["with T5"], folder)
    hurt, said = DAMAGES[damage]
    hurt(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as caught:
        open_prior(folder)
    assert "\n" not in str(caught.value)
