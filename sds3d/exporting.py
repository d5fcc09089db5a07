"""From a run folder to files: the asset of a finished or interrupted run, written in more formats.

What a run leaves is its latest checkpoint. The asset is rebuilt from it, and each file is checked against the asset in
the run's own views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from . import machine, recipes
from .core import Cameras, Renderer, RenderOutput, Representation, Step
from .engine import Outcome, Recipe, Saved, restore
from .export import EXPORTS, NOWHERE, Asset, Exported, can_hold, check_names, export, refusal
from .export.check import draw, psnr
from .export.placement import Placement
from .files import sync_folder
from .meshing import Meshed, hard
from .record import RunFolder, checkpoints, read_manifest
from .renderers.raster import Raster
from .representations.mesh import Triangles, icosphere
from .representations.template_mesh import TemplateMesh

MESHED_DB = 22.0  # of a mesh against what it was made of, whose fuzzy edges, which no surface has, are cut
FUZZY_DB = 18.0  # of a mesh against what it was made of as it is: haze that the cut takes away is missed here
MESHED_FIT = 300  # steps; an export has more time than a stage's start
MESHED_SIZE = 64  # pixels, at least, of the views of that comparison: smaller ones are all edge


@dataclass(frozen=True)
class RunAsset:
    """What a run made: how it is drawn, the run's own views of it, and words about its making."""

    outcome: Outcome
    renderer: Renderer
    cameras: Cameras
    provenance: Mapping[str, str]

    @classmethod
    def of(cls, outcome: Outcome, recipe: Recipe, manifest: Mapping[str, Any]) -> RunAsset:
        """The views are those of the last step of the stage that the run stands in."""
        stage = recipe.stages[outcome.stage]
        last = Step(manifest["seed"], outcome.stage, index=max(stage.steps - 1, 0), progress=1.0)
        rep = outcome.rep
        told = provenance(manifest) | (rep.origins() if isinstance(rep, TemplateMesh) else {})
        return cls(outcome, stage.renderer, stage.cameras(last), told)


