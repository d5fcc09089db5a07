"""Weights of blendshapes over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Clip:
    """A named motion: seconds that grow from key to key, and the weight of each blendshape at every key.

    Between keys weights go in straight lines; shapes that are not named stay at 0.
    """

    name: str
    seconds: tuple[float, ...]
    weights: Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        if len(self.seconds) < 2 or self.seconds[0] < 0:
            raise ValueError(f'The clip "{self.name}" needs two keys at least, none before second 0.')
        if any(late <= early for early, late in zip(self.seconds, self.seconds[1:], strict=False)):
            raise ValueError(f'The seconds of the clip "{self.name}" must grow from key to key, given {self.seconds}.')
        for shape, weights in self.weights.items():
            if len(weights) != len(self.seconds):
                raise ValueError(
                    f'The clip "{self.name}" has {len(self.seconds)} keys, but {len(weights)} weights of "{shape}".'
                )


def _both(name: str, *weights: float) -> dict[str, tuple[float, ...]]:
    return {f"{name}Left": weights, f"{name}Right": weights}


EXPRESSIONS = Clip(  # A blink, a smile, a look to the side, surprise, a word.
    "expressions",
    (0.0, 0.5, 0.62, 0.78, 1.2, 1.8, 2.4, 2.9, 3.3, 3.8, 4.2, 4.7, 5.2, 5.6, 5.75, 5.9, 6.05, 6.2, 6.5),
    {
        **_both("eyeBlink", 0, 0, 1, 0, 0, 0.15, 0.15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        **_both("mouthSmile", 0, 0, 0, 0, 0, 1, 1, 0.2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.3, 0),
        **_both("cheekSquint", 0, 0, 0, 0, 0, 0.7, 0.7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        "eyeLookOutLeft": (0, 0, 0, 0, 0, 0, 0, 0, 0.8, 0.8, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        "eyeLookInRight": (0, 0, 0, 0, 0, 0, 0, 0, 0.8, 0.8, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        **_both("eyeWide", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0),
        **_both("browOuterUp", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.8, 0.8, 0, 0, 0, 0, 0, 0),
        "browInnerUp": (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0),
        "jawOpen": (0, 0, 0, 0, 0, 0.05, 0.05, 0, 0, 0, 0, 0.6, 0.6, 0.05, 0.35, 0.1, 0.3, 0, 0),
        "mouthFunnel": (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.2, 0.2, 0, 0.1, 0.6, 0, 0, 0),
        "mouthPucker": (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0.5, 0, 0, 0),
    },
)
