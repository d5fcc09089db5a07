"""What `sds3d bench guidance` runs: the bench recipe, the methods on equal terms, and the arms of the papers' claims.

The bench recipe is the default one with `Setting.steps` steps. Each method stands alone in it as the term "main", so
that all share start, cameras, backgrounds and noise, with the recipe's own times t and scale of classifier-free
guidance, each where the method has such a field; its other numbers are its own. Those that read a negative prompt are
told `runs.NEGATIVE`.

| list   | runs                                                                                                   |
|--------|--------------------------------------------------------------------------------------------------------|
| screen | all methods on 4 prompts, seed 0: at equal network rows, and at equal steps                             |
| final  | the best few of the screen and SDS on 12 prompts with every seed, at equal network rows                |
| claims | the arms of `CLAIMS`, with every seed                                                                  |

Equal rows: as many steps as spend the rows that SDS spends, by `cost`. A row that trains counts as one, although it
costs about three. An arm is any recipe under a name, so a claim about stages needs nothing but its two recipes.

Prompts are fixed, fully determined and half held out of training. None is one of `sds3d bench playroom`, whose figures
a default that is chosen here may not have seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

from .. import plugins, recipes
from ..core import Guidance, Prior
from ..cost import steps_within
from ..engine import Recipe, Stage
from ..guidance.mix import Cfg
from ..guidance.sds import Sds
from ..prompts import Prompts
from ..schedules import Range
from ..terms import Guide
from .bench import default_stage, fixed_prompts, sds_of
from .claims import Claim
from .grammar import caption
from .runs import NEGATIVE, Entry

MODIFIERS = "sds3d.guidance.wrap"  # guidances around guidances are no methods of their own
ROWS = 2  # of SDS, a view and step
PROMPT_SEED = 4

CLAIMS = (
    Claim(
        "annealing lowers two-facedness under a single-view prior",
        "StableDreamer (Guo et al. 2023, arXiv 2312.02189)",
        "single view, annealed",
        "single view, all times",
        "two-facedness",
    ),
    *(
        Claim(f"{name} lowers {score} against SDS at a high scale", source, kind, "sds at a high scale", score)
        for kind, name, source in (
            ("bsd", "BSD", "PlacidDreamer (Huang et al. 2024, arXiv 2407.13976)"),
            ("csm", "CSM", "TV-3DG (2024, arXiv 2410.21299)"),
        )
        for score in ("over-saturation", "saturation")
    ),
    *(
        Claim(
            f"a multi-view prior lowers the error of {score} against a single-view one",
            "MVDream (Shi et al. 2023, arXiv 2308.16512)",
            "sds",
            "single view, annealed",
            score,
        )
        for score in ("two-facedness", "shape")
    ),
    *(
        Claim(
            f"pixels and then latents lower the error of {score} against latents alone",
            "StableDreamer (Guo et al. 2023, arXiv 2312.02189)",
            "pixels, then latents",
            "latents alone",
            score,
        )
        for score in ("colour", "shape")
    ),
)


@dataclass(frozen=True)
class Setting:
    """The numbers of the benchmark.

    steps: of SDS. colour: of the second stage of the recipe stabledreamer. seeds: from 0, of the final and of the
    claims. high: the scale of MVDream's SDS, at which its saturation is judged. best: how many methods go on to the
    final beside SDS. heads: of the claims about faces, half held out. overrides: of the recipe, as `--set` takes them.
    """

    steps: int = 150
    colour: int = 75
    seeds: int = 3
    high: float = 50.0
    best: int = 5
    heads: int = 8
    overrides: tuple[str, ...] = ()

    def stage(self) -> Stage:
        """The one stage of the bench recipe, before a method takes its place in it."""
        return default_stage(self.overrides)

    def sds(self) -> Sds:
        """The recipe's own guidance, whose times and scale all methods take."""
        return sds_of(self.stage())

    @property
    def scale(self) -> float:
        """The recipe's own scale of classifier-free guidance."""
        mix = self.sds().mix
        assert isinstance(mix, Cfg)
        return mix.scale

    def recipe(self, guidance: Guidance, steps: int, prior: str = "playroom") -> Recipe:
        """The bench recipe with one guidance."""
        stage = replace(self.stage(), steps=steps, prior=prior, guidance={"main": Guide(guidance)})
        return Recipe({"shape": stage}, exports=())

    def staged(self) -> Recipe:
        """The recipe stabledreamer in as many steps as the bench recipe and `colour` more, seen by the same cameras."""
        data = recipes.read("stabledreamer")
        for assignment in self.overrides:
            recipes.override(data, assignment)
        shape, colour = recipes.build(data).stages.values()
        colour = replace(colour, steps=self.colour, cameras=shape.cameras)
        return Recipe({"shape": replace(shape, steps=self.steps), "colour": colour}, exports=())

    def method(self, kind: str) -> Guidance:
        """A method with its own numbers, but the recipe's times and scale where it has them."""
        method = plugins.load("guidance", kind)()
        given = {field.name for field in fields(method)}
        changed: dict[str, Any] = {"t": self.sds().t} if "t" in given else {}
        if "mix" in given and isinstance(method.mix, Cfg):
            changed["mix"] = replace(method.mix, scale=self.scale)
        return replace(method, **changed)

    def prompts(self) -> tuple[str, ...]:
        """12 captions, half held out; 4 of them heads."""
        return captions(1, 1, 2, 2)

    def screened(self) -> tuple[str, ...]:
        """A thing and a toy that were trained on, a pair and a head that were not."""
        thing, _, _, pair, toy, *_, head = self.prompts()
        return thing, pair, toy, head

    def faces(self) -> tuple[str, ...]:
        """The heads of the claims; the first of them are those of `prompts`."""
        return captions(0, 0, 0, self.heads // 2)


@cache
def captions(*counts: int) -> tuple[str, ...]:
    """Fixed captions; counts: see `bench.fixed_prompts`."""
    things, pairs, toys, heads = counts
    return tuple(caption(spec) for spec in fixed_prompts(PROMPT_SEED, (things, pairs, toys, heads)))


SETTING = Setting()


def methods(setting: Setting, prior: Prior) -> tuple[dict[str, Guidance], dict[str, str]]:
    """The generation methods that a prompt alone can drive, and why the other guidances cannot take part."""
    able: dict[str, Guidance] = {}
    refused: dict[str, str] = {}
    for kind, place in plugins.KINDS["guidance"].items():
        if place.partition(":")[0] == MODIFIERS:
            continue
        able[kind] = setting.method(kind)
        try:
            able[kind].check(prior, Prompts("a red cube", NEGATIVE).names())
        except ValueError as error:
            del able[kind]
            refused[kind] = str(error)
    return able, refused


@dataclass(frozen=True)
class Lists:
    """The benchmark's lists of runs; see the table above. equal_rows: the steps of each method."""

    setting: Setting
    methods: Mapping[str, Guidance]
    equal_rows: Mapping[str, int]

    @classmethod
    def of(cls, setting: Setting, able: Mapping[str, Guidance]) -> Lists:
        """Count what each method costs, and give it the steps that SDS's rows pay for."""
        budget = ROWS * setting.steps  # as many steps at most, since no method asks less than one row
        return cls(setting, able, {kind: steps_within(method, budget, budget) for kind, method in able.items()})

    def runs(self, kinds: Iterable[str], prompts: Sequence[str], seeds: int, equal_steps: bool = False) -> list[Entry]:
        """Methods in turn on each prompt with each seed, so that what is compared is made side by side."""
        steps = {kind: self.setting.steps if equal_steps else self.equal_rows[kind] for kind in kinds}
        made = {kind: self.setting.recipe(self.methods[kind], count) for kind, count in steps.items()}
        return [
            Entry(kind, recipe, prompt, seed)
            for seed in range(seeds)
            for prompt in prompts
            for kind, recipe in made.items()
        ]

    def screen(self, equal_steps: bool = False) -> list[Entry]:
        return self.runs(self.methods, self.setting.screened(), 1, equal_steps)

    def final(self, best: Sequence[str]) -> list[Entry]:
        return self.runs(dict.fromkeys(("sds", *best)), self.setting.prompts(), self.setting.seeds)

    def claims(self) -> list[Entry]:
        """Faces for the claims about views, all 12 prompts for the others."""
        setting, times = self.setting, self.setting.sds().t
        single = {
            "single view, annealed": Sds(mix=Cfg(setting.scale), t=times),
            "single view, all times": Sds(mix=Cfg(setting.scale), t=Range(0.02, 0.98)),
        }
        faces = {name: setting.recipe(sds, setting.steps, "playroom-single") for name, sds in single.items()}
        loud = Sds(form="eps", mix=Cfg(setting.high), t=times)  # DreamFusion's form, whose target nothing clamps
        colours = {"sds at a high scale": setting.recipe(loud, setting.steps)}
        latent = setting.recipe(setting.sds(), setting.steps + setting.colour, "playroom-latent")
        spaces = {"pixels, then latents": setting.staged(), "latents alone": latent}
        return [
            *self.runs(["sds"], setting.faces(), setting.seeds),
            *each(faces, setting.faces(), setting.seeds),
            *self.runs([kind for kind in ("bsd", "csm") if kind in self.methods], setting.prompts(), setting.seeds),
            *each(colours, setting.prompts(), setting.seeds),
            *each(spaces, setting.prompts(), setting.seeds),
        ]


def each(arms: Mapping[str, Recipe], prompts: Sequence[str], seeds: int) -> list[Entry]:
    """Any recipes under their names on each prompt with each seed."""
    return [
        Entry(name, recipe, prompt, seed)
        for seed in range(seeds)
        for prompt in prompts
        for name, recipe in arms.items()
    ]
