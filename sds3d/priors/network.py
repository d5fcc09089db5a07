"""A UNet of a diffusers folder behind the one convention: pixels or latents, one view or several, eps, v or sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Cameras, Latent, Learner, Query, Step
from ..diffusion import eps_from_v, eps_from_x0
from . import folder as files
from .frozen import FolderPrior, precision
from .latent import codec_of
from .lora import Lora, adapted, attention_layers
from .multiview import GROUP, JointAttention, OptionalCamera, camera_vector
from .nasa import steered, text_attentions
from .pixel import PixelCodec, fold_of
from .text import TextReader

PARTS = {"unet": files.UNET, "text_encoder": files.CLIP, "vae": files.VAE}
ALPHA_MIN = 1e-3  # below it the clean latent cannot be told from eps in single precision


@dataclass(frozen=True, eq=False)
class NetworkPrior(FolderPrior):
    """A frozen diffusion model with a UNet; see `core.Prior`.

    The time t in [0, 1] is grid index / (T - 1) of the scheduler's T noise levels: 0 is the least noise, 1 the most.
    The grid ends at the last level with alpha >= 1e-3. Network and conditions live on one device; latents may come in
    any dtype and keep it.
    """

    unet: files.Network = field(repr=False)
    reader: TextReader = field(repr=False)
    alphas_cumprod: Float[Tensor, "T"] = field(repr=False)
    prediction: str
    group: int
    sees_camera: bool

    @property
    def reads_away(self) -> bool:
        """Whether a condition may bring a negative text: whether the network attends to its text at all."""
        return bool(text_attentions(self.unet))

    def text(self, prompts: Sequence[str]) -> Tensor:
        return self.reader(prompts)

    def told_camera(self, cameras: Cameras) -> Tensor | None:
        return camera_vector(cameras) if self.sees_camera else None

    def index(self, t: Float[Tensor, "N"]) -> Tensor:
        """The grid index of each time."""
        steps = len(self.alphas_cumprod)
        last = int((self.alphas_cumprod.sqrt() >= ALPHA_MIN).sum()) - 1
        return (t.double() * (steps - 1)).round().long().clamp(0, last)

    def snap(self, t: Float[Tensor, "N"]) -> Float[Tensor, "N"]:
        return (self.index(t).double() / (len(self.alphas_cumprod) - 1)).to(t)

    def noise_level(self, t: Float[Tensor, "N"]) -> tuple[Tensor, Tensor]:
        """alpha and sigma [N, 1, 1, 1] in t's dtype, at the nearest grid index."""
        squared = self.alphas_cumprod.to(t.device)[self.index(t)].reshape(-1, 1, 1, 1)
        return squared.sqrt().to(t), (1 - squared).sqrt().to(t)

    def owns(self, adapter: object) -> bool:
        """Whether an adapter is one of this network's, which shares its forward."""
        return isinstance(adapter, Lora) and adapter.denoise == self.forward

    def labels(self, query: Query) -> Float[Tensor, "N 17"]:
        """What the network's own camera embedding is told; an adapter that embeds cameras itself leaves it out."""
        own = not isinstance(query.adapter, Lora) or query.adapter.camera is None
        return OptionalCamera.labels(query.condition.camera if own else None, query.z_t.shape[0])

    def steering(self, queries: Sequence[Query], asked: Sequence[Tensor], told: Mapping[str, Any]) -> dict[str, Any]:
        """What the network is told beside `asked` (latents, times and texts of all queries) and `told`: nothing.

        Raises ValueError for a control picture.
        """
        self.refuse_pictures(any(query.condition.control for query in queries))
        return {}

    def shown(self, queries: Sequence[Query]) -> Tensor:
        """What the network sees of all queries: the noised latents [N, c, *s]. Raises ValueError for a reference."""
        self.refuse_pictures(any(query.condition.image is not None for query in queries))
        return torch.cat([query.z_t.to(next(self.unet.parameters())) for query in queries])

    def forward(self, queries: Sequence[Query]) -> list[Latent]:
        """eps for each query from one batched forward of the network, with gradient to their adapters."""
        weight = next(self.unet.parameters())
        rows = [query.z_t.shape[0] for query in queries]
        if any(n % self.group for n in rows):
            raise ValueError(f'The prior "{self.name}" denoises {self.group} views jointly; given {rows} rows.')
        told: dict[str, Any] = {}
        if isinstance(self.unet.class_embedding, OptionalCamera):
            told["cross_attention_kwargs"] = {"views": self.group}
            told["class_labels"] = torch.cat([self.labels(query).to(weight) for query in queries])
        asked = (
            self.shown(queries),
            torch.cat([self.index(query.t) for query in queries]).to(weight.device),
            torch.cat([query.condition.text.to(weight) for query in queries]),
        )
        more = self.steering(queries, asked, told)
        with adapted(self.unet, queries, rows), steered(self.unet, queries, rows):
            output = self.unet(*asked, return_dict=False, **told, **more)[0]
        channels = queries[0].z_t.shape[1]  # a network that also learns its variance has twice as many
        return [self.to_eps(query, part[:, :channels]) for query, part in zip(queries, output.split(rows), strict=True)]

    def to_eps(self, query: Query, output: Latent) -> Latent:
        """What the network said, as eps in the dtype of the query's latent."""
        z_t, output = query.z_t, output.to(query.z_t)
        if self.prediction == "epsilon":
            return output
        alpha, sigma = (level.to(z_t) for level in self.noise_level(query.t))
        if self.prediction == "v_prediction":
            return eps_from_v(z_t, output, alpha, sigma)
        return eps_from_x0(z_t, output, alpha, sigma)

    def adapter(self, rank: int, lr: float, step: Step) -> Learner | None:
        """A low-rank adapter of the network's attention, or None where it has no attention."""
        if not attention_layers(self.unet):
            return None
        return Lora(self.unet, self.forward, self.sees_camera, rank, lr, step)