def provenance(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Words about the making of a run's asset, for formats that can carry them."""
    priors = {_shown(name): facts for name, facts in manifest.get("priors", {}).items()}
    recipe = manifest["recipe"]
    told = {
        "generator": f"sds3d {manifest.get('sds3d', '')}".strip(),
        "prompt": manifest["prompt"],
        "negative": manifest.get("negative") or "",
        "seed": str(manifest["seed"]),
        "recipe": f"{recipe.get('about', '')} ({', '.join(recipe['stages'])})".strip(),
        "priors": ", ".join(f"{name} ({facts.get('licence', 'no licence given')})" for name, facts in priors.items()),
    }
    return {word: said for word, said in told.items() if said}


def _shown(prior: str) -> str:
    """A prior's name, or with its ControlNets' names; an asset may be given away, so a folder tells its last name."""
    parts = [prior] if Path(prior).is_dir() else prior.split("+")
    return "+".join(Path(part).name if Path(part).is_dir() else part for part in parts)


def open_run(path: Path, device: str | None = None) -> RunAsset:
    """The asset in a run folder. Raises ValueError for a folder without one; changes nothing."""
    if not (path / "run.json").is_file():
        raise ValueError(f"{path} holds no run; export wants a folder that `sds3d generate` made.")
    manifest = read_manifest(path)
    recipe = _without_guidance(manifest)
    kept = checkpoints(path)
    if not kept:
        raise ValueError(
            f"{path} holds a run without a checkpoint yet; go on with: sds3d generate --resume --out {path}"
        )
    chosen = machine.choose_device(device or manifest.get("machine", {}).get("device"))
    rep = rebuild(recipe, kept[0], chosen)
    outcome = Outcome(rep, kept[0].stage, kept[0].index, done=manifest["status"] == "done")
    return RunAsset.of(outcome, recipe, manifest)


def _without_guidance(manifest: Mapping[str, Any]) -> Recipe:
    """The run's recipe with a stand-in for every guidance: it has no part in the asset, and may lie in a lost file."""
    data = dict(manifest["recipe"])
    stages = data.get("stages")
    if isinstance(stages, dict):
        stand_in = {"main": {"kind": "sds"}}
        data["stages"] = {name: {**stage, "guidance": stand_in} for name, stage in stages.items()}
    return recipes.build(data)


def rebuild(recipe: Recipe, saved: Saved, device: str | torch.device = "cpu") -> Representation:
    """The representation of a checkpoint, without optimisers. Raises ValueError for a stage that is not there."""
    if saved.stage not in recipe.stages:
        raise ValueError(f'The checkpoint stands in stage "{saved.stage}", which this recipe does not have.')
    rep: Representation | None = None
    for name, stage in recipe.stages.items():
        rep = stage.start.blank(rep)
        if name == saved.stage:
            break
    assert rep is not None  # A recipe has at least one stage.
    rep = rep.to(device)
    restore(saved.tensors, rep, ())
    return rep


def sentence(name: str, made: Exported) -> str:
    """What was found when a file was read back."""
    entry = EXPORTS[name]
    if made.psnr_db is None or not isinstance(entry, Asset):
        return f"{made.path.name}: drawn from the asset."
    near = f"{made.psnr_db:.1f} dB" if made.psnr_db < 100 else "no difference"
    return f"{made.path.name}: read back and drawn again, {near} (at least {entry.psnr_db:g} dB)."


def can_be(name: str, rep: Representation) -> bool:
    """Whether an asset can be written in a format: as it is, or as the mesh that can be made of it."""
    return can_hold(name, rep) or (not isinstance(rep, Triangles) and can_hold(name, icosphere(0)))


def meshed(asset: RunAsset, say: Callable[[str], None]) -> RunAsset:
    """The asset as a mesh in plain colours, made from pictures of it from all around.

    Raises ValueError for an asset that is nowhere solid, ArithmeticError for a mesh that does not show it.
    """
    rep = asset.outcome.rep
    say("The asset becomes a mesh first, from pictures of it all around; that takes a minute.")
    mesh = Meshed(asset.renderer, fit=MESHED_FIT)(rep, Step(0))
    finer = max(1, round(MESHED_SIZE / asset.cameras.height))
    views = asset.cameras.resized(finer * asset.cameras.height, finer * asset.cameras.width)
    true, got = draw(rep, asset.renderer, views), draw(mesh, Raster(), views)
    near, fuzzy = psnr(over_white(hard(over_black(true))), got), psnr(true, got)
    if not min(near - MESHED_DB, fuzzy - FUZZY_DB) >= 0:
        raise ArithmeticError(
            f"The mesh that was made of the asset is at {near:.1f} dB of it in the run's own views with their fuzzy "
            f"edges cut, and at {fuzzy:.1f} dB as they are, less than {MESHED_DB:g} or {FUZZY_DB:g} dB; nothing was "
            "written. A soft or thin asset has no surface: train it longer."
        )
    say(
        f"The mesh is at {near:.1f} dB of the asset in the run's own views (at least {MESHED_DB:g} dB) with their "
        f"fuzzy edges cut where they are half opaque, and at {fuzzy:.1f} dB as they are (at least {FUZZY_DB:g} dB)."
    )
    return replace(asset, outcome=replace(asset.outcome, rep=mesh), renderer=Raster())


def over_black(out: RenderOutput) -> RenderOutput:
    """A picture that was drawn over white."""
    return replace(out, rgb=out.rgb - (1 - out.alpha))


def over_white(out: RenderOutput) -> RenderOutput:
    """A picture that was drawn over black."""
    return replace(out, rgb=out.rgb + (1 - out.alpha))


def export_all(
    names: Sequence[str],
    asset: RunAsset,
    folder: Path,
    placement: Placement = NOWHERE,
    say: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Exported]:
    """Write the asset in each format, whole or absent; `say` hears how near each file is. Raises as `export`.

    Where a format of meshes is asked of another asset, a mesh is made of it once.
    """
    made: dict[str, Exported] = {}
    mesh: RunAsset | None = None
    for name in names:
        written = asset
        if name in EXPORTS and not can_hold(name, asset.outcome.rep) and can_be(name, asset.outcome.rep):
            written = mesh = mesh or meshed(asset, say)
        rep = written.outcome.rep
        made[name] = export(name, rep, folder, written.renderer, asset.provenance, asset.cameras, placement)
        say(sentence(name, made[name]))
    sync_folder(folder)
    return made


def plan(
    path: Path, names: Sequence[str], out: Path | None = None, device: str | None = None
) -> tuple[RunAsset, RunFolder]:
    """The asset of a run and its folder, locked. Raises ValueError for what cannot be exported; writes nothing."""
    check_names(names)
    if not names:
        raise ValueError(f"--to names no format; known are: {', '.join(EXPORTS)}.")
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; choose another --out.")
    asset = open_run(path, device)
    rep = asset.outcome.rep
    for name in names:
        if not can_be(name, rep):
            raise ValueError(refusal(name, rep, [known for known in EXPORTS if can_be(known, rep)]))
    return asset, RunFolder.resume(path)


def export_run(
    asset: RunAsset,
    folder: RunFolder,
    names: Sequence[str],
    out: Path | None = None,
    placement: Placement = NOWHERE,
    say: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Exported]:
    """Write a run's asset beside the run's own files, which its manifest then names, or into the folder `out`."""
    outcome = asset.outcome
    if not outcome.done:
        say(f'The run has not ended: this is its asset before step {outcome.index} of stage "{outcome.stage}".')
    if out is None:
        made = export_all(names, asset, folder.path, placement, say)
        files = {name: exported.path.name for name, exported in made.items()}
        folder.note(assets={**folder.manifest.get("assets", {}), **files})
        return made
    out.mkdir(parents=True, exist_ok=True)
    return export_all(names, asset, out, placement, say)
