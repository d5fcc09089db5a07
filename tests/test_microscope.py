"""The gradient microscope: what it records is what happened, and a step made again is the run's own."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image as Pillow
from small_run import SIZE, prior, priors, recipe, two_stages
from test_guidance import image, linear_prior

from sds3d.cli import cli
from sds3d.core import Guidance, Guided, Prior, Step
from sds3d.diffusion import diffuse
from sds3d.engine import Saved, run
from sds3d.guidance.dds import Dds
from sds3d.guidance.iesd import Iesd
from sds3d.guidance.mix import Cfg, Rescale
from sds3d.guidance.pds import Pds
from sds3d.guidance.sds import Sds
from sds3d.microscope import EXACT, Microscope, Recording, explain
from sds3d.prompts import Prompts
from sds3d.replay import find, magnified, nearest
from sds3d.schedules import Range
from sds3d.schema import to_data
from sds3d.sheet import aim, columns, picture
from sds3d.terms import Guide
from sds3d.testing import GuidanceLaws, analytic_prior, conditions, views

F64 = torch.float64
PULLING = [
    Sds("eps", mix=Cfg(7.5)),
    Sds("x0", "recon", clamp=False, mix=Rescale(Cfg(10.0), 0.5)),
    Dds(),
    Pds(),
    Iesd("eps"),
]


@dataclass(frozen=True)
class Twice(Guidance):
    """A stranger's method: two forwards at two noise levels, no parts, no target."""

    def __call__(self, prior, views, conditions, step, state) -> Guided:
        z = prior.encode(views.image)
        x = diffuse(prior, z, step, (0.7, 0.7))
        first = prior.predict(x.ask(conditions, "cond"))["cond"]
        y = diffuse(prior, z, step.child("again"), (0.2, 0.2))
        return Guided(z, prior.predict(y.ask(conditions, "cond", plain="uncond"))["plain"] - first)


@dataclass(frozen=True)
class Claiming(Twice):
    """A method that names a target which its gradient does not pull toward."""

    def __call__(self, prior, views, conditions, step, state) -> Guided:
        return replace(guided := super().__call__(prior, views, conditions, step, state), target=-guided.at.detach())


def look(method: Guidance, prior: Prior | None = None):
    prior = analytic_prior(dtype=F64) if prior is None else prior
    like = prior.means
    seen = views(image().to(like), image().flip(1).to(like))
    return explain(method, prior, seen, conditions(prior, 4), Step(0, "shape", 3, 0.25))


# ---- what it records ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*PULLING, Twice()], ids=lambda method: type(method).__name__)
def test_looking_changes_nothing(method):
    guided, seen = look(method)
    prior = analytic_prior(dtype=F64)
    plain = method(prior, views(image(), image().flip(1)), conditions(prior, 4), Step(0, "shape", 3, 0.25), {})
    assert torch.equal(guided.grad, plain.grad) and torch.equal(seen.guided.grad, plain.grad)
    assert not any(tensor.requires_grad for tensor in (seen.render, seen.guided.at, seen.gradient))


def test_every_question_of_a_stranger_is_kept():
    _, seen = look(Twice())
    assert [(answer.name, answer.wave) for answer in seen.answers] == [("cond", 0), ("cond", 1), ("plain", 1)]
    assert [round(float(answer.t[0]), 3) for answer in seen.answers] == [0.7, 0.2, 0.2]
    prior = analytic_prior(dtype=F64)
    for answer in seen.answers:
        alpha, sigma = (level.double() for level in prior.noise_level(answer.t))
        torch.testing.assert_close(alpha * answer.x0 + sigma * answer.eps, answer.z_t, rtol=1e-9, atol=1e-9)
    assert seen.target is None and seen.residual is None and seen.parts == {} and seen.cosines == {}


def test_a_recording_is_the_prior_it_holds():
    exact = analytic_prior(group=4)
    recording = Recording(exact)
    assert isinstance(recording, Prior)
    assert (recording.group, recording.size, recording.data_range) == (4, exact.size, None)


@pytest.mark.parametrize("method", PULLING, ids=str)
@pytest.mark.parametrize("prior", [analytic_prior(dtype=F64), linear_prior()], ids=["analytic", "linear"])
def test_the_l2_gradient_toward_the_target_is_the_one_applied(method, prior):
    _, seen = look(method, prior)
    at = seen.guided.at.clone().requires_grad_()
    pull = seen.guided.pull().reshape(-1, 1, 1, 1)
    (squared,) = torch.autograd.grad((pull / 2 * (at - seen.target).square()).sum(), at)
    assert (squared - seen.guided.grad).abs().max() <= EXACT * seen.guided.grad.abs().max()
    assert seen.residual is not None and seen.residual <= EXACT
    assert "exact to" in aim(seen)


@pytest.mark.parametrize("method", PULLING, ids=str)
def test_the_target_is_exact_in_single_precision(method):
    _, seen = look(method, analytic_prior())
    assert seen.guided.at.dtype == torch.float32
    assert seen.residual is not None and seen.residual <= EXACT


