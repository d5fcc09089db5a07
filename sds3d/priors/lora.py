"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) of a frozen UNet, as VSD trains one on its renders.

| symbol | variable    | equation                                                                            |
|--------|-------------|-------------------------------------------------------------------------------------|
| W x    | output      | a frozen linear layer of an attention: to_q, to_k, to_v or to_out                   |
| B A x  | LowRank(x)  | added to it: A [r, in] drawn normal with deviation 1 / r, B [out, r] zero, factor 1 |
| e      |             | the network's embedding of time, which every residual block reads                   |
| m(c)   | CameraEmbed | added to e, where the network's own class embedding would be: c [16] -> SiLU -> e   |

An adapter acts on the rows that ask for it and on no other, so the questions to the network and to its adapters share
one forward. It acts through hooks that exist while that forward runs: the network itself is never changed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Latent, Query, Step
from ..learners import AdamLearner
from .folder import Network

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")  # of each attention, within the picture and to the text
CAMERA = 16  # numbers of a camera: a 4 x 4 pose
DECAY = 1e-2  # AdamW's usual weight decay, as in the code of VSD


class LowRank(nn.Module):
    """What an adapter adds to a linear layer: rank r, at first nothing."""

    def __init__(self, layer: nn.Linear, rank: int, step: Step) -> None:
        super().__init__()
        like = torch.empty(rank, layer.in_features, device=layer.weight.device)
        self.down = nn.Parameter(step.normal("down", like, fixed=True) / rank)
        self.up = nn.Parameter(like.new_zeros(layer.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x.to(self.down), self.down), self.up)


class CameraEmbed(nn.Module):
    """What an adapter adds to the embedding of time for a camera: a perceptron of two layers, at first nothing."""

    def __init__(self, width: int, like: Tensor, step: Step) -> None:
        super().__init__()
        first = torch.empty(width, CAMERA, device=like.device)
        self.first = nn.Parameter(step.normal("first", first, fixed=True) / math.sqrt(CAMERA))
        self.first_bias = nn.Parameter(first.new_zeros(width))
        self.second = nn.Parameter(first.new_zeros(width, width))
        self.second_bias = nn.Parameter(first.new_zeros(width))

    def forward(self, camera: Float[Tensor, "N 16"]) -> Tensor:
        hidden = F.silu(F.linear(camera.to(self.first), self.first, self.first_bias))
        return F.linear(hidden, self.second, self.second_bias)


class Lora(AdamLearner):
    """A low-rank adapter of a UNet under its own AdamW; it owns no weight of the network.

    denoise: the prior's forward, which answers queries. sees_camera: the network embeds cameras itself; otherwise the
    adapter brings a `CameraEmbed` of its own. Weights are fp32. Raises ValueError for a rank below 1.
    """

    def __init__(
        self,
        unet: Network,
        denoise: Callable[[Sequence[Query]], list[Latent]],
        sees_camera: bool,
        rank: int,
        lr: float,
        step: Step,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"The rank of an adapter must be at least 1, given {rank}.")
        self.denoise = denoise
        layers = attention_layers(unet)
        # A dot would be read as a submodule, so names are written as paths.
        self.layers = nn.ModuleDict(
            {name.replace(".", "/"): LowRank(layer, rank, step.child(name)) for name, layer in layers.items()}
        )
        embed = unet.time_embedding.linear_2
        self.camera = None if sees_camera else CameraEmbed(embed.out_features, embed.weight, step.child("camera"))
        self.optimise(lr, DECAY)

    def forward(self, query: Query) -> Latent:
        """eps of the adapted network, with gradient to the adapter alone."""
        return self.denoise([Query(query.z_t, query.t, query.condition, self)])[0]


def attention_layers(unet: Network) -> dict[str, nn.Linear]:
    """The linear layers that an adapter acts on, by name."""
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(tuple(f".{end}" for end in PROJECTIONS))
    }


@contextlib.contextmanager
def adapted(unet: Network, queries: Sequence[Query], rows: Sequence[int]) -> Iterator[None]:
    """While it lasts, a forward of all `queries`, of so many `rows` each, is answered with their adapters at work."""
    layers, total, start = attention_layers(unet), sum(rows), 0
    with contextlib.ExitStack() as hooks:
        for query, n in zip(queries, rows, strict=True):
            stop, lora, camera = start + n, query.adapter, query.condition.camera
            if isinstance(lora, Lora):
                for name, layer in layers.items():
                    change = _adding(lora.layers[name.replace(".", "/")], start, stop, total)
                    hooks.enter_context(layer.register_forward_hook(change))
                if lora.camera is not None and camera is not None:
                    change = _adding(_constant(lora.camera(camera)), start, stop, total)
                    hooks.enter_context(unet.time_embedding.register_forward_hook(change))
            start = stop
        yield


def _constant(value: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda _: value


def _adding(change: Callable[[Tensor], Tensor], start: int, stop: int, rows: int) -> Callable:
    """A hook that adds `change` of a layer's input to its output, for the rows from `start` to `stop` of all `rows`."""

    def hook(module: nn.Module, given: tuple, output: Tensor) -> Tensor:
        joined = rows // len(output)  # views whose tokens are one sequence, in joint attention
        a, b = start // joined, stop // joined
        delta = change(given[0][a:b]).to(output)
        return torch.cat([output[:a], output[a:b] + delta, output[b:]])

    return hook
