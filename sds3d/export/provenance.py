"""Words about the making of an asset, for the places that a format has for words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

COMMENT = re.compile(r"(?:comment|#) ([a-z]+):? (.+)")  # of a PLY, and of an OBJ
HEADER = 1 << 16  # bytes, within which all words of a file of lines stand


def plain(text: str) -> str:
    """One line of printable ASCII, everything else escaped, so that no prompt can end a header."""
    return str(text).encode("unicode_escape").decode("ascii")


def one_line(provenance: Mapping[str, str]) -> str:
    """All words and what they say, in one line of printable ASCII."""
    return "; ".join(f"{plain(word)}: {plain(said)}" for word, said in provenance.items())


def told(path: Path) -> dict[str, str]:
    """The words that a file of ours carries in its comments or extras: `.ply`, `.obj` and `.glb`; {} for all others."""
    with path.open("rb") as file:
        head = file.read(20)
        if path.suffix == ".glb" and len(head) == 20:
            head = file.read(int.from_bytes(head[12:16], "little"))
        elif path.suffix in (".ply", ".obj"):
            head += file.read(HEADER)
        else:
            return {}
    if path.suffix == ".glb":
        return _extras(head)
    lines = head.partition(b"end_header")[0].decode("latin-1").splitlines()
    found = [match for line in lines if (match := COMMENT.fullmatch(line))]
    return {match[1]: match[2].encode("latin-1").decode("unicode_escape") for match in found}


def _extras(chunk: bytes) -> dict[str, str]:
    """The extras of the first scene, where they are words."""
    try:
        extras = json.loads(chunk)["scenes"][0]["extras"]
        return {str(word): said for word, said in extras.items() if isinstance(said, str)}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}  # Another program's file, which says nothing that we know.