def test_a_false_target_is_told():
    _, seen = look(Claiming())
    assert seen.residual is not None and seen.residual > 0.1
    assert "does not pull toward" in aim(seen)
    laws = type("Laws", (GuidanceLaws,), {"guidance": Claiming()})()
    with pytest.raises(AssertionError, match="one k for each row"):
        laws.test_a_target_is_what_the_gradient_pulls_toward(analytic_prior())


def test_a_target_is_never_made_from_the_gradient():
    """Two weightings have other gradients and one target, which at - grad would not be."""
    (_, a), (_, b) = look(Sds(weighting="sigma2")), look(Sds(weighting="uniform"))
    torch.testing.assert_close(a.target, b.target, rtol=0, atol=0)
    assert (a.guided.grad - b.guided.grad).abs().max() > 0.01


def test_the_gradient_reaches_the_pixels_through_the_encoder():
    """Pixels are 2 x - 1 and channels first, so dL/d(image) is twice the latent's gradient; the parts add up to it."""
    guided, seen = look(Sds())
    torch.testing.assert_close(seen.gradient, 2 * guided.grad.permute(0, 2, 3, 1))
    torch.testing.assert_close(sum(seen.parts.values()), seen.gradient)


def test_cosines_are_those_of_the_parts():
    _, seen = look(Sds())
    a, b = (seen.guided.parts[name].flatten(1) for name in ("prior", "classifier"))
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    torch.testing.assert_close(seen.cosines["prior", "classifier"], cosine)
    assert seen.numbers()["cosines"]["prior, classifier"] == pytest.approx(float(cosine.mean()), abs=1e-4)


def test_a_part_that_is_nothing_has_no_map_and_no_cosine():
    @dataclass(frozen=True)
    class Empty(Sds):
        def __call__(self, *given) -> Guided:
            guided = super().__call__(*given)
            return replace(guided, parts={**guided.parts, "nothing": torch.zeros_like(guided.grad)})

    _, seen = look(Empty())
    assert set(seen.cosines) == {("prior", "classifier")} and seen.numbers()["rms"]["part nothing"] == 0
    assert "|nothing|" not in [column.heading for column in columns(seen)]


def test_a_gradient_that_moves_nothing_is_refused():
    @dataclass(frozen=True)
    class Cut(Guidance):
        def __call__(self, prior, views, conditions, step, state) -> Guided:
            z = prior.encode(views.image).detach()
            return Guided(z, z)

    with pytest.raises(ValueError, match="moves nothing"):
        look(Cut())


# ---- the picture ----------------------------------------------------------------------------------------------------


def test_the_picture_has_a_column_for_everything():
    heads = [column.heading for column in columns(look(Dds())[1])]
    assert heads == [
        "render", "source", "x_t", "x_t", "X(cond)", "X(uncond)", "X(source)", "X(source_uncond)", "target X",
        "|gradient|", "|edit|", "|source|",
    ]  # fmt: skip
    stranger = {column.heading: column for column in columns(look(Twice())[1])}
    assert stranger["target X"].pictures is None and stranger["target X"].below == "none"
    assert stranger["X(cond)"].below == "t 0.20, asked 2 times"
    with Pillow.open(io.BytesIO(picture(look(Twice())[1]))) as sheet:
        assert sheet.format == "PNG" and sheet.width > 7 * 128 and sheet.height > 4 * 128


