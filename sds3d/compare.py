"""Several guidances on one prompt: the same start, cameras and noise for all, measured against the exact scene.

Every draw of a run comes from its seed, stage, term and step, and here every guidance is the one term "main" of the
same recipe. So two runs of one seed differ by their equation alone. Each run lives in a folder of its own, below the
comparison's: what has been made is not made again, and what was interrupted goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import plugins, recipes, schema
from .core import Prior
from .engine import Recipe, Watcher, never
from .files import write
from .generate import Job, Request, differences, open_priors, plan
from .record import read_manifest, slug
from .schedules import Range
from .scores import Trial, verdicts
from .trial import made_before, run_trial, true_strip


@dataclass(frozen=True)
class Contest:
    """What to compare; None is what the user left open. seeds: how many, from 0. See `generate.Request`."""

    prompt: str
    guidance: tuple[str, ...]
    seeds: int = 1
    recipe: str | None = None
    prior: str | None = None
    negative: str | None = None
    steps: int | None = None
    out: Path | None = None
    device: str | None = None
    overrides: tuple[str, ...] = ()
    force: bool = False

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, given {self.seeds}.")
        if not self.guidance or "" in self.guidance:
            raise ValueError("--guidance wants the names of methods, with commas between: sds,csd.")
        twice = [name for name in self.guidance if self.guidance.count(name) > 1]
        if twice:
            raise ValueError(f'The guidance "{twice[0]}" is named twice.')

    @property
    def path(self) -> Path:
        """The comparison's folder."""
        return self.out or Path("runs") / f"compare-{slug(self.prompt)}"


@dataclass(frozen=True)
class Planned:
    """A contest that can be held: the jobs of each guidance by seed, opened priors, and why others cannot take part."""

    contest: Contest
    jobs: Mapping[str, Sequence[Job]]
    priors: Mapping[str, Prior]
    refused: Mapping[str, str]


@dataclass(frozen=True)
class Comparison:
    """What was compared. refused: guidance -> why it could not run or go on. notes: what a reader must know.

    example: the job of one of the runs, for what all have in common. truth: the exact scene once around, where there is
    one. done: everything was run.
    """

    contest: Contest
    example: Job
    trials: tuple[Trial, ...]
    refused: Mapping[str, str]
    notes: tuple[str, ...] = ()
    truth: bytes | None = None
    done: bool = False

    @property
    def report(self) -> Path:
        return self.contest.path / "report.html"

    def data(self) -> dict[str, Any]:
        """Everything but the pictures, as plain data."""
        trials = [{"guidance": trial.guidance, "seed": trial.seed, **trial.figures} for trial in self.trials]
        return {
            "prompt": self.contest.prompt,
            "seeds": self.contest.seeds,
            "done": self.done,
            "trials": trials,
            "verdicts": verdicts(self.trials),
            "refused": dict(self.refused),
            "notes": list(self.notes),
        }


def folder_name(guidance: str, seed: int) -> str:
    """The folder of one run; of a guidance from a file, by the file's and the class's name."""
    place, colon, name = guidance.rpartition(":")
    plain = f"{Path(place).stem}-{name}" if colon else guidance
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '-', plain).lower()}-s{seed}"


def plan_run(contest: Contest, guidance: str, seed: int, times: Sequence[str] = ()) -> Job:
    """The job of one guidance with one seed. times: overrides that come before the user's. Raises ValueError."""
    return plan(
        Request(
            prompt=contest.prompt,
            recipe=contest.recipe,
            prior=contest.prior,
            guidance=guidance,
            negative=contest.negative,
            seed=seed,
            steps=contest.steps,
            out=contest.path / folder_name(guidance, seed),
            device=contest.device,
            overrides=("exports=[ply]", *times, *contest.overrides),
            force=True,  # What lies there is compared with this job before anything is replaced.
        )
    )


