"""What looks at a run without changing it: the recorder of its folder, and the line that shows how far it is."""

from __future__ import annotations

import io
import math
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

import torch

from .cameras import orbit
from .core import Background, Image, Renderer, RenderOutput, Representation, Step
from .engine import Outcome, Recipe, tensors
from .files import write
from .record import RunFolder
from .terms import Term

PREVIEW_AZIMUTHS = (0.0, 90.0, 180.0, 270.0)
PREVIEW_SIZE = 128
LOG_EVERY = 10  # steps; by number and not by time, so that two equal runs log the same steps
SAVING_SHARE = 0.02  # of the run's time at most


@torch.no_grad()
def preview(rep: Representation, renderer: Renderer, size: int = PREVIEW_SIZE) -> Image:
    """Front, left, back and right [4, size, size, 3] over white."""
    like = next(rep.parameters())
    cameras = orbit(PREVIEW_AZIMUTHS, 15.0, size).to(like)
    return renderer(rep, cameras, Background(like.new_ones(len(cameras), 3))).rgb.clamp(0, 1)


def png(views: Image) -> bytes:
    """A PNG file of the views side by side."""
    from PIL import Image as Pillow

    row = torch.cat(list(views.detach().cpu()), dim=1)  # [H, B W, 3]
    file = io.BytesIO()
    Pillow.fromarray((row * 255).round().to(torch.uint8).numpy()).save(file, "PNG")
    return file.getvalue()


class Recorder:
    """Writes metrics, previews and checkpoints into a run folder.

    every_s: seconds between checkpoints; more where saving would take over 2 % of the time. What is written never
    changes the run, so its times are free.
    """

    def __init__(self, folder: RunFolder, recipe: Recipe, every_s: float = 10.0, preview_s: float = 3.0) -> None:
        self.folder, self.recipe = folder, recipe
        self.every_s, self.preview_s = every_s, preview_s
        self.began = self.saved = time.monotonic()
        self.previewed = -math.inf
        self.latest: tuple[Step, Representation, Sequence[Term]] | None = None
        self.stage_began: dict[str, float] = {}
        self.stage_ended: dict[str, float] = {}

    def __call__(
        self,
        step: Step,
        rep: Representation,
        terms: Sequence[Term],
        out: RenderOutput,
        numbers: Mapping[str, float],
    ) -> None:
        self.latest = (step, rep, terms)
        last = step.index + 1 == self.recipe.stages[step.stage].steps
        self.stage_began.setdefault(step.stage, time.monotonic())
        self.stage_ended[step.stage] = time.monotonic()
        if step.index % LOG_EVERY == 0 or last:
            self._log(step, terms, numbers)
        if last or time.monotonic() - self.previewed >= self.preview_s:
            renderer = self.recipe.stages[step.stage].renderer
            write(self.folder.path / "preview.png", png(preview(rep, renderer)))
            self.previewed = time.monotonic()
        if last or time.monotonic() - self.saved >= self.every_s:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of the latest step, if one was made."""
        if self.latest is None:
            return
        step, rep, terms = self.latest
        start = time.monotonic()
        border = step.index + 1 == self.recipe.stages[step.stage].steps and step.stage != list(self.recipe.stages)[-1]
        self.folder.save(step.stage, step.index + 1, tensors(rep, terms), end=border)
        self.saved = time.monotonic()
        self.every_s = max(self.every_s, (self.saved - start) / SAVING_SHARE) if self.every_s > 0 else 0.0

    def end(self, outcome: Outcome) -> None:
        """Write what the run ended with where no step has: the start of a stage without steps."""
        if self.latest is None or self.latest[0].stage != outcome.stage:
            self.folder.save(outcome.stage, outcome.index, tensors(outcome.rep, ()))

    def timings(self) -> dict[str, float]:
        """Seconds between the first and the last step of each stage."""
        return {f"stage {stage}": end - self.stage_began[stage] for stage, end in self.stage_ended.items()}

    def _log(self, step: Step, terms: Sequence[Term], numbers: Mapping[str, float]) -> None:
        entry = {"stage": step.stage, "step": step.index, "progress": round(step.progress, 6)}
        entry |= {"seconds": round(time.monotonic() - self.began, 3)} | dict(numbers)
        for term in terms:
            if term.grad is not None:
                entry[f"gradient_{term.name}"] = float(f"{term.grad.square().mean().sqrt().item():.6g}")
        self.folder.log(entry)


class ProgressLine:
    """The live line on standard error: stage, step, steps a second, time left, Gaussians.

    Where standard error is no terminal, a plain line every `plain_s` seconds instead. Use it as a context.
    """

    def __init__(self, recipe: Recipe, plain_s: float = 10.0) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self.live = console.is_terminal
        self.stages = recipe.stages
        self.plain_s, self.told = plain_s, time.monotonic()
        self.stage, self.began, self.first = "", 0.0, 0
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not self.live,
            transient=False,
        )
        self.tasks = {
            name: self.progress.add_task(name, total=stage.steps, start=False, rate="", note="", visible=False)
            for name, stage in recipe.stages.items()
        }

    def __enter__(self) -> ProgressLine:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def __call__(
        self,
        step: Step,
        rep: Representation,
        terms: Sequence[Term],
        out: RenderOutput,
        numbers: Mapping[str, float],
    ) -> None:
        now = time.monotonic()
        if step.stage != self.stage:
            self.stage, self.began, self.first = step.stage, now, step.index
            self.progress.start_task(self.tasks[step.stage])
        done, total = step.index + 1, self.stages[step.stage].steps
        rate = (step.index - self.first) / (now - self.began) if step.index > self.first else 0.0
        note = f"{numbers['gaussians']:,.0f} Gaussians" if "gaussians" in numbers else ""
        if self.live:
            self.progress.update(
                self.tasks[step.stage], completed=done, rate=f"{rate:.1f} steps/s", note=note, visible=True
            )
        elif now - self.told >= self.plain_s or done == total:
            self.told = now
            left = f", {(total - done) / rate:.0f} s left" if rate > 0 else ""
            print(f"{step.stage} {done}/{total}, {rate:.1f} steps/s{left}, {note}".rstrip(", "), file=sys.stderr)
