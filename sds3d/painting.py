"""Regions over a mesh's texture: painted by the user, or found where a prior reads the words of an edit.

A painted one is a square PNG over the texture: what is white may change, what is black is held. One is found as a
region of the world is, on the texels of the surface, but each view tells sqrt(a d) of a place: d, the difference of the
clean pictures with and without the edit, and a, the attention of the words that are new (FaceG2E, Wu et al. 2024, arXiv
2312.00375, takes that alone). Attention knows the whole of a thing and is coarse; the difference is fine and misses
what already looks right. Where the prior has no such attention, or no word is new, d speaks alone.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from .core import Background, Cameras, Image, Representation, Step
from .diffusion import diffuse
from .export.textures import from_png, to_png
from .priors.attention import attended, changed
from .priors.nasa import text_attentions
from .priors.network import NetworkPrior
from .representations.texture import TexturedMesh, nearest, texels
from .terms import Term

SIDE = 256  # texels a side of a region that is found


def textured(rep: Representation) -> TexturedMesh:
    """The same. Raises ValueError for what has no texture that a region could lie over."""
    if not isinstance(rep, TexturedMesh):
        raise ValueError(
            f"A region over the texture needs a mesh with textures, not {type(rep).__name__}; --region auto finds one "
            "of the world, and a .npy file tells one."
        )
    return rep


def painted(path: Path) -> bytes:
    """A painted PNG as a file of a region; see `regions.Texels`. Raises ValueError for what is no such picture."""
    if not path.is_file():
        raise ValueError(f"There is no file {path} with a region.")
    try:
        picture = from_png(path.read_bytes(), str(path)).mean(dim=-1)
    except ValueError as error:
        raise ValueError(f"A painted region is a square PNG over the mesh's texture, but {error}") from None
    if len(picture) < 2 or not picture.any():
        raise ValueError(f"{path} is black all over, so nothing may change; paint white what may.")
    return saved(picture)


def saved(values: Float[Tensor, "*n"]) -> bytes:
    """The .npy file of a region."""
    file = io.BytesIO()
    np.save(file, values.float().cpu().numpy(), allow_pickle=False)
    return file.getvalue()


@torch.no_grad()
def places(mesh: TexturedMesh) -> tuple[Int[Tensor, "n"], Float[Tensor, "n 3"]]:
    """The texels of a square of `SIDE` that the surface has, and where in the world they lie."""
    at, face, weights = texels(mesh.uv, mesh.uv_faces, SIDE)
    return at, (weights[..., None] * mesh.vertices[mesh.faces[face]]).sum(dim=1)


def spread(at: Int[Tensor, "n"], values: Float[Tensor, "n"]) -> Float[Tensor, "S S"]:
    """Values of texels as a picture, in which texels between the charts take those of the nearest one in a chart."""
    picture = values.new_zeros(SIDE * SIDE)
    picture[at] = values  # A texel on an edge of two triangles comes twice, with one value.
    marked = torch.zeros(SIDE * SIDE, dtype=torch.bool, device=at.device)
    marked[at] = True
    return picture[nearest(marked.view(SIDE, SIDE)).flatten()].view(SIDE, SIDE)


def shown(values: Float[Tensor, "S S"]) -> bytes:
    """The region as a PNG, to be looked at and painted over."""
    return to_png(values[..., None])


@torch.no_grad()
def attention(
    term: Term, cameras: Cameras, background: Background, image: Image, times: tuple[float, ...], step: Step
) -> Float[Tensor, "B H W 1"] | None:
    """How much each pixel is read as the words that the edit brings; None where the prior tells nothing of it."""
    prior = term.prior
    if not isinstance(prior, NetworkPrior) or term.prompts.instruction is not None or not text_attentions(prior.unet):
        return None
    texts = term.prompts.texts(cameras, background, term.look)
    words = changed(prior, texts["cond"][0], texts["source"][0])
    if not words.any():
        return None
    condition = term.conditions(cameras, background)["cond"]
    z = prior.encode(image)
    maps = [attended(prior, diffuse(prior, z, step.child(f"{t}"), (t, t)), condition, words) for t in times]
    mean = torch.stack(maps).mean(dim=0)[:, None]
    return interpolate(mean, image.shape[1:3], mode="bilinear").movedim(1, -1).to(image)
