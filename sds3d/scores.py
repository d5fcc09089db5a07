"""What a comparison measures: a table of measures, their means with intervals over seeds, and a verdict in a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .playroom.bootstrap import interval, paired


@dataclass(frozen=True)
class Trial:
    """One run of one guidance with one seed: its figures by the names of `MEASURES`, and its turntable as a strip."""

    guidance: str
    seed: int
    figures: Mapping[str, Any]
    strip: bytes


@dataclass(frozen=True)
class Measure:
    """A figure of a run. digits: how many after the point. worth: the larger, the better."""

    title: str
    about: str
    digits: int
    worth: Callable[[float], float]
    unit: str = ""

    def say(self, value: float) -> str:
        return f"{value:.{self.digits}f}{self.unit}"


MEASURES: dict[str, Measure] = {
    "iou": Measure("silhouette", "overlap with the exact silhouette over 24 views; 1 is perfect", 3, lambda v: v),
    "psnr": Measure("colour", "PSNR inside the exact silhouette; more is better", 1, lambda v: v, " dB"),
    "haze": Measure("haze", "mean alpha outside the exact silhouette; 0 is clean", 3, lambda v: -v),
    "saturation": Measure("saturation", "chroma over the exact scene's; 1 is faithful", 2, lambda v: -abs(v - 1)),
    "two_faced": Measure("two-faced", "share of heads with a face behind; 0 is right", 2, lambda v: -v),
    "faceless": Measure("faceless", "share of heads without a face in front; 0 is right", 2, lambda v: -v),
    "rows": Measure("network rows", "rows that networks see in a step, training included", 2, lambda v: -v),
    "seconds": Measure("time", "of a run on this machine, as busy as it was", 1, lambda v: -v, " s"),
}


def values(trials: Sequence[Trial], measure: str) -> dict[str, dict[int, float]]:
    """guidance -> seed -> value, for the runs that have this measure."""
    found: dict[str, dict[int, float]] = {}
    for trial in trials:
        value = trial.figures.get(measure)
        if value is not None:
            found.setdefault(trial.guidance, {})[trial.seed] = float(value)
    return found


def mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def told(measure: str, numbers: Sequence[float]) -> str:
    """A mean with its 95 % interval over seeds; without one where there is one seed."""
    m, around = MEASURES[measure], interval(numbers)
    text = m.say(mean(numbers))
    return text if around is None else f"{text} [{m.say(around[0])}, {m.say(around[1])}]"


def verdict(measure: str, found: Mapping[str, Mapping[int, float]]) -> str:
    """One line on who is best and how sure that is, over the seeds that all of them have. found: see `values`."""
    m = MEASURES[measure]
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in found.values())))
    if len(found) < 2 or not seeds:
        return "there is nothing to compare."
    worth = {name: [m.worth(by_seed[seed]) for seed in seeds] for name, by_seed in found.items()}
    first, second, *_ = sorted(worth, key=lambda name: -mean(worth[name]))
    shown = {name: m.say(mean([found[name][seed] for seed in seeds])) for name in (first, second)}
    if worth[first] == worth[second]:
        equal = [name for name in worth if worth[name] == worth[first]]
        return f"{' and '.join(equal)} are equal with {shown[first]}."
    if len(seeds) == 1:
        return f"{first} has {shown[first]}, {second} {shown[second]}; one seed cannot tell that from chance."
    low, high = paired(worth[first], worth[second]) or (0.0, 0.0)
    between = f"[{low:.{m.digits}f}, {high:.{m.digits}f}] over {len(seeds)} seeds"
    if low > 0:
        return f"{first} is best with {shown[first]}, ahead of {second} with {shown[second]} by {between}."
    return f"undecided: {first} has {shown[first]}, {second} {shown[second]}, a lead of {between}."


def verdicts(trials: Sequence[Trial]) -> dict[str, str]:
    """A verdict for every measure that a run has."""
    found = {name: values(trials, name) for name in MEASURES}
    return {name: verdict(name, by_guidance) for name, by_guidance in found.items() if by_guidance}
