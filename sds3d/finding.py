"""Where an edit is: a prior looks at the asset from all around and tells it from its edit, point by point.

So DiffEdit (Couairon et al. 2022, arXiv 2210.11427) finds a picture's mask: what a prior makes of the same noise, told
the source and told the edit, differs where something is to change.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from . import painting
from .cameras import orbit
from .core import Background, Cameras, Renderer, Representation, Step
from .diffusion import diffuse, x0_from_eps
from .regions import INTO
from .representations.field import points
from .representations.fusion import project, sample
from .terms import Term

RINGS, VIEWS = (0.0, 30.0), 8  # elevation in degrees, and views of each, from which the region is looked for
TIMES = (0.3, 0.5, 0.7)  # at which the two captions are compared
DRAWS = 2  # of noise at each
GRID = 40  # points a side of the region
DIM = 0.1  # brightness below which a difference is no longer told by its share
LOW, HIGH = 0.25, 0.5  # of the greatest difference: below there is no region, above it is whole


@torch.no_grad()
def find_region(term: Term, rep: Representation, renderer: Renderer, step: Step) -> Float[Tensor, "R R R"]:
    """Where in the world a term's prior that looks at the source tells it from the edit: numbers in [0, 1].

    The difference of the two clean pictures is seen from all around, and each point of a grid takes the mean over the
    views that see it.
    """
    places = points(GRID, next(rep.parameters()).detach()).view(-1, 3)
    return told_apart(term, rep, renderer, step, places).view(GRID, GRID, GRID)


@torch.no_grad()
def find_texels(term: Term, rep: Representation, renderer: Renderer, step: Step) -> Float[Tensor, "S S"]:
    """The same over a mesh's texture, where the words of the edit are read; see `painting`."""
    at, places = painting.places(painting.textured(rep))
    return painting.spread(at, told_apart(term, rep, renderer, step, places, attentive=True))


def told_apart(
    term: Term,
    rep: Representation,
    renderer: Renderer,
    step: Step,
    places: Float[Tensor, "n 3"],
    attentive: bool = False,
) -> Float[Tensor, "n"]:
    """How much of an edit there is at places of the world, in the mean over the views that see them: in [0, 1]."""
    like = places
    total, seen = torch.zeros_like(places[:, :1]), torch.zeros_like(places[:, :1])
    for elevation in RINGS:
        for turn in range(VIEWS // 4):
            azimuth = [360 / VIEWS * turn + 90 * k for k in range(4)]
            cameras = orbit(azimuth, elevation, term.prior.size).to(like)
            background = Background(like.new_full((4, 3), 0.5), ("grey",))
            out = renderer(rep, cameras, background)
            drawn = step.child(f"{elevation} {turn}")
            told = difference(term, cameras, background, out.rgb, drawn)
            read = painting.attention(term, cameras, background, out.rgb, TIMES, drawn) if attentive else None
            told = told if read is None else (told * read).sqrt()
            for view in range(4):
                where, z, _ = project(places, cameras, view)
                surface = sample(out.depth[view], where)
                solid = sample(out.alpha[view], where) > 0.5
                visible = (~solid | (z[:, None] <= surface + INTO)) & (where.abs() <= 1).all(dim=1, keepdim=True)
                total += visible * sample(told[view], where)
                seen += visible
    mean = total / seen.clamp_min(1)
    share = mean / mean.max().clamp_min(1e-6)
    return ((share - LOW) / (HIGH - LOW)).clamp(0, 1)[:, 0]


def difference(
    term: Term, cameras: Cameras, background: Background, image: Tensor, step: Step
) -> Float[Tensor, "B H W 1"]:
    """How the clean pictures with and without the edit differ, as a share of their brightness, in the mean over times
    and draws of noise: the dark side of a head is as far from another colour as its lit one.

    Without the edit a caption prior is told the source's caption, and one that reads instructions none.
    """
    prior = term.prior
    names = ("cond", "source") if term.prompts.instruction is None else ("instruct", "image")
    conditions = term.conditions(cameras, background, image)
    z = prior.encode(image)
    sums = [torch.zeros_like(image), torch.zeros_like(image)]
    for t in TIMES:
        for draw in range(DRAWS):
            x = diffuse(prior, z, step.child(f"{t} {draw}"), (t, t))
            eps = prior.predict(x.ask(conditions, *names))
            for total, name in zip(sums, names, strict=True):
                total += prior.decode(x0_from_eps(x.z_t, eps[name], x.alpha, x.sigma)) / (len(TIMES) * DRAWS)
    after, before = sums
    brightness = torch.maximum(after, before).mean(dim=-1, keepdim=True)
    return (after - before).abs().mean(dim=-1, keepdim=True) / (brightness + DIM)
