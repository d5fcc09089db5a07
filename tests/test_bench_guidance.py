"""The guidance benchmark: equal terms, a file that survives a stop, and verdicts that can go either way."""

from __future__ import annotations

import json
import time
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from small_run import prior

from sds3d import plugins
from sds3d.cli import cli
from sds3d.core import Step
from sds3d.cost import ASKED, VIEWS, exact_prior, spend, steps_within
from sds3d.guidance.sds import Sds
from sds3d.guidance.wrap import Average
from sds3d.playroom import bench_guidance, runs
from sds3d.playroom.bench import prompts_24
from sds3d.playroom.bench_guidance import Bench, guidance
from sds3d.playroom.bench_tables import figures_of, markdown, places
from sds3d.playroom.claims import PAIRS, SCORES, Claim, judge
from sds3d.playroom.grammar import Head, caption, is_determined, is_held_out, parse
from sds3d.playroom.guidance_lists import CLAIMS, MODIFIERS, ROWS, SETTING, Lists, Setting, methods
from sds3d.playroom.measures import face_margins, folded, measure, psnr, scene_draw, views
from sds3d.playroom.runs import NEGATIVE, Entry, append, read
from sds3d.playroom.scenes import build
from sds3d.priors.wrapped import Wrapped
from sds3d.schedules import Range

CPU = torch.device("cpu")
SMALL = ("stages.shape.cameras.size=16", "stages.shape.start.count=40", "stages.shape.optimise.max_count=60")
TINY = Setting(steps=4, colour=2, seeds=2, best=2, heads=2, overrides=SMALL)
KINDS = ("sds", "csd", "bsd", "csm", "dds", "nfsd", "clip")


def opened(name: str = "playroom", device: object = CPU):
    """The analytic prior, of which every caption means the first component."""
    return prior(1 if name == "playroom-single" else 4, ("a", NEGATIVE))


PRIORS = {name: opened(name) for name in ("playroom", "playroom-single", "playroom-latent")}


@pytest.fixture
def small_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Entry]:
    """Few methods, exact priors, and runs that cost nothing: their figures follow from arm, prompt and seed.

    Returns the runs in the order in which they are made.
    """
    made: list[Entry] = []

    def make(entry: Entry, priors, device, further):
        made.append(entry)
        noise = float(Step(entry.seed, entry.prompt).uniform(entry.arm, 1))
        good = {"sds": 0.5, "csd": 0.6, "bsd": 0.7, "csm": 0.8}.get(entry.arm, 0.1) + 0.01 * noise
        head = 2 * noise - 6 * good if entry.prompt.startswith("a head") else None
        figures = {"iou": good, "psnr": 20 * good, "haze": 0.0, "chroma_error": 0.9 - good, "two_facedness": head}
        return {**figures, "rows": 8 * entry.steps, "forwards": entry.steps, "seconds": 1.0}

    monkeypatch.setattr("sds3d.priors.catalogue.open_prior", opened)
    monkeypatch.setattr(bench_guidance, "make", make)
    monkeypatch.setitem(plugins.KINDS, "guidance", {kind: plugins.KINDS["guidance"][kind] for kind in KINDS})
    monkeypatch.chdir(tmp_path)
    return made


def lists_of(setting: Setting = TINY) -> Lists:
    return Lists.of(setting, methods(setting, PRIORS["playroom"])[0])


# ---- what is run ----------------------------------------------------------------------------------------------------


def test_prompts_are_fixed_determined_half_held_out_and_apart_from_the_other_bench() -> None:
    for prompts, count in ((SETTING.prompts(), 12), (SETTING.screened(), 4), (SETTING.faces(), 8)):
        specs = [parse(prompt) for prompt in prompts]
        assert len(set(prompts)) == count and all(is_determined(spec) for spec in specs)
        assert sum(is_held_out(spec) for spec in specs) == count // 2
        assert not set(prompts) & {caption(spec) for spec in prompts_24()}
    assert set(SETTING.screened()) <= set(SETTING.prompts())
    assert all(isinstance(parse(prompt), Head) for prompt in SETTING.faces())
    assert {prompt for prompt in SETTING.prompts() if prompt.startswith("a head")} <= set(SETTING.faces())
    assert {type(parse(prompt)) for prompt in SETTING.screened()} == {type(spec) for spec in prompts_24()}


