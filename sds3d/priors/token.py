"""A learnt word: vectors that the text encoder of a prior reads in a word's place, all of its weights as they are.

A file is safetensors, as others write it: a tensor [d] or [n, d] under the word itself (diffusers' textual inversion),
or `emb_params` [n, d], whose word is the file's name (A1111). Files of several words are read too. A word of n vectors
stands for n tokens. Pickled embeddings (.pt, .bin) can run code and are not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from . import folder as files
from .network import NetworkPrior
from .text import TextReader

NAMELESS = "emb_params"


@dataclass(frozen=True)
class Token:
    """A word and its vectors [n, d], d of the text encoder's embeddings."""

    word: str
    vectors: Float[Tensor, "n d"]

    @property
    def spelt(self) -> tuple[str, ...]:
        """One word for each vector: the word itself, then with _1, _2, ... behind it."""
        return (self.word, *(f"{self.word}_{i}" for i in range(1, len(self.vectors))))


def write(path: Path, token: Token) -> None:
    """Write a learnt word under its own name."""
    from safetensors.torch import save_file

    save_file({token.word: token.vectors.detach().cpu().contiguous()}, path, metadata={"format": "pt"})


def read(path: Path) -> list[Token]:
    """The words of a file. Raises FileNotFoundError or ValueError, in a sentence, for what is none."""
    from safetensors.torch import load_file

    files.check_safetensors(path)
    tensors = load_file(path)
    found = []
    for name, tensor in sorted(tensors.items()):
        word = path.stem if name == NAMELESS else name
        vectors = tensor[None] if tensor.ndim == 1 else tensor
        fits = vectors.ndim == 2 and vectors.numel() > 0 and vectors.is_floating_point()
        if not fits or not vectors.isfinite().all() or not word or len(word.split()) != 1:
            raise ValueError(
                f'{path} holds no learnt word: "{name}" is {list(tensor.shape)} of {tensor.dtype}, where a word has '
                "finite numbers [d] or [n, d]."
            )
        found.append(Token(word, vectors))
    if not found:
        raise ValueError(f"{path} holds no learnt word: it is empty.")
    return found


class TokenReader(TextReader):
    """A text reader that knows learnt words as well; sentences without one are read as before.

    Raises ValueError for a word that the tokenizer knows already, and for vectors made for another encoder.
    """

    def __init__(self, reader: TextReader, tokens: Sequence[Token]) -> None:
        plain = reader.plain if isinstance(reader, TokenReader) else reader
        before = reader.tokens if isinstance(reader, TokenReader) else ()
        self.plain, self.tokens = plain, (*before, *tokens)
        super().__init__(plain.tokenizer, plain.encoder, None, plain.length)
        self.embedding: nn.Embedding = plain.encoder.get_input_embeddings()
        for token in tokens:
            self.check_token(token)
        check = plain.check_words
        self.check_words = None if check is None else lambda prompt: check(self.without(prompt))
        self.vectors = torch.cat([token.vectors.to(self.embedding.weight) for token in self.tokens])
        self.tokenizer, self.first = _widened(plain.tokenizer, [word for token in self.tokens for word in token.spelt])

    def check_token(self, token: Token) -> None:
        """Raise ValueError for a token that cannot be read beside the others."""
        width = self.embedding.embedding_dim
        if token.vectors.shape[1] != width:
            raise ValueError(
                f'The learnt word "{token.word}" was made for another text encoder: it has '
                f"{token.vectors.shape[1]} numbers, where this one reads {width}."
            )
        if len(token.word.split()) != 1:
            raise ValueError(f'A learnt word is one word without white space, given "{token.word}".')
        others = [other.word for other in self.tokens if other is not token]
        if f"{token.word.lower()}</w>" in self.plain.tokenizer.get_vocab() or token.word in others:
            raise ValueError(f'"{token.word}" is a word already, so none of that name can be learnt; call it another.')

    def spelt(self, prompt: str) -> str:
        """A prompt with a word for each vector."""
        for token in self.tokens:
            prompt = re.sub(_alone(token.word), " ".join(token.spelt), prompt)
        return prompt

    def without(self, prompt: str) -> str:
        """A prompt without the learnt words."""
        for word in (word for token in self.tokens for word in token.spelt):
            prompt = re.sub(_alone(word), " ", prompt)
        return prompt

    def states(self, tokens: Int[Tensor, "1 L"]) -> Float[Tensor, "1 rows d"]:
        """As of any reader, with gradient to the vectors alone."""
        learnt = tokens >= self.first
        rows = self.vectors[(tokens - self.first).clamp(0, len(self.vectors) - 1)]

        def place(embedding: nn.Module, given: tuple, output: Tensor) -> Tensor:
            return torch.where(learnt[..., None], rows.to(output), output)

        with self.embedding.register_forward_hook(place):
            return super().states(tokens.masked_fill(learnt, 0))

    def numbers(self, prompt: str) -> Int[Tensor, "1 L"]:
        return super().numbers(self.spelt(prompt))

    def check(self, prompt: str) -> None:
        super().check(self.spelt(prompt))


def _alone(word: str) -> str:
    """The pattern of a word that is no part of another."""
    return rf"(?<!\w){re.escape(word)}(?!\w)"


def _widened(tokenizer: Any, words: Sequence[str]) -> tuple[Any, int]:
    """A copy of a tokenizer with more words, each one token, and the number of the first of them."""
    from tokenizers import AddedToken

    wide = deepcopy(tokenizer)
    wide.add_tokens([AddedToken(word, single_word=True, normalized=False) for word in words])
    numbers = wide.convert_tokens_to_ids(list(words))
    assert numbers == list(range(numbers[0], numbers[0] + len(words)))
    return wide, numbers[0]


def with_tokens(prior: NetworkPrior, places: Sequence[str | Path]) -> NetworkPrior:
    """A prior that reads the learnt words of these files too. Raises FileNotFoundError or ValueError in a sentence."""
    paths = [Path(place) for place in places]
    tokens = [token for path in paths for token in read(path)]
    return replace(
        prior,
        name="+".join([prior.name, *map(str, places)]),
        weights=(*prior.weights, *paths),
        reader=TokenReader(prior.reader, tokens),
    )
