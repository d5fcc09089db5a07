import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_run import prior

from sds3d.cameras import orbit
from sds3d.core import Background
from sds3d.playroom.grammar import caption, heads
from sds3d.priors.analytic import AnalyticPrior
from sds3d.prompts import LONGEST, BackView, Embeddings, Prompts, perp_neg_weights, tidy

RING = orbit([0, 90, 180, 270], 0.0, 8)
WHITE = Background(torch.ones(4, 3), ("white",))


def test_caption_order_is_prompt_look_view_background() -> None:
    prompts = Prompts("a red cube", view_words=True)
    texts = prompts.texts(RING, WHITE, "normal")
    assert texts["cond"] == tuple(
        f"a red cube, normals, {view} view, on white" for view in ("front", "side", "back", "side")
    )
    assert texts["uncond"] == ("",) * 4
    assert texts["cond_plain"] == ("a red cube, normals, on white",) * 4


def test_a_plain_caption_says_the_prompt_alone() -> None:
    unnamed = Background(torch.ones(4, 3))
    assert Prompts("a red cube").texts(RING, unnamed)["cond"] == ("a red cube",) * 4
    assert Prompts("a red cube", name_background=False).texts(RING, WHITE)["cond"] == ("a red cube",) * 4


def test_each_group_has_its_own_background() -> None:
    two = Background(torch.ones(4, 3), ("white", "black"))
    assert Prompts("x").texts(RING, two)["cond"] == ("x, on white", "x, on white", "x, on black", "x, on black")


def test_names_are_the_questions_of_the_texts() -> None:
    for prompts in (Prompts("a"), Prompts("a", "b"), Prompts("a", view_words=True), Prompts("a", source="b")):
        assert prompts.names() == frozenset(prompts.texts(RING, WHITE))
    assert Prompts("a", negative="b").texts(RING, WHITE)["negative"] == ("b",) * 4


def test_the_source_is_asked_about_in_the_same_words_of_look_view_and_background() -> None:
    texts = Prompts("a red cube", view_words=True, source="a blue cube").texts(RING, WHITE, "normal")
    assert texts["source"] == tuple(text.replace("red", "blue") for text in texts["cond"])
    with pytest.raises(ValueError, match="The source prompt is empty"):
        Prompts("a red cube", source=" ")


def test_perp_neg_asks_for_the_other_views_and_weighs_them_by_camera() -> None:
    prompts = Prompts("a red cube", view_words=True)
    texts = prompts.texts(RING, WHITE, "normal")
    assert texts["not_front"] == ("a red cube, normals, front view, on white",) * 4
    assert texts["not_side"] == ("a red cube, normals, side view, on white",) * 4
    assert set(prompts.weights(RING)) == {"not_front", "not_side"} and not Prompts("a red cube").weights(RING)


def test_perp_neg_weights_are_the_table() -> None:
    """-f(r), f(r) = a exp(-b r) + c: (4, .5, -2.426) ahead for both; behind (1, .5, .967) and (1, .5, -.606)."""
    weights = perp_neg_weights(orbit([0, 45, 90, 135, 180, 225, 315, 0], [0.0] * 7 + [70.0], 8))
    half = 4 * math.exp(-0.25) - 2.426
    front = [0.0, half, 1.574, math.exp(-0.25) + 0.967, 1.967, math.exp(-0.25) + 0.967, half, 0.0]
    side = [1.574, half, 0.0, math.exp(-0.25) - 0.606, 0.394, math.exp(-0.25) - 0.606, half, 0.0]
    for name, expected in (("not_front", front), ("not_side", side)):
        assert weights[name].tolist() == pytest.approx([-number for number in expected], abs=1e-3)
        assert (weights[name] <= 0).all()
    near = perp_neg_weights(orbit([89.99, 90.01], 0.0, 8))
    for weight in near.values():
        assert abs(weight[0] - weight[1]) < 2e-3, "the two halves meet at the side"


