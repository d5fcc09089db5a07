"""From a request to a run folder with an asset: plan, open, begin, make.

`plan` and `open_priors` refuse what cannot work before anything is written; `make` runs, records and exports.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from . import __version__, exporting, machine, plugins, recipes, schema
from .cameras import orbit
from .core import Background, Prior, Representation, Step
from .diffusion import ddim_sample
from .engine import Outcome, Recipe, Stage, Watcher, check, never, run
from .exporting import RunAsset
from .files import write
from .guidance.mix import Cfg
from .opening import File, opened
from .prompts import Embeddings, Prompts
from .record import RunFolder, check_free, read_manifest, slug
from .representations.gaussians import Gaussians
from .representations.head_files import TemplateChoice
from .watchers import PREVIEW_AZIMUTHS, Recorder, png

DRAFT_STEPS, DRAFT_SCALE = 15, 2.0
FROM_FILE = ("gaussians", "mesh", "texture")  # what `opening.File` makes, as kinds of optimise


@dataclass(frozen=True)
class Request:
    """What the user asks for; None is what the user left open."""

    prompt: str | None = None
    recipe: str | None = None
    prior: str | None = None
    guidance: str | None = None
    negative: str | None = None
    seed: int | None = None
    steps: int | None = None
    out: Path | None = None
    device: str | None = None
    overrides: Sequence[str] = ()
    resume: bool = False
    force: bool = False
    until: str | None = None
    since: str | None = None
    start: Path | None = None


@dataclass(frozen=True)
class Job:
    """A request that can be carried out, as far as can be known without opening a prior.

    until: the stage that the run ends with for now. since: the stage from which on it is made anew. notes: more entries
    of its manifest.
    """

    prompts: Prompts
    recipe: Recipe
    seed: int
    path: Path
    device: torch.device
    resume: bool = False
    files: Mapping[str, type] = field(default_factory=dict)  # guidances from files, by what the user typed
    planned: float = field(default_factory=time.monotonic)
    until: str | None = None
    since: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> Recipe:
        """The stages up to `until`, or all."""
        names = list(self.recipe.stages)
        last = len(names) if self.until is None else names.index(self.until) + 1
        return replace(self.recipe, stages={name: self.recipe.stages[name] for name in names[:last]})

    def data(self) -> dict[str, Any]:
        """The resolved recipe as plain data."""
        return schema.to_data(self.recipe, self.files)


def plan(request: Request) -> Job:
    """Resolve a request. Raises ValueError, in a sentence, for what cannot be done; changes nothing."""
    device = machine.choose_device(request.device)
    files = {}
    if request.guidance is not None and ":" in request.guidance:
        files = dict([plugins.load_file(request.guidance)])
    if request.resume or request.since is not None:
        return _plan_resume(request, device, files)
    if request.prompt is None:
        raise ValueError('A prompt is missing; for example: sds3d generate "a red cube".')
    prompts = Prompts(request.prompt, request.negative)
    seed = request.seed or 0
    path = request.out or Path("runs") / f"{slug(prompts.prompt)}-s{seed}"
    check_free(path, request.force)
    recipe = recipes.build(_data(request), files)
    if prompts.negative is not None:
        recipe = _with_negative(recipe)
    check_exports(recipe)
    _check_files(recipe)
    _check_subject(recipe, prompts.prompt)
    _check_stage(recipe, request.until, "--until")
    return Job(prompts, recipe, seed, path, device, files=files, until=request.until)


def _data(request: Request) -> dict[str, Any]:
    """The recipe's data with the request's changes; steps are shared in the stages' proportion, `--set` comes last."""
    splat = request.start is not None and isinstance(opened(File(str(request.start)).found()), Gaussians)
    data = recipes.read(request.recipe or "gaussians", splat)
    stages = recipes.build(data).stages  # The changes below need a whole recipe.
    total, before = max(sum(stage.steps for stage in stages.values()), 1), 0
    for name, stage in stages.items():
        told = data["stages"][name]
        if request.prior is not None:
            told["prior"] = request.prior
        if request.guidance is not None:
            told["guidance"] = {"main": {"kind": request.guidance}}
        if request.steps is not None:
            after = before + stage.steps
            told["steps"] = round(request.steps * after / total) - round(request.steps * before / total)
            before = after
    if request.start is not None:
        next(iter(data["stages"].values()))["start"] = _from_file(request.start, next(iter(stages.values())))
    for assignment in request.overrides:
        recipes.override(data, assignment)
    return data


