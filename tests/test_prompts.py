from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_run import prior

from sds3d.cameras import orbit
from sds3d.core import Background
from sds3d.priors.analytic import AnalyticPrior
from sds3d.prompts import LONGEST, Embeddings, Prompts, tidy

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
    for prompts in (Prompts("a"), Prompts("a", negative="b")):
        assert prompts.names() == frozenset(prompts.texts(RING, WHITE))
    assert Prompts("a", negative="b").texts(RING, WHITE)["negative"] == ("b",) * 4


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
