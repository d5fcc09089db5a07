"""The embedded prior's networks: a small UNet, a small CLIP text model, and a tokenizer in which a word is a token."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..priors.multiview import JointAttention
from .grammar import words

NOISE_SHIFT = 16.0  # the signal-to-noise ratio of the cosine schedule is divided by it
SIZE, UNSHUFFLE = 64, 4  # pictures of 64 pixels become latents of 16 x 16 x 48
TEXT_WIDTH, TEXT_LENGTH = 128, 36


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


def tokenizer():
    """A CLIPTokenizer of the playroom's words."""
    from transformers import CLIPTokenizer

    vocab, merges = bpe(words())
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


def unet(channels: tuple[int, ...] = (96, 160)) -> Any:
    """A UNet2DConditionModel with random weights: camera by class embedding, pooled text beside the time.

    Attention, within and across views, is at 8 x 8 alone: at 16 x 16 it would take most of the time on a CPU.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    net: Any = UNet2DConditionModel(
        sample_size=SIZE // UNSHUFFLE,
        in_channels=3 * UNSHUFFLE**2,
        out_channels=3 * UNSHUFFLE**2,
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


def scheduler():
    """The noise levels: 1,000 steps of a cosine schedule whose signal-to-noise ratio is divided; it answers with x_0.

    Playroom pictures are so plain that on the unshifted schedule a network sees shape and colour through the noise up
    to t = 0.95: after 3,500 steps its text was still worth nothing. With more noise the text is needed over half of
    the range (the shift of Hoogeboom et al. 2023, arXiv 2301.11093). And a patch of 48 numbers is half as wide as the
    network: noise or v would have to be carried through it whole, the clean picture need not be (Li, He 2025,
    arXiv 2511.13720).
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    t = (torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008
    cosine = (t * torch.pi / 2).cos().square()
    ratio = cosine / (1 - cosine) / NOISE_SHIFT
    alphas_cumprod = ratio / (1 + ratio)
    alphas_cumprod = alphas_cumprod[1:] / alphas_cumprod[0]
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    return DDIMScheduler(
        num_train_timesteps=1000,
        trained_betas=[round(beta, 8) for beta in (1 - alphas_cumprod / before).clamp_max(0.999).tolist()],
        prediction_type="sample",
        clip_sample=True,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )


def save(folder: Path, net: Any, text: Any) -> None:
    """Write the ordinary diffusers folder, weights in fp16 safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    for module, name in ((net, "unet"), (text, "text_encoder")):
        dtype = next(module.parameters()).dtype
        module.half().save_pretrained(folder / name, safe_serialization=True)
        module.to(dtype)
    tokenizer().save_pretrained(folder / "tokenizer")
    scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def seeded(seed: int) -> tuple[Any, Any]:
    """A fresh UNet and text encoder whose initial weights follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vocab, _ = bpe(words())
        return unet(), text_encoder(len(vocab))


def load(folder: Path) -> tuple[Any, Any]:
    """The UNet and text encoder of a saved folder, in fp32, ready to be trained on."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel

    net: Any = UNet2DConditionModel.from_pretrained(folder / "unet", use_safetensors=True).float()
    net.set_attn_processor(JointAttention())
    return net, CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True).float()
