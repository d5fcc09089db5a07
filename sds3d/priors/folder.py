"""Opens a local folder in the layout of diffusers: unet/, text_encoder/, tokenizer/, scheduler/ and perhaps vae/.

This is the only file that imports diffusers and transformers, and it does so when a folder is opened. What can be known
from the files is checked before any network is built. Weights are read from safetensors alone: a pickle can run code.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
Network = Any  # a torch module of diffusers or transformers, whose attributes no type checker can see
UNET, SD3, VAE = "UNet2DConditionModel", "SD3Transformer2DModel", "AutoencoderKL"
CONTROL = "ControlNetModel"
CLIP, CLIP_POOLED, T5 = "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"
CLIP_BOTH = "CLIPModel"  # texts and pictures
MODULES = {
    UNET: "diffusers.models.unets.unet_2d_condition",
    SD3: "diffusers.models.transformers.transformer_sd3",
    VAE: "diffusers.models.autoencoders.autoencoder_kl",
    CONTROL: "diffusers.models.controlnets.controlnet",
    CLIP: "transformers.models.clip.modeling_clip",
    CLIP_POOLED: "transformers.models.clip.modeling_clip",
    CLIP_BOTH: "transformers.models.clip.modeling_clip",
    T5: "transformers.models.t5.modeling_t5",
}  # class -> where it lives


def read_json(path: Path) -> dict:
    """A configuration file. Raises FileNotFoundError when it is missing, ValueError when it is not a JSON object."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing, so this is not a whole model folder in the layout of diffusers.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object.")
    return content


def check_parts(folder: Path, known: Mapping[str, str], optional: Sequence[str] = ()) -> None:
    """Raise FileNotFoundError or ValueError, in a sentence, unless each part of a model holds the class that we read.

    known: part -> class. optional: the parts that may be missing.
    """
    if not folder.exists():
        raise FileNotFoundError(f"There is no prior at {folder}.")
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; a prior is a folder in the layout of diffusers (unet/, ...).")
    network = next(iter(known))
    if not (folder / network).is_dir():
        raise ValueError(f"{folder} is not a diffusion model that this file reads: no {network}/.")
    for part, kind in known.items():
        if part in optional and not (folder / part).exists():
            continue
        name = class_of(folder / part)
        if name != kind:
            raise ValueError(f"{folder / part} holds {name}; this loader reads {kind}.")
        tokens = part.replace("text_encoder", "tokenizer")
        if part.startswith("text_encoder") and not (folder / tokens).is_dir():
            raise FileNotFoundError(f"{folder} has no {tokens}/, so prompts cannot be read.")
    read_json(folder / "scheduler" / "scheduler_config.json")


def class_of(part: Path) -> str:
    """The name of the network's class. Raises ValueError for a network that asks for code of its own."""
    config = read_json(part / "config.json")
    if "auto_map" in config:
        raise ValueError(f"{part} asks for code of its own (auto_map), which is never run.")
    return config.get("_class_name") or (config.get("architectures") or ["an unnamed class"])[0]


