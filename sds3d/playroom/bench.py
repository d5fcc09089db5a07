"""`sds3d bench prior` and `sds3d bench playroom`: figures against exact ground truth, printed and saved."""

from __future__ import annotations

import datetime
import itertools
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import machine, recipes
from ..cameras import orbit
from ..core import Background, Cameras, Condition, Mix, Prior, Renderer, Representation, Step
from ..diffusion import ddim_sample, diffuse, x0_from_eps
from ..engine import Stage
from ..guidance.mix import Cfg
from ..guidance.sds import Sds
from ..renderers.background import COLOURS as BACKGROUND_RGB
from .grammar import Head, Pair, Spec, Thing, Toy, caption, heads, is_held_out, pairs, things, toys
from .measures import Draw, Quality, contrasting_background, controls, iou, measure, psnr
from .render import render
from .scenes import build

CAPTIONS, SAMPLER_STEPS, SCALE = 64, 30, 2.0  # bench prior
SLOPE_TIMES = (0.6, 0.85, 0.95)
MASK_DISTANCE = 0.1  # a pixel belongs to the object where its colour is this far from the background


def default_stage(overrides: Sequence[str] = ()) -> Stage:
    """The one stage of the default recipe. overrides: as `--set` takes them."""
    data = recipes.read("gaussians")
    for assignment in overrides:
        recipes.override(data, assignment)
    (stage,) = recipes.build(data).stages.values()
    return stage


def sds_of(stage: Stage) -> Sds:
    """The one guidance of the default recipe's stage."""
    (guide,) = stage.guidance.values()
    assert isinstance(guide.guidance, Sds)
    return guide.guidance


def held_out(count: int) -> list[Spec]:
    """Fully determined captions that no prior was trained on: a fixed mixture of all kinds."""
    rng = np.random.default_rng(64)
    kinds = [[spec for spec in kind if is_held_out(spec)] for kind in (things(), pairs(), toys(), heads())]
    order = [[kind[i] for i in rng.permutation(len(kind))] for kind in kinds]
    mixed = itertools.chain.from_iterable(itertools.zip_longest(*order))
    return list(itertools.islice((spec for spec in mixed if spec is not None), count))


