"""One run of a comparison: made, gone on with or found in its folder, counted and measured."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

import torch

from .cameras import turntable
from .core import Learner, Prior, Query, RenderOutput, Representation, Step
from .engine import Watcher, never
from .export.video import frames
from .files import write
from .generate import Job, Made, begin, make
from .playroom import grammar
from .playroom.bench import asset_draw
from .playroom.measures import measure
from .playroom.render import render
from .playroom.scenes import build
from .priors.frozen import merged
from .priors.wrapped import Wrapped
from .record import read_manifest
from .report import FRAMES, SIDE, strip
from .scores import Trial
from .terms import Term

STRIP = "turntable-strip.jpg"


@dataclass(frozen=True, eq=False)
class Counting(Wrapped):
    """A prior that counts the rows its networks see.

    Equal questions of one forward are one. An adapter's rows count whether they share the prior's forward or not, and
    its training counts where it is called.
    """

    rows: list[int] = field(default_factory=list)

    def predict(self, queries: Mapping[str, Query]) -> dict[str, torch.Tensor]:
        asked, _ = merged(queries)
        before = len(self.rows)
        answers = self.prior.predict(queries)
        self.rows[before:] = [sum(len(query.z_t) for query in asked)]  # An adapter that was called has told its rows.
        return answers

    def adapter(self, rank: int, lr: float, step: Step) -> Learner | None:
        learner = self.prior.adapter(rank, lr, step)
        if learner is not None:
            learner.register_forward_pre_hook(lambda module, asked: self.rows.append(len(asked[0].z_t)))
        return learner


@dataclass
class Steps:
    """A watcher that counts the steps made."""

    made: int = 0

    def __call__(
        self,
        step: Step,
        rep: Representation,
        terms: Sequence[Term],
        out: RenderOutput,
        numbers: Mapping[str, float],
    ) -> None:
        self.made += 1


def made_before(job: Job, force: bool) -> Mapping[str, Any] | None:
    """The manifest of this very run, where its folder holds it, else None. Raises ValueError for another run."""
    if force or not (job.path / "run.json").exists():
        return None
    manifest = read_manifest(job.path)
    wanted = {"prompt": job.prompts.prompt, "negative": job.prompts.negative, "seed": job.seed, "recipe": job.data()}
    changed = [key for key, value in wanted.items() if manifest.get(key) != value]
    if changed:
        what = f"{job.path} holds a run with another {changed[0]}"
        raise ValueError(f"{what}; replace it with --force, or choose another --out.")
    return manifest


def run_trial(
    guidance: str,
    job: Job,
    priors: Mapping[str, Prior],
    force: bool = False,
    watchers: Sequence[Watcher] = (),
    stop: Callable[[], bool] = never,
) -> Trial | None:
    """One run, made, gone on with or found in its folder, and measured; None where it was interrupted."""
    before = made_before(job, force)
    if before is not None and "compared" in before and (job.path / STRIP).exists():
        return Trial(guidance, job.seed, before["compared"], (job.path / STRIP).read_bytes())
    steps, counted = Steps(), {name: Counting(prior) for name, prior in priors.items()}
    job = replace(job, resume=before is not None)
    with contextlib.closing(begin(job, force=True)) as folder:
        made = make(job, counted, folder, (steps, *watchers), stop)
        if not made.done:
            return None
        figures = judge(job, made) | {"seconds": round(folder.manifest["timings_s"]["run"], 1)}
        if steps.made:
            figures["rows"] = round(sum(sum(prior.rows) for prior in counted.values()) / steps.made, 2)
        turned = turntable_strip(job, made.rep)
        write(job.path / STRIP, turned)
        folder.note(compared=figures)
    return Trial(guidance, job.seed, figures, turned)


def judge(job: Job, made: Made) -> dict[str, Any]:
    """The playroom's measures of an asset; none where the prompt is no caption with one exact scene."""
    spec = exact_spec(job.prompts.prompt)
    if spec is None:
        return {}
    return asdict(measure(spec, asset_draw(job.recipe.stages[made.stage].renderer, made.rep.to("cpu"))))


def exact_spec(prompt: str) -> grammar.Spec | None:
    """The one scene of a caption, or None where the playroom has none or many."""
    try:
        spec = grammar.parse(prompt)
    except ValueError:
        return None
    return spec if grammar.is_determined(spec) else None


def turntable_strip(job: Job, rep: Representation) -> bytes:
    """An asset once around."""
    return strip(frames(rep, list(job.recipe.stages.values())[-1].renderer, FRAMES, SIDE))


@cache
def true_strip(prompt: str) -> bytes | None:
    """The exact scene once around, or None where there is none."""
    spec = exact_spec(prompt)
    if spec is None:
        return None
    rgb = render(build(spec), turntable(FRAMES, SIDE), torch.ones(FRAMES, 3), samples=2).rgb
    return strip((rgb.clamp(0, 1) * 255).round().byte().numpy())
