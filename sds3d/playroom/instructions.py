"""Instructions in the playroom's words: what a scene's caption becomes when something of it is to change.

An instruction is one or more clauses, each a verb and what it changes:

    give her red hair and glasses          make the cube blue            remove the hat and the beard
    dye the hair black                     paint the roof green          take off her glasses, make her smile

A clause says a colour of one of the scene's parts, in either order ("red hair", "the hair red"), or one of a head's
extras (glasses, hat, beard, smile). Colours that a caption leaves open may be changed as well as those that it names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace

from .grammar import COLOURS, EXTRAS, EYES, HAIRS, SHAPES, SKINS, TOYS, Head, Pair, Spec, Thing, Toy, caption, words

HEAD_COLOURS = {"skin": SKINS, "hair": HAIRS, "eyes": EYES}
SET = ("give", "add", "put", "make", "turn", "paint", "dye", "colour", "color", "change", "let")
TAKE = ("remove", "take", "drop")
PARTS = tuple(dict.fromkeys(phrase.split()[-1] for phrase in TOYS.values()))  # scarf, stem, roof ...
ADJECTIVES = tuple(dict.fromkeys((*COLOURS, *SKINS, *HAIRS, *EYES)))
NOUNS = (*HEAD_COLOURS, *EXTRAS, *SHAPES, *TOYS, *PARTS)
SAME = {"eye": "eyes", "smiling": "smile", "blonde": "blond", "gray": "grey"}
# Words that an instruction may hold and that change nothing of what it says.
SMALL = ("a", "an", "the", "her", "him", "his", "it", "its", "she", "he", "them", "their", "head", "on", "off", "away")
SMALL += ("to", "into", "of", "with", "have", "wear", "please")
EXAMPLES = '"give her red hair and glasses", "make the cube blue", "remove the hat"'


@dataclass(frozen=True)
class Change:
    """One thing to change. noun: what; None means the whole. colours: the words of colour in their order."""

    noun: str | None
    colours: tuple[str, ...]
    take: bool

    def __str__(self) -> str:
        return " ".join((*self.colours, self.noun or "")).strip()


def rewrite(source: Spec, instruction: str) -> Spec:
    """The scene that an instruction makes of `source`.

    Raises ValueError for words that an instruction cannot have (with close ones), for what the scene does not have, for
    colours that a part cannot take, and for an instruction that changes nothing.
    """
    target = source
    for change in changes(instruction):
        target = _changed(target, change)
    if target == source:
        raise ValueError(f'"{instruction}" changes nothing: the source is already {caption(source)}.')
    return target


def changes(instruction: str) -> list[Change]:
    """What an instruction says, in order. Raises ValueError for a sentence that is none."""
    said = [SAME.get(word, word) for word in spoken(instruction)]
    _check(said, {*SET, *TAKE, *SMALL, *ADJECTIVES, *NOUNS, "and", ",", ";"})
    found = [change for verb, words in _clauses(said, instruction) for change in _items(verb in TAKE, words)]
    if not found:
        raise ValueError(f'"{instruction}" does not say what to change. An instruction says things like {EXAMPLES}.')
    return found


def check_words(text: str) -> None:
    """Raise ValueError for words that are neither an instruction's nor a caption's, with close ones."""
    _check(spoken(text), {*vocabulary(), ",", ";"})


def _check(said: Sequence[str], known: Set[str]) -> None:
    unknown = [word for word in dict.fromkeys(said) if word not in known]
    if unknown:
        close = sorted({near for word in unknown for near in difflib.get_close_matches(word, sorted(known), n=3)})
        hint = f" Close words: {', '.join(close)}." if close else ""
        raise ValueError(f"An instruction has no {', '.join(unknown)}.{hint} It says things like {EXAMPLES}.")


def spoken(instruction: str) -> list[str]:
    """The words and commas of an instruction."""
    return re.findall(r"[^\s,.!;]+|[,;]", instruction.lower())


def _clauses(said: Sequence[str], instruction: str) -> Iterator[tuple[str, list[str]]]:
    """Each verb with the words up to the next one; "colour" after a noun ("the eye colour blue") is no verb."""
    starts = [i for i, word in enumerate(said) if word in TAKE or (word in SET and not _is_noun(said, i))]
    if not starts or any(word in (*ADJECTIVES, *NOUNS) for word in said[: starts[0]]):
        raise ValueError(f'"{instruction}" must begin with what to do. An instruction says things like {EXAMPLES}.')
    for i, end in zip(starts, (*starts[1:], len(said)), strict=True):
        yield said[i], [word for word in said[i + 1 : end] if word not in ("colour", "color")]


def _is_noun(said: Sequence[str], i: int) -> bool:
    return said[i] in ("colour", "color") and i > 0 and said[i - 1] in NOUNS


def _items(take: bool, words: Sequence[str]) -> Iterator[Change]:
    """The things that a clause lists, with commas or "and" between them."""
    item: list[str] = []
    for word in (*words, "and"):
        if word not in ("and", ",", ";"):
            item.append(word)
            continue
        content = [word for word in item if word not in SMALL]
        colours = tuple(word for word in content if word in ADJECTIVES)
        nouns = [word for word in content if word not in ADJECTIVES]
        if len(nouns) > 1:
            raise ValueError(f'"{" ".join(item)}" names two things; put "and" between what is to change.')
        if content:
            yield Change(nouns[0] if nouns else None, colours, take)
        item = []


def _changed(spec: Spec, change: Change) -> Spec:
    if change.take and (change.noun not in EXTRAS or change.colours):
        raise ValueError(f'Only {", ".join(EXTRAS)} can be taken away, not "{change}"; a colour can be changed.')
    if change.noun in (*EXTRAS, *HEAD_COLOURS) and not isinstance(spec, Head):
        raise ValueError(f'The source is {caption(spec)}, which has no head: it can be given no "{change}".')
    if isinstance(spec, Head):
        return _changed_head(spec, change)
    if change.noun is not None and change.noun not in _parts(spec):
        raise ValueError(
            f"The source is {caption(spec)}: it has no {change.noun}. To change are: {', '.join(_parts(spec))}."
        )
    colour = change.colours[-1] if change.colours else None
    if colour not in COLOURS:
        given = f"given {colour}" if colour else "and none was said"
        raise ValueError(f'"{change}" needs a colour, one of {", ".join(COLOURS)}, {given}.')
    if isinstance(spec, Pair):
        return _changed_pair(spec, change, colour)
    if isinstance(spec, Toy) and change.noun not in (None, spec.kind):
        return replace(spec, part=colour)
    return replace(spec, colour=colour)


def _changed_head(head: Head, change: Change) -> Head:
    if change.noun in EXTRAS and not change.colours:
        return replace(head, **{change.noun: not change.take})
    options = HEAD_COLOURS.get(change.noun or "")
    if options is None or len(change.colours) != 1 or change.colours[0] not in options:
        allowed = "; ".join(f"{noun}: {', '.join(colours)}" for noun, colours in HEAD_COLOURS.items())
        raise ValueError(f'A head cannot have "{change}". It has {allowed}; and {", ".join(EXTRAS)}.')
    return replace(head, **{str(change.noun): change.colours[0]})


def _changed_pair(pair: Pair, change: Change, colour: str) -> Pair:
    """A side of a pair is named by its shape and, where both have one, by the colour that it has before the new one."""
    before = change.colours[0] if len(change.colours) > 1 else None
    sides = {"first": pair.first, "second": pair.second}
    meant = [
        name for name, thing in sides.items() if change.noun in (None, thing.shape) and before in (None, thing.colour)
    ]
    if len(meant) != 1:
        raise ValueError(
            f'"{change}" means {"neither" if not meant else "both"} of {caption(pair)}; say which, for example '
            f'"make the {caption(pair.first).split(" ", 1)[1]} {colour}".'
        )
    return replace(pair, **{meant[0]: replace(sides[meant[0]], colour=colour)})


def _parts(spec: Thing | Pair | Toy) -> tuple[str, ...]:
    """What has a colour of its own."""
    if isinstance(spec, Thing):
        return (spec.shape,)
    if isinstance(spec, Pair):
        return tuple(dict.fromkeys((spec.first.shape, spec.second.shape)))
    return spec.kind, part_of(spec.kind)


def part_of(toy: str) -> str:
    """The name of a toy's second coloured part."""
    return TOYS[toy].split()[-1]


def vocabulary() -> tuple[str, ...]:
    """Every word of an instruction, and every word of a caption, sorted."""
    return tuple(sorted({*words(), *SET, *TAKE, *SMALL, *SAME, *ADJECTIVES, *NOUNS}))
