"""The playroom's language: captions of scenes, what they leave open, and which are held out of training.

A caption is `{scene}{, normals}{, front view}{, on white}`. The scene is one of four sentences:

    a red cube                                                  Thing
    a red cube on top of a blue cylinder                        Pair ("on top of", "next to")
    a green house with a red roof                               Toy
    a head with tan skin, black hair, blue eyes and a hat       Head

A colour that is not named is open: the caption stands for the uniform distribution over it. A head's glasses, hat,
beard and smile are there when they are named, and absent when not.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from ..core import Step

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
SHAPES = ("cube", "sphere", "cylinder", "cone", "torus")
RELATIONS = ("on top of", "next to")
TOYS = {  # each toy and its second coloured part
    "snowman": "a {} scarf",
    "mushroom": "a {} stem",
    "house": "a {} roof",
    "tree": "a {} trunk",
    "rocket": "{} fins",
    "mug": "a {} handle",
    "table": "{} legs",
    "car": "{} wheels",
    "boat": "a {} sail",
    "chair": "{} legs",
}
SKINS = ("light", "tan", "brown", "dark")
HAIRS = ("black", "brown", "blond", "red", "white")
EYES = ("blue", "green", "brown")
EXTRAS = ("glasses", "hat", "beard", "smile")
VIEWS = ("front", "side", "back")
BACKGROUNDS = ("white", "grey", "black", "blue", "green", "yellow", "red", "purple")
OTHER_WORDS = (
    "a",
    "an",
    "and",
    "with",
    "on",
    "top",
    "of",
    "next",
    "to",
    "head",
    "skin",
    "hair",
    "eyes",
    "view",
    "normals",
)


@dataclass(frozen=True)
class Thing:
    """One basic shape; colour None is open."""

    shape: str
    colour: str | None = None


@dataclass(frozen=True)
class Pair:
    """Two basic shapes, the first "on top of" or "next to" the second."""

    first: Thing
    second: Thing
    relation: str


@dataclass(frozen=True)
class Toy:
    """A compound toy; `colour` is its main colour, `part` that of its second part."""

    kind: str
    colour: str | None = None
    part: str | None = None


@dataclass(frozen=True)
class Head:
    """A head that looks to +x."""

    skin: str | None = None
    hair: str | None = None
    eyes: str | None = None
    glasses: bool = False
    hat: bool = False
    beard: bool = False
    smile: bool = False


Spec = Thing | Pair | Toy | Head


def caption(spec: Spec) -> str:
    """The one canonical sentence of a scene."""
    if isinstance(spec, Thing):
        return _noun(spec.colour, spec.shape)
    if isinstance(spec, Pair):
        return f"{caption(spec.first)} {spec.relation} {caption(spec.second)}"
    if isinstance(spec, Toy):
        whole = _noun(spec.colour, spec.kind)
        return whole if spec.part is None else f"{whole} with {_part(spec.kind, spec.part)}"
    features = [f"{getattr(spec, name)} {name}" for name in ("skin", "hair", "eyes") if getattr(spec, name)]
    features += [name if name == "glasses" else f"a {name}" for name in EXTRAS if getattr(spec, name)]
    if not features:
        return "a head"
    *most, last = features
    return "a head with " + (f"{', '.join(most)} and {last}" if most else last)


def _part(kind: str, colour: str) -> str:
    phrase = TOYS[kind].format(colour)
    return re.sub("^a (?=[aeiou])", "an ", phrase)


def _noun(colour: str | None, noun: str) -> str:
    if colour is None:
        return f"a {noun}"
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {noun}"


def parse(text: str) -> Spec:
    """The scene of a caption without its view, background and "normals" words.

    Raises ValueError for unknown words (with close ones) and for a sentence the grammar does not have.
    """
    check_words(text)
    sentence = " ".join(text.lower().split())
    head = re.fullmatch(r"an? head(?: with (.+))?", sentence)
    if head:
        return _parse_head(head[1])
    for relation in RELATIONS:
        sides = sentence.split(f" {relation} ")
        if len(sides) == 2:
            return Pair(_parse_thing(sides[0], text), _parse_thing(sides[1], text), relation)
    toy = re.fullmatch(r"an? (?:(\w+) )?(\w+)(?: with (.+))?", sentence)
    if toy and toy[2] in TOYS and toy[1] in (None, *COLOURS):
        return Toy(toy[2], toy[1], _parse_part(toy[2], toy[3], text))
    return _parse_thing(sentence, text)


def _parse_thing(sentence: str, whole: str) -> Thing:
    match = re.fullmatch(r"an? (?:(\w+) )?(\w+)", sentence.strip())
    if not match or match[2] not in SHAPES or match[1] not in (None, *COLOURS):
        raise ValueError(
            f'The playroom has no scene "{whole}". Its sentences look like "a red cube", "a red cube on top of a blue '
            'cylinder", "a green house with a red roof", "a head with black hair and blue eyes"; '
            "`sds3d list words` shows all words."
        )
    return Thing(match[2], match[1])


def _parse_part(kind: str, part: str | None, whole: str) -> str | None:
    if part is None:
        return None
    for colour in COLOURS:
        if part == _part(kind, colour):
            return colour
    raise ValueError(f'A {kind} can be had "with {_part(kind, "red")}" (or another colour), not "{whole}".')


def _parse_head(features: str | None) -> Head:
    head = Head()
    for feature in re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+", features) if features else ():
        *adjective, noun = re.sub(r"^an? ", "", feature).split()
        allowed = {"skin": SKINS, "hair": HAIRS, "eyes": EYES}.get(noun)
        if allowed and len(adjective) == 1 and adjective[0] in allowed:
            head = replace(head, **{noun: adjective[0]})
        elif noun in EXTRAS and not adjective:
            head = replace(head, **{noun: True})
        else:
            raise ValueError(
                f'A head has no "{feature}". It can have {"/".join(SKINS)} skin, {"/".join(HAIRS)} hair, '
                f"{'/'.join(EYES)} eyes, and {', '.join(EXTRAS)}."
            )
    return head


def words() -> tuple[str, ...]:
    """Every word of the language, sorted."""
    parts = " ".join(TOYS.values()).replace("{}", "").split()
    named = itertools.chain(COLOURS, SHAPES, TOYS, parts, SKINS, HAIRS, EYES, EXTRAS, VIEWS, BACKGROUNDS, OTHER_WORDS)
    return tuple(sorted(set(named)))


def check_words(text: str) -> None:
    """Raise ValueError naming the words that the playroom does not know, and the nearest ones it does."""
    known = words()
    unknown = [word for word in re.findall(r"[^\s,]+", text.lower()) if word not in known]
    if not unknown:
        return
    close = sorted({near for word in unknown for near in difflib.get_close_matches(word, known, n=3)})
    hint = f" Close words: {', '.join(close)}." if close else ""
    raise ValueError(
        f"The playroom prior does not know: {', '.join(dict.fromkeys(unknown))}.{hint} `sds3d list words` shows what "
        "it knows; for free text use `--prior` with a folder of a Stable Diffusion model."
    )


def fill(spec: Spec, step: Step) -> Spec:
    """A determined scene drawn uniformly from what `spec` leaves open."""
    draws = iter(step.child("fill").uniform("open", 4).tolist())

    def pick(value: str | None, options: tuple[str, ...]) -> str:
        u = next(draws)
        return value if value is not None else options[int(u * len(options))]

    if isinstance(spec, Thing):
        return replace(spec, colour=pick(spec.colour, COLOURS))
    if isinstance(spec, Pair):
        first = replace(spec.first, colour=pick(spec.first.colour, COLOURS))
        return replace(spec, first=first, second=replace(spec.second, colour=pick(spec.second.colour, COLOURS)))
    if isinstance(spec, Toy):
        return replace(spec, colour=pick(spec.colour, COLOURS), part=pick(spec.part, COLOURS))
    return replace(spec, skin=pick(spec.skin, SKINS), hair=pick(spec.hair, HAIRS), eyes=pick(spec.eyes, EYES))


def is_determined(spec: Spec) -> bool:
    """Whether the caption names every colour, so that it has one exact scene."""
    if isinstance(spec, Pair):
        return is_determined(spec.first) and is_determined(spec.second)
    return all(getattr(spec, field.name) is not None for field in fields(spec))


def is_held_out(spec: Spec) -> bool:
    """Whether a determined scene belongs to the tenth that no prior is ever trained on."""
    digest = hashlib.blake2b(caption(spec).encode(), digest_size=8, person=b"held-out").digest()
    return int.from_bytes(digest, "little") % 10 == 0


def things() -> Iterator[Thing]:
    """Every determined basic shape."""
    return (Thing(shape, colour) for shape in SHAPES for colour in COLOURS)


def pairs() -> Iterator[Pair]:
    """Every determined pair of two different things."""
    sides = list(things())
    return (Pair(a, b, relation) for relation in RELATIONS for a in sides for b in sides if a != b)


def toys() -> Iterator[Toy]:
    """Every determined toy whose two colours differ."""
    return (Toy(kind, a, b) for kind in TOYS for a in COLOURS for b in COLOURS if a != b)


def heads() -> Iterator[Head]:
    """Every determined head."""
    colours = itertools.product(SKINS, HAIRS, EYES)
    extras = list(itertools.product((False, True), repeat=len(EXTRAS)))
    return (Head(skin, hair, eyes, *has) for skin, hair, eyes in colours for has in extras)
