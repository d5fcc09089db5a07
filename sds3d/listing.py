"""What `sds3d list` shows: the names that a recipe or an option may use."""

from __future__ import annotations

import textwrap

from . import plugins, recipes


def listing(kind: str | None = None) -> list[tuple[str, list[str]]]:
    """Titles and lines of one kind of thing, or of all but the words. Raises ValueError for an unknown kind."""
    known = ["recipes", "priors", "words", "exports", *plugins.KINDS]
    if kind is None:
        return [(name, _lines(name)) for name in known if name != "words"]
    if kind not in known:
        raise ValueError(plugins.unknown("kind", kind, known))
    return [(kind, _lines(kind))]


def _lines(kind: str) -> list[str]:
    if kind == "recipes":
        return [f"{name:18}{recipes.read(name).get('about', '')}" for name in recipes.names()]
    if kind == "priors":
        from .priors.catalogue import CATALOGUE

        return [f"{name:18}{entry.about} ({entry.licence})" for name, entry in CATALOGUE.items()]
    if kind == "words":
        return _words()
    if kind == "exports":
        from .export import EXPORTS

        return [f"{name:18}{entry.file:24}{entry.about}" for name, entry in EXPORTS.items()]
    return [f"{name:18}{place}" for name, place in plugins.kinds(kind).items()]


def _words() -> list[str]:
    """The vocabulary of the playroom, and one example of each sentence."""
    from .playroom import grammar

    groups = {
        "colours": grammar.COLOURS,
        "shapes": grammar.SHAPES,
        "between shapes": grammar.RELATIONS,
        "toys": [f"{toy} with {part.format('...')}" for toy, part in grammar.TOYS.items()],
        "skin": grammar.SKINS,
        "hair": grammar.HAIRS,
        "eyes": grammar.EYES,
        "on a head": grammar.EXTRAS,
        "backgrounds": grammar.BACKGROUNDS,
        "sentences": [
            "a red cube",
            "a red cube on top of a blue cylinder",
            "a green house with a red roof",
            "a head with tan skin, black hair, blue eyes and a hat",
        ],
    }
    lines = []
    for name, words in groups.items():
        separator = "; " if any("," in word for word in words) else ", "
        first, *more = textwrap.wrap(separator.join(words), 96)
        lines += [f"{name:18}{first}", *(f"{'':18}{line}" for line in more)]
    return lines
