"""Comparisons: equal conditions for all, honest intervals and verdicts, one page that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from contextlib import nullcontext
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from small_run import prior
from test_guidance import image

from sds3d import trial as trials
from sds3d.cli import cli
from sds3d.compare import Contest, compare, folder_name, plan_all
from sds3d.core import Learner, Step
from sds3d.diffusion import diffuse
from sds3d.playroom.bootstrap import interval, paired, picks
from sds3d.priors.analytic import AnalyticPrior
from sds3d.recipes import build, read
from sds3d.report import FRAMES
from sds3d.schedules import Range
from sds3d.scores import MEASURES, Trial, told, verdict, verdicts
from sds3d.testing import analytic_prior, conditions
from sds3d.trial import STRIP, Counting

SIDE = 32  # pixels of a turntable
SMALL = ("stages.shape.cameras.size=16", "stages.shape.start.count=40", "stages.shape.optimise.max_count=60")
PLUG_INS = """
from dataclasses import dataclass, replace
from sds3d.core import Guidance, Guided
from sds3d.guidance.sds import Sds

@dataclass(frozen=True)
class Same(Sds):
    pass

@dataclass(frozen=True)
class Half(Sds):
    def __call__(self, prior, views, conditions, step, state):
        guided = super().__call__(prior, views, conditions, step, state)
        return replace(guided, grad=-guided.grad)

@dataclass(frozen=True)
class Broken(Guidance):
    def __call__(self, prior, views, conditions, step, state):
        raise RuntimeError("it was never finished")

@dataclass(frozen=True)
class Infinite(Guidance):
    def __call__(self, prior, views, conditions, step, state):
        z = prior.encode(views.image)
        return Guided(z, z.detach() / 0)
"""


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every prior is the analytic one, the working folder holds plug-ins, and the measures look at small pictures."""
    monkeypatch.setattr("sds3d.priors.catalogue.open_prior", lambda name, device: prior(4, ("cube", "cone")))
    monkeypatch.setattr(trials, "SIDE", SIDE)
    monkeypatch.setattr("sds3d.playroom.measures.SIZE", 16)
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(PLUG_INS)


def contest(*guidance: str, **changed) -> Contest:
    return Contest(**{"prompt": "a red cube", "guidance": guidance, "steps": 3, "overrides": SMALL, **changed})


def run_all(*guidance: str, **changed):
    return compare(plan_all(contest(*guidance, **changed)))


# ---- the same for all -----------------------------------------------------------------------------------------------


def test_all_start_alike_and_see_the_same_cameras_and_noise():
    """One equation under two names gives one asset to the last bit; another equation parts after the first step."""
    seen: dict[str, list[torch.Tensor]] = {}

    def watching(recipe):
        name = type(recipe.stages["shape"].guidance["main"].guidance).__name__
        return nullcontext((lambda step, rep, terms, out, numbers: seen.setdefault(name, []).append(out.rgb.detach()),))

    made = compare(plan_all(contest("sds", "own.py:Same", "own.py:Half")), watching)
    assert made.done and [len(pictures) for pictures in seen.values()] == [3, 3, 3]
    assert all(torch.equal(a, b) for a, b in zip(seen["Sds"], seen["Same"], strict=True))
    assert torch.equal(seen["Sds"][0], seen["Half"][0]) and not torch.equal(seen["Sds"][2], seen["Half"][2])
    sds, same, half = made.trials
    assert sds.strip == same.strip != half.strip
    assert {k: v for k, v in sds.figures.items() if k != "seconds"} == {
        k: v for k, v in same.figures.items() if k != "seconds"
    }


def test_the_times_are_the_recipes_own_unless_the_user_says_otherwise():
    recipe = build(read("gaussians"))
    own = recipe.stages["shape"].guidance["sds"].guidance.t
    for changes, times in (((), own), (("stages.shape.guidance.main.t=[0.1, 0.2]",), Range(0.1, 0.2))):
        planned = plan_all(contest("sds", "own.py:Same", overrides=(*SMALL, *changes)))
        for jobs in planned.jobs.values():
            assert jobs[0].recipe.stages["shape"].guidance["main"].guidance.t == times


def test_seeds_differ_and_guidances_share_them():
    made = run_all("sds", "own.py:Same", seeds=2)
    by_name = {
        name: [trial.strip for trial in made.trials if trial.guidance == name] for name in ("sds", "own.py:Same")
    }
    assert by_name["sds"] == by_name["own.py:Same"] and by_name["sds"][0] != by_name["sds"][1]


# ---- what cannot run ------------------------------------------------------------------------------------------------


def test_what_cannot_run_is_named_and_the_others_go_on():
    made = run_all("dds", "sds", "own.py:Broken", "own.py:Infinite", "own.py:Absent", "absent.py:Mine", seeds=2)
    assert [(trial.guidance, trial.seed) for trial in made.trials] == [("sds", 0), ("sds", 1)] and made.done
    page = made.report.read_text()
    for name, why in {
        "dds": "frozen source",
        "own.py:Broken": "seed 0 failed: it was never finished",
        "own.py:Infinite": "not finite",
        "own.py:Absent": "no guidance class Absent",
        "absent.py:Mine": "no file absent.py",
    }.items():
        assert why in made.refused[name]
        assert html.escape(f"{name}: {made.refused[name]}") in page


