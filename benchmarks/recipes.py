"""How good are the recipes in stages beside the Gaussian one? `python benchmarks/recipes.py [--recipes A,B]`.

Each recipe with its own steps on 12 captions of the playroom, seed 0, measured against their exact scenes as all
benchmarks do. The runs lie in `results/recipes.jsonl`, so that the same command goes on where it was stopped; a recipe
whose numbers change is run anew. `results/recipes.json` is the summary, and `.png` shows every asset.

Wanted of a textured mesh, against `gaussians` on the same prompts: a mean silhouette IoU at most 0.03 below, a colour
at most 2 dB below, and on every prompt at most 5,000 triangles and a closed surface: with vertices of one place as one,
each directed edge of a triangle has exactly one opposite. Seconds are those of the whole run, without its files.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sds3d import recipes
from sds3d.core import Representation
from sds3d.engine import Recipe
from sds3d.playroom.bench import asset_draw, beside_truth, save
from sds3d.playroom.bench_guidance import Bench
from sds3d.playroom.bootstrap import paired
from sds3d.playroom.grammar import parse
from sds3d.playroom.guidance_lists import SETTING, each
from sds3d.playroom.runs import Entry, Figures
from sds3d.priors.catalogue import open_prior
from sds3d.representations.mesh import Triangles
from sds3d.watchers import png

BASE = "gaussians"
RECIPES = (BASE, "gaussians-mesh", "nerf-mesh", "geometry-texture")
LOST_IOU, LOST_DB, MOST = 0.03, 2.0, 5000
Runs = Mapping[tuple[str, int], Figures]  # by prompt and seed


def is_watertight(mesh: Triangles) -> bool:
    """Whether each directed edge comes once and so does its opposite, with vertices of one place as one."""
    _, place = torch.unique(mesh.vertices.detach(), dim=0, return_inverse=True)
    start = place[mesh.faces]
    end = start.roll(-1, dims=1)
    there, back = (a.flatten() * len(mesh.base) + b.flatten() for a, b in ((start, end), (end, start)))
    return len(there.unique()) == len(there) and torch.equal(there.sort().values, back.sort().values)


def look(entry: Entry, rep: Representation, folder: Path) -> dict[str, Any]:
    """The triangles of a mesh and whether it is closed; its picture goes to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    renderer = list(entry.recipe.stages.values())[-1].renderer
    picture = beside_truth(parse(entry.prompt), asset_draw(renderer, rep))
    tile(folder, entry.arm, entry.prompt).write_bytes(png(picture[None]))
    return {"faces": len(rep), "watertight": is_watertight(rep)} if isinstance(rep, Triangles) else {}


def tile(folder: Path, arm: str, prompt: str) -> Path:
    """Where the picture of an asset lies."""
    return folder / f"{arm} {prompt}.png"


def summary(runs: Mapping[str, Runs]) -> dict[str, Any]:
    """Each recipe's means and medians, and its differences to the Gaussian one prompt by prompt."""
    return {arm: about(found) | against(found, runs.get(BASE, {})) for arm, found in runs.items()}


def about(runs: Runs) -> dict[str, Any]:
    told: dict[str, Any] = {"runs": len(runs)}
    for key in ("iou", "psnr", "haze", "seconds", "faces"):
        values = [run[key] for run in runs.values() if key in run]
        if values:
            middle = {"mean": statistics.mean(values), "median": statistics.median(values)}
            told[key] = {name: round(value, 4) for name, value in middle.items()} | {
                "min": min(values),
                "max": max(values),
            }
    closed = [run["watertight"] for run in runs.values() if "watertight" in run]
    return (
        told
        | ({"watertight": sum(closed)} if closed else {})
        | {"threads": sorted({run["threads"] for run in runs.values()})}
    )


def against(runs: Runs, base: Runs) -> dict[str, Any]:
    """Mean differences to the base with their 95 % intervals over prompts, and which wanted figures are met."""
    both = [place for place in runs if place in base and "iou" in runs[place] and "iou" in base[place]]
    if runs is base or not both:
        return {}
    lost = {}
    for key in ("iou", "psnr"):
        mine, theirs = ([some[place][key] for place in both] for some in (runs, base))
        difference = statistics.mean(a - b for a, b in zip(mine, theirs, strict=True))
        span = paired(mine, theirs)
        lost[key] = {"mean": round(difference, 4), "interval": span and [round(end, 4) for end in span]}
    wanted = {
        "iou": lost["iou"]["mean"] >= -LOST_IOU,
        "psnr": lost["psnr"]["mean"] >= -LOST_DB,
        "faces": all(run.get("faces", 0) <= MOST for run in runs.values()),
        "watertight": all(run.get("watertight", False) for run in runs.values()),
    }
    return {f"less_{BASE}": {"pairs": len(both), **lost}, "as_wanted": wanted}


def sheet(arms: Sequence[str], prompts: Sequence[str], folder: Path) -> bytes | None:
    """All pictures, a row for each prompt and a column for each recipe; None before there are any."""
    import imageio.v3 as iio

    rows = []
    for prompt in prompts:
        tiles = [tile(folder, arm, prompt) for arm in arms]
        found = [torch.from_numpy(iio.imread(one))[..., :3] / 255 if one.exists() else None for one in tiles]
        some = next((one for one in found if one is not None), None)
        if some is not None:
            rows.append(torch.cat([torch.ones_like(some) if one is None else one for one in found], dim=1))
    return png(torch.cat(rows)[None]) if rows else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=",".join(RECIPES), help="Which are run, with commas between.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/recipes.json"))
    parser.add_argument("--pictures", type=Path, default=Path("runs/bench-recipes"), help="Where pictures are kept.")
    given = parser.parse_args()
    arms = {name: own(name) for name in given.recipes.split(",")}
    names = {name for recipe in arms.values() for stage in recipe.stages.values() for name in stage.priors()}
    priors = {name: open_prior(name, torch.device("cpu")) for name in sorted(names)}
    entries = each(arms, SETTING.prompts(), 1)
    further = partial(look, folder=given.pictures)
    bench = Bench(given.out.with_suffix(".jsonl"), priors, torch.device("cpu"), further=further)
    bench.make_all("recipes", entries)
    write(bench, arms, given.out, given.pictures)


def write(bench: Bench, arms: Mapping[str, Recipe], out: Path, pictures: Path) -> None:
    """The summary of what is there, and the sheet of pictures."""
    runs, prompts = bench.runs(each(arms, SETTING.prompts(), 1)), SETTING.prompts()
    keys = ("iou", "psnr", "haze", "faces", "watertight", "seconds", "commit")
    rows = [
        {"recipe": arm, "prompt": prompt, **{key: run[key] for key in keys if key in run}}
        for arm, found in runs.items()
        for (prompt, _), run in found.items()
    ]
    save("recipes", {"command": "python benchmarks/recipes.py", "figures": summary(runs), "rows": rows}, out)
    picture = sheet(list(arms), prompts, pictures)
    if picture is not None:
        out.with_suffix(".png").write_bytes(picture)


def own(name: str) -> Recipe:
    """A recipe as it is shipped; its words and its exports do not matter."""
    return replace(recipes.build(recipes.read(name)), about="", exports=())


if __name__ == "__main__":
    main()
