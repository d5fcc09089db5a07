"""From sentences to token embeddings, as CLIP-conditioned networks are trained: padded, and cached by sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .folder import Network


class TextReader:
    """A tokenizer and a frozen text encoder.

    check_words: raises ValueError for a prompt with words that the prior cannot know; None where any text may be asked,
    since unknown words are read as sub-words.
    """

    def __init__(self, tokenizer: Any, encoder: Network, check_words: Callable[[str], None] | None = None) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.check_words = check_words
        self.length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
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

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Float[Tensor, "n L d"]:
        """The last hidden states, fp32. Raises ValueError for an over-long prompt or unknown words."""
        for prompt in prompts:
            if prompt not in self.cache:
                self.check(prompt)
                # Each prompt is encoded alone, because the bits of a batched product depend on the batch.
                tokens = self.tokenizer(prompt, padding="max_length", max_length=self.length, return_tensors="pt")
                states = self.encoder(tokens["input_ids"].to(self.encoder.device)).last_hidden_state
                self.cache[prompt] = states[0].float()
        return torch.stack([self.cache[prompt] for prompt in prompts])
