"""Training the embedded priors: it resumes to the same bits, goes on from shipped weights, and what it writes opens."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sds3d.playroom import autoencoder, batches, network, train
from sds3d.playroom.data import Cache
from sds3d.playroom.grammar import Head, Pair, Thing, caption
from sds3d.playroom.muon import Muon, orthogonal
from sds3d.priors import catalogue, folder
from sds3d.priors.catalogue import open_prior
from sds3d.priors.latent import codec_of

SMALL = ["--scenes", "2", "--rows", "4", "--threads", "1", "--device", "cpu"]


def state(work: Path) -> dict:
    return torch.load(work / "train.pt", weights_only=True)


def flat(tree: object) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    return [leaf for child in children for leaf in flat(child)]


def lend_pictures(lender: Path, work: Path) -> None:
    """The rendered pictures of one folder, for another."""
    for file in lender.glob("groups-*"):
        shutil.copy(file, work)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("straight")
    train.main(["--work", str(work), "--steps", "2", *SMALL])
    return work


def test_stopped_and_resumed_training_ends_in_the_same_bits(trained: Path, tmp_path: Path) -> None:
    lend_pictures(trained, tmp_path)
    train.main(["--work", str(tmp_path), "--steps", "2", "--until", "1", *SMALL])
    assert state(tmp_path)["step"] == 1
    train.main(["--work", str(tmp_path), "--steps", "2", *SMALL])
    straight, resumed = flat(state(trained)), flat(state(tmp_path))
    assert len(straight) == len(resumed) > 100
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))
    assert list(state(tmp_path)) == ["unet", "text", "average", "optimisers", "step", "seconds"]


def test_what_it_writes_opens_as_a_prior_and_can_be_trained_on(trained: Path, tmp_path: Path) -> None:
    prior = open_prior(trained / "prior")
    assert (prior.group, prior.size, prior.data_range) == (4, 64, 1.0)
    weights = [file.stat().st_size for file in (trained / "prior").rglob("*.safetensors")]
    assert sum(weights) <= 16e6
    lend_pictures(trained, tmp_path)
    train.main(["--work", str(tmp_path), "--steps", "1", "--from-shipped", str(trained / "prior"), *SMALL])
    unet, _ = network.load(trained / "prior")
    assert not torch.equal(state(tmp_path)["unet"]["conv_in.weight"], unet.conv_in.weight)
    assert torch.allclose(state(tmp_path)["unet"]["conv_in.weight"], unet.conv_in.weight, atol=1e-2)


def test_captions_that_leave_something_open_still_name_the_objects() -> None:
    rng = np.random.default_rng(0)
    spec = Pair(Thing("cube", "red"), Thing("cone", "blue"), "next to")
    texts = {caption(batches.opened(spec, rng)) for _ in range(200)}
    assert len(texts) == 4
    assert all("cube next to" in text and "cone" in text for text in texts)
    heads = {caption(batches.opened(Head("tan", "red", "blue", hat=True), rng)) for _ in range(200)}
    assert len(heads) == 8
    assert all("hat" in text for text in heads)


def test_joint_views_share_one_time_and_half_of_the_times_are_high() -> None:
    rng = np.random.default_rng(0)
    t = torch.cat([batches.draw_t(32, rng, views=4) for _ in range(200)]).reshape(-1, 4)
    assert (t == t[:, :1]).all()
    high = float((t[:, 0] >= 700).float().mean())
    assert abs(high - (0.5 + 0.5 * 0.3)) < 0.04


def test_training_begins_with_single_views_and_then_mixes() -> None:
    rng = np.random.default_rng(0)
    modes = {step: [batches.draw_mode(step, rng) for _ in range(2000)] for step in (0, 500, 5000)}
    joint = {step: sum(views == 4 for views, _ in drawn) / 2000 for step, drawn in modes.items()}
    assert joint[0] == 0 and abs(joint[500] - 0.3) < 0.04 and abs(joint[5000] - 0.6) < 0.04
    assert all(camera for drawn in modes.values() for views, camera in drawn if views == 4)
    assert {camera for views, camera in modes[0]} == {True, False}


@pytest.fixture(scope="module")
def cache(trained: Path) -> Cache:
    return Cache(trained, 2)


def test_a_batch_without_cameras_names_the_view_instead(cache: Cache) -> None:
    rng = np.random.default_rng(0)
    with_camera = batches.draw_batch(cache, 400, rng, views=4, camera=True)
    without = batches.draw_batch(cache, 400, rng, views=1, camera=False)
    assert with_camera.camera is not None and with_camera.camera.shape == (400, 16)
    assert without.camera is None and with_camera.pictures.shape == without.pictures.shape == (400, 64, 64, 3)
    assert not any("view" in text for text in with_camera.captions)
    named = sum("view" in text for text in without.captions) / 400
    assert abs(named - 0.8 * 0.9) < 0.08
    assert abs(sum(text == "" for text in without.captions) / 400 - 0.1) < 0.05


@pytest.mark.parametrize("shape", [(8, 72), (72, 8), (16, 16, 3, 3)])
def test_an_update_of_muon_keeps_directions_and_levels_their_sizes(shape: tuple[int, ...]) -> None:
    """G = U S V' becomes close to U V' (Jordan et al. 2024), and its size does not depend on that of G."""
    torch.manual_seed(0)
    matrix = torch.randn(shape).flatten(1)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    s = torch.logspace(0, -1, len(vh))
    levelled = u.T @ orthogonal(u @ torch.diag(s) @ vh).float() @ vh.T
    assert ((levelled.diag() > 0.6) & (levelled.diag() < 1.25)).all()
    assert (levelled - torch.diag(levelled.diag())).abs().max() < 0.05
    weights = [torch.nn.Parameter(torch.zeros(shape)) for _ in range(2)]
    for weight, size in zip(weights, (1.0, 2.0**-10), strict=True):
        weight.grad = size * matrix.reshape(shape)
        Muon([weight], lr=0.01).step()
    torch.testing.assert_close(weights[0], weights[1], atol=2e-5, rtol=0.02)
    assert abs(float(weights[0].detach().square().mean().sqrt()) - 0.2 * 0.01) < 0.0006


# ---- latents --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoded(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures of `trained` and an autoencoder of two steps."""
    work = tmp_path_factory.mktemp("latent")
    lend_pictures(trained, work)
    autoencoder.main(["--work", str(work), "--steps", "2", *SMALL])
    return work


