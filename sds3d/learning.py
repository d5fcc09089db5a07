"""`sds3d learn`: a word from a folder of pictures, as a file that a prior reads after its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .core import Image
from .files import replacing
from .priors.inversion import Inversion
from .priors.network import NetworkPrior
from .priors.token import write

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a word is learnt from: the prior, the word, and pictures that may each be told any of the captions."""

    prior: NetworkPrior
    word: str
    pictures: Image
    captions: tuple[str, ...]


def lesson(folder: Path, prior: object, word: str, captions: Sequence[str]) -> Lesson:
    """A lesson that can be given. Raises ValueError for what cannot."""
    if not isinstance(prior, NetworkPrior):
        raise ValueError(f'The prior "{getattr(prior, "name", prior)}" has no one text encoder to learn a word for.')
    made = Lesson(prior, word, seen(folder, prior.size), tuple(captions))
    Inversion().check(prior, word, [made.captions])
    return made


def learn(lesson: Lesson, inversion: Inversion, out: Path, seed: int, watch: Callable[[int, float], None]) -> None:
    """Learn the word and write it. watch: is told every step and its loss."""
    every = [lesson.captions] * len(lesson.pictures)
    token = inversion(lesson.prior, lesson.pictures, every, lesson.word, seed, watch)
    with replacing(out) as path:
        write(path, token)


def seen(folder: Path, size: int) -> Image:
    """The pictures of a folder: the middle square of each, `size` pixels a side. Raises ValueError."""
    from PIL import Image as Pillow
    from PIL import ImageOps

    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not files:
        raise ValueError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}).")
    pictures = []
    for file in files:
        try:
            with Pillow.open(file, formats=["PNG", "JPEG", "WEBP"]) as picture:
                square = ImageOps.fit(picture.convert("RGB"), (size, size), Pillow.Resampling.LANCZOS)
        except (OSError, SyntaxError, Pillow.DecompressionBombError) as error:
            raise ValueError(f"{file} cannot be read as a picture: {' '.join(str(error).split())[:200]}.") from None
        pictures.append(torch.from_numpy(np.asarray(square, dtype=np.float32) / 255))
    return torch.stack(pictures)