def test_a_contest_without_runners_is_refused():
    with pytest.raises(ValueError, match="frozen source"):
        plan_all(contest("dds", "pds"))
    with pytest.raises(ValueError, match='no guidance "sdss".*Did you mean "sds"'):
        plan_all(contest("sds", "sdss"))
    with pytest.raises(ValueError, match="named twice"):
        contest("sds", "sds")
    with pytest.raises(ValueError, match="seeds must be at least 1"):
        contest("sds", seeds=0)
    assert not Path("runs").exists()


# ---- what was made is not made again --------------------------------------------------------------------------------


def test_what_was_made_is_not_made_again(monkeypatch: pytest.MonkeyPatch):
    first = run_all("sds", "own.py:Half")
    monkeypatch.setattr(trials, "make", lambda *_: pytest.fail("made again"))
    again = run_all("sds", "own.py:Half")
    assert again.trials == first.trials and again.done
    with pytest.raises(pytest.fail.Exception):
        run_all("sds", force=True)


def test_an_interrupted_comparison_goes_on_to_the_same_end():
    whole = run_all("sds", "own.py:Half", out=Path("whole"))
    asked = iter([False] * 6)  # one before each run, one after each step, one at a run's end
    part = compare(plan_all(contest("sds", "own.py:Half", out=Path("parts"))), stop=lambda: next(asked, True))
    assert not part.done and [trial.guidance for trial in part.trials] == ["sds"]
    assert "not finished" in part.report.read_text()
    rest = run_all("sds", "own.py:Half", out=Path("parts"))
    assert rest.done and [trial.strip for trial in rest.trials] == [trial.strip for trial in whole.trials]


def test_another_comparison_in_the_folder_is_not_mixed_in():
    run_all("sds")
    with pytest.raises(ValueError, match="another recipe; replace it with --force"):
        plan_all(contest("sds", steps=4))
    assert compare(plan_all(contest("sds", steps=4, force=True))).done


# ---- counting -------------------------------------------------------------------------------------------------------


class Half(Learner):
    def forward(self, query):
        return query.z_t / 2

    def fit(self, loss):
        return 0.0

    def state(self):
        return {}

    def load(self, tensors):
        return None


@dataclass(frozen=True, eq=False)
class Adapting(AnalyticPrior):
    def adapter(self, rank, lr, step):
        return Half()


def test_rows_are_those_that_a_network_sees():
    exact = analytic_prior()
    counting = Counting(Adapting(exact.means, exact.std, exact.names))
    x = diffuse(counting, counting.encode(image(4).float()), Step(0), (0.1, 0.9))
    told = conditions(counting, 4, {"cond": "red", "again": "red", "uncond": ""})
    counting.predict(x.ask(told, "cond", "again", "uncond"))
    assert counting.rows == [8], "equal questions are one"
    learner = counting.adapter(4, 1e-3, Step(0))
    query = replace(x.ask(told, "cond")["cond"], adapter=learner)
    counting.predict({"fake": query, **x.ask(told, "cond")})
    assert counting.rows == [8, 8], "the adapter's rows once, and the base's"
    learner(query)
    assert counting.rows == [8, 8, 4], "its training counts"


def test_a_step_of_sds_costs_two_rows_a_view():
    (trial,) = run_all("sds").trials
    assert trial.figures["rows"] == 8


# ---- intervals and verdicts -----------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8), st.floats(-5, 5), st.floats(0.1, 5))
def test_an_interval_holds_the_mean_and_moves_with_the_values(values, shift, scale):
    low, high = interval(values)
    mean = sum(values) / len(values)
    assert min(values) - 1e-9 <= low <= mean + 1e-9 and mean - 1e-9 <= high <= max(values) + 1e-9
    moved = interval([scale * value + shift for value in values])
    assert moved == pytest.approx((scale * low + shift, scale * high + shift), abs=1e-6)


def test_the_interval_is_that_of_the_bootstrap():
    """Of 0 and 1 the resampled mean is 0, 1/2, 1 with 1/4, 1/2, 1/4; of 100 values it is nearly normal."""
    assert interval([0.0, 1.0]) == (0.0, 1.0) and interval([3.0]) is None and interval([]) is None
    values = Step(3).normal("values", torch.zeros(100, 1)).flatten().double()
    low, high = interval(values.tolist())
    width = 2 * 1.96 * float(values.std(correction=0)) / 10
    assert high - low == pytest.approx(width, rel=0.1)
    counts = torch.bincount(picks(4).flatten(), minlength=4) / picks(4).numel()
    torch.testing.assert_close(counts, torch.full((4,), 0.25), atol=0.02, rtol=0)
    assert paired([1.0, 2.0, 4.0], [0.0, 1.0, 3.0]) == (1.0, 1.0)


