"""How good are the recipes beside the Gaussian one? `python benchmarks/recipes.py [--recipes A,B]`.

Each recipe with its own steps on 12 captions of the playroom, seed 0, measured against their exact scenes as all
benchmarks do. The runs lie in `results/recipes.jsonl`, so that the same command goes on where it was stopped; a recipe
whose numbers change is run anew. `results/recipes.json` is the summary, and `.png` shows every asset.

Wanted of a textured mesh, against `gaussians` on the same prompts: a mean silhouette IoU at most 0.03 below, a colour
at most 2 dB below, and on every prompt at most 5,000 triangles and a closed surface: with vertices of one place as one,
each directed edge of a triangle has exactly one opposite. Seconds are those of the whole run, without its files.

`headsculpt` makes heads, and runs on the four prompts that ask for one. Two recipes begin with a file. `texture` gets a
grey mesh of the exact scene, and `refine` the assets of 60 steps of `gaussians` and of `gaussians-mesh`, which are
measured too: `draft-splat` and `draft-mesh`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sds3d import recipes
from sds3d.core import Representation
from sds3d.engine import Recipe
from sds3d.export import export
from sds3d.export.textures import from_png
from sds3d.generate import Request, plan
from sds3d.playroom.bench import asset_draw, beside_truth, save
from sds3d.playroom.bench_guidance import Bench
from sds3d.playroom.bootstrap import paired
from sds3d.playroom.grammar import Head, parse
from sds3d.playroom.guidance_lists import SETTING
from sds3d.playroom.runs import Entry, Figures
from sds3d.playroom.scenes import build
from sds3d.priors.catalogue import open_prior
from sds3d.renderers.raster import Raster
from sds3d.representations.isosurface import surface_nets
from sds3d.representations.mesh import Mesh, Triangles
from sds3d.watchers import png

BASE = "gaussians"
SOLID = ("gaussians-mesh", "nerf-mesh", "geometry-texture", "headsculpt")  # from a prompt to a textured mesh
RECIPES = (BASE, *SOLID, "texture", "refine")
LOST_IOU, LOST_DB, MOST = 0.03, 2.0, 5000
DRAFT = 60  # steps
DRAFTS = {"splat": "gaussians", "mesh": "gaussians-mesh"}
REACH, POINTS = 1.12, 112  # of the grid on which an exact scene is meshed: half a side, points a side
Runs = Mapping[tuple[str, int], Figures]  # by prompt and seed


@dataclass(frozen=True)
class Assets:
    """The folder of the assets and of their pictures, which are too large to be kept with the results."""

    folder: Path

    def place(self, arm: str, prompt: str) -> Path:
        """The folder of one asset."""
        where = self.folder / arm / prompt.replace(",", "").replace(" ", "-")
        where.mkdir(parents=True, exist_ok=True)
        return where

    def picture(self, arm: str, prompt: str) -> Path:
        return self.place(arm, prompt) / "beside-truth.png"

    def draft(self, kind: str, prompt: str) -> Path:
        """The file of a draft, a splat or a mesh."""
        return self.place(f"draft-{kind}", prompt) / ("asset.ply" if kind == "splat" else "asset.glb")

    def look(self, entry: Entry, rep: Representation) -> dict[str, Any]:
        """The triangles of a mesh and whether it is closed; keeps the asset and its picture."""
        renderer = list(entry.recipe.stages.values())[-1].renderer
        picture = beside_truth(parse(entry.prompt), asset_draw(renderer, rep))
        self.picture(entry.arm, entry.prompt).write_bytes(png(picture[None]))
        solid = isinstance(rep, Triangles)
        export("glb" if solid else "ply", rep, self.place(entry.arm, entry.prompt), renderer)
        return {"faces": len(rep), "watertight": is_watertight(rep)} if solid else {}

    def exact(self, prompt: str) -> Path:
        """The file of a grey mesh of the exact scene of a caption."""
        return self.place("exact", prompt) / "asset.glb"

    def make_exact(self, prompt: str) -> None:
        """Make that file where it is not there."""
        if not self.exact(prompt).exists():
            axis, scene = torch.linspace(-REACH, REACH, POINTS), build(parse(prompt))
            grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1)
            sdf = torch.stack([scene.distance(layer) for layer in grid])
            export("glb", Mesh(*surface_nets(sdf, radius=REACH)), self.place("exact", prompt), Raster())


def is_watertight(mesh: Triangles) -> bool:
    """Whether each directed edge comes once and so does its opposite, with vertices of one place as one."""
    _, place = torch.unique(mesh.vertices.detach(), dim=0, return_inverse=True)
    start = place[mesh.faces]
    end = start.roll(-1, dims=1)
    there, back = (a.flatten() * len(mesh.base) + b.flatten() for a, b in ((start, end), (end, start)))
    return len(there.unique()) == len(there) and torch.equal(there.sort().values, back.sort().values)


def entries(names: Sequence[str], assets: Assets) -> list[Entry]:
    """The runs of recipes, in turn on each prompt, so that what is compared is made side by side."""
    found = []
    for prompt in SETTING.prompts():
        for name in names:
            if name == "headsculpt" and not isinstance(parse(prompt), Head):
                continue
            if name == "texture":
                found.append(Entry(name, own(name, assets.exact(prompt)), prompt, 0))
            elif name == "refine":
                for kind, drafted in DRAFTS.items():
                    draft = plan(Request(prompt, drafted, steps=DRAFT, out=Path("nowhere"))).recipe
                    file = assets.draft(kind, prompt)
                    found.append(Entry(f"draft-{kind}", draft, prompt, 0))
                    found.append(Entry(f"refine-{kind}", own(name, file, kind == "splat"), prompt, 0))
            else:
                found.append(Entry(name, own(name), prompt, 0))
    return found


def own(name: str, file: Path | None = None, splat: bool = False) -> Recipe:
    """A recipe as it is shipped, with the file that it begins with."""
    data = recipes.read(name, splat)
    if file is not None:
        next(iter(data["stages"].values()))["start"]["path"] = str(file)
    return recipes.build(data)


def summary(runs: Mapping[str, Runs]) -> dict[str, Any]:
    """Each recipe's means and medians, and its differences to the Gaussian one, or to a draft, prompt by prompt."""
    found = {}
    for arm, mine in runs.items():
        base = arm.replace("refine", "draft") if arm.startswith("refine") else BASE
        found[arm] = about(mine)
        if arm != base and not arm.startswith("draft") and mine.keys() & runs.get(base, {}).keys():
            found[arm][f"less_{base}"] = less(mine, runs[base])
        if arm in SOLID and f"less_{BASE}" in found[arm]:
            found[arm]["as_wanted"] = as_wanted(mine, found[arm][f"less_{BASE}"])
    return found


