"""The benchmarks' measures are right where the truth is known, and the embedded prior is what its card says."""

from dataclasses import dataclass

import pytest
import torch

from sds3d.core import Cameras, Condition, Step
from sds3d.diffusion import eps_from_x0
from sds3d.guidance.mix import Cfg
from sds3d.playroom import bench
from sds3d.playroom.grammar import caption, is_determined, is_held_out
from sds3d.playroom.measures import COUNTED_IOU, Quality
from sds3d.priors.catalogue import WEIGHTS, open_prior
from sds3d.priors.pixel import PixelCodec
from sds3d.testing import analytic_prior


@dataclass
class Oracle:
    """A prior that knows the clean picture, and answers with `keep` times it: 1 is exact, less is pulled to grey."""

    keep: float
    group: int = 1
    views_per_row: int = 1
    size: int = 64
    data_range: float | None = 1.0

    def __post_init__(self) -> None:
        self.codec, self.levels = PixelCodec(64, 4), analytic_prior()

    def encode(self, image):
        self.clean = self.codec.encode(image)
        return self.clean

    def decode(self, z):
        return self.codec.decode(z)

    def text(self, prompts):
        return torch.zeros(len(prompts), 1, 1)

    def condition(self, text, cameras: Cameras | None, reference=None, control=()):
        return Condition(text)

    def noise_level(self, t):
        return self.levels.noise_level(t)

    def snap(self, t):
        return self.levels.snap(t)

    def predict(self, queries):
        return {name: eps_from_x0(q.z_t, self.keep * self.clean, *self.noise_level(q.t)) for name, q in queries.items()}

    def adapter(self, rank, lr, step):
        return None


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_the_background_slope_is_that_of_the_prior(keep: float) -> None:
    assert abs(bench.background_slope(Oracle(keep), 0.6, captions=3) - keep) < 0.01


def test_the_rings_colour_is_the_backgrounds() -> None:
    picture = torch.zeros(1, 64, 64, 3)
    picture[:, :2], picture[:, -2:], picture[:, :, :2], picture[:, :, -2:] = (0.25,) * 4
    assert torch.allclose(bench.ring(picture), torch.full((1, 3), 0.25), atol=1e-6)


def test_the_captions_are_fixed_determined_and_held_out() -> None:
    held = bench.held_out(64)
    assert len({caption(spec) for spec in held}) == 64
    assert all(is_held_out(spec) and is_determined(spec) for spec in held)
    prompts = bench.prompts_24()
    assert len({caption(spec) for spec in prompts}) == 24
    assert sum(is_held_out(spec) for spec in prompts) == 12
    assert sum(caption(spec).startswith("a head") for spec in prompts) == 8
    assert prompts == bench.prompts_24()


def test_every_failure_has_its_name() -> None:
    good = Quality(iou=0.9, psnr=20.0, haze=0.01, saturation=1.0, two_faced=False, faceless=False)
    assert bench.failure(good) is None
    assert bench.failure(Quality(0.5, 20.0, 0.0, 1.0)) == "silhouette"
    assert bench.failure(Quality(COUNTED_IOU, 20.0, 0.0, 1.0, two_faced=True, faceless=True)) == "two-faced, faceless"


def test_the_embedded_prior_is_small_and_carries_its_card() -> None:
    weights = [file.stat().st_size for file in WEIGHTS.rglob("*.safetensors")]
    assert sum(weights) <= 16e6
    card = (WEIGHTS / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0")
    assert "@" not in card


def test_the_embedded_prior_reads_its_caption() -> None:
    """At a high noise level the true caption must explain the picture better than another scene's does."""
    errors = bench.text_error(open_prior("playroom"), 0.9, captions=8)
    assert errors["true_caption"] < 0.9 * errors["shuffled_caption"]


def test_a_named_background_is_kept_and_much_guidance_with_rescale_pulls_it_to_grey() -> None:
    """The trap of haze: strong guidance, rescaled, greys the target's background; the default recipe must not."""
    from sds3d.guidance.mix import Rescale

    prior = open_prior("playroom")
    default = bench.background_slope(prior, 0.6, captions=4)
    strong = bench.background_slope(prior, 0.6, mix=Rescale(Cfg(10.0), 0.5), captions=4)
    assert default > 0.9
    assert strong < default


def test_drawing_is_a_function_of_the_seed() -> None:
    from sds3d.cameras import orbit

    prior = open_prior("playroom")
    cameras = orbit([0.0, 90.0, 180.0, 270.0], 15.0, prior.size)
    first, again, other = (bench.sample(prior, "a red cube", cameras, Step(seed), steps=2) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
