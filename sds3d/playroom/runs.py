"""Runs of a benchmark and the file that keeps them: one JSON object a line, added when a run has ended.

So a benchmark may be stopped at any moment and goes on where it was. A run is known by a key, the hash of all that
defines it: the resolved recipe, the prompt, the seed and the weights of its priors, but no commit and no machine. What
was made by one list of runs is found by every other list that holds the same run.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from .. import schema
from ..core import Prior, Representation
from ..engine import Recipe, run
from ..prompts import Prompts
from ..trial import Counting
from .bench import asset_draw, commit
from .grammar import parse
from .measures import measure

Figures = Mapping[str, Any]

# Told to the methods that read a negative prompt; the others never ask it. The playroom has no word for a bad picture,
# and a picture in false colours is the nearest that it has.
NEGATIVE = "normals"


@dataclass(frozen=True, eq=False)
class Entry:
    """A run to make. arm: what is compared, a name for the recipe. The recipe's words and exports do not matter."""

    arm: str
    recipe: Recipe
    prompt: str
    seed: int

    @property
    def prompts(self) -> Prompts:
        return Prompts(self.prompt, NEGATIVE)

    @property
    def steps(self) -> int:
        return sum(stage.steps for stage in self.recipe.stages.values())

    @property
    def priors(self) -> tuple[str, ...]:
        """The names of the priors that it needs."""
        return tuple(sorted({name for stage in self.recipe.stages.values() for name in stage.priors()}))

    @cached_property
    def stages(self) -> dict[str, Any]:
        """The resolved recipe as plain data."""
        return schema.to_data(self.recipe.stages)

    def key(self, priors: Mapping[str, Prior]) -> str:
        """The hash of what defines the run, given its opened priors."""
        told = {
            "stages": self.stages,
            "prompt": self.prompt,
            "negative": NEGATIVE,
            "seed": self.seed,
            "weights": {name: getattr(priors[name], "sha256", None) for name in self.priors},
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


Further = Callable[[Entry, Representation], Figures]


def nothing(entry: Entry, rep: Representation) -> Figures:
    """No further figures."""
    return {}


def make(entry: Entry, priors: Mapping[str, Prior], device: torch.device, further: Further = nothing) -> dict[str, Any]:
    """Make a run and measure its asset against the exact scene of its prompt.

    Returns the fields of `Quality`, the rows and forwards of networks in all, seconds, and what `further` finds of the
    asset. Where a number of the run stopped being finite it returns why, as "failed".
    """
    counted = {name: Counting(priors[name]) for name in entry.priors}
    started = time.monotonic()
    try:
        outcome = run(entry.recipe, entry.prompts, counted, entry.seed, device)
    except ArithmeticError as error:
        return {"failed": str(error), "seconds": round(time.monotonic() - started, 2)}
    seconds = time.monotonic() - started
    renderer = entry.recipe.stages[outcome.stage].renderer
    rep = outcome.rep.to("cpu")
    quality = measure(parse(entry.prompt), asset_draw(renderer, rep))
    figures = {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(quality).items()}
    asked = [rows for prior in counted.values() for rows in prior.rows]
    made = {"rows": sum(asked), "forwards": len(asked), "seconds": round(seconds, 2)}
    return {**figures, **made, **further(entry, rep)}


def line(entry: Entry, key: str, figures: Figures, device: torch.device) -> dict[str, Any]:
    """What the file says about a run: the figures, and enough to make it again."""
    return {
        "key": key,
        "arm": entry.arm,
        "prompt": entry.prompt,
        "seed": entry.seed,
        "steps": entry.steps,
        **figures,
        "stages": entry.stages,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": loaded_commit(),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }


@cache
def loaded_commit() -> str | None:
    """The commit of the code that this process runs: asked once, since a long benchmark may see a later one."""
    return commit()


def lines(path: Path, *needed: str) -> list[dict[str, Any]]:
    """The runs of a file, in their order; none where there is no file. What a stop cut off at the end is left out.

    Raises ValueError for a line that is no JSON object with the words that are needed.
    """
    if not path.exists():
        return []
    found = []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            row = json.loads(text)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in needed):
            told = "".join(f" with a {name}" for name in needed)
            raise ValueError(f"{path} is no file of runs: line {number} is no JSON object{told}.")
        found.append(row)
    return found


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The runs of a file by key; of two with one key the later. Raises ValueError for a file of something else."""
    return {row["key"]: row for row in lines(path, "key")}


def append(path: Path, kept: Mapping[str, Any]) -> None:
    """Add a run to the file and bring it to the disk; a line that a stop cut off is taken away first."""
    whole = path.read_bytes() if path.exists() else b""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(whole.rfind(b"\n") + 1)
        file.seek(0, os.SEEK_END)
        file.write(json.dumps(kept).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
