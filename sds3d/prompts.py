"""From one prompt to the texts that a prior is asked with: one per view, by the name of the question.

A caption is "{prompt}{look}{view}{background}", for example "a red cube, normals, front view, on white". The questions
are "cond" (the caption), "cond_plain" (the caption without the word of its view, for networks that are told the camera
apart from it), "uncond" (the empty prompt) and, where one is given, "negative" (the negative prompt, alone).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .cameras import view_word
from .core import Background, Cameras, Prior

LONGEST = 2000  # characters of a prompt; a text encoder reads about 300 of them
LOOK_WORDS = {"rgb": "", "albedo": "", "normal": ", normals"}  # what a prior must be told about the kind of picture


def tidy(text: str, name: str = "prompt") -> str:
    """A prompt with its white space collapsed.

    Raises ValueError for an empty one, for more than `LONGEST` characters, and for control or unpaired characters.
    """
    text = " ".join(text.split())
    if not text:
        raise ValueError(f'The {name} is empty; describe the object, for example "a red cube".')
    if len(text) > LONGEST:
        raise ValueError(f"The {name} has {len(text)} characters; at most {LONGEST} are read.")
    odd = [c for c in text if unicodedata.category(c) in ("Cc", "Cs")]
    if odd:
        raise ValueError(f"The {name} holds the control character U+{ord(odd[0]):04X}; remove it.")
    return text


@dataclass(frozen=True)
class Prompts:
    """A prompt and what may be added to it.

    negative: what the object should not be, or None. view_words: say ", front view" and so on, which only a prior that
    sees one view at a time needs. name_background: say ", on white" where the background has a name.
    """

    prompt: str
    negative: str | None = None
    view_words: bool = False
    name_background: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", tidy(self.prompt))
        if self.negative is not None:
            object.__setattr__(self, "negative", tidy(self.negative, "negative prompt"))

    def names(self) -> frozenset[str]:
        """The questions that these prompts can ask."""
        return frozenset(("cond", "cond_plain", "uncond", *(() if self.negative is None else ("negative",))))

    def texts(self, cameras: Cameras, background: Background, look: str = "rgb") -> dict[str, tuple[str, ...]]:
        """For each question one text per view [B]."""
        rows = len(cameras)
        said, view, behind = self.prompt + LOOK_WORDS[look], [""] * rows, [""] * rows
        if self.view_words:
            angles = zip(cameras.azimuth_deg.tolist(), cameras.elevation_deg.tolist(), strict=True)
            view = [f", {view_word(*angle)} view" for angle in angles]
        if self.name_background and background.name is not None:
            group = rows // len(background.name)
            behind = [f", on {background.name[i // group]}" for i in range(rows)]
        texts = {
            "cond": tuple(said + v + b for v, b in zip(view, behind, strict=True)),
            "cond_plain": tuple(said + b for b in behind),
            "uncond": ("",) * rows,
        }
        if self.negative is not None:
            texts["negative"] = (self.negative,) * rows
        return texts


@dataclass
class Embeddings:
    """The embeddings of the few texts of a stage: each is encoded once, after which a step only looks it up.

    Every text is encoded alone, because the bits of a batched product depend on the batch: so an embedding does not
    depend on which texts came before it, and a resumed run sees what the undisturbed one saw.
    """

    prior: Prior
    known: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """[N, L, d] for N texts. Raises ValueError for words that the prior cannot know."""
        for text in texts:
            if text not in self.known:
                self.known[text] = self.prior.text([text])
        return torch.cat([self.known[text] for text in texts])
