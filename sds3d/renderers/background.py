"""The plain colour behind the object: drawn anew at each step, one per group of views, with a word for the prompt.

A background that changes keeps an optimised object opaque where it should be and empty where it should be.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..core import Background, Step

COLOURS: dict[str, tuple[float, float, float]] = {
    "white": (1.0, 1.0, 1.0),
    "grey": (0.5, 0.5, 0.5),
    "black": (0.0, 0.0, 0.0),
    "blue": (0.2, 0.35, 0.8),
    "green": (0.25, 0.6, 0.3),
    "yellow": (0.95, 0.85, 0.3),
    "red": (0.8, 0.2, 0.2),
    "purple": (0.55, 0.3, 0.7),
}


def _check(views: int, group: int) -> None:
    if views < 1 or group < 1 or views % group:
        raise ValueError(f"views ({views}) must be a positive multiple of group ({group}).")


def _check_rgb(rgb: tuple[float, ...]) -> None:
    if len(rgb) != 3 or not all(0 <= c <= 1 for c in rgb):
        raise ValueError(f"A colour is three numbers in [0, 1], given {list(rgb)}.")


@dataclass(frozen=True)
class Named:
    """One of the named plain colours for each group, every one as likely, with its name.

    colours: names out of `COLOURS`. Raises ValueError for an unknown name or for none.
    """

    colours: tuple[str, ...] = tuple(COLOURS)

    def __post_init__(self) -> None:
        unknown = [name for name in self.colours if name not in COLOURS]
        if unknown or not self.colours:
            given = f'"{unknown[0]}"' if unknown else "none"
            raise ValueError(f"Unknown background colour {given}; known are: {', '.join(COLOURS)}.")

    def __call__(self, step: Step, views: int, group: int) -> Background:
        _check(views, group)
        draws = step.uniform("background", views)[::group]
        names = tuple(self.colours[int(u * len(self.colours))] for u in draws.tolist())
        rgb = torch.tensor([COLOURS[name] for name in names])
        return Background(rgb.repeat_interleave(group, dim=0), names)


@dataclass(frozen=True)
class Plain:
    """The same colour at every step. name: the word for it in a prompt, or None where it is not to be named."""

    rgb: tuple[float, float, float] = COLOURS["white"]
    name: str | None = None

    def __post_init__(self) -> None:
        _check_rgb(self.rgb)

    def __call__(self, step: Step, views: int, group: int) -> Background:
        _check(views, group)
        names = None if self.name is None else (self.name,) * (views // group)
        return Background(torch.tensor([self.rgb], dtype=torch.float32).repeat(views, 1), names)


@dataclass(frozen=True)
class Random:
    """A uniform colour of the RGB cube for each group, without a name."""

    def __call__(self, step: Step, views: int, group: int) -> Background:
        _check(views, group)
        channels = [step.uniform(f"background-{c}", views) for c in "rgb"]
        rgb = torch.stack(channels, dim=-1)[::group]
        return Background(rgb.repeat_interleave(group, dim=0))
