"""Files that an asset is written to: a table, format name -> (file name, function).

Each function is called as write(rep, path, renderer, provenance) and returns the path it wrote. provenance: words and
their values that a file may carry about its making (prompt, seed, version). Writers are imported when used. A file
appears whole or not at all.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path

from ..core import Renderer, Representation

Write = Callable[[Representation, Path, Renderer, Mapping[str, str]], Path]


def _ply(rep: Representation, path: Path, renderer: Renderer, provenance: Mapping[str, str]) -> Path:
    from .ply import write

    return write(rep, path, renderer, provenance)


def _mp4(rep: Representation, path: Path, renderer: Renderer, provenance: Mapping[str, str]) -> Path:
    from .video import write

    return write(rep, path, renderer, provenance)


EXPORTS: dict[str, tuple[str, Write]] = {"ply": ("asset.ply", _ply), "mp4": ("turntable.mp4", _mp4)}


def export(
    name: str, rep: Representation, folder: Path, renderer: Renderer, provenance: Mapping[str, str] | None = None
) -> Path:
    """Write one format into a folder and return the file's path.

    Raises ValueError for an unknown format (with the nearest known one), TypeError for a representation that the format
    cannot hold, OSError when the file cannot be written.
    """
    if name not in EXPORTS:
        close = difflib.get_close_matches(name, EXPORTS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(f'There is no export format "{name}".{hint} Known are: {", ".join(EXPORTS)}.')
    file, write = EXPORTS[name]
    return write(rep, Path(folder) / file, renderer, provenance or {})
