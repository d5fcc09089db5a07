"""Words about the making of an asset, for the places that a format has for words."""

from __future__ import annotations

from collections.abc import Mapping


def plain(text: str) -> str:
    """One line of printable ASCII, everything else escaped, so that no prompt can end a header."""
    return str(text).encode("unicode_escape").decode("ascii")


def one_line(provenance: Mapping[str, str]) -> str:
    """All words and what they say, in one line of printable ASCII."""
    return "; ".join(f"{plain(word)}: {plain(said)}" for word, said in provenance.items())