def test_a_claim_about_faces_has_pairs_enough() -> None:
    assert len(SETTING.faces()) * SETTING.seeds >= PAIRS <= len(SETTING.prompts()) * SETTING.seeds


def test_every_generation_method_takes_part_and_the_others_say_why_not() -> None:
    able, refused = methods(SETTING, PRIORS["playroom"])
    modifiers = {kind for kind, place in plugins.KINDS["guidance"].items() if place.startswith(f"{MODIFIERS}:")}
    assert able.keys() | refused.keys() | modifiers == plugins.KINDS["guidance"].keys()
    assert refused.keys() == {"dds", "pds", "iesd", "ip2p", "pull", "local"} and able.keys() >= {
        "sds",
        "csd",
        "csm",
        "bsd",
        "vsd",
        "nfsd",
    }
    assert "source" in refused["dds"]


def test_methods_have_the_recipes_times_and_one_scale() -> None:
    able, _ = methods(SETTING, PRIORS["playroom"])
    own = SETTING.sds()
    times = own.t
    assert times(0.0) == (0.5, 0.98) and SETTING.scale == 2.0 and able["sds"] == own
    for kind, method in able.items():
        plain = plugins.load("guidance", kind)()
        others = {field.name for field in fields(method)} - {"t", "mix"}
        assert getattr(method, "t", times) == times, kind
        assert getattr(getattr(method, "mix", None), "scale", SETTING.scale) == SETTING.scale, kind
        assert all(getattr(method, name) == getattr(plain, name) for name in others), kind


def test_equal_rows_are_equal_rows() -> None:
    """Every method spends what SDS spends, to one step of its own; only the least, one step, may spend more."""
    lists = lists_of(replace(TINY, steps=40))
    assert lists.equal_rows["sds"] == lists.equal_rows["csd"] == 40
    for kind, method in lists.methods.items():
        spent = [step.rows for step in spend(method, lists.equal_rows[kind] + 1)]
        assert sum(spent[:-1]) <= ROWS * 40 or lists.equal_rows[kind] == 1, kind
        assert sum(spent) > ROWS * 40, kind


def test_cost_counts_every_draw_of_an_average() -> None:
    plain, threefold = (list(spend(method, 3)) for method in (Sds(), Average(Sds(), draws=3)))
    assert [(step.forwards, step.rows) for step in plain] == [(1, 2.0)] * 3
    assert [(step.forwards, step.rows) for step in threefold] == [(3, 6.0)] * 3
    assert steps_within(Average(Sds(), draws=3), 13, most=100) == 2
    assert steps_within(Sds(), 13, most=5) == 5 and steps_within(Sds(), 1, most=5) == 1


