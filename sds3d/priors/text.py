"""From sentences to token embeddings, as text-to-image networks are trained: padded, and cached by sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .folder import Network


class TextReader:
    """A tokenizer and a frozen text encoder.

    check_words: raises ValueError for a prompt with words that the prior cannot know; None where any text may be asked,
    since unknown words are read as sub-words. length: tokens of a padded prompt, None for the most that both can take.
    """

    def __init__(
        self,
        tokenizer: Any,
        encoder: Network,
        check_words: Callable[[str], None] | None = None,
        length: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.check_words = check_words
        self.length = length or min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        if len(tokenizer) > encoder.config.vocab_size:
            sizes = f"{len(tokenizer)} tokens and the text encoder knows {encoder.config.vocab_size}"
            raise ValueError(f"The tokenizer has {sizes}: they do not belong together.")
        self.cache: dict[str, Tensor] = {}

    def check(self, prompt: str) -> None:
        """Raise ValueError for a prompt that the network cannot be told whole."""
        if self.check_words is not None:
            self.check_words(prompt)
        count = len(self.tokenizer(prompt, verbose=False)["input_ids"])
        if count > self.length:
            raise ValueError(
                f"The prompt takes {count} tokens and this prior reads {self.length}; shorten it: {prompt[:60]!r} ..."
            )

    def numbers(self, prompt: str) -> Int[Tensor, "1 L"]:
        """The padded tokens of a prompt, where the text encoder is."""
        tokens = self.tokenizer(prompt, padding="max_length", max_length=self.length, return_tensors="pt")
        return tokens["input_ids"].to(self.encoder.device)

    def states(self, tokens: Int[Tensor, "1 L"]) -> Float[Tensor, "1 rows d"]:
        """What the network is told of a padded prompt: the last hidden states."""
        return self.encoder(tokens).last_hidden_state

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Float[Tensor, "n rows d"]:
        """The states of each prompt, fp32. Raises ValueError for an over-long prompt or unknown words."""
        for prompt in prompts:
            if prompt not in self.cache:
                self.check(prompt)
                # Each prompt is encoded alone, because the bits of a batched product depend on the batch.
                self.cache[prompt] = self.states(self.numbers(prompt))[0].float()
        return torch.stack([self.cache[prompt] for prompt in prompts])


class PooledReader(TextReader):
    """A CLIP text encoder with its projection, read as Stable Diffusion 3 reads it.

    Row 0 is the projected state of the text's end, the others are the states before the last layer.
    """

    def __init__(self, tokenizer: Any, encoder: Network) -> None:
        super().__init__(tokenizer, encoder)
        if encoder.config.projection_dim != encoder.config.hidden_size:
            raise ValueError(
                f"A text encoder with states of {encoder.config.hidden_size} numbers and a projection to "
                f"{encoder.config.projection_dim} is none of Stable Diffusion 3."
            )

    def states(self, tokens: Int[Tensor, "1 L"]) -> Float[Tensor, "1 rows d"]:
        told = self.encoder(tokens, output_hidden_states=True)
        return torch.cat([told.text_embeds[:, None], told.hidden_states[-2]], dim=1)
