"""A run that takes milliseconds a step: the analytic prior, a few Gaussians, 16 pixels."""

from __future__ import annotations

from typing import Any

import torch

from sds3d.cameras import Orbit
from sds3d.core import Prior
from sds3d.engine import Recipe, Stage
from sds3d.guidance.mix import Cfg
from sds3d.guidance.sds import Sds
from sds3d.priors.analytic import AnalyticPrior
from sds3d.renderers.background import Plain
from sds3d.renderers.splats import Splats
from sds3d.representations.gaussians import GaussianOptimise
from sds3d.representations.start import Blob, Continue
from sds3d.schedules import Range
from sds3d.terms import Guide

SIZE = 16


def prior(group: int = 1, names: tuple[str, str] = ("red", "blue")) -> AnalyticPrior:
    """Two pictures: a disc in red, or in blue, on white."""
    across = torch.linspace(-1, 1, SIZE)
    disc = (across[:, None] ** 2 + across[None] ** 2 < 0.4).float()
    colours = torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]])
    means = disc * colours[:, :, None, None] + (1 - disc)
    return AnalyticPrior(means, std=0.1, names=names, group=group)


def stage(steps: int = 6, views: int = 2, group: int = 1, **changed: Any) -> Stage:
    parts: dict[str, Any] = {
        "steps": steps,
        "prior": "discs",
        "start": Blob(40, 0.5),
        "optimise": GaussianOptimise(grow=(0.1, 0.8), grow_events=3, grow_share=0.2, max_count=60),
        "renderer": Splats(),
        "cameras": Orbit(views=views, size=SIZE, group=group),
        "background": Plain((1.0, 1.0, 1.0)),
        "guidance": {"sds": Guide(Sds(mix=Cfg(1.0), t=Range(0.02, 0.6)))},
    }
    return Stage(**(parts | changed))


def recipe(steps: int = 6, **changed: Any) -> Recipe:
    return Recipe({"shape": stage(steps, **changed)}, exports=("ply",))


def two_stages(steps: int = 4) -> Recipe:
    return Recipe({"shape": stage(steps), "colour": stage(steps, start=Continue())}, exports=("ply",))


def priors(group: int = 1) -> dict[str, Prior]:
    return {"discs": prior(group)}
