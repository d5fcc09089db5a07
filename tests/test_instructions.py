"""Instructions: each makes of a caption's scene the one that it says, and what cannot be is refused in a sentence."""

from dataclasses import replace

import pytest

from sds3d.playroom.grammar import (
    COLOURS,
    EXTRAS,
    EYES,
    HAIRS,
    SKINS,
    Head,
    Thing,
    caption,
    heads,
    parse,
    things,
    toys,
)
from sds3d.playroom.instructions import rewrite


@pytest.mark.parametrize(
    ("source", "instruction", "target"),
    [
        ("a head with black hair", "give her red hair and glasses", "a head with red hair and glasses"),
        (
            "a head",
            "Make the hair black, the eyes blue and give him a hat.",
            "a head with black hair, blue eyes and a hat",
        ),
        ("a head with glasses and a hat", "take off the glasses and the hat", "a head"),
        ("a head with a beard", "remove his beard, make him smile", "a head with a smile"),
        ("a head with tan skin", "change the eye colour to green", "a head with tan skin and green eyes"),
        ("a head", "dye her hair blonde", "a head with blond hair"),
        ("a red cube", "make the cube blue", "a blue cube"),
        ("a red cube", "paint it green", "a green cube"),
        ("a cube", "make it black", "a black cube"),
        ("a green house with a red roof", "paint the roof blue", "a green house with a blue roof"),
        ("a green house with a red roof", "make the house white and the roof black", "a white house with a black roof"),
        ("a blue car with black wheels", "give it red wheels", "a blue car with red wheels"),
        ("a red cube on top of a blue cylinder", "make the cylinder green", "a red cube on top of a green cylinder"),
        ("a red cube next to a blue cube", "make the blue cube yellow", "a red cube next to a yellow cube"),
        ("a red cube next to a blue cube", "turn the red cube into green", "a green cube next to a blue cube"),
    ],
)
def test_the_sentence_says_what_changes(source: str, instruction: str, target: str) -> None:
    assert caption(rewrite(parse(source), instruction)) == target


def test_every_feature_of_a_head_can_be_set_and_every_extra_taken_away() -> None:
    plain = Head("tan", "brown", "brown")
    for noun, options in (("skin", SKINS), ("hair", HAIRS), ("eyes", EYES)):
        for colour in options:
            if getattr(plain, noun) != colour:
                assert getattr(rewrite(plain, f"give her {colour} {noun}"), noun) == colour
    for extra in EXTRAS:
        with_it = rewrite(plain, f"add {extra}")
        assert getattr(with_it, extra) and rewrite(with_it, f"remove the {extra}") == plain


def test_an_edit_undone_by_its_opposite_gives_the_source_back() -> None:
    for thing in things():
        for colour in COLOURS:
            if colour != thing.colour:
                there = rewrite(thing, f"make it {colour}")
                assert there == Thing(thing.shape, colour) and rewrite(there, f"make it {thing.colour}") == thing


@pytest.mark.parametrize(
    ("source", "instruction", "told"),
    [
        ("a red cube", "give it glasses", "no head"),
        ("a red cube", "give her red hair", "no head"),
        ("a red cube", "make the sphere blue", "has no sphere"),
        ("a red cube", "make it bald", "no bald"),
        ("a red cube", "make it shine like gold", "no shine, like, gold"),
        ("a red cube", "make the cube", "needs a colour"),
        ("a red cube", "make it red", "changes nothing"),
        ("a red cube", "blue", "must begin with what to do"),
        ("a red cube", "", "must begin with what to do"),
        ("a red cube", "please make it", "does not say what to change"),
        ("a red cube", "remove the cube", "Only glasses"),
        ("a red cube", "make the cube sphere blue", "names two things"),
        ("a red cube next to a blue cube", "make the cube green", "both"),
        ("a red cube next to a blue sphere", "make the green cube yellow", "neither"),
        ("a head", "give her green hair", "cannot have"),
        ("a head", "make it blue", "cannot have"),
        ("a head with a hat", "remove the red hair", "Only glasses"),
        ("a head with glasses", "give her glases", "glasses"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(source: str, instruction: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        rewrite(parse(source), instruction)


def test_the_source_of_another_kind_says_what_it_is() -> None:
    with pytest.raises(ValueError, match="The source is a red cube, which has no head"):
        rewrite(parse("a red cube"), "give it glasses")


def test_nothing_but_what_is_said_changes() -> None:
    for head in list(heads())[::97]:
        there, back = ("remove the smile", "add a smile") if head.smile else ("add a smile", "remove the smile")
        changed = rewrite(head, there)
        assert changed == replace(head, smile=not head.smile) and rewrite(changed, back) == head
    for toy in list(toys())[::67]:
        colour = next(colour for colour in COLOURS if colour not in (toy.colour, toy.part))
        assert rewrite(toy, f"make the {toy.kind} {colour}") == replace(toy, colour=colour)
