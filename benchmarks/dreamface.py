"""What the recipe dreamface makes of four heads: `PYTHONPATH=tests python benchmarks/dreamface.py [--budget MINUTES]`.

| figure             | what it is                                                                                    |
|--------------------|-----------------------------------------------------------------------------------------------|
| iou, psnr          | of the head against the exact scene of its caption, in the 24 views of all measures             |
| begun              | the silhouette IoU of the bare candidate that the run began with                              |
| candidates         | IoU of all candidates: the mean, the best, and the chosen one's place among them, 1 the best    |
| agreement          | Spearman's correlation of the candidates' scores with their IoU                               |
| moved              | the longest displacement of a vertex, in world units                                          |
| issues             | what the Khronos validator says of the .glb                                                   |

The template is the playroom's own head, and its texture begins with features where the playroom has them: silhouettes,
colours and `faceless` owe that much to it. The recipe's numbers were found on the first prompt. Seconds are those of a
machine as busy as it was.

The runs lie in `runs/bench-dreamface`, and those that are there are not made again. `results/dreamface.png` has a row
for each: from ahead, aside and behind, a smile and an open mouth of its blendshapes; last, the exact scene.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from judges import validate
from torch import Tensor

from sds3d import engine
from sds3d.cameras import orbit
from sds3d.core import Background, Prior, Step
from sds3d.exporting import open_run
from sds3d.generate import Job, Request, begin, make, open_priors, plan
from sds3d.playroom.bench import asset_draw, save
from sds3d.playroom.grammar import parse
from sds3d.playroom.measures import iou, measure, scene_draw, views
from sds3d.playroom.scenes import build
from sds3d.record import read_manifest, slug
from sds3d.renderers.raster import Raster
from sds3d.representations.template_mesh import ChosenHead, TemplateMesh
from sds3d.watchers import png

PROMPTS = (
    "a head with light skin, black hair and blue eyes",
    "a head with dark skin, white hair, brown eyes and glasses",
    "a head with tan skin, red hair, green eyes and a beard",
    "a head with light skin, blond hair, blue eyes and a hat",
)
RECIPE, SIZE = "dreamface", 192
SMILE = {"mouthSmileLeft": 1.0, "mouthSmileRight": 1.0, "cheekSquintLeft": 0.7, "cheekSquintRight": 0.7}
OPEN = {"jawOpen": 0.8, "browInnerUp": 1.0, "eyeWideLeft": 1.0, "eyeWideRight": 1.0}


def ranks(values: Tensor) -> Tensor:
    """0 for the least."""
    return values.argsort().argsort().double()


def choice(job: Job, priors: dict[str, Prior]) -> dict[str, Any]:
    """How the candidates are ranked, and how they should be."""
    name, stage = next(iter(job.recipe.stages.items()))
    assert isinstance(stage.start, ChosenHead)  # That is what the recipe begins with.
    first = Step(job.seed, name)
    candidates, scores = engine.ranked(
        stage, stage.start, stage.terms(job.prompts, priors, first), first, torch.device("cpu")
    )
    cameras, white = views(), torch.ones(len(views()), 3)
    true = scene_draw(build(parse(job.prompts.prompt)))(cameras, white).alpha
    with torch.no_grad():
        found = [float(iou(Raster()(rep, cameras, Background(white)).alpha, true).mean()) for rep in candidates]
    overlap, taken = torch.tensor(found), int(scores.argmax())
    return {
        "begun": found[taken],
        "candidates": {"mean": statistics.mean(found), "best": max(found), "measured_head": found[0]},
        "place": 1 + sum(value > found[taken] for value in found),
        "agreement": float(torch.corrcoef(torch.stack([ranks(scores), ranks(overlap)]))[0, 1]),
        "score": {"chosen": float(scores.max()), "mean": float(scores.mean())},
    }


def judged(job: Job, priors: dict[str, Prior]) -> dict[str, Any]:
    """The run, made where it is not there, and its figures."""
    if not job.path.exists() or read_manifest(job.path)["status"] != "done":
        began = time.monotonic()
        with contextlib.closing(begin(job, force=True)) as folder:
            make(job, priors, folder)
        print(f"{job.prompts.prompt}: {time.monotonic() - began:.0f} s", flush=True)
    manifest, asset = read_manifest(job.path), open_run(job.path, "cpu")
    head = asset.outcome.rep
    assert isinstance(head, TemplateMesh)  # That is what the recipe makes.
    quality = measure(parse(job.prompts.prompt), asset_draw(asset.renderer, head))
    return {
        "prompt": job.prompts.prompt,
        "iou": quality.iou,
        "psnr": quality.psnr,
        "two_faced": quality.two_faced,
        "faceless": quality.faceless,
        "moved": float(head.offsets.detach().norm(dim=1).max()),
        "seconds": manifest["timings_s"]["run"] + manifest["timings_s"]["export"],
        "glb_bytes": (job.path / "asset.glb").stat().st_size,
        "issues": [issue["code"] for issue in validate(job.path / "asset.glb")],
        **choice(job, priors),
    }


@torch.no_grad()
def pictures(path: Path, prompt: str) -> Tensor:
    """A row of the sheet."""
    asset = open_run(path, "cpu")
    head, around = asset.outcome.rep, orbit([20, 90, 180], 8.0, SIZE)
    assert isinstance(head, TemplateMesh)
    row = list(asset.renderer(head, around, Background(torch.ones(3, 3))).rgb)
    for face in (SMILE, OPEN):
        posed = copy.deepcopy(head)
        posed.offsets += head.template.posed(face) - head.template.vertices
        row += list(asset.renderer(posed, around[:1], Background(torch.ones(1, 3))).rgb)
    row += list(scene_draw(build(parse(prompt)))(around, torch.ones(3, 3)).rgb)
    return torch.cat(row, dim=1).clamp(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=float("inf"), help="Minutes after which no run is begun.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dreamface.json"))
    parser.add_argument("--runs", type=Path, default=Path("runs/bench-dreamface"), help="Where runs are kept.")
    given = parser.parse_args()
    until = time.monotonic() + 60 * given.budget
    rows, sheet, priors = [], [], None
    for prompt in PROMPTS:
        path = given.runs / slug(prompt)
        job = plan(Request(prompt, RECIPE, out=path, force=True))
        priors = open_priors(job, priors)
        if not path.exists() and time.monotonic() > until:
            continue
        rows.append(judged(job, priors))
        sheet.append(pictures(path, prompt))
    means = {key: statistics.mean(row[key] for row in rows) for key in ("iou", "psnr", "begun", "agreement", "seconds")}
    means["candidates"] = statistics.mean(row["candidates"]["mean"] for row in rows)
    told = {"command": "PYTHONPATH=tests python benchmarks/dreamface.py", "figures": means, "rows": rows}
    save(RECIPE, told, given.out)
    given.out.with_suffix(".png").write_bytes(png(torch.cat(sheet)[None]))


if __name__ == "__main__":
    main()