@pytest.mark.parametrize("bad", ["", "  \n ", "a\0b", "\x1b[2J", "\ud800", "x" * (LONGEST + 1)])
def test_bad_prompts_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="prompt"):
        Prompts(bad)
    with pytest.raises(ValueError, match="negative prompt"):
        Prompts("a", negative=bad)


@given(st.text(max_size=50))
def test_tidy_changes_white_space_alone_and_only_once(text: str) -> None:
    try:
        once = tidy(text)
    except ValueError:
        return
    assert tidy(once) == once
    assert once.split() == text.split()


class Counting(AnalyticPrior):
    """Keeps the texts that it is asked to encode."""

    asked: ClassVar[list[tuple[str, ...]]] = []

    def text(self, prompts: Sequence[str]) -> torch.Tensor:
        self.asked.append(tuple(prompts))
        return super().text(prompts)


def test_each_text_is_encoded_once_and_alone(unchecked) -> None:
    counting = Counting(prior().means, 0.1, ("red", "blue"))
    embeddings = Embeddings(counting)
    first = embeddings(["red", "", "red", "blue"])
    again = embeddings(["blue", "red"])
    assert counting.asked == [("red",), ("",), ("blue",)]
    assert torch.equal(again, first[[3, 0]])


ADORNED = "a head with tan skin, red hair, blue eyes, glasses, a hat and a smile"


def test_a_view_from_behind_is_told_without_what_cannot_be_seen_there() -> None:
    back = BackView(words="<back-view>, without faces")
    texts = Prompts(ADORNED, view_words=True, source="a head with a beard", behind=back).texts(RING, WHITE)
    said = "a head with tan skin, red hair and a hat, back view, <back-view>, without faces, on white"
    assert texts["cond"][2] == said
    plain = Prompts(ADORNED, view_words=True).texts(RING, WHITE)
    for k in (0, 1, 3):
        assert texts["cond"][k] == plain["cond"][k]
    assert texts["source"][2].startswith("a head, back view") and texts["source"][0].startswith("a head with a beard,")
    for name in ("cond_plain", "not_front", "not_side"):
        assert texts[name] == plain[name]


def test_the_playrooms_heads_keep_their_grammar() -> None:
    for spec in heads():
        seen = replace(spec, eyes=None, glasses=False, beard=False, smile=False)
        assert BackView().shows(caption(spec)) == caption(seen)


@pytest.mark.parametrize(
    ("prompt", "seen"),
    [
        ("a man with a beard, a DSLR photo", "a man, a DSLR photo"),
        ("a woman with red hair wearing sunglasses, 8k", "a woman with red hair, 8k"),
        ("a man with a beard, wearing a hat and glasses, oil", "a man, wearing a hat, oil"),
        ("a pirate with one eye, a scar, and a Smile and a hat, oil", "a pirate with one eye, a scar and a hat, oil"),
        ("a car with blue eyeshadow", "a car with blue eyeshadow"),
        ("a smile", "a smile"),
        ("a table with legs, sandy", "a table with legs, sandy"),
    ],
)
def test_what_a_prompt_lists_is_left_out_part_by_part(prompt: str, seen: str) -> None:
    assert BackView().shows(prompt) == seen
    assert BackView(hidden=()).shows(prompt) == prompt


def test_a_negative_of_views_from_behind_weighs_by_the_angle() -> None:
    prompts = Prompts(ADORNED, view_words=True, behind=BackView(negative="eyes"))
    assert prompts.names() == frozenset(prompts.texts(RING, WHITE))
    assert prompts.texts(RING, WHITE)["not_behind"] == ("eyes",) * 4
    assert prompts.weights(RING)["not_behind"].tolist() == pytest.approx([0, -0.5, -1, -0.5], abs=1e-6)
    for silent in (replace(prompts, view_words=False), replace(prompts, behind=BackView())):
        assert "not_behind" not in silent.names() | silent.weights(RING).keys() | silent.texts(RING, WHITE).keys()
    assert replace(prompts, view_words=False).texts(RING, WHITE)["cond"] == (f"{ADORNED}, on white",) * 4
