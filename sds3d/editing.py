"""`sds3d edit`: from an asset and an instruction to the run that edits it.

The asset is copied into the new run's folder and is what the run starts from; nothing of the source is changed. A prior
that reads captions cannot read an instruction: the playroom's own grammar makes the caption of the edited scene of the
source's caption and the instruction, and for other priors the user says both captions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from . import exporting, generate, machine, painting, plugins, recipes, schema
from .core import Prior, Renderer, Representation, Step
from .export import glb, ply
from .export.provenance import told
from .files import write
from .finding import find_region, find_texels
from .generate import Job
from .guidance.iesd import Iesd
from .guidance.ip2p import Ip2p
from .opening import opened, placed
from .priors import catalogue
from .prompts import Prompts
from .record import RunFolder, check_free, read_manifest, slug
from .regions import Voxels
from .renderers.raster import Raster
from .renderers.splats import Splats
from .representations.gaussians import Gaussians
from .representations.mesh import Triangles
from .terms import Guide, Term

REGION_FILE = "source.region.npy"
FOUND = ("auto", "surface")  # regions that are found before the first step
BY_INSTRUCTION = "ip2p"  # the guidance of priors that read instructions
EDIT_PRIOR = "playroom-edit"
INSTRUCTED = {  # its numbers: a prior that is shown the source knows most where it sees least of a half-made edit
    "kind": BY_INSTRUCTION,
    "form": "x0",
    "weighting": "recon",
    "mix": {"kind": "instruct", "scale": 1.0, "image_scale": 1.0},
    "t": {"from": [0.9, 0.98], "to": [0.7, 0.95]},
}
HOLD = 4.0  # how much firmer than an edit the rest is held


@dataclass(frozen=True)
class Wish:
    """What the user asks for; None is what the user left open.

    asset: a run folder or a file. identity: how much of the source's caption is kept, 1 - `share` of IESD. region:
    "auto" for the place where the prior tells the two captions apart, "surface" for that of a mesh's texture, "all", a
    .npy file (see `regions.Voxels`), or a .png painted over the texture (see `painting`).
    """

    asset: Path
    instruction: str | None = None
    source_prompt: str | None = None
    target_prompt: str | None = None
    identity: float | None = None
    guidance: str | None = None
    region: str = "auto"
    prior: str | None = None
    seed: int | None = None
    steps: int | None = None
    out: Path | None = None
    force: bool = False
    device: str | None = None
    overrides: Sequence[str] = ()


@dataclass(frozen=True)
class Planned:
    """An edit that can be carried out: the run's job, and the files that it starts from with their names there.

    find: the kind of region that is yet to be found, of `FOUND`. instruction: as `playroom-edit` was taught to read it.
    """

    job: Job
    data: Mapping[str, bytes]
    find: str | None = None
    instruction: str | None = None


@dataclass(frozen=True)
class Source:
    """The asset to be edited: what it is, its caption (None where nobody said), how its run drew it, and its story.

    story: the edits that made it, the first one first.
    """

    rep: Representation
    caption: str | None
    renderer: Renderer | None = None
    story: tuple[Mapping[str, Any], ...] = ()


def plan(wish: Wish) -> Planned:
    """Resolve a wish. Raises ValueError, in a sentence, for what cannot be done; changes nothing."""
    source = find_source(wish.asset, wish.device)
    before = wish.source_prompt or source.caption
    if before is None:
        raise ValueError(f"{wish.asset} does not say what it shows; add --source-prompt, its caption.")
    data = recipes.read("edit", isinstance(source.rep, Gaussians))
    stage = data["stages"]["edit"]
    told = instructed(wish)
    stage["prior"] = wish.prior or (EDIT_PRIOR if told else stage["prior"])
    after = target_caption(before, wish, stage["prior"], told)
    seed = wish.seed or 0
    name = wish.asset.name.split(".")[0] if wish.asset.is_file() else wish.asset.resolve().name
    path = wish.out or Path("runs") / f"{slug(wish.instruction or after)}-of-{slug(name)}-s{seed}"
    check_free(path, wish.force)
    file = "source.ply" if isinstance(source.rep, Gaussians) else "source.glb"
    stage["start"]["path"] = str((path / file).resolve())
    if source.renderer is not None:
        stage["renderer"] = schema.to_data(source.renderer)
    if wish.steps is not None:
        stage["steps"] = wish.steps
    files, region = _guidance(stage, wish, path, told), _painted(wish, source.rep)
    for assignment in wish.overrides:
        recipes.override(data, assignment)
    recipe = recipes.build(data, files)
    generate.check_exports(recipe)
    edit = {"from": str(wish.asset), "source": before, "instruction": wish.instruction, "prompt": after}
    job = Job(
        Prompts(after, source=before, instruction=told),
        recipe,
        seed,
        path,
        machine.choose_device(wish.device),
        files=files,
        notes={"edits": [*source.story, edit]},
    )
    data = {**encoded(source.rep, file), **region}
    heard = None
    if wish.instruction is not None and wish.target_prompt is None and stage["prior"].startswith("playroom"):
        heard = heard_in_playroom(wish.instruction)
    return Planned(job, data, wish.region if wish.region in FOUND else None, heard)


def find_source(path: Path, device: str | None = None) -> Source:
    """The asset of a run that has ended, or of a file. Raises ValueError for what is none."""
    if path.is_dir():
        manifest = read_manifest(path)
        with contextlib.closing(RunFolder(path)):  # Raises where the run is still being written.
            asset = exporting.open_run(path, device)
        if not asset.outcome.done:
            raise ValueError(f"{path} holds a run that has not ended; go on with: sds3d generate --resume --out {path}")
        story = tuple(manifest.get("edits", ()))
        return Source(editable(asset.outcome.rep), manifest["prompt"], asset.renderer, story)
    if not path.is_file():
        raise ValueError(f"There is no run and no file {path} to edit.")
    return Source(placed(editable(opened(path))), told(path).get("prompt"))


def editable(rep: Representation) -> Representation:
    """The same. Raises ValueError for what an edit cannot start from."""
    if not isinstance(rep, Gaussians | Triangles):
        raise ValueError(
            f"Gaussians and meshes can be edited, not a {type(rep).__name__}; export the run to glb and edit that."
        )
    return rep


def instructed(wish: Wish) -> str | None:
    """The instruction, for a prior that is to read it itself; None where captions say the edit.

    Raises ValueError where there is no instruction to read.
    """
    if wish.guidance != BY_INSTRUCTION and not (wish.prior == EDIT_PRIOR and wish.guidance is None):
        return None
    if wish.instruction is None:
        raise ValueError(f'{BY_INSTRUCTION} reads an instruction, for example "make the cube blue"; say one.')
    return heard_in_playroom(wish.instruction) if wish.prior in (None, EDIT_PRIOR) else wish.instruction


def heard_in_playroom(instruction: str) -> str:
    """An instruction as `playroom-edit` was taught them: without stops and capitals."""
    from .playroom.instructions import spoken

    return " ".join(spoken(instruction)).replace(" ,", ",")


def target_caption(before: str, wish: Wish, prior: str, told: str | None) -> str:
    """What the edited asset shows. Raises ValueError where neither the user nor the playroom's grammar can say it."""
    if wish.target_prompt is not None:
        return Prompts(wish.target_prompt).prompt
    if wish.instruction is None:
        raise ValueError('An edit needs an instruction, for example "make the cube blue", or --target-prompt.')
    if not prior.startswith("playroom"):
        if told is not None:
            return Prompts(f"{before}, {told}").prompt
        raise ValueError(
            f'The prior "{prior}" reads captions and no instructions; add --target-prompt, the edited asset\'s caption.'
        )
    from .playroom.grammar import caption, parse
    from .playroom.instructions import rewrite

    return caption(rewrite(parse(before), wish.instruction))


