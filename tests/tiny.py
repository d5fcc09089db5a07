"""Tiny random models in the folder layout of diffusers, so that tests open priors without any download."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ("a", "red", "blue", "cube", "cone", "on", "top", "of", "view", "front", "back", "side")


def tokenizer(length: int = 12):
    """A CLIP tokenizer that knows WORDS as whole tokens."""
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1, ",</w>": 2}
    merges = []
    for word in WORDS:
        letters = [*word[:-1], word[-1] + "</w>"]
        for piece in letters:
            vocab.setdefault(piece, len(vocab))
        while len(letters) > 1:
            if tuple(letters[:2]) not in merges:
                merges.append(tuple(letters[:2]))
            letters = ["".join(letters[:2]), *letters[2:]]
            vocab.setdefault(letters[0], len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def clip(kind, vocab_size: int, width: int = 16):
    """A random CLIP text encoder of the class `kind`."""
    from transformers.models.clip.configuration_clip import CLIPTextConfig

    return kind(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=12,
            projection_dim=width,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def save_sd3(folder: Path, t5: bool = True) -> Path:
    """Write a random model in the layout of Stable Diffusion 3: 8 x 8 latents of 4 channels, pictures of 16 pixels."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
    from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5EncoderModel
    from transformers.models.t5.tokenization_t5 import T5Tokenizer

    torch.manual_seed(0)
    tokens = tokenizer()
    for number, width in (("", 16), ("_2", 24)):
        tokens.save_pretrained(folder / f"tokenizer{number}")
        clip(CLIPTextModelWithProjection, len(tokens), width).save_pretrained(folder / f"text_encoder{number}")
    if t5:
        pieces = ["<pad>", "</s>", "<unk>", "\u2581", *(f"\u2581{word}" for word in WORDS)]
        reader = T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)
        reader.save_pretrained(folder / "tokenizer_3")
        config = T5Config(vocab_size=len(reader), d_model=48, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        T5EncoderModel(config).save_pretrained(folder / "text_encoder_3")
    SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=48, caption_projection_dim=16, pooled_projection_dim=40,
        pos_embed_max_size=8, qk_norm="rms_norm", dual_attention_layers=(0,),
    ).save_pretrained(folder / "transformer")  # fmt: skip
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4, scaling_factor=1.5305,
        shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False,
    ).save_pretrained(folder / "vae")  # fmt: skip
    return folder


def save(
    folder: Path,
    channels: int = 12,
    sample_size: int = 8,
    prediction: str = "epsilon",
    schedule: str = "squaredcos_cap_v2",
    multiview: bool = False,
    vae: bool = False,
    **unet,
) -> Path:
    """Write a random text-to-image model; pixels unless `vae`. Further keywords go to the UNet's configuration."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from transformers.models.clip.modeling_clip import CLIPTextModel

    from sds3d.priors.multiview import JointAttention

    torch.manual_seed(0)
    tokens = tokenizer()
    tokens.save_pretrained(folder / "tokenizer")
    clip(CLIPTextModel, len(tokens)).save_pretrained(folder / "text_encoder")
    cameras = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16} if multiview else {}
    config = {
        "sample_size": sample_size, "in_channels": channels, "out_channels": channels, "layers_per_block": 1,
        "block_out_channels": (16, 32), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": 16, "attention_head_dim": 2,
        "norm_num_groups": 8, **cameras, **unet,
    }  # fmt: skip
    network = UNet2DConditionModel(**config)
    if multiview:
        network.set_attn_processor(JointAttention())
    network.save_pretrained(folder / "unet")
    DDIMScheduler(beta_schedule=schedule, prediction_type=prediction).save_pretrained(folder / "scheduler")
    if vae:
        AutoencoderKL(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=channels, norm_num_groups=4,
        ).save_pretrained(folder / "vae")  # fmt: skip
    return folder