@pytest.fixture(scope="module")
def latent(encoded: Path, trained: Path) -> Path:
    """One step of the latent prior, warm from the pixel prior's weights, and after a stop another."""
    given = ["--work", str(encoded), "--prior", "latent", "--steps", "2", *SMALL]
    train.main([*given, "--until", "1", "--from-shipped", str(trained / "prior")])
    train.main(given)
    return encoded


def test_a_stopped_autoencoder_ends_in_the_same_bits(encoded: Path, tmp_path: Path) -> None:
    lend_pictures(encoded, tmp_path)
    for until in ("1", "2"):
        autoencoder.main(["--work", str(tmp_path), "--steps", "2", "--until", until, *SMALL])
    straight, resumed = (flat(torch.load(work / "autoencoder.pt", weights_only=True)) for work in (encoded, tmp_path))
    assert len(straight) == len(resumed) > 100
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))
    assert (encoded / "vae" / "config.json").read_text() == (tmp_path / "vae" / "config.json").read_text()


def test_latents_of_training_pictures_have_mean_zero_and_variance_one(encoded: Path, cache: Cache) -> None:
    codec = codec_of(folder.load(encoded / "vae"), 16)
    assert codec.size == 64
    pictures = batches.draw_batch(cache, autoencoder.MEASURED, np.random.default_rng(2), 1, False).pictures
    z = codec.encode(pictures)
    assert z.shape == (autoencoder.MEASURED, network.LATENTS.channels, 16, 16)
    torch.testing.assert_close(torch.stack([z.mean(), z.std()]), torch.tensor([0.0, 1.0]), atol=2e-3, rtol=0)
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3 - 2
    shift, scale = autoencoder.standardised(x)
    assert abs(float(((x - shift) * scale).mean())) < 1e-12
    assert abs(float(((x - shift) * scale).square().mean()) - 1) < 1e-12


def test_the_autoencoders_loss_is_that_of_its_table() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64, generator=generator)
    normal = torch.distributions.Normal
    unit = normal(torch.zeros_like(mean), torch.ones_like(mean))
    true = torch.distributions.kl_divergence(normal(mean, (logvar / 2).exp()), unit).mean(dim=(1, 2, 3))
    torch.testing.assert_close(autoencoder.divergence(mean, logvar), true, rtol=1e-12, atol=0)
    narrow = logvar - 40  # where the spread itself weighs nothing, a factor e of it is worth 1
    fall = autoencoder.divergence(mean, narrow) - autoencoder.divergence(mean, narrow + 2)
    torch.testing.assert_close(fall, torch.ones_like(fall), rtol=1e-12, atol=0)
    away = torch.full_like(mean, -0.25)
    torch.testing.assert_close(autoencoder.reconstruction(mean + away, mean), 0 * fall + 0.25 + 0.0625)