def _guidance(stage: dict[str, Any], wish: Wish, path: Path, told: str | None) -> dict[str, type]:
    """Put the guidance that the wish asks for into a stage's data; returns a guidance that came from a file."""
    files = {}
    if told is not None:
        stage["guidance"]["edit"] = dict(INSTRUCTED)
    elif wish.guidance is not None:
        if ":" in wish.guidance:
            files = dict([plugins.load_file(wish.guidance)])
        stage["guidance"]["edit"] = {"kind": wish.guidance}
    guide = stage["guidance"]["edit"]
    if wish.identity is not None:
        if guide["kind"] != "iesd":
            raise ValueError(f"--identity weighs the two captions of iesd, and {guide['kind']} has no such number.")
        if not 0 <= wish.identity <= 1:
            raise ValueError(f"--identity must lie in [0, 1], given {wish.identity:g}.")
        guide["share"] = 1 - wish.identity
    if wish.region != "all":
        own = wish.region in FOUND or wish.region.endswith(".png")
        region = path / REGION_FILE if own else Path(wish.region)
        if not own:
            Voxels(str(region))(torch.zeros(1, 3))
        kind = "texels" if own and wish.region != "auto" else "voxels"
        told_region = {"kind": kind, "path": str(region.resolve())}
        stage["guidance"]["edit"] = {"kind": "local", "hold": HOLD, "guidance": guide, "region": told_region}
    return files


