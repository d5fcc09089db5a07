"""Textual inversion (Gal et al. 2022, arXiv 2208.01618): a frozen prior learns one word from pictures.

| symbol | variable | equation                                                                                       |
|--------|----------|------------------------------------------------------------------------------------------------|
| v      | vectors  | what the text encoder reads in the place of the word, [n, d]                                    |
| c_v(y) | said     | the text of a caption y that has the word                                                       |
| x_t    | x.z_t    | a picture x noised by eps                                                                       |
| L      | loss     | the mean of |E(x_t, c_v(y)) - eps|^2 over pictures, captions, t and eps, descended in v alone    |

HeadSculpt learns its "<back-view>" so, from heads seen from behind (Han et al. 2023, arXiv 2306.03038): said beside
"back view" it tells a prior of single pictures what it must not draw there. The rate is told in root mean squares of
the encoder's embeddings, because their size differs by two orders of magnitude between encoders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Image, Query, Step
from ..diffusion import diffuse
from .network import NetworkPrior
from .token import Token, TokenReader


@dataclass(frozen=True)
class Inversion:
    """How a word is learnt.

    start: words whose embeddings the vectors begin with, in turn. vectors: how many stand for the word. rows: pictures
    a step. rate: of Adam, falling evenly to 0. t: the range of times; near 0 the picture says it all. Raises ValueError
    for numbers that are out of range.
    """

    start: str = "back"
    vectors: int = 1
    steps: int = 300
    rows: int = 4
    rate: float = 0.05
    t: tuple[float, float] = (0.2, 1.0)

    def __post_init__(self) -> None:
        if min(self.vectors, self.steps, self.rows) < 1 or not self.rate > 0:
            raise ValueError("vectors, steps and rows must be at least 1, and the rate positive.")
        if not 0 <= self.t[0] < self.t[1] <= 1:
            raise ValueError(f"t must be a range within [0, 1], given {list(self.t)}.")

    def begin(self, prior: NetworkPrior, word: str) -> Token:
        """The word as it is before it is learnt. Raises ValueError for a start without words."""
        numbers = prior.reader.tokenizer(self.start, add_special_tokens=False)["input_ids"]
        if not numbers:
            raise ValueError("A learnt word begins with another: start is empty.")
        table = prior.reader.encoder.get_input_embeddings().weight
        return Token(word, table[[numbers[i % len(numbers)] for i in range(self.vectors)]].detach().float().clone())

    def check(self, prior: NetworkPrior, word: str, captions: Sequence[Sequence[str]]) -> TokenReader:
        """A reader of the word as it begins. Raises ValueError for a prior, a word or captions that will not do."""
        if prior.group > 1:
            raise ValueError(f'A word is learnt by a prior that sees one view at a time; "{prior.name}" sees several.')
        reader = TokenReader(prior.reader, [self.begin(prior, word)])
        for text in {text for texts in captions for text in texts}:
            if word not in text:
                raise ValueError(f'A caption lacks the word that is learnt, "{word}": {text!r}.')
            reader.check(text)
        return reader

    def __call__(
        self,
        prior: NetworkPrior,
        pictures: Image,
        captions: Sequence[Sequence[str]],
        word: str,
        seed: int = 0,
        watch: Callable[[int, float], None] = lambda index, loss: None,
    ) -> Token:
        """Learn a word. captions: of each picture those that may be told of it, each with the word. watch: is told
        every step and its loss. Raises ValueError for what will not do."""
        if len(captions) != len(pictures):
            raise ValueError(
                f"Each picture needs captions; given {len(pictures)} pictures and {len(captions)} of them."
            )
        reader = self.check(prior, word, captions)
        taught = replace(prior, reader=reader)
        reader.vectors.requires_grad_()
        unit = reader.embedding.weight.square().mean().sqrt().item()
        adam = torch.optim.Adam([reader.vectors], lr=self.rate * unit)
        for index in range(self.steps):
            step = Step(seed, "inversion", index, index / max(self.steps - 1, 1))
            adam.param_groups[0]["lr"] = self.rate * unit * (1 - step.progress)
            picked, said = _drawn(captions, step, self.rows)
            loss = self.loss(taught, pictures[picked], said, step)
            adam.zero_grad()
            loss.backward()
            adam.step()
            watch(index, float(loss.detach()))
        return Token(word, reader.vectors.detach().float().cpu().clone())

    def loss(self, prior: NetworkPrior, pictures: Image, said: Sequence[str], step: Step) -> Float[Tensor, ""]:
        """L of a few pictures, each told its caption, with gradient to the vectors of the prior's `TokenReader`."""
        with torch.no_grad():
            z = prior.encode(pictures.to(prior.reader.encoder.device))
        x = diffuse(prior, z, step, self.t)
        text = torch.cat([prior.reader.states(prior.reader.numbers(text)) for text in said])
        eps = prior.forward([Query(x.z_t, x.t, prior.condition(text, None))])[0]
        return (eps - x.eps).square().mean()


def _drawn(captions: Sequence[Sequence[str]], step: Step, rows: int) -> tuple[list[int], list[str]]:
    """The pictures of a step, and a caption of each."""
    picked = [int(u * len(captions)) for u in step.uniform("picture", rows).tolist()]
    which = step.uniform("caption", rows).tolist()
    return picked, [captions[i][int(u * len(captions[i]))] for i, u in zip(picked, which, strict=True)]