def test_a_latent_prior_opens_as_any_other_and_says_when_it_saw_through_another(latent: Path, tmp_path: Path) -> None:
    prior = open_prior(latent / "prior-latent")
    assert (prior.group, prior.size, prior.data_range, prior.prediction) == (4, 64, None, "sample")
    assert prior.encode(torch.zeros(4, 64, 64, 3)).shape == (4, 4, 16, 16)
    weights = [file.stat().st_size for file in (latent / "prior-latent").rglob("*.safetensors")]
    assert len(weights) == 3 and sum(weights) <= 16e6
    saved = torch.load(latent / "train-latent.pt", weights_only=True)
    assert saved["step"] == 2
    training = train.Training(train.arguments(["--work", str(latent), "--prior", "latent", *SMALL]), Cache(latent, 2))
    with pytest.raises(ValueError, match="another autoencoder"):
        training.load({**saved, "vae": "0" * 64})


def test_a_latent_prior_begins_with_the_text_of_the_pixel_prior(trained: Path) -> None:
    (pixel, text), (warm, same) = (network.load(trained / "prior", space) for space in train.SPACES.values())
    fresh, _ = network.seeded(0, network.LATENTS)
    assert all(torch.equal(a, b) for a, b in zip(text.parameters(), same.parameters(), strict=True))
    before, anew = pixel.state_dict(), fresh.state_dict()
    touching = {f"conv_{end}.{kind}" for end in ("in", "out") for kind in ("weight", "bias")}
    for name, tensor in warm.state_dict().items():
        assert torch.equal(tensor, (anew if name in touching else before)[name]), name


def test_the_latent_prior_learns_what_its_autoencoder_says(latent: Path) -> None:
    """The network is shown alpha z + sigma noise with the codec's z, and a right answer costs nothing."""
    cache = Cache(latent, 2)
    training = train.Training(train.arguments(["--work", str(latent), "--prior", "latent", *SMALL]), cache)
    batch = batches.draw_batch(cache, 4, np.random.default_rng(0), 1, False)
    noise = training.noise(4, np.random.default_rng(1))
    t = torch.tensor([0, 300, 600, 999])
    squared = training.alphas[t].reshape(-1, 1, 1, 1)
    z = training.codec.encode(batch.pictures)
    shown: list[torch.Tensor] = []
    training.unet.register_forward_hook(lambda module, given, output: (shown.append(given[0]), (z,))[1])
    losses = training.loss(batch, t, noise)
    torch.testing.assert_close(shown[0], squared.sqrt() * z + (1 - squared).sqrt() * noise, atol=1e-5, rtol=1e-5)
    assert losses.max() < 1e-9


def test_a_latent_prior_without_its_autoencoder_says_what_to_run(trained: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"sds3d\.playroom\.autoencoder --work"):
        train.main(["--work", str(trained), "--prior", "latent", "--steps", "1", *SMALL])


def test_the_noise_of_latents_is_that_of_pixels_shifted() -> None:
    pixels, latents = (network.scheduler(space) for space in train.SPACES.values())
    ratio = [s.alphas_cumprod / (1 - s.alphas_cumprod) for s in (pixels, latents)]
    shift = network.PIXELS.noise_shift / network.LATENTS.noise_shift
    inner = slice(100, 950)
    torch.testing.assert_close(ratio[1][inner], shift * ratio[0][inner], rtol=0.02, atol=0)
    assert pixels.config.clip_sample and not latents.config.clip_sample


def test_only_priors_that_are_here_are_advertised(tmp_path: Path) -> None:
    here = catalogue.Entry(tmp_path, "Apache-2.0", "a folder")
    entries = {"here": here, "away": replace(here, place=tmp_path / "away"), "hub": replace(here, place="owner/name")}
    assert list(catalogue.present(entries)) == ["here", "hub"]
    assert ("playroom-latent" in catalogue.CATALOGUE) == catalogue.LATENT_WEIGHTS.is_dir()
