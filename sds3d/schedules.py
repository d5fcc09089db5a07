"""Numbers over progress in [0, 1].

In a recipe a schedule is a plain number, or `{from: a, to: b}` with an optional `over: [start, end]` (the part of the
stage in which it moves) and `curve: linear | cosine | sqrt | exponential`. A range is `[low, high]`, or
`{from: [low, high], to: [low, high]}` with the same options.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

CURVES = ("linear", "cosine", "sqrt", "exponential")


@dataclass(frozen=True)
class Ramp:
    """A number that moves from `start` to `end` while progress goes through `over`, and stays put outside it."""

    start: float = field(metadata={"key": "from"})  # `key` is the word of a recipe, here one that Python reserves.
    end: float = field(metadata={"key": "to"})
    over: tuple[float, float] = (0.0, 1.0)
    curve: str = "linear"

    def __post_init__(self) -> None:
        if self.curve not in CURVES:
            raise ValueError(f'Unknown curve "{self.curve}"; known are: {", ".join(CURVES)}.')
        if not 0 <= self.over[0] < self.over[1] <= 1:
            raise ValueError(f"over must be an increasing range within [0, 1], given {list(self.over)}.")
        if self.curve == "exponential" and self.start * self.end <= 0:
            raise ValueError("An exponential curve needs two numbers of one sign, neither of them 0.")

    def __call__(self, progress: float) -> float:
        x = (progress - self.over[0]) / (self.over[1] - self.over[0])
        x = min(max(x, 0.0), 1.0)
        if self.curve == "cosine":
            x = (1 - math.cos(math.pi * x)) / 2
        if self.curve == "sqrt":
            x = math.sqrt(x)
        if self.curve == "exponential":
            return self.start * (self.end / self.start) ** x
        return self.start + (self.end - self.start) * x


Number = float | Ramp  # a constant, or a schedule


@dataclass(frozen=True)
class Range:
    """Two schedules, low and high: for example the times that a step may draw from."""

    low: Number
    high: Number

    def __call__(self, progress: float) -> tuple[float, float]:
        return value(self.low, progress), value(self.high, progress)


def value(number: Number, progress: float) -> float:
    """A constant or a schedule at a progress in [0, 1]."""
    return number(progress) if isinstance(number, Ramp) else number
