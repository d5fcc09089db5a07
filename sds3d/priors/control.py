"""ControlNets (Zhang et al. 2023, arXiv 2302.05543): a picture steers a UNet, row by row.

| symbol | variable       | equation                                                                             |
|--------|----------------|--------------------------------------------------------------------------------------|
| c      | picture        | what the net is shown of a row, in [0, 1], several times as large as the latent      |
| s      | scale          | how much it counts; a row of scale 0 is answered as the plain prior answers it       |
| h_k    |                | what the UNet hands from its first half to its second: each skip, and the middle     |
| r_k    | residuals      | what the net, a copy of that first half which is also shown c, says beside each h_k  |
|        |                | h_k + sum over nets of s r_k, before the second half                                 |

A net is a folder in the layout of diffusers (`ControlNetModel`), made for one UNet and all that have its shape. One
that embeds cameras sees the views of a group jointly, as its UNet does; there one steered view moves its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Control, Query
from . import folder as files
from .multiview import JointAttention, OptionalCamera
from .network import NetworkPrior, sees_cameras
from .pixel import channels_first

SHAPE = ("in_channels", "cross_attention_dim", "block_out_channels", "layers_per_block")  # which a net has of its UNet


@dataclass(frozen=True, eq=False)
class Controlled(NetworkPrior):
    """A network prior under ControlNets; a condition brings one picture for each of them, or none at all."""

    nets: tuple[files.Network, ...] = field(default=(), repr=False)

    def told_control(self, control: Sequence[Control], rows: int) -> tuple[tuple[Tensor, Tensor], ...]:
        """Pictures [N, 3, h, w] in [0, 1], as large as each net wants them, and scales [N]."""
        if control and len(control) != len(self.nets):
            raise ValueError(f'The prior "{self.name}" reads {len(self.nets)} control pictures, given {len(control)}.')
        told = []
        for net, (image, scale) in zip(self.nets, control, strict=False):
            if len(image) != rows:
                raise ValueError(f"A control shows {len(image)} pictures to {rows} views.")
            picture = (channels_first(image, self.side(net)) + 1) / 2
            told.append((picture, torch.as_tensor(scale).to(picture).expand(rows)))
        return tuple(told)

    def side(self, net: files.Network) -> int:
        """Of a net's picture, in pixels: it halves it once for each further width of its first layers."""
        return self.unet.config.sample_size * 2 ** (len(net.config.conditioning_embedding_out_channels) - 1)

    def steering(self, queries: Sequence[Query], asked: Sequence[Tensor], told: Mapping[str, Any]) -> dict[str, Any]:
        """The nets' residuals, as the UNet takes them; nothing where no row is steered."""
        if not any(query.condition.control for query in queries):
            return {}
        said = [self.residuals(net, asked, told, *_rows(queries, i, asked[0])) for i, net in enumerate(self.nets)]
        sums = [torch.stack(parts).sum(dim=0) for parts in zip(*filter(None, said), strict=True)]
        if not sums:
            return {}
        return {"down_block_additional_residuals": tuple(sums[:-1]), "mid_block_additional_residual": sums[-1]}

    def residuals(
        self,
        net: files.Network,
        asked: Sequence[Tensor],
        told: Mapping[str, Any],
        pictures: Float[Tensor, "N 3 h w"],
        scale: Float[Tensor, "N"],
    ) -> list[Tensor]:
        """What a net adds to each skip and, last, to the middle; nothing at all where no row has a scale.

        It is asked about the groups with a scaled row alone.
        """
        groups = (scale != 0).reshape(-1, self.group).any(dim=1)
        rows = groups.repeat_interleave(self.group).nonzero()[:, 0]
        if not len(rows):
            return []
        more = {}
        if isinstance(net.class_embedding, OptionalCamera):
            more = {**told, "class_labels": told["class_labels"][rows]}
        down, mid = net(*(x[rows] for x in asked), controlnet_cond=pictures[rows], return_dict=False, **more)
        n, weight = len(scale), scale[rows, None, None, None]
        return [part.new_zeros(n, *part.shape[1:]).index_copy(0, rows, weight * part) for part in (*down, mid)]