def weight_files(part: Path) -> list[Path]:
    """The safetensors files of one part of a model: one file, or the shards that its index names.

    Raises ValueError for pickled weights, Git LFS pointers, shards outside the folder and damaged files, and
    FileNotFoundError when there are none.
    """
    indices = sorted(part.glob("*.safetensors.index.json"))
    if indices:
        names = sorted(set(read_json(indices[0]).get("weight_map", {}).values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError(f"{indices[0]} names shards that do not lie beside it.")
        files = [part / name for name in names]
    else:
        plain = [file for file in part.glob("*.safetensors") if file.name.count(".") == 1]
        files = sorted(plain or part.glob("*.fp16.safetensors"))
    if not files:
        pickled = sorted(file.name for file in part.iterdir() if file.suffix in PICKLES)
        if pickled:
            raise ValueError(
                f"{part} holds only pickled weights ({pickled[0]}), which can run code and are not read; convert them "
                "to safetensors with diffusers' `save_pretrained(folder, safe_serialization=True)`."
            )
        raise FileNotFoundError(f"{part} holds no weights (*.safetensors).")
    for file in files:
        check_safetensors(file)
    return files


def check_safetensors(file: Path) -> None:
    """Raise ValueError unless the file's length is what its header promises."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing.")
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            raise ValueError(f"{file} is a Git LFS pointer, not the weights; run `git lfs pull` in its repository.")
        length = int.from_bytes(start, "little")
        if size < 8 or not 2 <= length <= min(size - 8, 100_000_000):
            raise ValueError(f"{file} is damaged or cut short: its header does not fit in {size} bytes.")
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{file} is damaged: its header is not readable.") from error
    promised = 8 + length + max(ends, default=0)
    if size != promised:
        raise ValueError(f"{file} is damaged or cut short: {size} bytes, where its header promises {promised}.")


def sha256(files: list[Path]) -> str:
    """One hash over the contents of the files, in their order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def licence(folder: Path) -> str:
    """The licence that the model card (README.md) declares in its front matter, or "unknown"."""
    card = folder / "README.md"
    if card.is_file():
        found = re.search(r"^licen[sc]e:\s*(\S+)", card.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if found:
            return found[1].strip("\"'")
    return "unknown"


def levels(folder: Path) -> tuple[Tensor, str]:
    """The scheduler's cumulative alphas [T] in float64, and what the network predicts.

    Raises ValueError for a flow model and for an unknown prediction type.
    """
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path)
    prediction = config.get("prediction_type", "epsilon")
    if "FlowMatch" in str(config.get("_class_name", "")) or prediction not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"{path}: this loader reads eps-, v- and sample-prediction models, not flow models.")
    known = (
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "rescale_betas_zero_snr",
    )
    scheduler = DDIMScheduler(**{key: config[key] for key in known if key in config})
    return scheduler.alphas_cumprod.double(), prediction


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without the two libraries' progress bars and advice, which belong to interactive use of them."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    before = [(library, library.get_verbosity()) for library in (of_diffusers, of_transformers)]
    bars = of_transformers.is_progress_bar_enabled()
    try:
        for library, _ in before:
            library.set_verbosity_error()
        of_transformers.disable_progress_bar()
        yield
    finally:
        for library, verbosity in before:
            library.set_verbosity(verbosity)
        if bars:
            of_transformers.enable_progress_bar()


def class_called(name: str) -> Any:
    """One of the classes of `MODULES`."""
    return getattr(importlib.import_module(MODULES[name]), name)


def load(part: Path, dtype: torch.dtype = torch.float32) -> Network:
    """The network of one part, frozen, on the CPU. Raises ValueError when its weights do not fit its configuration."""
    files = weight_files(part)
    variant = {"variant": "fp16"} if files[0].name.endswith(".fp16.safetensors") else {}
    name = class_of(part)
    with silence():
        kind = class_called(name)
        asked = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True, **variant}
        try:
            loaded: Any = kind.from_pretrained(str(part), dtype=dtype, **asked)
        except (RuntimeError, OSError, ValueError, TypeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"The weights in {part} do not fit its configuration: {first}") from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"The weights in {part} lack {len(missing)} tensors of its network, first {missing[0]}.")
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"The weights in {part} hold numbers that are not finite, first in {name}.")
    return model.requires_grad_(False).eval()


def load_tokenizer(part: Path, family: Literal["CLIP", "T5"] = "CLIP"):
    """The tokenizer of a folder. Raises FileNotFoundError or ValueError when its files are missing or damaged."""
    if not any((part / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise FileNotFoundError(f"{part} holds no vocabulary (tokenizer.json, or vocab.json and merges.txt).")
    with silence():
        if family == "CLIP":
            from transformers.models.clip.tokenization_clip import CLIPTokenizer as kind
        else:
            from transformers.models.t5.tokenization_t5 import T5Tokenizer as kind
        try:
            return kind.from_pretrained(str(part), local_files_only=True)
        except Exception as error:  # tokenizers raises bare Exception for damaged files
            raise ValueError(f"{part} is not a readable {family} tokenizer: {error}") from error
