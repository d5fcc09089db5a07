"""Do heads have one face? `python benchmarks/heads.py` writes `results/heads.jsonl` and `heads.json`.

16 captions of heads, 8 that the prior was trained on and 8 held out, each made by the recipe `gaussians` with a prior
that sees one view at a time, and judged against its exact scene in the 24 views of all measures. Seed 0.

| arm       | what the prior is told                                                                          |
|-----------|-------------------------------------------------------------------------------------------------|
| `plain`   | the caption and the word of the view                                                             |
| `back`    | from behind the caption without its eyes, glasses, smile and beard (`behind: {}`)                  |
| `control` | as `back`, and from ahead shown the landmarks of the head template (`playroom-control`)           |

A face is counted where the silhouettes overlap by 0.7. Rates and means come with bootstrap intervals over the prompts
of 95 %, and `less_plain` with those of the differences, prompt by prompt. `two_facedness_db` tells how much nearer the
back is to the true front than to the true back; above 0 a head is two-faced. Runs that are there are not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sds3d import recipes
from sds3d.engine import Recipe, run
from sds3d.playroom.bench import asset_draw, commit, fixed_prompts, save
from sds3d.playroom.bootstrap import interval, paired
from sds3d.playroom.grammar import caption, is_held_out
from sds3d.playroom.measures import measure
from sds3d.playroom.runs import append, lines
from sds3d.priors.catalogue import open_prior
from sds3d.prompts import Prompts

TERM = "stages.shape.guidance.sds"
ARMS = {
    "plain": ["stages.shape.prior=playroom-single"],
    "back": ["stages.shape.prior=playroom-single", f"{TERM}.behind={{}}"],
    "control": [
        "stages.shape.prior=playroom-single+playroom-control",
        f"{TERM}.behind={{}}",
        f"{TERM}.control=[{{kind: landmarks}}]",
    ],
}
SPECS = fixed_prompts(24, (0, 0, 0, 8))
COLUMNS = ("iou", "psnr", "two_facedness_db", "seconds")


def recipe(arm: str) -> Recipe:
    """The recipe `gaussians` as an arm changes it."""
    data = recipes.read("gaussians")
    for assignment in ARMS[arm]:
        recipes.override(data, assignment)
    return recipes.build(data)


def runs(arms: list[str], prompts: int, kept: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row for each run that is missing, the arms in turn on each prompt."""
    there = {(row["arm"], row["caption"]) for row in kept}
    made = {arm: recipe(arm) for arm in arms}
    priors = {name: open_prior(name) for name in {part.stages["shape"].prior for part in made.values()}}
    for spec in SPECS[:: max(len(SPECS) // prompts, 1)]:
        for arm in arms:
            if (arm, caption(spec)) in there:
                continue
            began = time.monotonic()
            outcome = run(made[arm], Prompts(caption(spec)), priors)
            seconds = time.monotonic() - began
            worth = measure(spec, asset_draw(made[arm].stages["shape"].renderer, outcome.rep))
            yield {
                "arm": arm,
                "caption": caption(spec),
                "held_out": is_held_out(spec),
                "iou": round(worth.iou, 4),
                "psnr": round(worth.psnr, 2),
                "two_faced": worth.two_faced,
                "faceless": worth.faceless,
                "two_facedness_db": None if worth.two_facedness is None else round(worth.two_facedness, 2),
                "seconds": round(seconds, 1),
                "commit": commit(),
            }


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each arm: rates over the counted heads, means over all, with intervals, and its differences to `plain`."""
    found: dict[str, Any] = {}
    plain = {row["caption"]: row for row in rows if row["arm"] == "plain"}
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        if not own:
            continue
        counted = [row for row in own if row["two_faced"] is not None]
        found[arm] = {"heads": len(own), "counted": len(counted)}
        for face in ("two_faced", "faceless"):
            found[arm][face] = sum(row[face] for row in counted)
            if counted:
                found[arm][f"{face}_rate"] = mean([float(row[face]) for row in counted])
        found[arm] |= {column: mean([row[column] for row in own]) for column in COLUMNS}
        pairs = [(row, plain[row["caption"]]) for row in own if arm != "plain" and row["caption"] in plain]
        if pairs:
            found[arm]["less_plain"] = {column: difference(pairs, column) for column in COLUMNS}
    return found


def mean(values: list[float]) -> dict[str, Any]:
    """A mean and its interval."""
    return {"mean": round(statistics.mean(values), 4), "interval": ends(interval(values))}


def difference(pairs: list[tuple[dict[str, Any], dict[str, Any]]], column: str) -> dict[str, Any]:
    """The mean difference of pairs of rows and its interval."""
    mine, theirs = ([pair[k][column] for pair in pairs] for k in (0, 1))
    told = statistics.mean(a - b for a, b in zip(mine, theirs, strict=True))
    return {"mean": round(told, 4), "interval": ends(paired(mine, theirs))}


def ends(span: tuple[float, float] | None) -> list[float] | None:
    return None if span is None else [round(end, 4) for end in span]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "heads.json")
    parser.add_argument("--arms", default=",".join(ARMS), help="with commas between")
    parser.add_argument("--prompts", type=int, default=len(SPECS), help="so many of them, evenly chosen")
    given = parser.parse_args()
    torch.set_num_threads(1)
    arms = given.arms.split(",")
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown:
        parser.error(f"there is no arm {', '.join(unknown)}; known are: {', '.join(ARMS)}")
    file = given.out.with_suffix(".jsonl")
    kept = lines(file)
    for row in runs(arms, given.prompts, list(kept)):
        kept.append(row)
        print(json.dumps(row), flush=True)
        append(file, row)
    save("heads", {"command": "python benchmarks/heads.py", "figures": figures(kept)}, given.out)


if __name__ == "__main__":
    main()
