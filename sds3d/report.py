"""The report of a comparison: one HTML file that needs nothing else, with turntables that turn together.

A turntable is one strip of frames side by side, and a slider moves all strips alike.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from . import __version__, machine
from .scores import MEASURES, told, values, verdicts

if TYPE_CHECKING:
    from .compare import Comparison

FRAMES, SIDE = 24, 160  # of a turntable

STYLE = f"""
:root {{ color-scheme: light dark; --line: #8886; --faint: #888; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; margin-bottom: 0; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
p.about, td small, th small, figcaption {{ color: var(--faint); }} small {{ font-weight: normal; }}
table {{ border-collapse: collapse; }} td, th {{ border-bottom: 1px solid var(--line); padding: .3rem .8rem .3rem 0;
  text-align: left; vertical-align: top; }} td {{ font-variant-numeric: tabular-nums; }}
.wide {{ overflow-x: auto; }}
.turn {{ width: {SIDE}px; height: {SIDE}px; background-size: {FRAMES}00% 100%; border-radius: 4px; }}
.views {{ display: flex; flex-wrap: wrap; gap: 12px; }} figure {{ margin: 0; }}
.bar {{ position: sticky; top: 0; padding: .5rem 0; display: flex; gap: 1rem; align-items: center;
  background: Canvas; }}
.bar input {{ width: 24rem; max-width: 60vw; }}
"""

SCRIPT = f"""
const slider = document.getElementById("turn"), button = document.getElementById("play");
const strips = document.querySelectorAll(".turn");
function show() {{
  for (const strip of strips) strip.style.backgroundPosition = (100 * slider.value / {FRAMES - 1}) + "% 0";
}}
let timer = null;
function play() {{
  if (timer) {{ clearInterval(timer); timer = null; button.textContent = "Play"; return; }}
  timer = setInterval(() => {{ slider.value = (Number(slider.value) + 1) % {FRAMES}; show(); }}, 100);
  button.textContent = "Pause";
}}
slider.addEventListener("input", show);
button.addEventListener("click", play);
show();
"""


def strip(pictures: np.ndarray) -> bytes:
    """Frames [n, H, W, 3] uint8 side by side as a JPEG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.concatenate(list(pictures), axis=1)).save(file, "JPEG", quality=88)
    return file.getvalue()


def html(result: Comparison) -> str:
    """The whole page."""
    contest, job = result.contest, result.example
    names = list(dict.fromkeys(trial.guidance for trial in result.trials))
    stages = job.recipe.stages
    steps = ", ".join(f"{name} {stage.steps}" for name, stage in stages.items())
    priors = ", ".join(sorted({prior for stage in stages.values() for prior in stage.priors()}))
    about = [
        f"Guidances: {', '.join(names)}. Seeds: 0 to {contest.seeds - 1}. Recipe: {contest.recipe or 'gaussians'} "
        f"(steps: {steps}). Prior: {priors}.",
        "All runs of a seed share their start, cameras and noise, so they differ by their guidance alone.",
    ]
    if not result.done:
        about.append("This comparison is not finished: give the same command again to go on.")
    if not any("iou" in trial.figures for trial in result.trials):
        about.append("The prompt has no one exact scene in the playroom, so nothing is measured against ground truth.")
    body = [
        f"<h1>{escape(contest.prompt)}</h1>",
        *(f'<p class="about">{escape(sentence)}</p>' for sentence in about),
        '<div class="bar"><button id="play">Play</button>'
        f'<input id="turn" type="range" min="0" max="{FRAMES - 1}" value="0" aria-label="Angle"></div>',
        turntables(result, names),
        *section("Verdicts", verdict_list(result)),
        *section("Measures", measure_table(result, names) if result.trials else ""),
        *section("Could not run", lines([f"{name}: {why}" for name, why in result.refused.items()])),
        *section("Notes", lines(result.notes)),
        f'<p class="about">{escape(made_by(result))}</p>',
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(contest.prompt)}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(body)
        + f"\n<script>{SCRIPT}</script></body></html>\n"
    )


def section(title: str, content: str) -> list[str]:
    """A titled part, or nothing where it has no content."""
    return [f"<h2>{title}</h2>", content] if content else []


def lines(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in sentences)}</ul>" if sentences else ""


def turntables(result: Comparison, names: Sequence[str]) -> str:
    """One row of turntables for each guidance, a column for each seed; the exact scene on top where there is one."""
    rows = [("exact scene", [("the truth", result.truth)])] if result.truth is not None else []
    for name in names:
        rows.append((name, [(f"seed {trial.seed}", trial.strip) for trial in result.trials if trial.guidance == name]))
    return "\n".join(
        f'<h2>{escape(title)}</h2><div class="views">{"".join(figure(title, *shown) for shown in views)}</div>'
        for title, views in rows
    )


def figure(title: str, caption: str, jpeg: bytes) -> str:
    data = base64.b64encode(jpeg).decode()
    return (
        f'<figure><div class="turn" role="img" aria-label="{escape(f"{title}, {caption}")}" '
        f'style="background-image:url(data:image/jpeg;base64,{data})"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def verdict_list(result: Comparison) -> str:
    found = verdicts(result.trials)
    return "".join(f"<p><b>{escape(MEASURES[name].title)}</b>: {escape(line)}</p>" for name, line in found.items())


def measure_table(result: Comparison, names: Sequence[str]) -> str:
    """Means with 95 % intervals over seeds: a row for each guidance, a column for each measure."""
    found = {key: by_name for key in MEASURES if (by_name := values(result.trials, key))}
    head = "".join(
        f"<th>{escape(MEASURES[key].title)}<br><small>{escape(MEASURES[key].about)}</small></th>" for key in found
    )
    rows = ""
    for name in names:
        cells = "".join(
            f"<td>{escape(told(key, list(by_name[name].values())) if name in by_name else '-')}</td>"
            for key, by_name in found.items()
        )
        rows += f"<tr><th>{escape(name)}</th>{cells}</tr>"
    note = "In brackets: 95 % bootstrap intervals of the mean over seeds, which are too short where seeds are few."
    return f'<div class="wide"><table><tr><th></th>{head}</tr>{rows}</table></div><p class="about">{note}</p>'


def made_by(result: Comparison) -> str:
    facts = machine.facts(result.example.device)
    return (
        f"sds3d {__version__}, torch {facts['torch']}, {facts['device']} with {facts['threads']} threads, drawn by "
        f"{facts['kernel']}."
    )
