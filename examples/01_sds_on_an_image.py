"""Score distillation on a picture, without any 3D: the pixels themselves are the representation.

    python examples/01_sds_on_an_image.py "a red cube" --prior playroom-single --out red_cube.png
    python examples/01_sds_on_an_image.py red --prior analytic --out disc.png

A prior says in which direction a noised picture should change to look like the prompt. This script follows that
direction with plain gradient descent. It is the whole method; in sds3d a renderer merely stands between the parameters
and the picture. With the analytic prior, a mixture of two known pictures, the result can be compared with the truth.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from sds3d.core import Prior, Step
from sds3d.guidance.mix import Cfg
from sds3d.guidance.sds import Sds
from sds3d.priors.catalogue import open_prior
from sds3d.schedules import Ramp, Range
from sds3d.testing import analytic_prior, views


def distil(prior: Prior, prompt: str, steps: int, scale: float, seed: int = 0) -> torch.Tensor:
    """A picture [1, H, H, 3] in [0, 1] of the prompt, from grey, by `steps` steps of score distillation."""
    sds = Sds(form="x0", mix=Cfg(scale), t=Range(low=Ramp(0.5, 0.02), high=Ramp(0.98, 0.4)))
    conditions = {
        name: prior.condition(prior.text([text] * prior.group), None)
        for name, text in (("cond", prompt), ("uncond", ""))
    }
    # A picture is the sigmoid of free numbers, so that it stays within [0, 1].
    logits = torch.zeros(prior.group, prior.size, prior.size, 3, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    for index in range(steps):
        step = Step(seed, "image", index, index / max(steps - 1, 1))
        picture = logits.sigmoid()
        guided = sds(prior, views(picture), conditions, step, {})
        optimiser.zero_grad()
        guided.loss().backward()
        optimiser.step()
    return logits.sigmoid().detach()


def main() -> None:
    parser = argparse.ArgumentParser(description="Score distillation on a picture, without any 3D.")
    parser.add_argument("prompt")
    parser.add_argument("--prior", default="playroom-single", help='a catalogue name, a folder, or "analytic"')
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--scale", type=float, default=4.0, help="of classifier-free guidance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("picture.png"))
    given = parser.parse_args()
    prior = analytic_prior() if given.prior == "analytic" else open_prior(given.prior)
    picture = distil(prior, given.prompt, given.steps, given.scale, given.seed)[0]
    Image.fromarray((picture * 255).round().to(torch.uint8).numpy()).resize((256, 256), Image.Resampling.NEAREST).save(
        given.out
    )
    print(given.out)


if __name__ == "__main__":
    main()