def test_a_run_asks_what_its_cost_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count on the exact prior is the count of a whole run, first steps and training included."""
    monkeypatch.setattr("sds3d.playroom.measures.SIZE", 16)
    for kind in ("sds", "csm", "esd", "f_distill"):
        method = TINY.method(kind)
        (prompt, *_) = TINY.prompts()
        figures = runs.make(Entry(kind, TINY.recipe(method, 3), prompt, 0), PRIORS, CPU)
        steps = list(spend(method, 3))
        assert figures["rows"] == VIEWS * sum(step.rows for step in steps), kind
        assert figures["forwards"] == sum(step.forwards for step in steps), kind
        assert 0 <= figures["iou"] <= 1 and figures["two_facedness"] is None


def test_a_run_that_stops_being_finite_is_kept_as_failed() -> None:
    """A gradient so large that it overflows ends the run with a sentence and no figures."""
    method = Sds(form="eps", mix=replace(Sds().mix, scale=3e38))
    figures = runs.make(Entry("sds", TINY.recipe(method, 3), TINY.prompts()[0], 0), PRIORS, CPU)
    assert "not finite" in figures["failed"] and "iou" not in figures
    assert figures_of([{**figures, "steps": 3, "seed": 0}])["failed"] == 1


# ---- the file -------------------------------------------------------------------------------------------------------


def test_a_key_is_what_defines_the_run() -> None:
    recipe, (prompt, other, *_) = TINY.recipe(Sds(), 4), TINY.prompts()
    entry = Entry("sds", recipe, prompt, 0)
    key = entry.key(PRIORS)
    assert key == Entry("another name", replace(recipe, about="other words"), prompt, 0).key(PRIORS)
    changed = [
        Entry("sds", recipe, other, 0),
        Entry("sds", recipe, prompt, 1),
        Entry("sds", TINY.recipe(Sds(), 5), prompt, 0),
        Entry("sds", TINY.recipe(Sds(t=Range(0.1, 0.2)), 4), prompt, 0),
        Entry("sds", TINY.recipe(Sds(), 4, "playroom-single"), prompt, 0),
    ]
    assert len({key, *(entry.key(PRIORS) for entry in changed)}) == 6

    class Weighed(Wrapped):
        sha256 = "other weights"

    assert entry.key({"playroom": Weighed(PRIORS["playroom"])}) != key


def test_a_line_that_was_cut_off_is_left_out_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    assert read(path) == {}
    for key in ("a", "b"):
        append(path, {"key": key})
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:-cut])
        kept = list(read(path))
        append(path, {"key": "c"})
        assert list(read(path)) == [*kept, "c"]
        assert path.read_bytes().endswith(b"\n") and kept == ["a", "b"][: whole[:-cut].count(b"\n")]


def test_a_file_of_something_else_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    for text in ("nonsense\n", "[1]\n", '{"no": "key"}\n'):
        path.write_text('{"key": "a"}\n' + text)
        with pytest.raises(ValueError, match=r"runs\.jsonl is no file of runs: line 2"):
            read(path)


def test_it_goes_on_where_it_was_stopped(small_world: list[Entry], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in every twentieth run and begun again, it keeps each run once and ends with the same figures."""
    setting = replace(TINY, seeds=1)
    guidance(CPU, Path("whole.json"), setting=setting)
    whole = [entry.key(PRIORS) for entry in small_world]
    assert len(set(whole)) == len(whole)
    plain, calls = bench_guidance.make, iter(range(10_000))

    def stopped(*asked):
        if next(calls) % 20 == 19:
            raise KeyboardInterrupt
        return plain(*asked)

    monkeypatch.setattr(bench_guidance, "make", stopped)
    stops = 0
    while not Path("parts.json").exists():
        try:
            guidance(CPU, Path("parts.json"), setting=setting)
        except KeyboardInterrupt:
            stops += 1
    assert stops == (len(whole) - 1) // 19 > 1
    first, again = (json.loads(Path(name).read_text()) for name in ("whole.json", "parts.json"))
    for part in ("settings", "figures", "tables", "claims", "refused"):
        assert first[part] == again[part], part
    assert [json.loads(text)["key"] for text in Path("parts.jsonl").read_text().splitlines()] == whole


def test_the_budget_begins_no_run_after_it(small_world: list[Entry], capsys: pytest.CaptureFixture) -> None:
    guidance(CPU, Path("b.json"), budget=0.0, setting=TINY)
    assert small_world == [] and "time is up" in capsys.readouterr().out
    told = json.loads(Path("b.json").read_text())
    assert told["figures"]["runs"] == 0 and told["figures"]["best"] == []
    assert {claim["verdict"] for claim in told["claims"]} == {"open"}
    assert "Not measured yet." in Path("b.md").read_text()
    bench = Bench(Path("c.jsonl"), PRIORS, CPU, until=time.monotonic() + 1e9)
    assert bench.make_all("screen", lists_of().screen())


def test_only_makes_the_runs_of_these_arms(small_world: list[Entry]) -> None:
    guidance(
        CPU, Path("b.json"), only="csd, single view, annealed".replace(", single view, annealed", ""), setting=TINY
    )
    assert {entry.arm for entry in small_world} == {"csd"}
    assert json.loads(Path("b.json").read_text())["figures"]["best"] == []
    with pytest.raises(ValueError, match='no arm of this benchmark "cds".*csd'):
        guidance(CPU, Path("b.json"), only="cds", setting=TINY)


def test_the_best_of_the_screen_and_sds_go_on_to_the_final(small_world: list[Entry]) -> None:
    guidance(CPU, Path("b.json"), setting=TINY)
    told = json.loads(Path("b.json").read_text())
    assert told["figures"]["best"] == ["csm", "bsd"] and set(told["refused"]) == {"dds"}
    final = told["tables"]["final"]
    assert set(final) == {"sds", "csm", "bsd"}
    assert {arm: row["runs"] for arm, row in final.items()} == dict.fromkeys(final, 24)
    assert not any(told["figures"]["runs_missing"].values())
    page = Path("b.md").read_text()
    assert "| csm | 1 | 24 | 0.8" in page and "- dds: DDS compares" in page
    screen = told["tables"]["screen, equal rows"]
    assert screen["csm"]["iou"]["interval"] is not None and "[" not in page.split("## Screen")[1].split("## Claims")[0]


