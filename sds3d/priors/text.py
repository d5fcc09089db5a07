"""From sentences to token embeddings, as CLIP-conditioned networks are trained: padded, and cached by sentence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from .folder import Network


class TextReader:
    """A tokenizer and a frozen text encoder.

    closed: the tokenizer's vocabulary is all that the prior knows, each word one whole token, and other words are
    refused. Without it every word is read as sub-words.
    """

    def __init__(self, tokenizer, encoder: Network, closed: bool = False) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.closed = closed
        self.length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        if len(tokenizer) > encoder.config.vocab_size:
            sizes = f"{len(tokenizer)} tokens and the text encoder knows {encoder.config.vocab_size}"
            raise ValueError(f"The tokenizer has {sizes}: they do not belong together.")
        self.cache: dict[str, Tensor] = {}

    def words(self) -> list[str]:
        """The words of a closed vocabulary, sorted. Single letters but "a" are pieces from which others are merged."""
        vocabulary = (token[:-4] for token in self.tokenizer.get_vocab() if re.fullmatch(r"[^\W\d_]+</w>", token))
        return sorted(word for word in vocabulary if len(word) > 1 or word == "a")

    def check(self, prompt: str) -> None:
        """Raise ValueError for a prompt that the network cannot be told whole."""
        if self.closed:
            self.check_words(prompt)
        count = len(self.tokenizer(prompt, verbose=False)["input_ids"])
        if count > self.length:
            raise ValueError(
                f"The prompt takes {count} tokens and this prior reads {self.length}; shorten it: {prompt[:60]!r} ..."
            )

    def check_words(self, prompt: str) -> None:
        """Raise ValueError naming the words that are no whole token, and the nearest that are."""
        known, vocabulary = self.words(), self.tokenizer.get_vocab()
        pieces = dict.fromkeys(re.findall(r"[^\W\d_]+|[^\s\w]+|\d|_+", prompt.lower()))
        unknown = [p for p in pieces if p not in known and (p.isalpha() or f"{p}</w>" not in vocabulary)]
        if unknown:
            close = dict.fromkeys(near for word in unknown for near in difflib.get_close_matches(word, known, n=3))
            hint = f" Close words: {', '.join(close)}." if close else ""
            raise ValueError(
                f"This prior does not know {', '.join(unknown)}.{hint} It knows {len(known)} words; for free text open "
                "a prior with an open vocabulary: `--prior` with a local folder of a Stable Diffusion model."
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
