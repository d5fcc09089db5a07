"""A stage may begin with a choice: that of several representations which suits the prompt best, as in DreamFace (Zhang
et al. 2023, arXiv 2304.03117). Nothing is learnt; the candidates are drawn without gradient and ranked.

| s, the score                | function   | equation                                                                  |
|-----------------------------|------------|---------------------------------------------------------------------------|
| by a CLIP model             | `by_clip`  | mean over views of cos(I, T_prompt) - cos(I, T_anchor), anchor "the face" |
| by the stage's own prior    | `by_prior` | mean over t of 1 - e(prompt) / e(""), e(T) = mean |eps_T(z_t) - eps|^2    |

The paper ranks by CLIP. Where there is none, the prior of the stage's first term says how much better it denoises a
candidate when it is told the prompt than when it is told nothing; all candidates meet the same cameras and noises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from .cameras import orbit
from .core import Background, Cameras, Renderer, Representation, Step
from .diffusion import diffuse
from .terms import LOOKS, Term

TIMES = (0.3, 0.5, 0.7, 0.9)  # below, a candidate's details count for more than its shape
ANCHOR = "the face"  # of CLIP, as in the paper
FRONTAL_DEG, ABOVE_DEG = (0.0, 40.0, -40.0), 10.0  # CLIP knows faces from the front


@runtime_checkable
class Choice(Protocol):
    """A start that offers candidates, of which the engine takes the one that suits the prompt best.

    clip: the folder of a CLIP model that ranks them; None leaves it to the prior of the stage's first term. Which one
    was taken must lie in the representation's state, because a run that goes on does not choose again.
    """

    @property
    def clip(self) -> str | None: ...

    def candidates(self, step: Step) -> Sequence[Representation]: ...


@dataclass(frozen=True)
class Look:
    """One look at every candidate: the cameras, what lies behind, and the time at which the prior is asked."""

    cameras: Cameras
    background: Background
    t: float


def check(start: object) -> None:
    """Raise ValueError or FileNotFoundError where a start chooses by a CLIP model that is none."""
    if isinstance(start, Choice) and start.clip is not None:
        from .priors.clip import check_clip

        check_clip(Path(start.clip))


def scores(
    start: Choice,
    candidates: Sequence[Representation],
    term: Term,
    renderer: Renderer,
    looks: Sequence[Look],
    step: Step,
) -> Float[Tensor, "n"]:
    """How well each candidate suits the prompt, by what the start says that judges it."""
    if start.clip is None:
        return by_prior(candidates, term, renderer, looks, step)
    return by_clip(candidates, term.prompts.prompt, renderer, Path(start.clip))


@torch.no_grad()
def by_prior(
    candidates: Sequence[Representation], term: Term, renderer: Renderer, looks: Sequence[Look], step: Step
) -> Float[Tensor, "n"]:
    """By how much of its error, on average, the term's prior is nearer to the noise when it is told the prompt.

    A candidate is one batched forward.
    """
    told = [term.conditions(look.cameras, look.background) for look in looks]
    scores = []
    for rep in candidates:
        noised, queries = [], {}
        for k, look in enumerate(looks):
            out = renderer(rep, look.cameras, look.background)
            z = term.prior.encode(LOOKS[term.look](out))
            noised.append(diffuse(term.prior, z, replace(step, index=k), (look.t, look.t)))
            queries |= noised[-1].ask(told[k], **{f"cond{k}": "cond", f"uncond{k}": "uncond"})
        eps = term.prior.predict(queries)
        with_text, without = (
            torch.stack([(eps[f"{name}{k}"] - x.eps).square().mean() for k, x in enumerate(noised)])
            for name in ("cond", "uncond")
        )
        scores.append((1 - with_text / without).mean())
    return torch.stack(scores)


@torch.no_grad()
def by_clip(candidates: Sequence[Representation], prompt: str, renderer: Renderer, folder: Path) -> Float[Tensor, "n"]:
    """How much more like the prompt than like "the face" a CLIP model finds each candidate, in the stage's light.

    Raises ValueError or FileNotFoundError for a folder that holds no CLIP model.
    """
    from .priors.clip import open_clip

    like = next(candidates[0].parameters()).detach()
    clip = open_clip(folder, like.device)
    cameras = orbit(FRONTAL_DEG, ABOVE_DEG, clip.size).to(like)
    white = Background(like.new_ones(len(cameras), 3))
    cosines = [clip(renderer(rep, cameras, white).rgb, (prompt, ANCHOR)).mean(dim=0) for rep in candidates]
    return torch.stack([to_prompt - to_anchor for to_prompt, to_anchor in cosines])
