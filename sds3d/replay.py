"""A step of a run made again, under the microscope.

A run is a function of its seed and its recipe, so a step that nobody watched can be watched later: the run is taken up
at the nearest checkpoint that was kept, or at its beginning, and made again until that step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .engine import Recipe, Saved, Watcher, run
from .files import write
from .generate import Job, Request, adopt_threads, differences, open_priors, plan
from .microscope import Explanation, Microscope
from .record import checkpoints, read_manifest
from .sheet import picture


@dataclass(frozen=True)
class Place:
    """A step to explain: of which run, in which stage, from which checkpoint (None: the run's beginning)."""

    job: Job
    stage: str
    index: int
    saved: Saved | None

    @property
    def begin(self) -> tuple[str, int]:
        """The stage and the step from which the run is made again."""
        return (next(iter(self.job.recipe.stages)), 0) if self.saved is None else (self.saved.stage, self.saved.index)


def find(
    path: Path, index: int, stage: str | None = None, guidance: str | None = None, device: str | None = None
) -> Place:
    """The place of step `index`, counted from 0 as in metrics.jsonl. Raises ValueError; changes nothing.

    stage: may be left out where the run has one. guidance: the FILE:CLASS of a run whose guidance came from a file.
    """
    if not (path / "run.json").is_file():
        raise ValueError(f"{path} holds no run; explain wants a folder that `sds3d generate` made.")
    job = plan(Request(out=path, guidance=guidance, device=device, resume=True))
    stages = job.recipe.stages
    names = ", ".join(stages)
    if stage is None and len(stages) > 1:
        raise ValueError(f"This run has the stages {names}; name one of them with --stage.")
    chosen = next(iter(stages)) if stage is None else stage
    if chosen not in stages:
        raise ValueError(f'This run has no stage "{chosen}"; it has {names}.')
    if not 0 <= index < stages[chosen].steps:
        raise ValueError(f'Stage "{chosen}" has the steps 0 to {stages[chosen].steps - 1}, given {index}.')
    return Place(job, chosen, index, nearest(checkpoints(path), list(stages), chosen, index))


def nearest(kept: Sequence[Saved], stages: Sequence[str], stage: str, index: int) -> Saved | None:
    """The last checkpoint that lies before a step, or None."""
    order = {name: number for number, name in enumerate(stages)}
    before = [
        saved for saved in kept if saved.stage in order and (order[saved.stage], saved.index) <= (order[stage], index)
    ]
    return max(before, key=lambda saved: (order[saved.stage], saved.index), default=None)


def magnified(recipe: Recipe, stage: str, index: int) -> tuple[Recipe, dict[str, list[Explanation]]]:
    """The recipe with every guidance of one stage under the microscope at a step, and where it puts what it sees."""
    seen: dict[str, list[Explanation]] = {name: [] for name in recipe.stages[stage].guidance}
    guides = {
        name: replace(guide, guidance=Microscope(guide.guidance, index, seen[name]))
        for name, guide in recipe.stages[stage].guidance.items()
    }
    stages = {**recipe.stages, stage: replace(recipe.stages[stage], guidance=guides)}
    return replace(recipe, stages=stages), seen


def explain_step(
    place: Place, watchers: Sequence[Watcher] = (), say: Callable[[str], None] = lambda sentence: None
) -> dict[str, Explanation]:
    """Make the run again up to its step and explain that step: one explanation for each guidance term.

    say: hears from where the run is made again, and what has changed since. Raises ValueError for what has changed so
    that the run cannot be made again, ArithmeticError for a number that is not finite.
    """
    job = place.job
    manifest = read_manifest(job.path)
    adopt_threads(manifest)
    priors = open_priors(job)
    stage, begin = place.begin
    say(f'Making the run again from step {begin} of stage "{stage}" to step {place.index} of "{place.stage}".')
    changed = differences(job, priors, manifest)
    if changed:
        say(f"It will not be the run's own step to the last bit: {'; '.join(changed)}.")
    recipe, seen = magnified(job.recipe, place.stage, place.index)
    run(recipe, job.prompts, priors, job.seed, job.device, watchers, lambda: any(seen.values()), place.saved)
    return {name: found[0] for name, found in seen.items()}


def write_pictures(place: Place, explanations: Mapping[str, Explanation], out: Path | None = None) -> list[Path]:
    """One PNG for each term: `out`, or explain-STAGE-STEP-TERM.png in the run folder."""
    paths = []
    for name, explanation in explanations.items():
        path = out or place.job.path / f"explain-{place.stage}-{place.index}-{name}.png"
        if out is not None and len(explanations) > 1:
            path = out.with_stem(f"{out.stem}-{name}")
        write(path, picture(explanation, f'"{place.job.prompts.prompt}"'))
        paths.append(path)
    return paths
