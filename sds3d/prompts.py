"""From one prompt to the texts that a prior is asked with: one per view, by the name of the question.

A caption is "{prompt}{look}{view}{background}", for example "a red cube, normals, front view, on white". The questions
are "cond" (the caption), "cond_plain" (the caption without the word of its view, for networks that are told the camera
apart from it), "uncond" (the empty prompt) and, where one is given, "negative" (the negative prompt, alone). Where
views have words there are also the negatives of Perp-Neg (Armandpour et al. 2023, arXiv 2304.04968): "not_front" and
"not_side", the caption with the word of that other view, each with a weight by camera, and "not_behind", what a
`BackView` says is not seen from behind. Where an asset is edited, "source" is the caption of what it was; where an
instruction says how, "instruct" is that and "image" the empty prompt, for priors that are shown the source's picture.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from .cameras import view_word
from .core import Background, Cameras, Prior

LONGEST = 2000  # characters of a prompt; a text encoder reads about 300 of them
# What a prior must be told about the kind of picture.
LOOK_WORDS = {"rgb": "", "albedo": "", "normal": ", normals", "depth": ", depth map"}
AVOIDED = ("front", "side")  # the views that Perp-Neg keeps out of the others
SHOWN = ("image", "instruct")  # the questions in which a prior is shown the source's picture
FACE = ("face", "eyes", "eyebrows", "nose", "mouth", "lips", "teeth", "smile", "beard", "moustache", "glasses",
        "sunglasses", "makeup", "freckles")  # fmt: skip
JOINT = re.compile(r"(,? with |,? wearing |,? and |, )")  # what a prompt joins its parts by; the first two open a list


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
class BackView:
    """What a prior that sees one view at a time is told, and not told, of the views from behind (HeadSculpt, Han et al.
    2023, arXiv 2306.03038, whose "<back-view>" is a learnt token; see `priors.token`).

    hidden: of what the prompt says to come "with" or to be "wearing", each part that has one of these words is left
    out. words: said after ", back view". negative: what is not seen from behind, such as "eyes, nose, mouth", for
    Perp-Neg: the question "not_behind", whose weight grows from 0 at the front to -1 at the back.
    """

    hidden: tuple[str, ...] = FACE
    words: str = ""
    negative: str = ""

    def shows(self, prompt: str) -> str:
        """The prompt without its hidden parts: "with a, b and c" is a list, and without the "and" a comma ends it."""
        hidden = set(self.hidden)
        told, *rest = JOINT.split(prompt)
        joints, parts = rest[::2], rest[1::2]
        i = 0
        while i < len(parts):
            end = _list_end(joints, i)
            if end == i:  # no list
                told, i = told + joints[i] + parts[i], i + 1
                continue
            kept = [part for part in parts[i:end] if hidden.isdisjoint(re.findall(r"[\w'-]+", part.lower()))]
            if len(kept) == end - i:
                told += "".join(joint + part for joint, part in zip(joints[i:end], parts[i:end], strict=True))
            elif kept:
                *most, last = kept
                told += joints[i] + ", ".join(most) + (" and " if most else "") + last
            i = end
        return told


def _list_end(joints: Sequence[str], i: int) -> int:
    """How far the list goes that joint i opens; i where it opens none."""
    if joints[i].split()[-1] not in ("with", "wearing"):
        return i
    end = i + 1
    while end < len(joints) and joints[end] == ", ":
        end += 1
    if end == len(joints) or not joints[end].endswith("and "):
        return i + 1
    while end < len(joints) and joints[end].endswith("and "):
        end += 1
    return end


@dataclass(frozen=True)
class Prompts:
    """A prompt and what may be added to it.

    negative: what the object should not be, or None. view_words: say ", front view" and so on, which only a prior that
    sees one view at a time needs. name_background: say ", on white" where the background has a name. source: what the
    asset that is edited was before, or None where nothing is edited. instruction: how it is edited, for a prior that
    reads that itself. behind: how views from behind are told, where views have words.
    """

    prompt: str
    negative: str | None = None
    view_words: bool = False
    name_background: bool = True
    source: str | None = None
    instruction: str | None = None
    behind: BackView | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", tidy(self.prompt))
        if self.negative is not None:
            object.__setattr__(self, "negative", tidy(self.negative, "negative prompt"))
        if self.source is not None:
            object.__setattr__(self, "source", tidy(self.source, "source prompt"))
        if self.instruction is not None:
            object.__setattr__(self, "instruction", tidy(self.instruction, "instruction"))

    @property
    def negates_behind(self) -> bool:
        """Whether there is a question "not_behind"."""
        return self.view_words and self.behind is not None and bool(self.behind.negative)

    def names(self) -> frozenset[str]:
        """The questions that these prompts can ask."""
        avoided = [f"not_{word}" for word in AVOIDED] if self.view_words else []
        behind = ["not_behind"] if self.negates_behind else []
        given = [name for name in ("negative", "source") if getattr(self, name) is not None]
        told = [] if self.instruction is None else SHOWN
        return frozenset(("cond", "cond_plain", "uncond", *avoided, *behind, *given, *told))

    def texts(self, cameras: Cameras, background: Background, look: str = "rgb") -> dict[str, tuple[str, ...]]:
        """For each question one text per view [B]."""
        rows, look_words = len(cameras), LOOK_WORDS[look]
        views, behind = [""] * rows, [""] * rows
        if self.view_words:
            angles = zip(cameras.azimuth_deg.tolist(), cameras.elevation_deg.tolist(), strict=True)
            views = [view_word(*angle) for angle in angles]
        if self.name_background and background.name is not None:
            group = rows // len(background.name)
            behind = [f", on {background.name[i // group]}" for i in range(rows)]
        said = self.prompt + look_words

        def captions(prompt: str) -> tuple[str, ...]:
            seen = [self.seen(prompt, look_words, view) for view in views]
            return tuple(text + b for text, b in zip(seen, behind, strict=True))

        texts = {
            "cond": captions(self.prompt),
            "cond_plain": tuple(said + b for b in behind),
            "uncond": ("",) * rows,
        }
        if self.view_words:
            texts |= {f"not_{word}": tuple(f"{said}, {word} view{b}" for b in behind) for word in AVOIDED}
        if self.behind is not None and self.negates_behind:
            texts["not_behind"] = (self.behind.negative,) * rows
        if self.negative is not None:
            texts["negative"] = (self.negative,) * rows
        if self.source is not None:
            texts["source"] = captions(self.source)
        if self.instruction is not None:
            texts |= {"image": ("",) * rows, "instruct": (self.instruction,) * rows}
        return texts

    def seen(self, prompt: str, look_words: str, view: str) -> str:
        """A prompt as it is told of a view, by the view's word or "" for none."""
        if not view:
            return prompt + look_words
        if view != "back" or self.behind is None:
            return f"{prompt}{look_words}, {view} view"
        words = f", {self.behind.words}" if self.behind.words else ""
        return f"{self.behind.shows(prompt)}{look_words}, back view{words}"

    def weights(self, cameras: Cameras) -> dict[str, Float[Tensor, "B"]]:
        """The weight per view of each question that has one; see `perp_neg_weights` and `BackView`."""
        if not self.view_words:
            return {}
        behind = {"not_behind": -torch.deg2rad(cameras.azimuth_deg / 2).sin().square()} if self.negates_behind else {}
        return perp_neg_weights(cameras) | behind


def perp_neg_weights(cameras: Cameras) -> dict[str, Float[Tensor, "B"]]:
    """How much Perp-Neg keeps each view from looking like another one: numbers of at most 0.

    They are -(a exp(-b r) + c) with threestudio's constants, and 0 from above. r falls from 1 at the front to 0 at the
    side, and again from 1 at the side to 0 at the back. So the front is kept from the side, the side from the front,
    and the back from the front most of all. threestudio also blends the embeddings of two views; here a view has one
    word.
    """
    away = ((cameras.azimuth_deg + 180) % 360 - 180).abs()
    ahead = away < 90
    r = torch.where(ahead, 1 - away / 90, 2 - away / 90)

    def fall(x: Tensor, a: float, b: float, c: float) -> Tensor:
        return -(a * (-b * x).exp() + c).clamp_min(0)

    front = torch.where(ahead, fall(r, 4.0, 0.5, -2.426), fall(r, 1.0, 0.5, 0.967))
    side = torch.where(ahead, fall(1 - r, 4.0, 0.5, -2.426), fall(r, 1.0, 0.5, -0.606))
    above = cameras.elevation_deg > 60
    return {"not_front": front.masked_fill(above, 0.0), "not_side": side.masked_fill(above, 0.0)}


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