def test_places_are_by_silhouette_and_colour_and_a_failure_counts_nothing() -> None:
    def one(iou: float, psnr: float) -> dict:
        return {("p", 0): {"iou": iou, "psnr": psnr}}

    assert places({"a": one(0.9, 10), "b": one(0.8, 30), "c": one(0.7, 20)}) == ["b", "a", "c"]
    failed = {("p", 0): {"failed": "why"}, ("q", 0): {"iou": 0.9, "psnr": 10.0}}
    assert places({"a": failed, "b": one(0.5, 6.0)}) == ["b", "a"]


# ---- claims ---------------------------------------------------------------------------------------------------------


def of(difference: float, spread: float = 0.0, prompts: int = 8, seeds: int = 3) -> dict:
    """Two arms whose saturation errors differ by this, and by `spread` more or less from prompt to prompt."""
    places = [(f"p{i}", seed) for i in range(prompts) for seed in range(seeds)]
    sign = {f"p{i}": (-1) ** i for i in range(prompts)}
    high = {place: {"chroma_error": 0.5} for place in places}
    low = {place: {"chroma_error": 0.5 + difference + spread * sign[place[0]]} for place in places}
    return {"low": low, "high": high}


CLAIM = Claim("it is less", "someone", "low", "high", "saturation")


@pytest.mark.parametrize(
    ("difference", "spread", "seeds", "verdict"),
    [
        (-0.2, 0.1, 3, "reproduced"),
        (0.2, 0.1, 3, "refuted"),
        (-0.01, 0.1, 3, "open"),
        (0.0, 0.0, 3, "open"),
        (-0.2, 0.1, 2, "open"),  # 16 pairs are not enough
    ],
)
def test_a_claim_can_go_each_way(difference: float, spread: float, seeds: int, verdict: str) -> None:
    judged = judge(CLAIM, of(difference, spread, seeds=seeds))
    assert judged.verdict == verdict and judged.pairs == 8 * seeds
    assert judged.difference == pytest.approx(difference)
    assert json.loads(json.dumps(judged.data()))["verdict"] == verdict


def test_runs_of_one_prompt_are_not_counted_as_independent() -> None:
    """With many seeds of few prompts the pairs alone would be sure; the prompts are not."""
    judged = judge(CLAIM, of(-0.04, 0.1, prompts=4, seeds=30))
    assert judged.over_pairs[1] < 0 < judged.over_prompts[1]
    assert judged.verdict == "open"


def test_pairs_are_of_one_prompt_and_seed_and_lost_ones_are_counted() -> None:
    arms = of(-0.2)
    del arms["low"]["p0", 0]
    arms["low"]["p1", 0] = {"failed": "why", "seed": 0}
    arms["high"]["p2", 1] = {"iou": 0.0, "chroma_error": None}
    judged = judge(CLAIM, arms)
    assert (judged.pairs, judged.lost) == (21, 2) and judged.verdict == "open"
    assert judge(CLAIM, {}).difference is None


def test_scores_are_the_larger_the_worse() -> None:
    assert SCORES["over-saturation"]({"chroma_error": -0.3}) == 0 == SCORES["over-saturation"]({"chroma_error": 0.0})
    assert SCORES["over-saturation"]({"chroma_error": 0.3}) == SCORES["saturation"]({"chroma_error": -0.3}) == 0.3
    assert SCORES["shape"]({"iou": 0.75}) == 0.25
    assert SCORES["two-facedness"]({"two_facedness": None}) is None
    assert all(SCORES[name]({"failed": "why"}) is None for name in SCORES)


