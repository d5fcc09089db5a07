"""Recipes as data: strict reading, conversion by declared types, the round trip, and where code may come from."""

import dataclasses
import json
import random
import string
import sys
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_run import recipe, two_stages

from sds3d import plugins, recipes, schema
from sds3d.guidance.mix import Cfg, Rescale
from sds3d.guidance.sds import Sds
from sds3d.recipes import RecipeError
from sds3d.schedules import CURVES, Number, Ramp, Range

GUIDANCE = """
from dataclasses import dataclass
from sds3d.core import Guidance, Guided
from sds3d.diffusion import diffuse

@dataclass(frozen=True)
class ClassifierScore(Guidance):
    scale: float = 10.0

    def __call__(self, prior, views, conditions, step, state):
        z = prior.encode(views.image)
        x = diffuse(prior, z, step, t=(0.02, 0.98))
        eps = prior.predict(x.ask(conditions, "cond", "uncond"))
        return Guided(z, x.sigma**2 * self.scale * (eps["cond"] - eps["uncond"]))
"""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Every declared type that a recipe may hold."""

    whole: int = 1
    real: float = 1.0
    flag: bool = False
    text: str = ""
    word: Literal["one", "two"] = "one"
    maybe: str | None = None
    pair: tuple[float, float] = (0.0, 1.0)
    many: tuple[int, ...] = ()
    number: Number = 1.0
    span: Range = dataclasses.field(default_factory=lambda: Range(0.0, 1.0))
    start: int = dataclasses.field(default=0, metadata={"key": "from"})


def convert(**data: object) -> Sample:
    return schema.convert(data, Sample, "", {})


finite = st.floats(-1e6, 1e6, allow_nan=False)
ramps = st.builds(Ramp, finite, finite, st.just((0.25, 0.5)), st.sampled_from(CURVES[:3]))
numbers = finite | ramps
samples = st.builds(
    Sample,
    whole=st.integers(-(10**9), 10**9),
    real=finite,
    flag=st.booleans(),
    text=st.text(string.printable, max_size=20),
    word=st.sampled_from(["one", "two"]),
    maybe=st.none() | st.text(max_size=5),
    pair=st.tuples(finite, finite),
    many=st.lists(st.integers(-9, 9), max_size=4).map(tuple),
    number=numbers,
    span=st.builds(Range, numbers, numbers),
    start=st.integers(-9, 9),
)


@given(samples)
def test_to_data_and_build_are_inverse(sample: Sample) -> None:
    assert schema.convert(json.loads(json.dumps(schema.to_data(sample))), Sample, "", {}) == sample


def test_shipped_and_built_recipes_round_trip() -> None:
    built = [recipes.build(recipes.read(name)) for name in recipes.names()]
    assert len(built) >= 1
    for one in (*built, recipe(), two_stages()):
        data = json.loads(json.dumps(schema.to_data(one)))
        assert recipes.build(data) == one
        assert schema.to_data(recipes.build(data)) == data


def test_every_kind_can_be_imported_and_is_found_again() -> None:
    for family in plugins.KINDS:
        for kind in plugins.kinds(family):
            cls = plugins.load(family, kind)
            assert dataclasses.is_dataclass(cls)
            assert plugins.kind_of(family, cls) == kind


def test_no_guidance_has_a_field_that_a_term_keeps() -> None:
    from sds3d.terms import Guide

    kept = {field.name for field in dataclasses.fields(Guide)} - {"guidance"}
    for kind in plugins.kinds("guidance"):
        assert not kept & {field.name for field in dataclasses.fields(plugins.load("guidance", kind))}


@pytest.mark.parametrize(
    ("key", "given", "wanted"),
    [
        ("whole", 3, 3),
        ("whole", 1e3, 1000),
        ("whole", "1e3", 1000),
        ("real", 2, 2.0),
        ("real", "1e-3", 1e-3),
        ("maybe", None, None),
        ("pair", [1, "2e-1"], (1.0, 0.2)),
        ("many", [], ()),
        ("number", {"from": 1, "to": "1e-2"}, Ramp(1.0, 0.01)),
        ("number", {"from": 1, "to": 2, "over": [0, 0.5], "curve": "cosine"}, Ramp(1.0, 2.0, (0.0, 0.5), "cosine")),
        ("span", [0.1, 0.9], Range(0.1, 0.9)),
        ("span", {"from": [0.5, 0.98], "to": [0.02, 0.4]}, Range(Ramp(0.5, 0.02), Ramp(0.98, 0.4))),
        ("from", 4, 4),
    ],
)
def test_data_becomes_what_the_field_declares(key: str, given: object, wanted: object) -> None:
    found = getattr(convert(**{key: given}), "start" if key == "from" else key)
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(
    ("key", "given", "sentence"),
    [
        ("whole", 1.5, "whole: must be a whole number, given 1.5."),
        ("whole", True, "whole: must be a whole number, given true."),
        ("whole", "٣", 'whole: must be a whole number, given "٣".'),
        ("whole", None, "whole: must be a whole number, given nothing."),
        ("real", "fast", 'real: must be a number, given "fast".'),
        ("real", float("nan"), "real: must be a number, given nan."),
        ("real", "1e999", 'real: must be a number, given "1e999".'),
        ("flag", "on", 'flag: must be true or false, given "on".'),
        ("flag", 1, "flag: must be true or false, given 1."),
        ("text", 3, "text: must be text, given 3."),
        ("word", "on", 'word: There is no value "on". Did you mean "one"? Known are: one, two.'),
        ("pair", [1], "pair: must be a list of 2, given [1]."),
        ("pair", [1, "x"], 'pair[1]: must be a number, given "x".'),
        ("number", [1, 2], "number: must be a number or a schedule {from:, to:}, given [1, 2]."),
        ("number", {"from": 1}, "number.to: is missing; it must be a number."),
        ("number", {"form": 1}, 'number.form: There is no key "form". Did you mean "from"? Known are: from, to, over, '
         "curve."),
        ("number", {"from": 1, "to": 2, "over": [1, 0]}, "number: over must be an increasing range within [0, 1], "
         "given [1.0, 0.0]."),
        ("span", 0.5, "span: must be a range [low, high], or {from: [low, high], to: [low, high]}, given 0.5."),
        ("span", {"from": [0.1, 0.2]}, "span.to: is missing; it must be a number."),
        ("start", 1, 'start: There is no key "start". Known are: whole, real, flag, text, word, maybe, pair, many, '
         "number, span, from."),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_place_given_and_allowed(key: str, given: object, sentence: str) -> None:
    with pytest.raises(RecipeError) as error:
        convert(**{key: given})
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("stages.shape.stps=3", 'There is no key "stps". Did you mean "steps"?'),
        ("stages.shap.steps=3", '--set: in stages: There is no block "shap". Did you mean "shape"?'),
        ("stages.shape.steps=-3", "stages.shape: steps must be at least 0, given -3."),
        ("stages.shape.start.kind=blub", 'stages.shape.start.kind: There is no start "blub". Did you mean "blob"?'),
        ("stages.shape.start={count: 3}", "stages.shape.start: needs kind: one of blob, continue"),
        ("stages.shape.guidance.sds.mix.scle=3", 'There is no key "scle". Did you mean "scale"?'),
        ("stages.shape.guidance.sds.mix.scale=-3", "stages.shape.guidance.sds.mix: scale must be"),
        ("stages.shape.guidance.sds._target_=os.system", 'There is no key "_target_".'),
        ("stages.shape.prior=3", "stages.shape.prior: must be text, given 3."),
        ("stages={}", "stages needs at least one stage."),
        ("stages.shape.steps", "is written path.to.key=value"),
        ("=3", "is written path.to.key=value"),
        ("stages.shape.steps.more=3", 'There is no block "steps"'),
    ],
)
def test_overrides_that_cannot_be_are_refused(assignment: str, sentence: str) -> None:
    def changed() -> None:
        data = recipes.read("gaussians")
        recipes.override(data, assignment)
        recipes.build(data)

    with pytest.raises(RecipeError) as error:
        changed()
    assert sentence in str(error.value)


def test_overrides_set_one_value() -> None:
    data = recipes.read("gaussians")
    recipes.override(data, "stages.shape.steps=2e2")
    recipes.override(data, "stages.shape.guidance.sds.mix={kind: rescale, phi: 0.3}")
    built = recipes.build(data).stages["shape"]
    assert built.steps == 200
    assert built.guidance["sds"].guidance.mix == Rescale(Cfg(10.0), 0.3)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1e-3", 0.001),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("017", 17),
        ("on", "on"),
        ("no", "no"),
        ("12:30:00", "12:30:00"),
        ("1_000", "1_000"),
        (".nan", ".nan"),
        ("2026-01-01", "2026-01-01"),
        ("true", True),
        ("null", None),
        ("", None),
        ("${oc.env:HOME}", "${oc.env:HOME}"),
        ("[1, a]", [1, "a"]),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
    ],
)
def test_yaml_is_read_by_the_core_of_1_2(text: str, wanted: object) -> None:
    assert recipes.parse(text) == wanted


HOSTILE = {
    "tag": "a: !!python/object/apply:os.system ['touch CANARY']",
    "own tag": "a: !x 1",
    "alias bomb": "a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]",
    "cycle": "&a [*a]",
    "double key": "a: 1\nb: 2\na: 3",
    "complex key": "? [1, 2]\n: 3",
    "deep": "[" * 2000,
    "deep mapping": "{a: " * 100 + "1" + "}" * 100,
    "many": "[" + "1," * 30_000 + "1]",
    "large": "a" * 300_000,
    "tab": "a:\n\t- b",
    "quote": "a: 'b",
    "two documents": "a: 1\n---\nb: 2",
    "control": "a: \x07",
    "digits": "a: " + "9" * 10_000,
    "nul": "a\0b: 1",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_yaml_is_refused_at_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError):
        recipes.parse(HOSTILE[name], "recipe.yaml")
    assert not list(tmp_path.iterdir())


@given(st.text(alphabet=string.printable, max_size=200))
@settings(max_examples=300)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        data = recipes.parse(text)
        recipes.build(data if isinstance(data, dict) else {})
    except RecipeError:
        pass


def test_a_mutated_recipe_is_built_or_refused() -> None:
    """Damage a good recipe in a hundred places: nothing but RecipeError may come out."""
    text = (Path(recipes.__file__).parent / "configs" / "gaussians.yaml").read_text()
    draw = random.Random(0)
    refused = 0
    for _ in range(300):
        at, length = draw.randrange(len(text)), draw.randrange(1, 5)
        damaged = text[:at] + draw.choice(["", "x", ": ", "[", "}", "-1", "null", "\n", "'"]) + text[at + length :]
        try:
            data = recipes.parse(damaged)
            recipes.build(data if isinstance(data, dict) else {})
        except RecipeError:
            refused += 1
    assert refused > 150


@pytest.mark.parametrize("name", ["gaussian", "nowhere.yaml", "https://example.org/a.yaml", "./", "a/b"])
def test_a_recipe_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(RecipeError):
        recipes.read(name)


def test_recipe_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for content in (b"", b"- a", b"\xff\xfe", b"x: \xe9"):
        file.write_bytes(content)
        with pytest.raises(RecipeError, match=r"mine\.yaml"):
            recipes.read(str(file))
    file.write_bytes(b"\xef\xbb\xbfstages: {}")
    assert recipes.read(str(file)) == {"stages": {}}


def test_a_guidance_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(GUIDANCE)
    spec, cls = plugins.load_file(f"{file}:ClassifierScore")
    data = recipes.read("gaussians")
    data["stages"]["shape"]["guidance"] = {"main": {"kind": spec, "scale": 3, "weight": 2}}
    built = recipes.build(data, {spec: cls})
    assert built.stages["shape"].guidance["main"].guidance.scale == 3.0
    assert built.stages["shape"].guidance["main"].weight == 2.0
    written = schema.to_data(built, {spec: cls})
    assert recipes.build(written, {spec: cls}) == built
    with pytest.raises(RecipeError, match="--guidance"):
        recipes.build(written)


@pytest.mark.parametrize(
    ("content", "name"),
    [("", "Missing"), ("class Missing: pass", "Missing"), ("1/0", "Missing"), ("import sys; sys.exit(3)", "Missing")],
)
def test_a_file_without_a_guidance_is_refused(content: str, name: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"bad\.py"):
        plugins.load_file(f"{file}:{name}")


def test_a_guidance_with_a_word_of_the_term_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(GUIDANCE.replace("scale", "weight"))
    with pytest.raises(ValueError, match='has a field "weight", a word that a recipe keeps'):
        plugins.load_file(f"{tmp_path / 'mine.py'}:ClassifierScore")


@pytest.mark.parametrize("spec", ["mine.txt:A", "nowhere.py:A", "mine.py:", "mine.py:a b", ":"])
def test_a_guidance_file_is_written_file_colon_class(spec: str) -> None:
    with pytest.raises(ValueError):
        plugins.load_file(spec)


class _Entry:
    def __init__(self, name: str, value: str) -> None:
        self.name, self.value = name, value


def test_installed_guidances_are_listed_without_being_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "their_package.py").write_text(GUIDANCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_installed", lambda: (_Entry("classifier", "their_package:ClassifierScore"),))
    assert "classifier" in plugins.kinds("guidance")
    assert "their_package" not in sys.modules
    assert plugins.load("guidance", "classifier").__name__ == "ClassifierScore"
    monkeypatch.setattr(plugins, "_installed", lambda: (_Entry("sds", "their_package:ClassifierScore"),))
    with pytest.raises(ValueError, match='Two guidances are called "sds"'):
        plugins.kinds("guidance")


def test_a_recipe_cannot_hold_a_thing() -> None:
    with pytest.raises(TypeError, match="object"):
        schema.to_data({"a": object()})
    assert schema.to_data(Sds())["kind"] == "sds"