def _from_file(path: Path, stage: Stage) -> dict[str, Any]:
    """The start of a first stage that begins with a file. Raises ValueError where it cannot."""
    if isinstance(stage.start, File):
        return schema.to_data(replace(stage.start, path=str(path)))
    into = plugins.kind_of("optimise", type(stage.optimise))
    if into not in FROM_FILE:
        raise ValueError(
            f"--start begins with Gaussians or a mesh, and the first stage of this recipe optimises a {into}; "
            "choose another --recipe."
        )
    return {"kind": "file", "path": str(path), "into": into}


def _plan_resume(request: Request, device: torch.device, files: Mapping[str, type]) -> Job:
    """The job of a run that has begun: its own prompt, seed and recipe, whose later stages `since` may change."""
    changed = [name for name in ("recipe", "prior", "negative", "steps", "start") if getattr(request, name) is not None]
    set_early = bool(request.overrides) and request.since is None
    if set_early or changed or request.force:
        option = "set" if set_early else (changed or ["force"])[0]
        raise ValueError(f"--resume goes on with the run as it was begun; leave out --{option}.")
    if request.out is None and request.prompt is None:
        raise ValueError("--resume needs the prompt or the folder of the run: --out DIR.")
    path = request.out or Path("runs") / f"{slug(Prompts(request.prompt or '').prompt)}-s{request.seed or 0}"
    manifest = read_manifest(path)
    prompts = Prompts(manifest["prompt"], manifest.get("negative"), source=manifest.get("source"))
    if request.prompt is not None and Prompts(request.prompt).prompt != prompts.prompt:
        raise ValueError(f'{path} holds a run of "{prompts.prompt}", not of "{request.prompt}".')
    if request.seed is not None and request.seed != manifest["seed"]:
        raise ValueError(f"{path} holds a run with seed {manifest['seed']}, not {request.seed}.")
    if request.device is None:
        device = machine.choose_device(manifest.get("machine", {}).get("device"))
    recipe = recipes.build(manifest["recipe"], files)
    if request.since is not None:
        recipe = _from_stage(recipe, request.since, request.overrides, files)
    _check_stage(recipe, request.until, "--until")
    job = Job(prompts, recipe, manifest["seed"], path, device, resume=True, files=files)
    return replace(job, until=request.until, since=request.since)


def _check_stage(recipe: Recipe, name: str | None, option: str) -> None:
    if name is not None and name not in recipe.stages:
        raise ValueError(f"{option}: {plugins.unknown('stage of this recipe', name, recipe.stages)}")


def _from_stage(recipe: Recipe, since: str, overrides: Sequence[str], files: Mapping[str, type]) -> Recipe:
    """The recipe with overrides that touch nothing before a stage. Raises ValueError where they do."""
    _check_stage(recipe, since, "--from")
    data = schema.to_data(recipe, files)
    for assignment in overrides:
        recipes.override(data, assignment)
    changed = recipes.build(data, files)
    for name in recipe.stages:
        if name == since:
            return changed
        if changed.stages[name] != recipe.stages[name]:
            raise ValueError(f'--from {since} keeps what the stage "{name}" made; leave out the --set that changes it.')
    return changed


def _with_negative(recipe: Recipe) -> Recipe:
    """The recipe with every mix measured from the negative prompt. Raises ValueError where no mix has a base."""
    stages = {}
    for name, stage in recipe.stages.items():
        terms = {
            term: replace(guide, guidance=_from_negative(guide.guidance)) for term, guide in stage.guidance.items()
        }
        stages[name] = replace(stage, guidance=terms)
    changed = replace(recipe, stages=stages)
    if changed == recipe:
        raise ValueError("--negative is given, but no guidance of this recipe reads a negative prompt.")
    return changed


def _from_negative(thing: Any) -> Any:
    if not is_dataclass(thing) or isinstance(thing, type):
        return thing
    if getattr(thing, "base", None) == "uncond":
        return replace(thing, base="negative")
    return replace(thing, **{f.name: _from_negative(getattr(thing, f.name)) for f in fields(thing) if f.init})