def about(runs: Runs) -> dict[str, Any]:
    """How many runs there are and on how many threads, and the middle and the ends of their figures."""
    told: dict[str, Any] = {"runs": len(runs), "threads": sorted({run["threads"] for run in runs.values()})}
    for key in ("iou", "psnr", "haze", "seconds", "faces"):
        values = [run[key] for run in runs.values() if key in run]
        if values:
            mean, median = round(statistics.mean(values), 4), round(statistics.median(values), 4)
            told[key] = {"mean": mean, "median": median, "min": min(values), "max": max(values)}
    closed = [run["watertight"] for run in runs.values() if "watertight" in run]
    return told | ({"watertight": sum(closed)} if closed else {})


def less(runs: Runs, base: Runs) -> dict[str, Any]:
    """Mean differences to the base over the prompts of both, with their 95 % intervals."""
    both = [place for place in runs if "iou" in runs[place] and "iou" in base.get(place, {})]
    found: dict[str, Any] = {"pairs": len(both)}
    for key in ("iou", "psnr") if both else ():
        mine, theirs = ([some[place][key] for place in both] for some in (runs, base))
        span = paired(mine, theirs)
        mean = statistics.mean(a - b for a, b in zip(mine, theirs, strict=True))
        found[key] = {"mean": round(mean, 4), "interval": span and [round(end, 4) for end in span]}
    return found


def as_wanted(runs: Runs, lost: Mapping[str, Any]) -> dict[str, bool]:
    """Which of the wanted figures are met."""
    return {
        "iou": lost["iou"]["mean"] >= -LOST_IOU,
        "psnr": lost["psnr"]["mean"] >= -LOST_DB,
        "faces": all(run.get("faces", MOST + 1) <= MOST for run in runs.values()),
        "watertight": all(run.get("watertight", False) for run in runs.values()),
    }


def sheet(arms: Sequence[str], assets: Assets) -> bytes | None:
    """All pictures, a row for each prompt and a column for each recipe; None before there are any."""
    rows = []
    for prompt in SETTING.prompts():
        tiles = [assets.picture(arm, prompt) for arm in arms]
        found = [from_png(one.read_bytes(), str(one)).float() if one.exists() else None for one in tiles]
        some = next((one for one in found if one is not None), None)
        if some is not None:
            rows.append(torch.cat([torch.ones_like(some) if one is None else one for one in found], dim=1))
    return png(torch.cat(rows)[None]) if rows else None


def write(bench: Bench, wanted: Sequence[Entry], assets: Assets, out: Path) -> None:
    """The summary of what is there, and the sheet of pictures."""
    runs = bench.runs(wanted)
    keys = ("iou", "psnr", "haze", "faces", "watertight", "seconds", "commit")
    rows = [
        {"recipe": arm, "prompt": prompt, **{key: run[key] for key in keys if key in run}}
        for arm, found in runs.items()
        for (prompt, _), run in found.items()
    ]
    save("recipes", {"command": "python benchmarks/recipes.py", "figures": summary(runs), "rows": rows}, out)
    picture = sheet(list(dict.fromkeys(entry.arm for entry in wanted)), assets)
    if picture is not None:
        out.with_suffix(".png").write_bytes(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=",".join(RECIPES), help="Which are run, with commas between.")
    parser.add_argument("--budget", type=float, help="Minutes after which no run is begun; 0 makes the summary alone.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/recipes.json"))
    parser.add_argument("--assets", type=Path, default=Path("runs/bench-recipes"), help="Where assets are kept.")
    given = parser.parse_args()
    assets, device = Assets(given.assets), torch.device("cpu")
    wanted = entries(given.recipes.split(","), assets)
    priors = {name: open_prior(name, device) for name in sorted({name for entry in wanted for name in entry.priors})}
    until = float("inf") if given.budget is None else time.monotonic() + 60 * given.budget
    bench = Bench(given.out.with_suffix(".jsonl"), priors, device, until=until, further=assets.look)
    for entry in wanted:  # A draft whose file is gone is made again: the refinement begins with it.
        kind = entry.arm.removeprefix("draft-")
        if kind in DRAFTS and not assets.draft(kind, entry.prompt).exists():
            bench.kept.pop(entry.key(priors), None)
    for entry in bench.missing(wanted) if given.budget != 0 else ():
        if entry.arm == "texture":
            assets.make_exact(entry.prompt)
    bench.make_all("recipes", wanted)
    write(bench, wanted, assets, given.out)


if __name__ == "__main__":
    main()
