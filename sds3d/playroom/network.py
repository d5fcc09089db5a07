"""The embedded priors' networks: a small UNet on pixels or on latents, a small CLIP text model, an autoencoder, and a
tokenizer in which a word is a token."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..priors.multiview import JointAttention
from .grammar import words

SIZE, UNSHUFFLE = 64, 4  # pictures of 64 pixels become 16 x 16 places, in either space
TEXT_WIDTH, TEXT_LENGTH = 128, 36


@dataclass(frozen=True)
class Space:
    """What a UNet sees: `channels` numbers at each of 16 x 16 places.

    noise_shift: the signal-to-noise ratio of the cosine schedule is divided by it (see `scheduler`). bounded: the clean
    numbers lie in [-1, 1], so a sampler may clip to them.
    """

    channels: int
    noise_shift: float
    bounded: bool


PIXELS = Space(3 * UNSHUFFLE**2, noise_shift=16.0, bounded=True)
LATENTS = Space(4, noise_shift=4.0, bounded=False)


def bpe(vocabulary: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-pair merges after which every word of the vocabulary is one token: the merges of training on itself."""
    spelled = {word: [*word[:-1], word[-1] + "</w>"] for word in vocabulary}
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [","]
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    while any(len(pieces) > 1 for pieces in spelled.values()):
        pairs = Counter(pair for pieces in spelled.values() for pair in itertools.pairwise(pieces))
        first, second = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((first, second))
        tokens.append(first + second)
        for pieces in spelled.values():
            at = 0
            while at < len(pieces) - 1:
                if (pieces[at], pieces[at + 1]) == (first, second):
                    pieces[at : at + 2] = [first + second]
                at += 1
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges


def tokenizer(vocabulary: tuple[str, ...] | None = None):
    """A CLIPTokenizer of a vocabulary, by default the playroom's words."""
    from transformers import CLIPTokenizer

    vocab, merges = bpe(vocabulary or words())
    read: Any = CLIPTokenizer  # its annotation leaves out the merges as pairs
    return read(vocab=vocab, merges=merges, model_max_length=TEXT_LENGTH)


def text_encoder(vocab_size: int) -> Any:
    """A CLIPTextModel with random weights in which captions differ from the start.

    With CLIP's own initial weights the pooled text of two captions differs by one part in a hundred, and the text is
    not learned. Here words are large, and the start and the padding are zero: so the padding, two thirds of every
    caption, holds nothing but what it attends to, a summary of the words, and the pooled texts differ by a half.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    model: Any = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=vocab_size - 2,
            eos_token_id=vocab_size - 1,
            pad_token_id=vocab_size - 1,
        )
    )
    embeddings = model.get_input_embeddings().weight
    nn.init.normal_(embeddings, std=1.0)
    nn.init.zeros_(embeddings[-2:])
    nn.init.normal_(model.embeddings.position_embedding.weight, std=0.1)
    return model


def unet(space: Space = PIXELS, channels: tuple[int, ...] = (96, 160)) -> Any:
    """A UNet2DConditionModel with random weights: camera by class embedding, pooled text beside the time.

    Attention, within and across views, is at 8 x 8 alone: at 16 x 16 it would take most of the time on a CPU.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    net: Any = UNet2DConditionModel(
        sample_size=SIZE // UNSHUFFLE,
        in_channels=space.channels,
        out_channels=space.channels,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # in this class the number of heads
        norm_num_groups=16,
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=16,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )
    net.set_attn_processor(JointAttention())
    return net


