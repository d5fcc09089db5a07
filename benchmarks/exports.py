"""Are the files of 12 playroom assets read back as they were written, and shown by programs that nobody here wrote?

PYTHONPATH=tests python benchmarks/exports.py [--runs DIR] [--out FILE]

The assets: the 12 prompts of `sds3d bench guidance` by the default recipe, and 4 of them as textured meshes by the
recipe gaussians-mesh, each in 150 steps. Runs that DIR holds already are taken as they are. Every asset is written in
each format that can hold it; of Gaussians a mesh is made too, and written in the formats of meshes. A row is a file:

| column                        | meaning                                                                        |
|-------------------------------|--------------------------------------------------------------------------------|
| psnr_db                       | read back and drawn in the run's own views, against the asset                  |
| gaussians_db                  | the mesh of Gaussians, against them, in these views                            |
| seconds                       | of writing, reading back and drawing                                           |
| errors, warnings              | of the glTF validator, but for its blindness to KHR_gaussian_splatting; of USD's |
| columns_equal                 | whether splat-transform reads our numbers, within the rounding of the format   |
| accessors_equal               | whether three.js reads the numbers that we wrote, bit for bit                  |
| raster_iou, raster_db         | splat-transform's picture against ours of the asset: silhouettes, colours there |
| viewer, viewer_iou, viewer_db | the same of a viewer in Chromium                                               |

Figures are [least, median] for each format, or a sum.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judges import (
    ROUNDING,
    VIEW,
    accessors_that_differ,
    apart,
    columns,
    columns_of_ply,
    is_blind,
    likeness,
    ours,
    raster,
    shoot,
    validate,
    validate_usd,
    versions,
)

from sds3d.export import EXPORTS, Asset, can_hold
from sds3d.export.check import draw, psnr
from sds3d.exporting import RunAsset, export_all, meshed, open_run
from sds3d.playroom.bench import save
from sds3d.playroom.guidance_lists import Setting

STEPS = 150
COMMAND = [sys.executable, "-m", "sds3d"]
VIEWERS = {"ply": "spark", "spz": "spark", "splat": "spark", "glb-splat": "three", "glb": "model-viewer"}
RASTERED, VALIDATED = ("ply", "spz", "splat"), ("glb", "glb-splat")


@dataclass(frozen=True)
class Subject:
    """An asset and what it is; gaussians_db: how near a mesh is to the Gaussians that it was made of."""

    prompt: str
    of: str
    asset: RunAsset
    gaussians_db: float | None = None


def run(prompt: str, recipe: str, runs: Path) -> RunAsset:
    """The asset of a prompt; made where there is no finished run of it yet."""
    out = runs / f"{recipe}-{prompt.replace(',', '').replace(' ', '-')}"
    if not out.exists():
        command = [*COMMAND, "generate", prompt, "--recipe", recipe, "--steps", str(STEPS), "--out", str(out)]
        subprocess.run([*command, "--quiet"], check=True, stdout=subprocess.DEVNULL)
    asset = open_run(out)
    if not asset.outcome.done:
        raise RuntimeError(f"The run in {out} has not ended; sds3d generate --resume --out {out}")
    return asset


def subjects(runs: Path) -> Iterator[Subject]:
    for prompt in Setting().prompts():
        asset = run(prompt, "gaussians", runs)
        yield Subject(prompt, "gaussians", asset)
        try:
            mesh = meshed(asset, lambda sentence: None)
        except ArithmeticError as error:
            print(f"{prompt}: {error}", flush=True)
            continue
        own, got = (draw(one.outcome.rep, one.renderer, asset.cameras) for one in (asset, mesh))
        yield Subject(prompt, "mesh of gaussians", mesh, round(psnr(own, got), 1))
    for prompt in Setting().screened():
        yield Subject(prompt, "textured mesh", run(prompt, "gaussians-mesh", runs))


def written(subject: Subject, folder: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """A row and the file of each format that can hold the asset."""
    rep = subject.asset.outcome.rep
    for name in [name for name, entry in EXPORTS.items() if isinstance(entry, Asset) and can_hold(name, rep)]:
        (folder / name).mkdir()
        start = time.monotonic()
        made = export_all([name], subject.asset, folder / name)[name]
        seconds = time.monotonic() - start
        size = sum(file.stat().st_size for file in (folder / name).iterdir())
        assert made.psnr_db is not None  # It is no film.
        row = {"prompt": subject.prompt, "of": subject.of, "format": name, "bytes": size}
        row |= {"seconds": round(seconds, 2), "psnr_db": round(made.psnr_db, 1)}
        yield row | ({} if subject.gaussians_db is None else {"gaussians_db": subject.gaussians_db}), made.path


def judged(subject: Subject, folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of an asset, with what programs of others say of each file."""
    made = {row["format"]: (row, path) for row, path in written(subject, folder)}
    rep = subject.asset.outcome.rep
    own = ours(rep, subject.asset.renderer, VIEW)
    seen = [(VIEWERS[name], name, path) for name, (_, path) in made.items() if name in VIEWERS]
    shots = {name: shot for (_, name, _), shot in zip(seen, shoot(seen, VIEW), strict=True)}
    for name, (row, path) in made.items():
        if name in VALIDATED:
            severities = [issue["severity"] for issue in validate(path) if not is_blind(issue)]
            row |= {"errors": severities.count(0), "warnings": severities.count(1)}
        if name == "usdz":
            row["errors"] = len(validate_usd(path))
        if name in RASTERED:
            pairs = zip(apart(columns(path), columns_of_ply(rep)), ROUNDING[name], strict=True)
            row["columns_equal"] = all(differ <= allowed + 1e-6 for differ, allowed in pairs)
            row |= compared("raster", likeness(raster(path, VIEW), own))
        if name in shots:
            row |= {"viewer": VIEWERS[name], **compared("viewer", likeness(shots[name].picture, own))}
        if name == "glb-splat":
            row["accessors_equal"] = not accessors_that_differ(shots[name], path)
        yield row


def compared(who: str, measured: tuple[float, float]) -> dict[str, float]:
    return {f"{who}_iou": round(measured[0], 4), f"{who}_db": round(measured[1], 1)}


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """For each kind of asset and format: [least, median] of what is measured, sums of errors, whether all are equal."""
    found = {}
    for of, name in dict.fromkeys((row["of"], row["format"]) for row in rows):
        group = [row for row in rows if (row["of"], row["format"]) == (of, name)]
        one: dict[str, Any] = {"files": len(group)}
        for key, value in group[0].items():
            values = [row[key] for row in group]
            if isinstance(value, bool):
                one[key] = all(values)
            elif key in ("errors", "warnings"):
                one[key] = sum(values)
            elif isinstance(value, int | float):
                one[key] = [min(values), round(statistics.median(values), 4)]
        found[f"{name}, {of}"] = one
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/exports"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/exports.json"))
    given = parser.parse_args()
    rows = []
    for subject in subjects(given.runs):
        with tempfile.TemporaryDirectory() as folder:
            for row in judged(subject, Path(folder)):
                rows.append(row)
                print(*(f"{key} {value}" for key, value in row.items()), sep=", ", flush=True)
    command = "PYTHONPATH=tests python benchmarks/exports.py"
    view = {"pixels": VIEW.height, "azimuth_deg": 30, "elevation_deg": 20}
    settings = {"steps": STEPS, "view": view, "versions": versions()}
    save("exports", {"command": command, "settings": settings, "figures": figures(rows), "rows": rows}, given.out)


if __name__ == "__main__":
    main()