def open_folder(
    place: str | Path,
    device: torch.device | str = "cpu",
    name: str | None = None,
    single: bool = False,
    check_words: Callable[[str], None] | None = None,
) -> NetworkPrior:
    """Open a model folder in the layout of diffusers.

    With vae/ its latents are the autoencoder's, without it they are pixels. A network with a 16-number class embedding
    is multi-view (4 views, told their cameras); `single` opens it as an ordinary one-view model without a camera. One
    with twice the channels of its latents is an `edit.EditPrior`.
    check_words: see `text.TextReader`. Raises FileNotFoundError or ValueError, in a sentence, and before any network is
    built wherever the files tell.
    """
    folder = Path(place)
    files.check_parts(folder, PARTS, optional=("vae",))
    latent = (folder / "vae").is_dir()
    parts = ("unet", "text_encoder", "vae") if latent else ("unet", "text_encoder")
    weights = [file for part in parts for file in files.weight_files(folder / part)]
    config = files.read_json(folder / "unet" / "config.json")
    joint = sees_cameras(folder, config)
    edits = config["in_channels"] == 2 * config["out_channels"]
    channels = config["in_channels"] // 2 if edits else config["in_channels"]
    fold = 1 if latent else fold_of(channels)
    alphas_cumprod, prediction = files.levels(folder)
    tokenizer = files.load_tokenizer(folder / "tokenizer")

    device = torch.device(device)
    dtype = precision(folder / "unet", device)
    unet = files.load(folder / "unet", dtype)
    if joint:
        unet.set_attn_processor(JointAttention())
        unet.class_embedding = OptionalCamera(unet.class_embedding)
    encoder = files.load(folder / "text_encoder", dtype).to(device)
    if latent:
        codec = codec_of(files.load(folder / "vae").to(device), config["sample_size"])
        if codec.vae.config.latent_channels != channels:
            raise ValueError(
                f"{folder} takes {config['in_channels']} channels, its vae gives another number: not text-to-image."
            )
    else:
        codec = PixelCodec(config["sample_size"] * fold, fold)
    from .edit import EditPrior  # which is a kind of this file's prior

    return (EditPrior if edits else NetworkPrior)(
        name=name or folder.name,
        licence=files.licence(folder),
        weights=tuple(weights),
        unet=unet.to(device),
        reader=TextReader(tokenizer, encoder, check_words),
        codec=codec,
        alphas_cumprod=alphas_cumprod,
        prediction=prediction,
        group=GROUP if joint and not single else 1,
        sees_camera=joint and not single,
    )


def sees_cameras(folder: Path, config: Mapping[str, object]) -> bool:
    """Whether the network is multi-view. Raises ValueError for conditions that this file does not know."""
    if config.get("addition_embed_type") not in (None, "text"):
        raise ValueError(
            f"{folder} wants {config['addition_embed_type']} conditions (as SDXL does), which are not read."
        )
    if config.get("class_embed_type") is None and config.get("num_class_embeds") is None:
        return False
    if config.get("class_embed_type") != "projection" or config.get("projection_class_embeddings_input_dim") != 16:
        raise ValueError(f"{folder} wants class labels; this loader knows those of 16 numbers, a camera.")
    return True
