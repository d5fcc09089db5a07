"""What is read from a diffusers folder, and every error of loading one, in a sentence."""

from __future__ import annotations

import json
import math
import shutil
import struct

import pytest
import torch

from sds3d.priors.network import open_folder


def edit(folder, **changes):
    """Change a JSON file of a folder, given as part__file="key=value" pairs."""
    for place, pairs in changes.items():
        path = folder / (place.replace("__", "/") + ".json")
        path.write_text(json.dumps({**json.loads(path.read_text()), **pairs}))


def rewrite(path, change):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


UNET = "unet/diffusion_pytorch_model.safetensors"
DAMAGES = {
    "no folder": (lambda f: shutil.rmtree(f), FileNotFoundError, "no prior at"),
    "a file": (lambda f: (shutil.rmtree(f), f.write_text("x")), ValueError, "is a file"),
    "empty": (lambda f: (shutil.rmtree(f), f.mkdir()), ValueError, "no unet/"),
    "a transformer": (lambda f: (f / "unet").rename(f / "transformer"), ValueError, "no unet/"),
    "no config": (lambda f: (f / "unet/config.json").unlink(), FileNotFoundError, "config.json is missing"),
    "config is not JSON": (lambda f: (f / "unet/config.json").write_text("{"), ValueError, "not readable JSON"),
    "config is a list": (lambda f: (f / "unet/config.json").write_text("[]"), ValueError, "JSON object"),
    "another unet": (
        lambda f: edit(f, unet__config={"_class_name": "UNet3DConditionModel"}), ValueError, "UNet3DConditionModel"
    ),
    "own code": (lambda f: edit(f, unet__config={"auto_map": {"AutoModel": "x.py"}}), ValueError, "auto_map"),
    "another text encoder": (
        lambda f: edit(f, text_encoder__config={"architectures": ["T5EncoderModel"]}), ValueError, "T5EncoderModel"
    ),
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), FileNotFoundError, "tokenizer/"),
    "empty tokenizer": (lambda f: [p.unlink() for p in (f / "tokenizer").iterdir()], FileNotFoundError, "vocabulary"),
    "tokenizer of noise": (lambda f: (f / "tokenizer/tokenizer.json").write_text("{"), ValueError, "CLIP tokenizer"),
    "another tokenizer": (lambda f: edit(f, text_encoder__config={"vocab_size": 5}), ValueError, "fit"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), FileNotFoundError, "scheduler_config.json is missing"),
    "a flow model": (
        lambda f: edit(f, scheduler__scheduler_config={"prediction_type": "flow"}), ValueError, "flow models"
    ),
    "no weights": (lambda f: (f / UNET).unlink(), FileNotFoundError, "no weights"),
    "pickled": (lambda f: (f / UNET).rename((f / UNET).with_suffix(".bin")), ValueError, "pickled.*convert"),
    "cut short": (lambda f: (f / UNET).write_bytes((f / UNET).read_bytes()[:-7]), ValueError, "cut short"),
    "no bytes": (lambda f: (f / UNET).write_bytes(b""), ValueError, "cut short"),
    "a long header": (lambda f: (f / UNET).write_bytes(b"\xff" * 64), ValueError, "header does not fit"),
    "a header of noise": (lambda f: (f / UNET).write_bytes(struct.pack("<Q", 4) + b"abcd"), ValueError, "not readable"),
    "LFS": (
        lambda f: (f / UNET).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        ValueError, "git lfs pull",
    ),
    "missing keys": (lambda f: rewrite(f / UNET, lambda t: t.pop("conv_in.weight")), ValueError, "lack 1.*conv_in"),
    "missing text keys": (
        lambda f: rewrite(f / "text_encoder/model.safetensors", lambda t: t.pop(sorted(t)[0])), ValueError, "lack 1"
    ),
    "another shape": (lambda f: edit(f, unet__config={"block_out_channels": [16, 16]}), ValueError, "do not fit"),
    "not finite": (
        lambda f: rewrite(f / UNET, lambda t: t["conv_in.bias"].fill_(math.nan)), ValueError, "not finite.*conv_in.bias"
    ),
    "a shard elsewhere": (
        lambda f: (f / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "../secret.safetensors"}})
        ),
        ValueError, "beside it",
    ),
    "a missing shard": (
        lambda f: (f / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(
            json.dumps({"weight_map": {"a": "one.safetensors"}})
        ),
        FileNotFoundError, "one.safetensors is missing",
    ),
    "odd channels": (lambda f: edit(f, unet__config={"in_channels": 9}), ValueError, r"3 k\^2"),
    "SDXL": (lambda f: edit(f, unet__config={"addition_embed_type": "text_time"}), ValueError, "SDXL"),
    "labels": (lambda f: edit(f, unet__config={"class_embed_type": "timestep"}), ValueError, "class labels"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_opened_is_refused_in_a_sentence(folders, tmp_path, damage):
    folder = tmp_path / "model"
    shutil.copytree(folders["pixel"], folder)
    hurt, kind, said = DAMAGES[damage]
    hurt(folder)
    with pytest.raises(kind, match=said) as caught:
        open_folder(folder)
    assert "\n" not in str(caught.value)


def test_an_inpainting_model_is_refused(folders, tmp_path):
    shutil.copytree(folders["latent"], tmp_path / "model")
    edit(tmp_path / "model", vae__config={"latent_channels": 5})
    with pytest.raises(ValueError):
        open_folder(tmp_path / "model")


def test_half_precision_variants_are_read(folders, tmp_path):
    shutil.copytree(folders["pixel"], tmp_path / "model")
    path = tmp_path / "model" / UNET
    path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    prior = open_folder(tmp_path / "model")
    assert next(prior.unet.parameters()).dtype == torch.float32


def test_the_manifest_learns_licence_and_hash(folders, tmp_path):
    shutil.copytree(folders["pixel"], tmp_path / "model")
    assert open_folder(tmp_path / "model").licence == "unknown"
    (tmp_path / "model/README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    prior = open_folder(tmp_path / "model")
    assert (prior.name, prior.licence) == ("model", "apache-2.0") and len(prior.sha256) == 64
    rewrite(tmp_path / "model" / UNET, lambda t: t["conv_in.bias"].add_(1))
    assert open_folder(tmp_path / "model").sha256 != prior.sha256


def test_opening_leaves_the_libraries_verbosity_alone(folders):
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    def loudness() -> tuple[int, int, bool]:
        return of_diffusers.get_verbosity(), of_transformers.get_verbosity(), of_transformers.is_progress_bar_enabled()

    before = loudness()
    open_folder(folders["pixel"])
    assert loudness() == before
