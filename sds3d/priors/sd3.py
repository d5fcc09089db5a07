"""Stable Diffusion 3 (Esser et al. 2024, arXiv 2403.03206): a transformer that tells a rectified flow's velocity.

| symbol | variable | equation                                                          |
|--------|----------|-------------------------------------------------------------------|
| s      | t        | time of the flow, 0 clean, 1 noise; the network is told 1000 s    |
| x_s    | z_t      | (1 - s) x_0 + s eps, so alpha = 1 - s and sigma = s               |
| u      | velocity | the network's answer, eps - x_0                                   |
| E      |          | x_s + (1 - s) u                                                   |

The text is read by two CLIP encoders, whose states lie side by side, and by T5, whose states follow them; T5 may be
missing, which leaves zeros in its place. What the CLIP encoders say as a whole is row 0 of `Condition.text`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from ..core import Latent, Learner, Query, Step
from . import folder as files
from .frozen import FolderPrior, precision
from .latent import codec_of
from .text import PooledReader, TextReader

PARTS = {
    "transformer": files.SD3,
    "text_encoder": files.CLIP_POOLED,
    "text_encoder_2": files.CLIP_POOLED,
    "text_encoder_3": files.T5,
    "vae": files.VAE,
}
T5_LENGTH = 256  # tokens, as the authors sample
LAST = 1 - 1e-3  # beyond it the clean latent cannot be told from eps in single precision


@dataclass(frozen=True, eq=False)
class Sd3Prior(FolderPrior):
    """A frozen Stable Diffusion 3 or 3.5; see `core.Prior`. The flow has no grid: every t in [0, 0.999] is its own."""

    transformer: files.Network = field(repr=False)
    clips: tuple[PooledReader, ...] = field(repr=False)
    t5: TextReader | None = field(repr=False)
    group: int = 1

    def text(self, prompts: Sequence[str]) -> Float[Tensor, "n rows d"]:
        """What the encoders say of each prompt, fp32; row 0 is pooled. Raises ValueError for too long a prompt."""
        clip = torch.cat([reader(prompts) for reader in self.clips], dim=-1)
        width = self.transformer.config.joint_attention_dim
        t5 = clip.new_zeros(len(prompts), T5_LENGTH, width) if self.t5 is None else self.t5(prompts)
        return torch.cat([pad(clip, (0, width - clip.shape[-1])), t5], dim=1)

    def snap(self, t: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        return t.clamp(0, LAST)

    def noise_level(self, t: Float[Tensor, "N"]) -> tuple[Tensor, Tensor]:
        """1 - s and s [N, 1, 1, 1] in t's dtype."""
        s = self.snap(t).reshape(-1, 1, 1, 1)
        return 1 - s, s

    def forward(self, queries: Sequence[Query]) -> list[Latent]:
        """eps for each query from one batched forward of the network."""
        weight = next(self.transformer.parameters())
        self.refuse_pictures(any(query.condition.image is not None or query.condition.control for query in queries))
        text = torch.cat([query.condition.text for query in queries]).to(weight)
        output = self.transformer(
            torch.cat([query.z_t.to(weight) for query in queries]),
            encoder_hidden_states=text[:, 1:],
            pooled_projections=text[:, 0, : self.transformer.config.pooled_projection_dim],
            timestep=torch.cat([1000 * self.snap(query.t) for query in queries]).to(weight.device),
            return_dict=False,
        )[0]
        answers = []
        for query, velocity in zip(queries, output.split([query.z_t.shape[0] for query in queries]), strict=True):
            alpha, _ = self.noise_level(query.t)
            answers.append(query.z_t + alpha.to(query.z_t) * velocity.to(query.z_t))
        return answers

    def adapter(self, rank: int, lr: float, step: Step) -> Learner | None:
        """None: low-rank adapters are made for the attention of UNets."""
        return None


def open_sd3(place: str | Path, device: torch.device | str = "cpu", name: str | None = None) -> Sd3Prior:
    """Open a model folder in the layout of diffusers.

    Raises FileNotFoundError or ValueError, in a sentence, and before any network is built wherever the files tell.
    """
    folder, device = Path(place), torch.device(device)
    files.check_parts(folder, PARTS, optional=("text_encoder_3",))
    parts = [part for part in PARTS if (folder / part).is_dir()]
    weights = [file for part in parts for file in files.weight_files(folder / part)]
    config, vae = (files.read_json(folder / part / "config.json") for part in ("transformer", "vae"))
    if vae.get("latent_channels") != config.get("in_channels"):
        raise ValueError(
            f"{folder} takes {config.get('in_channels')} channels and its vae gives {vae.get('latent_channels')}: "
            "not text-to-image."
        )
    clips = tuple(
        PooledReader(files.load_tokenizer(folder / tokens), encoder(folder / part, device))
        for part, tokens in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))
    )
    t5 = None
    if (folder / "text_encoder_3").is_dir():
        tokenizer = files.load_tokenizer(folder / "tokenizer_3", "T5")
        t5 = TextReader(tokenizer, encoder(folder / "text_encoder_3", device), length=T5_LENGTH)
    width, takes = config.get("joint_attention_dim", 0), config.get("pooled_projection_dim")
    pooled = sum(reader.encoder.config.projection_dim for reader in clips)
    if pooled != takes or pooled > width or (t5 is not None and t5.encoder.config.d_model != width):
        raise ValueError(f"The text encoders of {folder} do not belong to its transformer: their widths differ.")
    transformer = files.load(folder / "transformer", precision(folder / "transformer", device))
    return Sd3Prior(
        name=name or folder.name,
        licence=files.licence(folder),
        weights=tuple(weights),
        codec=codec_of(files.load(folder / "vae").to(device), config["sample_size"]),
        transformer=transformer.to(device),
        clips=clips,
        t5=t5,
    )


def encoder(part: Path, device: torch.device) -> files.Network:
    """The frozen text encoder of a folder, on the device."""
    return files.load(part, precision(part, device)).to(device)