def autoencoder() -> Any:
    """An AutoencoderKL with random weights: 64 pixels to 16 x 16 latents of 4 numbers, a twelfth of the picture's.

    As narrow as it is, it leaves the UNet and its text model all but a megabyte and a third of the 16 that a prior may
    take. Attention would take a twentieth of that, and what a place needs is told by its neighbours.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    build: Any = AutoencoderKL  # its annotations allow one block alone
    return build(
        sample_size=SIZE,
        latent_channels=LATENTS.channels,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def scheduler(space: Space = PIXELS):
    """The noise levels: 1,000 steps of a cosine schedule whose signal-to-noise ratio is divided; it answers with x_0.

    Playroom pictures are so plain that on the unshifted schedule a network sees shape and colour through the noise up
    to t = 0.95: after 3,500 steps its text was still worth nothing. With more noise the text is needed over half of
    the range (the shift of Hoogeboom et al. 2023, arXiv 2301.11093). And a patch of 48 numbers is half as wide as the
    network: noise or v would have to be carried through it whole, the clean picture need not be (Li, He 2025,
    arXiv 2511.13720).

    One t is to mean as much knowledge in both spaces, so that the times of training and of recipes serve both. The 16
    pixels of a place nearly repeat one another, and their mean has a sixteenth of the noise's variance: the shift of
    the pixels takes back just that, and leaves the colour, of variance 0.36. The four numbers of a latent place have
    variance 1 and, as far as the autoencoder is a good one, do not repeat: they need a shift of their own. Gaussians
    of these covariances tell equally much, 1/2 log det(1 + snr C), where latents are shifted by 3.9 to 4.5, for ratios
    of 0.1 to 3 (192 training pictures, place by place). So 4; it was not yet tried in training, which logs what can
    refute it: at t = 0.9 the error with true captions must be far below that with shuffled ones.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    t = (torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008
    cosine = (t * torch.pi / 2).cos().square()
    ratio = cosine / (1 - cosine) / space.noise_shift
    alphas_cumprod = ratio / (1 + ratio)
    alphas_cumprod = alphas_cumprod[1:] / alphas_cumprod[0]
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    return DDIMScheduler(
        num_train_timesteps=1000,
        trained_betas=[round(beta, 8) for beta in (1 - alphas_cumprod / before).clamp_max(0.999).tolist()],
        prediction_type="sample",
        clip_sample=space.bounded,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )


def save(folder: Path, net: Any, text: Any, vae: Path | None = None, vocabulary: tuple[str, ...] | None = None) -> None:
    """Write the ordinary diffusers folder, weights in fp16 safetensors. vae: a latent prior's autoencoder, as saved."""
    folder.mkdir(parents=True, exist_ok=True)
    write_half(net, folder / "unet")
    write_half(text, folder / "text_encoder")
    tokenizer(vocabulary).save_pretrained(folder / "tokenizer")
    scheduler(PIXELS if vae is None else LATENTS).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    if vae is not None:
        shutil.copytree(vae, folder / "vae", dirs_exist_ok=True)
        index["vae"] = ["diffusers", "AutoencoderKL"]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_half(module: Any, part: Path) -> None:
    """One network of a folder in fp16; the network itself keeps its dtype."""
    dtype = next(module.parameters()).dtype
    module.half().save_pretrained(part, safe_serialization=True)
    module.to(dtype)


def seeded(seed: int, space: Space = PIXELS) -> tuple[Any, Any]:
    """A fresh UNet and text encoder whose initial weights follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vocab, _ = bpe(words())
        return unet(space), text_encoder(len(vocab))


def told_source(net: Any, text: Any, vocabulary: tuple[str, ...], seed: int = 0) -> tuple[Any, Any]:
    """A UNet that is also shown the picture that it is to edit, and a text encoder that knows more words: both answer
    what they answered, until they are trained.

    As InstructPix2Pix has it (Brooks et al. 2022, arXiv 2211.09800): the source's latent comes as further channels
    beside the noisy one's, whose weights begin at zero.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vocab, _ = bpe(vocabulary)
        told = {key: value for key, value in net.config.items() if not key.startswith("_")}  # not where it was read
        wide: Any = UNet2DConditionModel(**told | {"in_channels": 2 * net.config.in_channels})
        reader = text_encoder(len(vocab))
    weights = net.state_dict()
    first = torch.zeros_like(wide.conv_in.weight)
    first[:, : net.config.in_channels] = weights["conv_in.weight"]
    wide.load_state_dict({**weights, "conv_in.weight": first})
    wide.set_attn_processor(JointAttention())
    known, _ = bpe(words())
    old, new = text.get_input_embeddings().weight.data, reader.get_input_embeddings().weight.data
    for token, row in vocab.items():
        if token in known:
            new[row] = old[known[token]]
    kept = {name: tensor for name, tensor in text.state_dict().items() if "token_embedding" not in name}
    reader.load_state_dict({**reader.state_dict(), **kept})
    return wide, reader


def load(folder: Path, space: Space = PIXELS, seed: int = 0) -> tuple[Any, Any]:
    """The UNet and text encoder of a saved folder, in fp32, ready to be trained on in `space`.

    From a folder of the other space all is kept, the text above all, but the first and the last layer, which touch the
    space's numbers: these begin anew, from the seed.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel

    net: Any = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True).float()
    if net.config.in_channels != space.channels:
        kept = {
            name: tensor for name, tensor in net.state_dict().items() if not name.startswith(("conv_in", "conv_out"))
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = unet(space, tuple(net.config.block_out_channels))
        net.load_state_dict({**net.state_dict(), **kept})
    net.set_attn_processor(JointAttention())
    return net, CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True).float()