def test_the_pictures_are_those_of_the_step():
    _, seen = look(Sds(), analytic_prior())
    shown = {column.heading: column.pictures for column in columns(seen)}
    sheet = Pillow.open(io.BytesIO(picture(seen)))
    for number, heading in enumerate(shown):
        drawn = sheet.crop((16 + number * 136, 0, 16 + number * 136 + 128, sheet.height))
        wanted = (shown[heading][0].clamp(0, 1) * 255).round().byte()
        middles = [(y, x) for y in range(8, 128, 16) for x in range(8, 128, 16)]  # of the eight by eight pixels
        found = [
            top for top in range(60, 120)
            if all(drawn.getpixel((x, top + y)) == tuple(wanted[y // 16, x // 16].tolist()) for y, x in middles)
        ]  # fmt: skip
        assert found, heading


# ---- a step of a run made again -------------------------------------------------------------------------------------


@dataclass
class Watching:
    """Keeps each step's gradient of the first term, as the engine applied it."""

    grads: dict

    def __call__(self, step, rep, terms, out, numbers):
        self.grads[step.stage, step.index] = terms[0].grad.clone()


def test_a_microscope_in_a_run_leaves_it_as_it_was_and_sees_its_step():
    plain, seen_by = Watching({}), Watching({})
    run(recipe(), Prompts("red"), priors(), watchers=(plain,))
    looked, seen = magnified(recipe(), "shape", 4)
    run(looked, Prompts("red"), priors(), watchers=(seen_by,))
    assert plain.grads.keys() == seen_by.grads.keys()
    assert all(torch.equal(plain.grads[key], seen_by.grads[key]) for key in plain.grads)
    (explanation,) = seen["sds"]
    assert torch.equal(explanation.guided.grad, plain.grads["shape", 4])
    assert explanation.step.index == 4 and explanation.render.shape == (2, SIZE, SIZE, 3)


def test_the_nearest_checkpoint_lies_before_the_step():
    kept = [Saved("colour", 2, {}), Saved("shape", 3, {})]
    stages = ["shape", "colour"]

    def place(stage, index):
        found = nearest(kept, stages, stage, index)
        return None if found is None else (found.stage, found.index)

    assert place("shape", 2) is None and place("shape", 3) == ("shape", 3)
    assert place("colour", 1) == ("shape", 3) and place("colour", 2) == ("colour", 2)


@pytest.fixture
def small_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr("sds3d.priors.catalogue.open_prior", lambda name, device: prior(4, ("cube", "cone")))
    monkeypatch.chdir(tmp_path)
    small = [f"stages.shape.{change}" for change in ("cameras.size=16", "start.count=40", "optimise.max_count=60")]
    changes = [word for change in (*small, "exports=[ply]") for word in ("--set", change)]
    done = sds3d("generate", "a cube", "--steps", "12", "--out", "run", *changes)
    assert done.exit_code == 0, done.output
    return tmp_path / "run"


def sds3d(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def test_explain_makes_a_step_again_to_the_same_gradient(small_world: Path):
    before = {file: file.read_bytes() for file in small_world.rglob("*") if file.is_file()}
    done = sds3d("explain", "run", "--step", "10", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    logged = [json.loads(line) for line in (small_world / "metrics.jsonl").read_text().splitlines()]
    rms = next(entry["gradient_sds"] for entry in logged if entry["step"] == 10)
    assert told["terms"]["sds"]["rms"]["gradient"] == pytest.approx(rms, rel=1e-3)
    assert told["terms"]["sds"]["step"] == 10 and told["terms"]["sds"]["residual"] < EXACT
    assert told["pictures"] == ["run/explain-shape-10-sds.png"]
    assert Pillow.open(small_world / "explain-shape-10-sds.png").width > 500
    assert all(file.read_bytes() == data for file, data in before.items()), "the run itself is not changed"


def test_explain_prints_where_the_picture_is(small_world: Path):
    done = sds3d("explain", "run", "--step", "0", "--out", "here.png", "--quiet")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "here.png\n", "")
    assert Path("here.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "--step", "12"), "steps 0 to 11, given 12"),
        (("run", "--step", "many"), "--step"),
        (("run", "--step", "1", "--stage", "colour"), 'no stage "colour"; it has shape'),
        (("nowhere", "--step", "1"), "holds no run"),
    ],
)
def test_what_cannot_be_explained_is_refused(small_world: Path, arguments, said):
    done = sds3d("explain", *arguments)
    assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_a_plug_in_of_a_file_is_asked_for_again(small_world: Path):
    Path("mine.py").write_text(
        "from dataclasses import dataclass\nfrom sds3d.guidance.sds import Sds\n\n"
        "@dataclass(frozen=True)\nclass Mine(Sds):\n    pass\n"
    )
    small = [f"stages.shape.{change}" for change in ("cameras.size=16", "start.count=40")]
    changes = [word for change in (*small, "exports=[ply]") for word in ("--set", change)]
    made = sds3d("generate", "a cube", "--guidance", "mine.py:Mine", "--steps", "3", "--out", "own", *changes)
    assert made.exit_code == 0, made.output
    refused = sds3d("explain", "own", "--step", "1")
    assert refused.exit_code == 2 and "--guidance mine.py:Mine" in refused.stderr
    done = sds3d("explain", "own", "--step", "1", "--guidance", "mine.py:Mine")
    assert done.exit_code == 0 and done.stdout == "own/explain-shape-1-main.png\n"


def test_every_term_is_seen_in_its_own_stage():
    guides = {name: Guide(Sds(mix=Cfg(1.0), t=Range(0.02, 0.6))) for name in ("a", "b")}
    looked, seen = magnified(recipe(3, guidance=guides), "shape", 1)
    run(looked, Prompts("red"), priors(), stop=lambda: any(seen.values()))
    assert [len(found) for found in seen.values()] == [1, 1]
    assert isinstance(looked.stages["shape"].guidance["a"].guidance, Microscope)
    looked, seen = magnified(two_stages(2), "colour", 1)
    run(looked, Prompts("red"), priors())
    assert [explanation.step.stage for explanation in seen["sds"]] == ["colour"]


def test_the_stage_of_a_run_with_several_must_be_named(tmp_path: Path):
    manifest = {"prompt": "red", "seed": 0, "recipe": to_data(two_stages()), "status": "done"}
    (tmp_path / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="stages shape, colour; name one"):
        find(tmp_path, 1)
    place = find(tmp_path, 1, "colour")
    assert (place.stage, place.begin, place.saved) == ("colour", ("shape", 0), None)