def same_times(contest: Contest, guidance: str) -> list[str]:
    """Overrides that give a guidance the recipe's own times, where both have any: methods differ, not schedules."""
    stages = recipes.build(recipes.read(contest.recipe or "gaussians")).stages
    extra = dict([plugins.load_file(guidance)]) if ":" in guidance else {}
    cls = plugins.load("guidance", guidance, extra)
    if not any(f.name == "t" for f in (dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ())):
        return []
    told = []
    for name, stage in stages.items():
        times = [t for guide in stage.guidance.values() if isinstance(t := getattr(guide.guidance, "t", None), Range)]
        if times:
            told.append(f"stages.{name}.guidance.main.t={json.dumps(schema.to_data(times[0]))}")
    return told


def plan_all(contest: Contest) -> Planned:
    """Resolve a contest and open its priors; changes nothing.

    Raises ValueError for a name that does not exist, where none of the guidances can run, and for a folder that holds
    another comparison; OSError for a prior that is not there.
    """
    for name in contest.guidance:
        if ":" not in name and name not in (known := plugins.kinds("guidance")):
            raise ValueError(plugins.unknown("guidance", name, known))
    jobs: dict[str, list[Job]] = {}
    priors: dict[str, Prior] = {}
    refused: dict[str, str] = {}
    for name in contest.guidance:
        try:
            times = same_times(contest, name)
            planned = [plan_run(contest, name, seed, times) for seed in range(contest.seeds)]
            priors |= open_priors(planned[0], priors)
            jobs[name] = planned
        except OSError:
            raise
        except Exception as error:  # A plug-in may fail in any way; it is named, and the others go on.
            refused[name] = " ".join(str(error).split())
    if not jobs:
        raise ValueError(next(iter(refused.values())))
    for planned in jobs.values():
        for job in planned:
            made_before(job, contest.force)
    return Planned(contest, jobs, priors, refused)


Watching = Callable[[Recipe], AbstractContextManager[Sequence[Watcher]]]


def no_watchers(recipe: Recipe) -> AbstractContextManager[Sequence[Watcher]]:
    """The watchers of a comparison that nobody watches."""
    return nullcontext(())


@contextlib.contextmanager
def progress(recipe: Recipe) -> Iterator[Sequence[Watcher]]:
    """The live line of each run on standard error."""
    from .watchers import ProgressLine

    with ProgressLine(recipe) as line:
        yield (line,)


def compare(
    planned: Planned,
    watching: Watching = no_watchers,
    stop: Callable[[], bool] = never,
    say: Callable[[str], None] = lambda sentence: None,
) -> Comparison:
    """Run every guidance with every seed, and write the report anew after each run.

        compare(plan_all(Contest("a red cube", ("sds", "csd"), seeds=3)))

    watching: makes the watchers of one run. say: hears what the user should know at once. A guidance that cannot run,
    or whose run fails, is named and the others go on. Raises OSError for what cannot be written.
    """
    contest, priors, refused = planned.contest, planned.priors, dict(planned.refused)
    order = [(name, jobs[seed]) for seed in range(contest.seeds) for name, jobs in planned.jobs.items()]
    for name, why in refused.items():
        say(f"{name} cannot run: {why}")
    result = Comparison(contest, order[0][1], (), refused, truth=true_strip(contest.prompt))
    for number, (name, job) in enumerate(order, 1):
        if name in refused:
            continue
        if stop():
            break
        say(f"{name}, seed {job.seed} ({number} of {len(order)})")
        try:
            with watching(job.recipe) as watchers:
                trial = run_trial(name, job, priors, contest.force, watchers, stop)
        except OSError:
            raise
        except Exception as error:
            refused[name] = f"The run with seed {job.seed} failed: {' '.join(str(error).split())}"
            say(f"{name}: {refused[name]}")
            continue
        if trial is None:
            break
        notes = [f"{name}, seed {job.seed}: {change}" for change in differences(job, priors, read_manifest(job.path))]
        result = replace(result, trials=(*result.trials, trial), notes=(*result.notes, *notes))
        write_report(result)
    else:
        result = replace(result, done=True)
    write_report(result)
    return result


def write_report(result: Comparison) -> None:
    """report.html and, as plain data, report.json."""
    from .report import html

    result.report.parent.mkdir(parents=True, exist_ok=True)
    write(result.report, html(result).encode())
    write(result.report.with_suffix(".json"), (json.dumps(result.data(), indent=1) + "\n").encode())
