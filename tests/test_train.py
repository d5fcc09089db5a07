"""Training the embedded prior: it resumes to the same bits, goes on from shipped weights, and what it writes opens."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sds3d.playroom import network, train
from sds3d.playroom.grammar import Head, Pair, Thing, caption
from sds3d.priors.catalogue import open_prior

SMALL = ["--scenes", "2", "--groups", "1", "--threads", "1", "--device", "cpu"]


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


def test_a_joint_group_shares_one_time_and_a_third_of_times_is_high() -> None:
    rng = np.random.default_rng(0)
    t = torch.cat([train.draw_t(8, rng, single=False) for _ in range(200)]).reshape(-1, 4)
    assert (t == t[:, :1]).all()
    high = float((t[:, 0] >= 800).float().mean())
    assert abs(high - (1 / 3 + 2 / 3 * 0.2)) < 0.04


def test_the_text_says_nothing_before_training() -> None:
    """From random words a network learns to ignore them: so they begin at zero."""
    unet, text = network.seeded(0)
    z, t = torch.randn(4, 48, 16, 16), torch.full((4,), 500)
    camera = torch.randn(4, 16)
    ids = torch.randint(0, text.config.vocab_size, (2, 4, network.TEXT_LENGTH))
    with torch.no_grad():
        a, b = (
            unet(z, t, text(input_ids=rows).last_hidden_state, class_labels=camera, return_dict=False)[0]
            for rows in ids
        )
    assert torch.allclose(a, b, atol=1e-6)
