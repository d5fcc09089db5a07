"""Learnt words: files, reading beside the known words, and learning one with a prior that stays as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file

from sds3d.cameras import orbit
from sds3d.core import Step
from sds3d.priors.catalogue import open_prior
from sds3d.priors.inversion import Inversion
from sds3d.priors.network import open_folder
from sds3d.priors.token import Token, TokenReader, read, with_tokens, write

WORD, WIDTH = "<back-view>", 16
CAPTIONS = [[f"a cube, {WORD}"], [f"a red cube, back view, {WORD}", f"a cone, {WORD}"]]
SEEN = Step(0).uniform("seen", 2 * 16 * 16 * 3).reshape(2, 16, 16, 3)


@pytest.fixture(scope="module", params=["pixel", "latent"])
def prior(folders, request):
    return open_folder(folders[request.param])


def vectors(n: int = 1, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(n))


def bits(prior) -> dict[str, torch.Tensor]:
    networks = {"unet": prior.unet, "text": prior.reader.encoder}
    return {f"{name}.{key}": w.clone() for name, net in networks.items() for key, w in net.state_dict().items()}


def test_a_word_comes_back_from_its_file_with_the_same_bits(tmp_path: Path) -> None:
    token = Token(WORD, vectors(3))
    write(tmp_path / "a.safetensors", token)
    (back,) = read(tmp_path / "a.safetensors")
    assert back.word == WORD and torch.equal(back.vectors, token.vectors)


def test_the_files_of_others_are_read(tmp_path: Path) -> None:
    save_file({"<cat>": vectors()[0]}, tmp_path / "learned_embeds.safetensors")
    save_file({"emb_params": vectors(2)}, tmp_path / "easy-hand.safetensors")
    (one,), (many,) = read(tmp_path / "learned_embeds.safetensors"), read(tmp_path / "easy-hand.safetensors")
    assert one.word == "<cat>" and torch.equal(one.vectors, vectors())
    assert many.word == "easy-hand" and torch.equal(many.vectors, vectors(2))
    assert many.spelt == ("easy-hand", "easy-hand_1")


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"<a>": torch.zeros(2, 3, 4)},
        {"<a>": torch.zeros(4, dtype=torch.long)},
        {"<a>": torch.full((1, 4), torch.nan)},
        {"two words": torch.zeros(4)},
        {"<a>": torch.zeros(0, 4)},
    ],
    ids=["empty", "a grid", "whole numbers", "not finite", "two words", "no vector"],
)
def test_a_file_without_a_word_is_refused_in_a_sentence(tensors, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors holds no learnt word: .+\.$"):
        read(tmp_path / "a.safetensors")


def test_missing_damaged_and_foreign_words_are_refused(prior, folders, tmp_path: Path) -> None:
    place, file = folders["pixel"], tmp_path / "a.safetensors"
    with pytest.raises(FileNotFoundError, match="is missing"):
        open_prior(f"{place}+{file}")
    file.write_bytes(b"a pickle, perhaps")
    with pytest.raises(ValueError, match="damaged"):
        open_prior(f"{place}+{file}")
    write(file, Token(WORD, vectors(1, 768)))
    with pytest.raises(ValueError, match="768 numbers, where this one reads 16"):
        open_prior(f"{place}+{file}")
    write(file, Token("cube", vectors()))
    with pytest.raises(ValueError, match='"cube" is a word already'):
        open_prior(f"{place}+{file}")
    write(file, Token(WORD, vectors()))
    with pytest.raises(ValueError, match="is a word already"):
        with_tokens(prior, [file, file])
    with pytest.raises(ValueError, match="no one text encoder"):
        open_prior(f"{tiny.save_sd3(tmp_path / 'sd3', t5=False)}+{file}")


def test_known_words_are_read_as_before_and_a_new_one_by_its_vectors(folders, tmp_path: Path) -> None:
    """With the embedding of an old word as its vector, the new word is that one."""
    plain = open_folder(folders["pixel"])
    table = plain.reader.encoder.get_input_embeddings().weight
    two = [plain.reader.tokenizer(word)["input_ids"][1] for word in ("red", "cube")]
    write(tmp_path / "a.safetensors", Token(WORD, table[two].detach().clone()))
    prior = open_prior(f"{folders['pixel']}+{tmp_path / 'a.safetensors'}")
    assert prior.name.endswith("+" + str(tmp_path / "a.safetensors")) and prior.sha256 != plain.sha256
    known = ["", "a red cube, back view", "a cone"]
    assert torch.equal(prior.text(known), plain.text(known))
    assert torch.equal(prior.text([f"a {WORD} on top"]), plain.text(["a red cube on top"]))
    assert torch.equal(prior.text([f"a x{WORD}"]), plain.text([f"a x{WORD}"]))  # as part of a word it is none
    with pytest.raises(ValueError, match="takes 13 tokens"):
        prior.text([f"{WORD} " * 5 + "red"])


def test_words_of_two_files_and_a_checked_vocabulary(tmp_path: Path) -> None:
    for name in ("<a>", "<b>"):
        write(tmp_path / f"{name[1]}.safetensors", Token(name, vectors(1, 128)))
    prior = open_prior(f"playroom-single+{tmp_path / 'a.safetensors'}+{tmp_path / 'b.safetensors'}")
    assert prior.text(["a head, back view, <a> <b>"]).isfinite().all()
    with pytest.raises(ValueError, match="does not know: <c>"):
        prior.text(["a head, <a> <c>"])


def test_learning_descends_and_changes_nothing_but_the_vectors(prior) -> None:
    before, said = bits(prior), prior.text(["a red cube"])
    inversion = Inversion(start="back", steps=12, rows=4, rate=0.3, vectors=2)
    first = inversion.begin(prior, WORD)
    learnt = inversion(prior, SEEN, CAPTIONS, WORD)

    def loss(token: Token) -> float:
        taught = replace(prior, reader=TokenReader(prior.reader, [token]))
        rows, texts = [0, 1] * 8, [texts[-1] for texts in CAPTIONS] * 8
        with torch.no_grad():
            return float(inversion.loss(taught, SEEN[rows], texts, Step(9, "judge")))

    assert loss(learnt) < loss(first)
    assert learnt.vectors.shape == (2, WIDTH) and not torch.equal(learnt.vectors, first.vectors)
    after = bits(prior)
    assert all(torch.equal(after[name], w) for name, w in before.items())
    assert torch.equal(prior.reader.states(prior.reader.numbers("a red cube"))[0], said[0])
    assert torch.equal(learnt.vectors, inversion(prior, SEEN, CAPTIONS, WORD).vectors)


def test_only_the_rows_of_the_word_have_a_gradient(prior) -> None:
    inversion = Inversion()
    reader = TokenReader(prior.reader, [inversion.begin(prior, WORD), Token("<other>", vectors())])
    reader.vectors.requires_grad_()
    inversion.loss(replace(prior, reader=reader), SEEN, [f"a cube, {WORD}"] * 2, Step(0)).backward()
    assert reader.vectors.grad is not None
    assert reader.vectors.grad[0].abs().max() > 0 and not reader.vectors.grad[1].any()
    assert all(p.grad is None for p in (*prior.unet.parameters(), *prior.reader.encoder.parameters()))


def test_what_cannot_be_learnt_is_refused(prior, folders) -> None:
    with pytest.raises(ValueError, match="sees several"):
        Inversion()(open_folder(folders["views"]), SEEN, CAPTIONS, WORD)
    with pytest.raises(ValueError, match="lacks the word"):
        Inversion()(prior, SEEN, [[f"a {WORD}"], ["a cube"]], WORD)
    with pytest.raises(ValueError, match="2 pictures and 1"):
        Inversion()(prior, SEEN, CAPTIONS[:1], WORD)
    with pytest.raises(ValueError, match="start is empty"):
        Inversion(start="")(prior, SEEN, CAPTIONS, WORD)
    for wrong in (lambda: Inversion(steps=0), lambda: Inversion(rate=0.0), lambda: Inversion(t=(0.5, 0.2))):
        with pytest.raises(ValueError, match="must be"):
            wrong()


def test_a_guidance_is_told_the_word(prior) -> None:
    taught_reader = TokenReader(prior.reader, [Token(WORD, vectors())])
    assert taught_reader([f"a cube, {WORD}"]).shape == prior.text(["a cube"]).shape
    cameras = orbit([180.0], 0.0, 16)
    assert prior.condition(taught_reader([f"a cube, {WORD}"]), cameras).text.isfinite().all()