def conditions(prior: Prior, prompts: list[str], cameras: Cameras) -> dict[str, Condition]:
    """What a prior is told for `cond`, one prompt for each of its groups of views, and for `uncond`."""
    rows = prior.text(prompts).repeat_interleave(len(cameras) // len(prompts), dim=0)
    empty = prior.text([""]).expand_as(rows)
    return {"cond": prior.condition(rows, cameras), "uncond": prior.condition(empty, cameras)}


def prior(device: torch.device, out: Path | None) -> None:
    """Draw held-out captions with four views each and compare them with the exact scenes."""
    from ..priors.catalogue import open_prior

    model = open_prior("playroom", device)
    started, rows = time.monotonic(), []
    for number, spec in enumerate(held_out(CAPTIONS)):
        scene = build(spec)
        name = contrasting_background(scene, BACKGROUND_RGB)
        cameras = orbit([0, 90, 180, 270], 15.0, model.size)
        drawn = sample(model, f"{caption(spec)}, on {name}", cameras, Step(seed=0, stage="bench-prior", index=number))
        background = torch.tensor(BACKGROUND_RGB[name])
        true = render(scene, cameras, background.expand(4, 3))
        masks = [((rgb - background).norm(dim=-1, keepdim=True) > MASK_DISTANCE) for rgb in (drawn, true.rgb)]
        rows.append(
            {
                "caption": f"{caption(spec)}, on {name}",
                "iou": round(float(iou(masks[0].float(), masks[1].float()).mean()), 3),
                "psnr": round(psnr(drawn, true.rgb, masks[1]), 2),
            }
        )
        print(f"{rows[-1]['iou']:.3f}  {rows[-1]['psnr']:5.1f} dB  {rows[-1]['caption']}", flush=True)
    figures = {
        "mean_iou": round(float(np.mean([row["iou"] for row in rows])), 4),
        "mean_psnr_db": round(float(np.mean([row["psnr"] for row in rows])), 2),
        "background_slope": {str(t): round(background_slope(model, t), 3) for t in SLOPE_TIMES},
        "background_slope_unnamed": {str(t): round(background_slope(model, t, named=False), 3) for t in SLOPE_TIMES},
        "x0_error": text_error(model, 0.9),
        "seconds": round(time.monotonic() - started, 1),
    }
    settings = {"captions": CAPTIONS, "views": 4, "sampler": "DDIM", "steps": SAMPLER_STEPS, "cfg": SCALE, "seed": 0}
    save("prior", {"settings": settings, "figures": figures, "rows": rows}, out)


def sample(model: Prior, prompt: str, cameras: Cameras, step: Step, steps: int = SAMPLER_STEPS) -> Tensor:
    """The prior's own pictures [4, H, W, 3] of a prompt."""
    noise = step.normal("noise", model.encode(torch.zeros(len(cameras), model.size, model.size, 3)))
    clean = ddim_sample(model, noise, conditions(model, [prompt], cameras), Cfg(SCALE), steps)
    return model.decode(clean).clamp(0, 1)


def exact_views(specs: list[Spec], step: Step, size: int) -> tuple[Tensor, Cameras, list[str], list[str]]:
    """Exact pictures [4 n, H, W, 3] of scenes over random named backgrounds, their cameras, captions and names."""
    names = [list(BACKGROUND_RGB)[int(8 * u)] for u in step.uniform("background", len(specs))]
    cameras = orbit(torch.tensor([0.0, 90, 180, 270]).repeat(len(specs)), 15.0, size)
    pictures = [
        render(build(spec), cameras[:4], torch.tensor(BACKGROUND_RGB[name]).expand(4, 3), samples=2).rgb
        for spec, name in zip(specs, names, strict=True)
    ]
    return torch.cat(pictures), cameras, [caption(spec) for spec in specs], names


@torch.no_grad()
def background_slope(model: Prior, t: float, named: bool = True, mix: Mix | None = None, captions: int = 16) -> float:
    """How faithfully the SDS target keeps a plain background: the slope of its ring on the true one, 1 is faithful.

    Below 1 the target's background is pulled to mid-grey, and a shell of haze fits it better than the truth does.
    named: whether the captions name the background, as the default recipe does. mix: None for the default recipe's.
    """
    step = Step(seed=0, stage="background-slope")
    pictures, cameras, prompts, names = exact_views(held_out(captions), step, model.size)
    if named:
        prompts = [f"{prompt}, on {name}" for prompt, name in zip(prompts, names, strict=True)]
    z = model.encode(pictures)
    x = diffuse(model, z, step, (t, t))
    told = conditions(model, prompts, cameras)
    mix = mix or sds_of(default_stage()).mix
    guided = mix(model.predict(x.ask(told, "cond", "uncond")), told, x, model.group)
    target = model.decode(x0_from_eps(x.z_t, guided, x.alpha, x.sigma).clamp(-1, 1))
    got, true = (ring(picture) - 0.5 for picture in (target, pictures))
    return float((got * true).sum() / true.square().sum())


def ring(pictures: Tensor) -> Tensor:
    """The mean colour [B, 3] of each picture's outermost two pixels."""
    inner = pictures[:, 2:-2, 2:-2].sum(dim=(1, 2))
    count = pictures.shape[1] * pictures.shape[2] - (pictures.shape[1] - 4) * (pictures.shape[2] - 4)
    return (pictures.sum(dim=(1, 2)) - inner) / count


@torch.no_grad()
def text_error(model: Prior, t: float, captions: int = 32) -> dict[str, float]:
    """Squared error of the clean picture at a high t, told the true and another scene's caption."""
    step = Step(seed=0, stage="text-error")
    pictures, cameras, prompts, names = exact_views(held_out(captions), step, model.size)
    z = model.encode(pictures)
    x = diffuse(model, z, step, (t, t))
    said = [f"{prompt}, on {name}" for prompt, name in zip(prompts, names, strict=True)]
    shuffled = [f"{prompt}, on {name}" for prompt, name in zip(prompts[1:] + prompts[:1], names, strict=True)]
    errors = {}
    for key, texts in (("true_caption", said), ("shuffled_caption", shuffled)):
        eps = model.predict(x.ask(conditions(model, texts, cameras), "cond"))["cond"]
        errors[key] = round(float((x0_from_eps(x.z_t, eps, x.alpha, x.sigma) - z).square().mean()), 4)
    return errors


def fixed_prompts(seed: int, counts: tuple[int, int, int, int]) -> list[Spec]:
    """Fully determined captions, the same at every call.

    counts: of things, pairs, toys and heads; as many of each that were trained on, then as many that were held out. A
    smaller count gives the first of a larger one.
    """
    rng = np.random.default_rng(seed)
    chosen: list[Spec] = []
    for kind, count in zip((things(), pairs(), toys(), heads()), counts, strict=True):
        specs = list(kind)
        order = [specs[i] for i in rng.permutation(len(specs))]
        for out in (False, True):
            chosen += [spec for spec in order if is_held_out(spec) == out][:count]
    return chosen


def prompts_24() -> list[Spec]:
    """The fixed prompts of `bench playroom`: 12 trained on, 12 held out; 8 of them heads; fully determined."""
    return fixed_prompts(24, (2, 3, 3, 4))


def playroom(device: torch.device, out: Path | None) -> None:
    """Run the default recipe on 24 fixed prompts and judge every asset against its exact scene."""
    from .. import recipes
    from ..engine import run
    from ..priors.catalogue import open_prior
    from ..prompts import Prompts
    from ..watchers import png

    recipe = recipes.build(recipes.read("gaussians"), {})
    names = dict.fromkeys(name for stage in recipe.stages.values() for name in stage.priors())
    opened = {name: open_prior(name, device) for name in names}
    rows, pictures = [], []
    for spec in prompts_24():
        started = time.monotonic()
        outcome = run(recipe, Prompts(caption(spec)), opened, seed=0, device=device)
        draw = asset_draw(recipe.stages[outcome.stage].renderer, outcome.rep)
        rows.append(row(spec, measure(spec, draw), time.monotonic() - started))
        pictures.append(beside_truth(spec, draw))
        print(told(rows[-1]), flush=True)
    flagged = control_rows(prompts_24()[-1])
    for name, caught in flagged.items():
        print(f"control {'flagged' if caught else 'MISSED '}  {name}")
    results = {"figures": summary(rows), "controls_flagged": flagged, "rows": rows}
    path = save("playroom", results, out).with_suffix(".png")
    sheet = torch.cat([torch.cat(pictures[i : i + 6], dim=1) for i in range(0, len(pictures), 6)])
    path.write_bytes(png(sheet[None]))
    print(f"saved               {path}")


@torch.no_grad()
def beside_truth(spec: Spec, draw: Draw, size: int = 96) -> Tensor:
    """An asset from ahead and from behind [2 size, 2 size, 3], its exact scene below."""
    cameras, rgb = orbit([25.0, 205.0], 15.0, size), torch.full((2, 3), 0.94)
    pictures = (draw(cameras, rgb).rgb, render(build(spec), cameras, rgb).rgb)
    return torch.cat([torch.cat(list(picture), dim=1) for picture in pictures]).clamp(0, 1)


def asset_draw(renderer: Renderer, rep: Representation) -> Draw:
    """A representation as an asset that can be measured."""
    return lambda cameras, rgb: renderer(rep, cameras, Background(rgb))


def row(spec: Spec, quality: Quality, seconds: float) -> dict[str, Any]:
    kinds: Mapping[type, str] = {Thing: "thing", Pair: "pair", Toy: "toy", Head: "head"}
    figures = {key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(quality).items()}
    about = {"caption": caption(spec), "kind": kinds[type(spec)], "held_out": is_held_out(spec)}
    return {**about, **figures, "failure": failure(quality), "seconds": round(seconds, 1)}


def failure(quality: Quality) -> str | None:
    """What is wrong with an asset by the bounds of the benchmark, or None."""
    reasons = {
        "silhouette": quality.iou < 0.6,
        "colour": quality.psnr < 12,
        "two-faced": quality.two_faced is True,
        "faceless": quality.faceless is True,
    }
    return ", ".join(name for name, wrong in reasons.items() if wrong) or None


def told(row: Mapping[str, Any]) -> str:
    mark = "held out" if row["held_out"] else "trained "
    return (
        f"iou {row['iou']:.3f}  {row['psnr']:5.1f} dB  haze {row['haze']:.3f}  {row['seconds']:5.1f} s  {mark}  "
        f"{row['caption']}{'' if row['failure'] is None else '  FAILED: ' + row['failure']}"
    )


def control_rows(head: Spec) -> dict[str, bool]:
    """Whether each deliberately broken head is flagged."""
    assert isinstance(head, Head)
    return {name: bool(flags(measure(head, draw))) for name, (draw, flags) in controls(head).items()}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    heads_ = [row for row in rows if row["kind"] == "head"]
    return {
        "mean_iou": round(float(np.mean([row["iou"] for row in rows])), 4),
        "min_iou": min(row["iou"] for row in rows),
        "mean_psnr_db": round(float(np.mean([row["psnr"] for row in rows])), 2),
        "mean_haze": round(float(np.mean([row["haze"] for row in rows])), 4),
        "heads": len(heads_),
        "heads_counted": sum(row["two_faced"] is not None for row in heads_),
        "two_faced": sum(row["two_faced"] is True for row in heads_),
        "faceless": sum(row["faceless"] is True for row in heads_),
        "failures": sum(row["failure"] is not None for row in rows),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
    }


def result_path(name: str, out: Path | None) -> Path:
    """Where the figures of a benchmark are written: `out`, or the place where the project keeps its results."""
    here = Path("benchmarks/results")
    return out or (here if here.is_dir() else Path()) / f"bench-{name}.json"


def save(name: str, results: dict[str, Any], out: Path | None) -> Path:
    """Print the figures and write them with date, commit, hardware and command; returns where."""
    for key, value in results["figures"].items():
        print(f"{key:20}{value}")
    path = result_path(name, out)
    about = {
        "command": f"sds3d bench {name}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {key: value for key, value in machine.facts(torch.device("cpu")).items() if key != "kernel_why"},
    }
    path.write_text(json.dumps({**about, **results}, indent=1) + "\n")
    print(f"saved               {path}")
    return path


def commit() -> str | None:
    """The commit of the source tree, or None outside one."""
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or None