def _check_files(recipe: Recipe) -> None:
    for stage in recipe.stages.values():
        if isinstance(stage.start, File | TemplateChoice):
            stage.start.found()


def _check_subject(recipe: Recipe, prompt: str) -> None:
    """Raise ValueError where a start of `SUBJECT` "head" meets a prior of the playroom and a prompt that is no head.

    Other priors know of no grammar, so that what a prompt is cannot be told.
    """
    from .playroom.grammar import Head, parse

    for stage in recipe.stages.values():
        playroom = any(name.startswith("playroom") for name in stage.priors())
        if playroom and getattr(stage.start, "SUBJECT", None) == "head" and not isinstance(parse(prompt), Head):
            raise ValueError(
                f'This recipe makes heads, and "{prompt}" is none; ask for one, such as "a head with black hair and '
                'blue eyes", or choose another --recipe.'
            )


def check_exports(recipe: Recipe) -> None:
    """Raise ValueError for a format that there is not, and for one whose library is missing."""
    from .export import EXPORTS, require

    for name in recipe.exports:
        if name not in EXPORTS:
            raise ValueError(f"exports: {plugins.unknown('format', name, EXPORTS)}")
        require(name)


def open_priors(job: Job, known: Mapping[str, Prior] | None = None) -> dict[str, Prior]:
    """Every prior that the job needs, checked against its recipe and prompt. Raises ValueError, OSError.

    known: priors that are open already.
    """
    from .priors.catalogue import open_prior

    known = known or {}
    names = dict.fromkeys(name for stage in job.recipe.stages.values() for name in sorted(stage.priors()))
    priors = {name: known[name] if name in known else open_prior(name, job.device) for name in names}
    check(job.recipe, job.prompts, priors)
    return priors


def begin(job: Job, force: bool = False) -> RunFolder:
    """The job's run folder, locked: new, or as it was left. Raises ValueError, OSError."""
    return RunFolder.resume(job.path) if job.resume else RunFolder.new(job.path, force)


@dataclass(frozen=True)
class Made:
    """What a job ended with. done: all that was asked was made. whole: so was the recipe. assets: format -> file."""

    path: Path
    done: bool
    whole: bool
    stage: str
    index: int
    assets: Mapping[str, Path]
    rep: Representation


def make(
    job: Job,
    priors: Mapping[str, Prior],
    folder: RunFolder,
    watchers: Sequence[Watcher] = (),
    stop: Callable[[], bool] = never,
    say: Callable[[str], None] = lambda sentence: None,
    checkpoint_s: float = 10.0,
) -> Made:
    """Run the job in its folder to its assets, to the end of the stage `job.until`, or until `stop`.

    say: hears what the user should know at once. checkpoint_s: seconds between checkpoints; 0 saves at every step.
    """
    start = time.monotonic()
    saved = _introduce(job, priors, folder, say)
    recorder = Recorder(folder, job.recipe, checkpoint_s)
    try:
        outcome = run(job.asked, job.prompts, priors, job.seed, job.device, (recorder, *watchers), stop, saved)
        ran = time.monotonic()
        if not outcome.done:
            recorder.save()
        else:
            recorder.end(outcome)
        whole = outcome.done and job.asked == job.recipe
        assets = export_all(job, outcome, folder, say) if whole else {}
    except Exception as error:
        # A full disk fails here again; the first error is the one to tell.
        with contextlib.suppress(OSError):
            folder.note(status="failed", error=f"{type(error).__name__}: {error}")
        raise
    timings = {"open": start - job.planned, "run": ran - start, **recorder.timings(), "export": time.monotonic() - ran}
    before = folder.manifest.get("timings_s", {})
    folder.note(
        status="done" if whole else "interrupted",
        timings_s={name: round(before.get(name, 0) + seconds, 3) for name, seconds in timings.items()},
        peak_memory_mb=machine.peak_memory_mb(),
        assets={name: path.name for name, path in assets.items()},
    )
    return Made(folder.path, outcome.done, whole, outcome.stage, outcome.index, assets, outcome.rep)


