"""Where one stage ends and the next begins: stop there, go on, and make the later stages anew."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from small_run import priors, stage, two_stages

from sds3d.cli import cli
from sds3d.core import Representation, Step
from sds3d.engine import Recipe, never, run
from sds3d.generate import Job, Made, Request, begin, make, plan
from sds3d.prompts import Prompts
from sds3d.record import checkpoints
from sds3d.representations.gaussians import Gaussians
from sds3d.representations.start import Continue


def job(path: Path, recipe: Recipe | None = None, **told: object) -> Job:
    return Job(Prompts("red"), recipe or two_stages(), 0, path, torch.device("cpu"), **told)


def made(one: Job, stop=never) -> Made:
    folder = begin(one)
    try:
        return make(one, priors(), folder, stop=stop, checkpoint_s=0.0)
    finally:
        folder.close()


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """The asset of an undisturbed run."""
    return made(job(tmp_path / "whole")).assets["ply"].read_bytes()


def test_stopped_at_a_border_a_run_goes_on_to_the_same_bytes(tmp_path, whole):
    first = made(job(tmp_path / "run", until="shape"))
    assert (first.done, first.whole, first.stage, first.index, first.assets) == (True, False, "shape", 4, {})
    again = made(job(tmp_path / "run", resume=True))
    assert again.whole and again.assets["ply"].read_bytes() == whole


def test_the_later_stages_can_be_made_anew(tmp_path, whole):
    """With the same numbers the asset is the same, with others that of a run which had them from the start."""
    path = tmp_path / "whole"
    asset = path / "asset.ply"
    end = (path / "checkpoint" / "end-shape.safetensors").read_bytes()
    assert made(job(path, resume=True, since="colour")).assets["ply"].read_bytes() == whole
    longer = two_stages()
    longer = replace(longer, stages={**longer.stages, "colour": stage(7, start=Continue())})
    made(job(path, longer, resume=True, since="colour"))
    assert asset.read_bytes() == made(job(tmp_path / "other", longer)).assets["ply"].read_bytes() != whole
    assert (path / "checkpoint" / "end-shape.safetensors").read_bytes() == end
    metrics = (path / "metrics.jsonl").read_text().splitlines()
    assert len(metrics) == len((tmp_path / "other" / "metrics.jsonl").read_text().splitlines())


def test_made_anew_from_the_first_stage_is_the_whole_run(tmp_path, whole):
    assert made(job(tmp_path / "whole", resume=True, since="shape")).assets["ply"].read_bytes() == whole


def test_a_stage_without_steps_leaves_what_it_began_with(tmp_path):
    """Its checkpoint is its start, so that the asset can be exported later; a resumed run ends in the same bytes."""
    recipe = Recipe({"shape": stage(4), "colour": stage(0, start=Convert())}, exports=("ply",))
    whole = made(job(tmp_path / "run", recipe)).assets["ply"].read_bytes()
    kept = checkpoints(tmp_path / "run")[0]
    assert (kept.stage, kept.index) == ("colour", 0)
    assert made(job(tmp_path / "run", recipe, resume=True)).assets["ply"].read_bytes() == whole


def test_what_is_made_anew_is_not_taken_for_what_was(tmp_path, whole):
    """Going back to a border drops the checkpoints behind it, also where the run is stopped at once."""
    path = tmp_path / "whole"
    assert checkpoints(path)[0].stage == "colour"
    stopped = made(job(path, resume=True, since="colour"), stop=lambda: True)
    assert (stopped.stage, stopped.index) == ("shape", 4)
    assert {(saved.stage, saved.index) for saved in checkpoints(path)} == {("shape", 4)}
    assert made(job(path, resume=True)).assets["ply"].read_bytes() == whole


@dataclass(frozen=True)
class Convert:
    """A start that needs what a finished stage left, as a conversion does."""

    def __call__(self, previous: Representation | None, step: Step) -> Representation:
        assert isinstance(previous, Gaussians) and len(previous) > 1, "a conversion of nothing"
        tensors = previous.state()
        return Gaussians(
            *(tensors[name] for name in ("means", "log_scales", "quats", "opacity_logits", "colour_logits"))
        )

    def blank(self, previous: Representation | None) -> Representation:
        assert previous is not None
        return previous


def test_resuming_a_later_stage_converts_nothing(tmp_path):
    """The stage's result lies in the checkpoint, so its start is not asked for one."""
    recipe = Recipe({"shape": stage(4), "colour": stage(4, start=Convert())}, exports=("ply",))
    whole = made(job(tmp_path / "whole", recipe)).assets["ply"].read_bytes()
    count = iter(range(99))
    stopped = made(job(tmp_path / "run", recipe), stop=lambda: next(count) == 5)
    assert (stopped.done, stopped.stage) == (False, "colour")
    assert made(job(tmp_path / "run", recipe, resume=True)).assets["ply"].read_bytes() == whole


def test_blank_starts_have_the_class_of_the_start():
    for kind in (two_stages().stages["shape"].start, Continue()):
        previous = run(Recipe({"shape": stage(0)}), Prompts("red"), priors()).rep
        assert type(kind.blank(previous)) is type(kind(previous, Step(0)))


SMALL = """
stages:
  shape:
    steps: 2
    prior: playroom
    start: {kind: blob, count: 40}
    optimise: {kind: gaussians, max_count: 50}
    renderer: {kind: splats}
    cameras: {kind: orbit, views: 4, size: 16}
    background: {kind: named}
    guidance: {sds: {kind: sds}}
  colour:
    steps: 2
    prior: playroom
    start: {kind: continue}
    optimise: {kind: gaussians, max_count: 50}
    renderer: {kind: splats}
    cameras: {kind: orbit, views: 4, size: 16}
    background: {kind: named}
    guidance: {sds: {kind: sds}}
exports: [ply]
"""


def test_on_the_command_line(tmp_path):
    """Both options, from a recipe file, and every refusal in one sentence before anything is made."""
    recipe, out = tmp_path / "two.yaml", tmp_path / "run"
    recipe.write_text(SMALL)
    runner = CliRunner()

    def call(*words: str):
        return runner.invoke(cli, ["generate", *words, "--out", str(out), "--device", "cpu"])

    begun = ("a red cube", "--recipe", str(recipe))
    done = call(*begun, "--until", "shape")
    assert done.exit_code == 0 and done.stdout == f"{out}\n" and "--resume" in done.stderr
    assert not (out / "asset.ply").exists()
    refused = {
        (*begun, "--force", "--until", "color"): "Did you mean",
        ("--resume", "--set", "stages.colour.steps=1"): "leave out --set",
        ("--from", "texture"): 'no stage of this recipe "texture"',
        ("--from", "colour", "--set", "stages.shape.steps=3"): 'what the stage "shape" made',
        ("--from", "colour", "--prior", "playroom-single"): "leave out --prior",
    }
    for words, said in refused.items():
        done = call(*words)
        assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1, (words, done.stderr)
    done = call("--from", "colour", "--set", "stages.colour.steps=3", "--json")
    assert done.exit_code == 0 and '"status": "done"' in done.stdout and (out / "asset.ply").exists()
    assert plan(Request(out=out, resume=True)).recipe.stages["colour"].steps == 3