def _rows(queries: Sequence[Query], i: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """The i-th picture of every row, and its scale: 0, and black, for the rows that have none."""
    shape = next(query.condition.control[i][0].shape[1:] for query in queries if query.condition.control)
    parts = [
        query.condition.control[i]
        if query.condition.control
        else (like.new_zeros(len(query.z_t), *shape), like.new_zeros(len(query.z_t)))
        for query in queries
    ]
    pictures, scale = zip(*parts, strict=True)
    return torch.cat([part.to(like) for part in pictures]), torch.cat([part.to(like) for part in scale])


def controlled(prior: NetworkPrior, places: Sequence[str | Path]) -> Controlled:
    """A prior under the ControlNets of these folders, in this order.

    Raises FileNotFoundError or ValueError, in a sentence, for a folder that is no ControlNet in safetensors, and for
    one that was made for another network.
    """
    folders = [Path(place) for place in places]
    weights = [file for folder in folders for file in _checked(folder, prior)]
    like = next(prior.unet.parameters())
    parts = {f.name: getattr(prior, f.name) for f in fields(prior) if f.name != "nets"}
    licences = (prior.licence, *(files.licence(folder) for folder in folders))
    parts |= {
        "name": "+".join([prior.name, *(str(place) for place in places)]),
        "licence": ", ".join(dict.fromkeys(licences)),
        "weights": (*prior.weights, *weights),
    }
    before = prior.nets if isinstance(prior, Controlled) else ()
    return Controlled(**parts, nets=(*before, *(_opened(folder, like) for folder in folders)))


def _checked(folder: Path, prior: NetworkPrior) -> list[Path]:
    """The weights of a net that fits a prior, as far as the files tell."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no ControlNet folder at {folder}.")
    if files.class_of(folder) != files.CONTROL:
        raise ValueError(f"{folder} holds {files.class_of(folder)}; a ControlNet's folder holds {files.CONTROL}.")
    found = files.weight_files(folder)
    config = files.read_json(folder / "config.json")
    for key in SHAPE:
        given, wanted = _plain(config.get(key, prior.unet.config[key])), _plain(prior.unet.config[key])
        if given != wanted:
            raise ValueError(
                f'The ControlNet {folder} was made for another network than "{prior.name}": its {key} is {given}, not '
                f"{wanted}."
            )
    if sees_cameras(folder, config) and not isinstance(prior.unet.class_embedding, OptionalCamera):
        raise ValueError(f'The ControlNet {folder} wants cameras, which "{prior.name}" does not read.')
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _opened(folder: Path, like: Tensor) -> files.Network:
    net = files.load(folder, like.dtype).to(like.device)
    if net.class_embedding is not None:
        net.set_attn_processor(JointAttention())
        net.class_embedding = OptionalCamera(net.class_embedding)
    return net


def fresh(unet: files.Network, widths: tuple[int, ...] = (16, 32, 96, 256)) -> files.Network:
    """A ControlNet to be trained: a copy of a UNet's first half, which at first changes nothing.

    widths: of the layers that read the picture, n of them for one 2^(n - 1) times as large as the latent. The UNet may
    be a prior's or come from its folder. It is `ControlNetModel.from_unet` but for the number of heads by which the
    text is pooled beside the time, which that leaves at its default.
    """
    kind = files.class_called(files.CONTROL)
    made = kind.from_unet(unet, conditioning_embedding_out_channels=widths, load_weights_from_unet=False)
    config = {key: told for key, told in made.config.items() if not key.startswith("_")}
    net = kind(**config | {"addition_embed_type_num_heads": unet.config.addition_embed_type_num_heads})
    theirs = {name.replace("class_embedding.embed.", "class_embedding."): w for name, w in unet.state_dict().items()}
    net.load_state_dict({name: theirs.get(name, own) for name, own in net.state_dict().items()})
    if net.class_embedding is not None:
        net.set_attn_processor(JointAttention())
    return net
