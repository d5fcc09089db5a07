"""Training the embedded prior: it resumes to the same bits, goes on from shipped weights, and what it writes opens."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sds3d.playroom import network, train
from sds3d.playroom.data import Cache
from sds3d.playroom.grammar import Head, Pair, Thing, caption
from sds3d.playroom.muon import Muon, orthogonal
from sds3d.priors.catalogue import open_prior

SMALL = ["--scenes", "2", "--rows", "4", "--threads", "1", "--device", "cpu"]


def state(work: Path) -> dict:
    return torch.load(work / "train.pt", weights_only=True)


def flat(tree: object) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    return [leaf for child in children for leaf in flat(child)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("straight")
    train.main(["--work", str(work), "--steps", "4", *SMALL])
    return work


def test_stopped_and_resumed_training_ends_in_the_same_bits(trained: Path, tmp_path: Path) -> None:
    train.main(["--work", str(tmp_path), "--steps", "4", "--until", "2", *SMALL])
    assert state(tmp_path)["step"] == 2
    train.main(["--work", str(tmp_path), "--steps", "4", *SMALL])
    straight, resumed = flat(state(trained)), flat(state(tmp_path))
    assert len(straight) == len(resumed) > 100
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


def test_what_it_writes_opens_as_a_prior_and_can_be_trained_on(trained: Path, tmp_path: Path) -> None:
    prior = open_prior(trained / "prior")
    assert (prior.group, prior.size, prior.data_range) == (4, 64, 1.0)
    weights = [file.stat().st_size for file in (trained / "prior").rglob("*.safetensors")]
    assert sum(weights) <= 16e6
    train.main(["--work", str(tmp_path), "--steps", "1", "--from-shipped", str(trained / "prior"), *SMALL])
    unet, _ = network.load(trained / "prior")
    assert not torch.equal(state(tmp_path)["unet"]["conv_in.weight"], unet.conv_in.weight)
    assert torch.allclose(state(tmp_path)["unet"]["conv_in.weight"], unet.conv_in.weight, atol=1e-2)


def test_captions_that_leave_something_open_still_name_the_objects() -> None:
    rng = np.random.default_rng(0)
    spec = Pair(Thing("cube", "red"), Thing("cone", "blue"), "next to")
    texts = {caption(train.opened(spec, rng)) for _ in range(200)}
    assert len(texts) == 4
    assert all("cube next to" in text and "cone" in text for text in texts)
    heads = {caption(train.opened(Head("tan", "red", "blue", hat=True), rng)) for _ in range(200)}
    assert len(heads) == 8
    assert all("hat" in text for text in heads)


def test_joint_views_share_one_time_and_half_of_the_times_are_high() -> None:
    rng = np.random.default_rng(0)
    t = torch.cat([train.draw_t(32, rng, views=4) for _ in range(200)]).reshape(-1, 4)
    assert (t == t[:, :1]).all()
    high = float((t[:, 0] >= 700).float().mean())
    assert abs(high - (0.5 + 0.5 * 0.3)) < 0.04


def test_training_begins_with_single_views_and_then_mixes() -> None:
    rng = np.random.default_rng(0)
    modes = {step: [train.draw_mode(step, rng) for _ in range(2000)] for step in (0, 500, 5000)}
    joint = {step: sum(views == 4 for views, _ in drawn) / 2000 for step, drawn in modes.items()}
    assert joint[0] == 0 and abs(joint[500] - 0.3) < 0.04 and abs(joint[5000] - 0.6) < 0.04
    assert all(camera for drawn in modes.values() for views, camera in drawn if views == 4)
    assert {camera for views, camera in modes[0]} == {True, False}


@pytest.fixture(scope="module")
def cache(trained: Path) -> Cache:
    return Cache(trained, 2)


def test_a_batch_without_cameras_names_the_view_instead(cache: Cache) -> None:
    rng = np.random.default_rng(0)
    with_camera = train.draw_batch(cache, 400, rng, views=4, camera=True)
    without = train.draw_batch(cache, 400, rng, views=1, camera=False)
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
