"""Negative-away attention (NASA of SNOOPI, Nguyen et al. 2024, arXiv 2412.02687): a negative prompt in one question.

| symbol | variable | equation                                                                              |
|--------|----------|---------------------------------------------------------------------------------------|
| Z+     |          | softmax(Q K' / sqrt d) V: Q from the picture, K and V from the condition's own text   |
| Z-     |          | the same with K and V from the negative text, by the same projections                 |
| a      | scale    | Condition.away[1]                                                                     |
| Z      |          | Z+ - a Z-, in every attention to the text; then the output layer, W Z + b             |
| O+, O- | output   | W Z+ + b and W Z- + b, so that W Z + b = O+ - a (O- - b)                              |

Where guidance subtracts predictions, this subtracts what the picture reads, so it asks no rows more. It acts through
hooks that exist while one forward runs, whatever computes the attention, on the rows that ask for it and on no other;
an adapter's rows are steered through its own layers. That Z is taken before the output layer is how the paper's words
are read here; its code was not seen. A text that the network also pools beside the time is not steered.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..core import Query
from .folder import Network


def text_attentions(unet: Network) -> list[nn.Module]:
    """The attentions of a UNet from its picture to its text."""
    return [module for name, module in unet.named_modules() if name.endswith(".attn2")]


@contextlib.contextmanager
def steered(unet: Network, queries: Sequence[Query], rows: Sequence[int]) -> Iterator[None]:
    """While it lasts, a forward of all `queries`, of so many `rows` each, reads away from their negative texts."""
    pairs = [query.condition.away or (query.condition.text, 0.0) for query in queries]
    with contextlib.ExitStack() as hooks:
        if any(query.condition.away is not None for query in queries):
            text = torch.cat([text for text, _ in pairs])
            scale = torch.cat([torch.full((n, 1, 1), float(a)) for (_, a), n in zip(pairs, rows, strict=True)])
            for attention in text_attentions(unet):
                hooks.enter_context(attention.register_forward_hook(_away(text, scale), with_kwargs=True))
        yield


def _away(text: Tensor, scale: Tensor) -> Callable:
    """A hook that turns O+ of an attention into O+ - a (O- - b); text [N, L, d], scale [N, 1, 1]."""

    def hook(attention: Network, given: tuple, told: dict, output: Tensor) -> Tensor:
        negative = text.to(told["encoder_hidden_states"])
        against = attention.forward(*given, **{**told, "encoder_hidden_states": negative})
        bias = attention.to_out[0].bias
        return output - scale.to(output) * (against if bias is None else against - bias)

    return hook