def test_every_claim_finds_its_arms_and_the_benchs_own_runs_are_shared(small_world: list[Entry]) -> None:
    lists = lists_of()
    entries = lists.claims()
    assert {arm for claim in CLAIMS for arm in (claim.lower, claim.higher)} == {entry.arm for entry in entries}
    keys = {entry.key(PRIORS) for entry in lists.final(["bsd", "csm"])}
    shared = [entry for entry in entries if entry.key(PRIORS) in keys]
    assert {entry.arm for entry in shared} == {"sds", "bsd", "csm"}
    bench = Bench(Path("c.jsonl"), PRIORS, CPU)
    assert bench.make_all("claims", entries)
    for claim in CLAIMS:
        judged = judge(claim, bench.runs(entries))
        heads = claim.score == "two-facedness" or "multi-view" in claim.text
        assert (judged.pairs, judged.lost) == (len(TINY.faces() if heads else TINY.prompts()) * TINY.seeds, 0)


def test_annealing_and_the_number_of_views_are_all_that_their_arms_differ_in() -> None:
    arms = {entry.arm: entry.recipe for entry in lists_of().claims()}
    annealed, free = arms["single view, annealed"], arms["single view, all times"]

    def sds(recipe):
        return recipe.stages["shape"].guidance["main"].guidance

    assert replace(sds(free), t=sds(annealed).t) == sds(annealed) == sds(arms["sds"])
    assert annealed.stages["shape"].prior == free.stages["shape"].prior == "playroom-single"
    assert replace(annealed.stages["shape"], prior="playroom") == arms["sds"].stages["shape"]
    loud = sds(arms["sds at a high scale"])
    assert loud.mix.scale == TINY.high and loud.form == "eps" and loud.t == sds(annealed).t


# ---- measures -------------------------------------------------------------------------------------------------------


def test_two_facedness_is_a_difference_of_psnr_with_the_sign_of_two_faced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sds3d.playroom.measures.SIZE", 12)
    head = parse(TINY.faces()[0])
    scene = build(head)
    true, double = (scene_draw(one)(views(), torch.ones(24, 3)) for one in (scene, folded(scene, 1.0)))
    assert face_margins(head, true, true)[0] < -20
    blend = replace(true, rgb=(true.rgb + double.rgb) / 2)
    assert abs(face_margins(head, blend, true)[0]) < 1e-3  # halfway it is as near to one as to the other
    twice = measure(head, lambda cameras, rgb: double)
    assert twice.two_facedness > 20 and twice.two_faced is True
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    assert psnr(torch.full((1, 1, 1, 3), 0.1), torch.zeros(1, 1, 1, 3), mask) == pytest.approx(20.0, abs=1e-4)


def test_the_chroma_error_is_signed_and_defined_for_grey_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sds3d.playroom.measures.SIZE", 16)
    red, white = parse("a red cube"), parse("a white cube")
    paint = measure(white, scene_draw(build(red))).chroma_error
    assert paint > 0.3 and measure(red, scene_draw(build(white))).chroma_error == -paint
    assert measure(red, scene_draw(build(red))).chroma_error == 0


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_carries_its_options_and_other_benches_refuse_them(
    small_world: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_guidance, "SETTING", TINY)
    done = CliRunner().invoke(cli, ["bench", "guidance", "--only", "csd", "--budget", "1e3", "--out", "b.json"])
    assert done.exit_code == 0, done.output
    assert {entry.arm for entry in small_world} == {"csd"} and Path("b.md").exists()
    assert "screen 1/4" in done.output and "min left" in done.output
    refused = CliRunner().invoke(cli, ["bench", "prior", "--only", "csd"])
    assert refused.exit_code == 2 and "sds3d bench prior takes no --only." in refused.output
    unknown = CliRunner().invoke(cli, ["bench", "guidance", "--only", "csdd"])
    assert unknown.exit_code != 0 and 'Did you mean "csd"?' in unknown.output


def test_the_page_escapes_nothing_and_loses_no_arm(small_world: list[Entry]) -> None:
    guidance(CPU, Path("b.json"), setting=TINY)
    told = json.loads(Path("b.json").read_text())
    page = Path("b.md").read_text()
    assert markdown(told) == page
    for by_arm in told["tables"].values():
        for arm in by_arm:
            assert f"\n| {arm} | " in page
    widths = [
        len(set(line.count(" | ") for line in part.splitlines() if line.startswith("| "))) for part in page.split("##")
    ]
    assert max(widths) == 1  # every table has as many cells in each row


def test_cost_asks_of_every_question_that_a_prompt_knows() -> None:
    told = exact_prior().text(list(ASKED.values()))
    assert told.shape == (len(ASKED), 1, 2)