def _introduce(job: Job, priors: Mapping[str, Prior], folder: RunFolder, say: Callable[[str], None]) -> Any:
    """Write the manifest of a run that begins, or add to that of one that goes on; returns where it stood."""
    if not job.resume:
        folder.note(
            sds3d=__version__,
            status="running",
            prompt=job.prompts.prompt,
            negative=job.prompts.negative,
            source=job.prompts.source,
            **job.notes,
            seed=job.seed,
            recipe=job.data(),
            priors=_told(priors),
            guidance_files=_hashes(job.files),
            machine=machine.facts(job.device),
            began=_now(),
        )
        return None
    then = folder.manifest
    adopt_threads(then)
    different = differences(job, priors, then)
    if job.since is None:
        saved = folder.load()
    else:
        names = list(job.recipe.stages)
        saved = folder.load_end(names[: names.index(job.since)])
        folder.note(recipe=job.data())
    where = (
        f'step {saved.index} of stage "{saved.stage}"' if saved else "the beginning, since no checkpoint lies before"
    )
    say(f"Going on from {where}.")
    if different:
        say(f"The result will not be the undisturbed run's to the last bit: {'; '.join(different)}.")
    resumed = {"at": _now(), "stage": saved.stage if saved else None, "index": saved.index if saved else 0}
    folder.note(
        status="running", resumed=[*then.get("resumed", []), {**resumed, "exact": not different, "changed": different}]
    )
    return saved


def differences(job: Job, priors: Mapping[str, Prior], manifest: Mapping[str, Any]) -> list[str]:
    """What has changed since a run began, so that made again it would not be the same to the last bit; in words."""
    different = machine.changes(manifest.get("machine", {}), machine.facts(job.device))
    if manifest.get("priors") != _told(priors):
        different.append("other prior weights")
    if manifest.get("guidance_files", {}) != _hashes(job.files):
        different.append("another guidance file")
    return different


def adopt_threads(manifest: Mapping[str, Any]) -> None:
    """Compute with as many threads as the run began with, where there are so many: they decide its last bits."""
    threads = manifest.get("machine", {}).get("threads", torch.get_num_threads())
    if threads != torch.get_num_threads() and threads <= (os.cpu_count() or 1):
        torch.set_num_threads(threads)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _told(priors: Mapping[str, Prior]) -> dict[str, dict[str, str]]:
    """Hash and licence of each prior that has them; one built in Python may not."""
    known = ("sha256", "licence")
    return {name: {key: getattr(prior, key) for key in known if hasattr(prior, key)} for name, prior in priors.items()}


def _hashes(files: Mapping[str, type]) -> dict[str, str]:
    return {spec: hashlib.sha256(Path(spec.rpartition(":")[0]).read_bytes()).hexdigest() for spec in files}


def export_all(job: Job, outcome: Outcome, folder: RunFolder, say: Callable[[str], None]) -> dict[str, Path]:
    """Write the asset in the recipe's formats, each file whole or absent and checked against the run's own views."""
    asset = RunAsset.of(outcome, job.recipe, folder.manifest)
    made = exporting.export_all(job.recipe.exports, asset, folder.path, say=say)
    return {name: exported.path for name, exported in made.items()}


@torch.no_grad()
def draft(job: Job, priors: Mapping[str, Prior]) -> Path:
    """The first stage's prior's own four views of the prompt, in seconds: draft.png in the run folder."""
    stage: Stage = next(iter(job.recipe.stages.values()))
    prior = priors[stage.prior]
    cameras = orbit(PREVIEW_AZIMUTHS, 15.0, prior.size).to(torch.zeros((), device=job.device))
    named = stage.background(Step(job.seed), 4, 4).name is not None
    background = Background(torch.ones(4, 3, device=job.device), ("white",) if named else None)
    prompts = replace(job.prompts, view_words=prior.group == 1)
    embeddings = Embeddings(prior)
    texts = prompts.texts(cameras, background)
    texts["uncond"] = texts.get("negative", texts["uncond"])
    conditions = {name: prior.condition(embeddings(rows), cameras) for name, rows in texts.items()}
    like = prior.encode(torch.zeros(4, prior.size, prior.size, 3, device=job.device))
    noise = Step(job.seed, "draft").normal("noise", like)
    clean = ddim_sample(prior, noise, conditions, Cfg(DRAFT_SCALE), DRAFT_STEPS)
    job.path.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(RunFolder(job.path)):
        write(job.path / "draft.png", png(prior.decode(clean).clamp(0, 1)))
    return job.path / "draft.png"
