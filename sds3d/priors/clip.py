"""A whole CLIP model, pictures and texts in one space (Radford et al. 2021, arXiv 2103.00020): how alike they are.

The folder is a model's of transformers: config.json, model.safetensors, preprocessor_config.json and the tokenizer's
files, as openai/clip-vit-base-patch32 has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from ..core import Image
from . import folder as files


@dataclass(frozen=True, eq=False)
class Clip:
    """A frozen model. size: the side of the square pictures that it sees. mean, std: of colours in [0, 1]."""

    model: files.Network = field(repr=False)
    tokenizer: Any = field(repr=False)
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @torch.no_grad()
    def __call__(self, images: Image, texts: Sequence[str]) -> Float[Tensor, "B n"]:
        """The cosine of each picture with each text; texts are cut where the model's length ends."""
        weight = next(self.model.parameters())
        seen = interpolate(
            images.permute(0, 3, 1, 2).to(weight), (self.size, self.size), mode="bicubic", antialias=True
        ).clamp(0, 1)
        mean, std = (weight.new_tensor(numbers)[:, None, None] for numbers in (self.mean, self.std))
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(weight.device)
        out = self.model(**tokens, pixel_values=(seen - mean) / std)
        pictures, words = (
            torch.nn.functional.normalize(embeds, dim=-1) for embeds in (out.image_embeds, out.text_embeds)
        )
        return (pictures @ words.T).to(images)


def check_clip(folder: Path) -> None:
    """Raise FileNotFoundError or ValueError, in a sentence, for a folder that holds no CLIP model."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no CLIP model at {folder}.")
    name = files.class_of(folder)
    if name != files.CLIP_BOTH:
        raise ValueError(f"{folder} holds {name}; a text and a picture are compared by a {files.CLIP_BOTH}.")
    files.weight_files(folder)


def open_clip(folder: Path, device: torch.device | str = "cpu") -> Clip:
    """Open a local CLIP model. Raises as `check_clip`, and for files that do not fit together."""
    check_clip(folder)
    told = files.read_json(folder / "preprocessor_config.json")
    colours = [told.get(name) for name in ("image_mean", "image_std")]
    if not all(isinstance(numbers, list) and len(numbers) == 3 for numbers in colours):
        raise ValueError(f"{folder / 'preprocessor_config.json'} does not say image_mean and image_std.")
    mean, std = (tuple(float(number) for number in numbers or ()) for numbers in colours)
    model = files.load(folder).to(device)
    return Clip(model, files.load_tokenizer(folder), model.config.vision_config.image_size, mean, std)
