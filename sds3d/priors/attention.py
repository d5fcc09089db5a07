"""Where a UNet looks when it reads a word: its cross-attention, as FaceG2E takes it (Wu et al. 2024, arXiv 2312.00375).

| symbol | variable | equation                                                                                     |
|--------|----------|----------------------------------------------------------------------------------------------|
| A      | weights  | softmax(Q K' / sqrt d) of an attention from the picture to the text, the mean of its heads    |
| a      |          | the sum of A over the words' tokens, at each place of a layer's picture, in [0, 1]            |
|        | attended | the mean of a over all such layers, at the size of the finest one                             |

It is read through hooks that exist while one forward runs. A network that reads its text in no attention has no map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from ..core import Condition, Noised
from .folder import Network
from .nasa import text_attentions
from .network import NetworkPrior


@torch.no_grad()
def attended(prior: NetworkPrior, x: Noised, condition: Condition, words: Bool[Tensor, "L"]) -> Float[Tensor, "N h w"]:
    """How much each place of N noised pictures reads the marked tokens of its text. Raises ValueError without a map."""
    layers = text_attentions(prior.unet)
    if not layers:
        raise ValueError(f'The prior "{prior.name}" reads its text in no attention.')
    maps: list[Tensor] = []
    with contextlib.ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(_listening(words, maps), with_kwargs=True))
        prior.predict(x.ask({"cond": condition}, "cond"))
    finest = max(part.shape[-1] for part in maps)
    return torch.stack([interpolate(part[:, None], (finest, finest), mode="bilinear")[:, 0] for part in maps]).mean(0)


def _listening(words: Tensor, maps: list[Tensor]) -> Callable:
    """A hook that adds to `maps` what an attention reads of the words, [N, h, w] of a square picture."""

    def hook(attention: Network, given: tuple, told: dict, output: Tensor) -> None:
        query = attention.head_to_batch_dim(attention.to_q(given[0]))
        key = attention.head_to_batch_dim(attention.to_k(told["encoder_hidden_states"]))
        weights = attention.get_attention_scores(query, key)  # [N heads, h w, L]
        read = weights[..., words.to(weights.device)].sum(dim=-1).view(-1, attention.heads, weights.shape[1])
        side = round(weights.shape[1] ** 0.5)
        maps.append(read.mean(dim=1).view(-1, side, side).float())

    return hook


def changed(prior: NetworkPrior, text: str, before: str) -> Bool[Tensor, "L"]:
    """The tokens of a text whose words another text does not have; the padding is none."""
    tokenizer, numbers = prior.reader.tokenizer, prior.reader.numbers(text)[0]
    old = torch.tensor([*tokenizer.all_special_ids, *prior.reader.numbers(before)[0].tolist()])
    return ~torch.isin(numbers.cpu(), old)
