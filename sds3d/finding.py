"""Where an edit is: priors look at the asset from all around and tell it from its edit, point by point.

So DiffEdit (Couairon et al. 2022, arXiv 2210.11427) finds a picture's mask: what a prior makes of the same noise, told
the source and told the edit, differs where something is to change. A prior that is shown the source sees the smallest
change, and blurs what it copies; one of captions sees the whole of a thing, and misses eyes. Where both look, the
geometric mean of the two counts.
"""

from __future__ import annotations

from collections.abc import Sequence

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
LOW, HIGH = 0.25, 0.4  # of the greatest difference: below there is no region, above it is whole


@torch.no_grad()
def find_region(terms: Sequence[Term], rep: Representation, renderer: Renderer, step: Step) -> Float[Tensor, "R R R"]:
    """Where in the world the terms' priors tell the source from the edit: numbers in [0, 1].

    The difference is seen from all around, and each point of a grid takes the mean over the views that see it.
    """
    places = points(GRID, next(rep.parameters()).detach()).view(-1, 3)
    return shares(terms, rep, renderer, step, places).view(GRID, GRID, GRID)


@torch.no_grad()
def find_texels(terms: Sequence[Term], rep: Representation, renderer: Renderer, step: Step) -> Float[Tensor, "S S"]:
    """The same over a mesh's texture, where the words of the edit are read; see `painting`."""
    at, places = painting.places(painting.textured(rep))
    return painting.spread(at, shares(terms, rep, renderer, step, places, attentive=True))


def shares(
    terms: Sequence[Term],
    rep: Representation,
    renderer: Renderer,
    step: Step,
    places: Float[Tensor, "n 3"],
    attentive: bool = False,
) -> Float[Tensor, "n"]:
    """How much of each place may change, from the geometric mean of how it differs to each of the terms."""
    seen = torch.stack([told_apart(term, rep, renderer, step, places, attentive) for term in terms])
    differ = seen.prod(dim=0) ** (1 / len(terms))
    share = differ / differ.max().clamp_min(1e-6)
    return ((share - LOW) / (HIGH - LOW)).clamp(0, 1)


def told_apart(
    term: Term,
    rep: Representation,
    renderer: Renderer,
    step: Step,
    places: Float[Tensor, "n 3"],
    attentive: bool,
) -> Float[Tensor, "n"]:
    """How an edit differs at places of the world, in the mean over the views that see them."""
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
    return (total / seen.clamp_min(1))[:, 0]


def difference(
    term: Term, cameras: Cameras, background: Background, image: Tensor, step: Step
) -> Float[Tensor, "B H W 1"]:
    """How the source and its edit differ to the prior, in the mean of clean pictures over times and draws of noise.

    A prior that is shown the source draws all else as it is, so its picture is compared with the source's, and the
    difference is the greatest of the three colours'. A prior of captions draws everything anew, so its pictures of the
    two captions are compared, as a share of the brightness: the dark side of a head is as far from another colour as
    its lit one.
    """
    prior, sees_source = term.prior, term.prompts.instruction is not None
    names = ("instruct",) if sees_source else ("cond", "source")
    conditions = term.conditions(cameras, background, image)
    z = prior.encode(image)
    sums = {name: torch.zeros_like(image) for name in names}
    for t in TIMES:
        for draw in range(DRAWS):
            x = diffuse(prior, z, step.child(f"{t} {draw}"), (t, t))
            eps = prior.predict(x.ask(conditions, *names))
            for name in names:
                sums[name] += prior.decode(x0_from_eps(x.z_t, eps[name], x.alpha, x.sigma)) / (len(TIMES) * DRAWS)
    if sees_source:
        return (sums["instruct"] - image).abs().amax(dim=-1, keepdim=True)
    after, before = sums["cond"], sums["source"]
    brightness = torch.maximum(after, before).mean(dim=-1, keepdim=True)
    return (after - before).abs().mean(dim=-1, keepdim=True) / (brightness + DIM)