def _painted(wish: Wish, rep: Representation) -> dict[str, bytes]:
    """The file of a painted region. Raises ValueError for no such picture, and for an asset without a texture."""
    if wish.region.endswith(".png"):
        painting.textured(rep)
        return {REGION_FILE: painting.painted(Path(wish.region))}
    if wish.region == "surface" and not isinstance(rep, Triangles):  # Other meshes are unwrapped before the search.
        painting.textured(rep)
    return {}


def encoded(rep: Representation, file: str) -> dict[str, bytes]:
    """The asset as the files from which the run starts."""
    if isinstance(rep, Gaussians):
        return ply.encode(rep, Splats(), {}, file)
    return glb.encode(rep, Raster(), {}, file)


def begin(planned: Planned, priors: Mapping[str, Prior], force: bool = False) -> RunFolder:
    """The run's folder, locked, with the asset that it starts from and the region in which it is edited."""
    job = planned.job
    folder = RunFolder.new(job.path, force)
    for name, data in planned.data.items():
        write(job.path / name, data)
    if planned.find is not None:
        stage = job.recipe.stages["edit"]
        rep = stage.start(None, Step(job.seed, "edit")).to(job.device)
        step = Step(job.seed, "region")
        find = find_texels if planned.find == "surface" else find_region
        grid = find(observers(planned, priors, step), rep, stage.renderer, step)
        write(job.path / REGION_FILE, painting.saved(grid))
        if planned.find == "surface":
            write((job.path / REGION_FILE).with_suffix(".png"), painting.shown(grid))
    return folder


def observers(planned: Planned, priors: Mapping[str, Prior], step: Step) -> list[Term]:
    """Who looks for the region: the edit's own term, but in the playroom its prior of captions.

    For a region of the world `playroom-edit` looks too, which is shown the source. A texture is for the first alone,
    whose attention tells where a word is read.
    """
    job = planned.job
    stage = job.recipe.stages["edit"]
    if planned.instruction is None:
        return stage.terms(job.prompts, priors, step)[:1]
    told = [("playroom", Iesd(), None), (EDIT_PRIOR, Ip2p(), planned.instruction)]
    seers = []
    for name, guidance, instruction in told[:1] if planned.find == "surface" else told:
        prior = priors.get(name) or catalogue.open_prior(name, job.device)
        looking = replace(stage, prior=name, guidance={"edit": Guide(guidance)})
        seers += looking.terms(replace(job.prompts, instruction=instruction), {name: prior}, step)
    return seers