def scored(**figures: list[float]) -> list[Trial]:
    return [Trial(name, i, {"iou": value}, b"") for name, values in figures.items() for i, value in enumerate(values)]


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ({"a": [0.5], "b": [0.7]}, "b has 0.700, a 0.500; one seed cannot tell that from chance."),
        (
            {"a": [0.5, 0.6], "b": [0.7, 0.9]},
            "b is best with 0.800, ahead of a with 0.550 by [0.200, 0.300] over 2 seeds.",
        ),
        (
            {"a": [0.5, 0.9], "b": [0.7, 0.8]},
            "undecided: b has 0.750, a 0.700, a lead of [-0.100, 0.200] over 2 seeds.",
        ),
        ({"a": [0.5, 0.5], "b": [0.5, 0.5]}, "a and b are equal with 0.500."),
        ({"a": [0.5, 0.5]}, "there is nothing to compare."),
    ],
)
def test_a_verdict_says_how_sure_it_is(found, line):
    assert verdicts(scored(**found)) == {"iou": line}


@pytest.mark.parametrize(
    ("measure", "good", "bad"),
    [("haze", 0.01, 0.3), ("saturation", 0.9, 1.4), ("saturation", 1.1, 0.5), ("rows", 8, 16), ("psnr", 20.0, 12.0)],
)
def test_every_measure_knows_what_is_better(measure, good, bad):
    assert verdict(measure, {"x": {0: bad}, "y": {0: good}}).startswith("y has")
    assert set(MEASURES) >= {"iou", "psnr", "haze", "saturation", "two_faced", "rows", "seconds"}


def test_a_mean_is_told_with_its_interval():
    assert told("psnr", [20.0]) == "20.0 dB"
    assert told("psnr", [20.0, 22.0]) == "21.0 dB [20.0 dB, 22.0 dB]"


# ---- the page -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Every tag closed in order, and every place that the page would load something from."""

    VOID = frozenset({"meta", "input", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "poster"):
                self.loads.append(value)
            self.loads += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.loads += re.findall(r"url\(([^)]*)\)", data) + re.findall("@import", data)


def test_the_report_is_one_page_that_needs_nothing_else():
    made = run_all("sds", "own.py:Half", seeds=2)
    text = made.report.read_text()
    page = Page(text)
    assert page.open == [] and "http" not in text.replace("http-equiv", "")
    assert len(page.loads) == 5, "the exact scene and four runs"
    for place in page.loads:
        kind, _, data = place.partition(",")
        assert kind == "data:image/jpeg;base64"
        assert Pillow.open(io.BytesIO(base64.b64decode(data))).size == (FRAMES * SIDE, SIDE)
    sliders = [attrs for tag, attrs in page.tags if tag == "input"]
    assert [slider["max"] for slider in sliders] == [str(FRAMES - 1)], "one slider for all"
    assert 'querySelectorAll(".turn")' in text and text.count('class="turn"') == 5
    for name in ("silhouette", "colour", "haze", "saturation", "network rows", "time"):
        assert text.count(f"<b>{name}</b>") == 1, "one verdict for each measure"
    assert json.loads(made.report.with_suffix(".json").read_text())["verdicts"].keys() == verdicts(made.trials).keys()


def test_a_prompt_without_an_exact_scene_is_compared_without_measures():
    made = run_all("sds", prompt="a cube & a <cone>")
    text = made.report.read_text()
    assert set(made.trials[0].figures) == {"seconds", "rows"}
    assert "<h1>a cube &amp; a &lt;cone&gt;</h1>" in text and "no one exact scene" in text
    Page(text)


def test_folders_have_plain_names():
    assert folder_name("sds", 3) == "sds-s3"
    assert folder_name("./some where/own.py:Half", 0) == "own-half-s0"


# ---- the command ----------------------------------------------------------------------------------------------------


def sds3d(*arguments: str) -> Result:
    changes = [word for change in SMALL for word in ("--set", change)]
    return CliRunner().invoke(cli, ["compare", *arguments, "--steps", "2", *changes])


def test_the_command_prints_where_the_report_is():
    done = sds3d("a red cube", "--guidance", "sds, own.py:Half", "--seeds", "1")
    assert done.exit_code == 0, done.output
    assert done.stdout == "runs/compare-a-red-cube/report.html\n"
    assert "own.py:Half, seed 0 (2 of 2)" in done.stderr
    quiet = sds3d("a red cube", "--guidance", "sds,own.py:Half", "--quiet", "--json")
    told = json.loads(quiet.stdout)
    assert quiet.stderr == "" and [trial["guidance"] for trial in told["trials"]] == ["sds", "own.py:Half"]
    assert (Path("runs/compare-a-red-cube/sds-s0") / STRIP).read_bytes().startswith(b"\xff\xd8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a red cube", "--guidance", "sdss"), 'no guidance "sdss"'),
        (("a red cube", "--guidance", "sds,"), "--guidance wants the names"),
        (("a red cube", "--guidance", "dds"), "frozen source"),
        (("a red cube", "--guidance", "sds", "--seeds", "some"), "--seeds"),
        (("", "--guidance", "sds"), "prompt is empty"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(arguments, said):
    done = sds3d(*arguments)
    assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1
    assert not Path("runs").exists()
