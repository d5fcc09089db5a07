"""Training pairs of an edit: a scene before, an instruction, and the exact scene after, seen by the same four cameras.

A group is four scenes under one set of cameras: a head, the same with either of two toggles of glasses, hat, beard and
smile, and with both; else four objects. Any two heads of a group are before and after, and so are any two colourings of
one scene, which need no rendering of their own (see `recolour`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..priors.multiview import camera_vector
from ..renderers.background import COLOURS as BACKGROUND_RGB
from .data import SIZE, VIEWS, Store, cameras
from .grammar import (
    COLOURS,
    EXTRAS,
    EYES,
    HAIRS,
    RELATIONS,
    SHAPES,
    SKINS,
    TOYS,
    Head,
    Pair,
    Spec,
    Thing,
    Toy,
    is_held_out,
)
from .instructions import part_of
from .recolour import BRIGHTEST, Basis, basis, colours, picture

SCENES = 4  # of a group
KINDS = {"head": 0.66, "pair": 0.16, "toy": 0.14, "thing": 0.04}  # shares of the groups


def group_of(number: int) -> tuple[Spec, ...]:
    """The scenes of a group, in colours that mean nothing."""
    rng = np.random.default_rng((3, number))
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    if kind == "head":
        on = {name: bool(rng.random() < 0.3) for name in EXTRAS}
        first, second = (str(name) for name in rng.permutation(EXTRAS)[:2])
        heads = [Head("tan", "red", "blue", **on)]
        for toggles in ((first,), (second,), (first, second)):
            heads.append(replace(heads[0], **{name: not on[name] for name in toggles}))
        return tuple(heads)
    pick = rng.permutation
    if kind == "pair":
        shapes = list(itertools.product(SHAPES, SHAPES, RELATIONS))
        return tuple(
            Pair(Thing(a, "red"), Thing(b, "red"), relation)
            for a, b, relation in (shapes[i] for i in pick(len(shapes))[:SCENES])
        )
    if kind == "toy":
        return tuple(Toy(str(name), "red", "red") for name in pick(list(TOYS))[:SCENES])
    return tuple(Thing(str(name), "red") for name in pick(SHAPES)[:SCENES])


def draw_group(number: int) -> np.ndarray:
    """[4 scenes, 4 views, 64, 64, 7] bytes: fixed colours, the slots' weights, alpha."""
    found = [basis(spec, cameras(number)) for spec in group_of(number)]
    stored = torch.stack([torch.cat([b.fixed, b.weights, b.alpha * BRIGHTEST], dim=-1) for b in found]) / BRIGHTEST
    return (stored.clamp(0, 1) * 255).round().byte().numpy()


class Pairs(Store):
    """The groups that edits are drawn from."""

    def __init__(self, folder: Path, groups: int) -> None:
        super().__init__(folder, "pairs", groups, (SCENES, VIEWS, SIZE, SIZE), draw_group)
        self.cameras = [cameras(number) for number in range(groups)]

    def read(self, group: int, scene: int, views: np.ndarray) -> Basis:
        """Views of a scene of a group."""
        stored = torch.from_numpy(self.array[group, scene][views]).float() / 255 * BRIGHTEST
        return Basis(stored[..., :3], stored[..., 3:6], stored[..., 6:] / BRIGHTEST)


@dataclass(frozen=True)
class EditBatch:
    """before, after [N, 64, 64, 3]; an instruction each; cameras [N, 16] or None; rows a scene."""

    before: Tensor
    after: Tensor
    instructions: list[str]
    camera: Tensor | None
    views: int


def coloured(spec: Spec, rng: np.random.Generator) -> Spec:
    """The scene in colours drawn evenly."""
    draw = lambda options: str(rng.choice(options))  # noqa: E731
    if isinstance(spec, Head):
        return replace(spec, skin=draw(SKINS), hair=draw(HAIRS), eyes=draw(EYES))
    if isinstance(spec, Pair):
        first, second = (replace(thing, colour=draw(COLOURS)) for thing in (spec.first, spec.second))
        return replace(spec, first=first, second=second)
    if isinstance(spec, Toy):
        return replace(spec, colour=draw(COLOURS), part=draw(COLOURS))
    return replace(spec, colour=draw(COLOURS))


def changed(before: Spec, after: Spec) -> list[str]:
    """The fields in which two scenes differ; of a pair "first" and "second"."""
    return [f.name for f in fields(before) if getattr(before, f.name) != getattr(after, f.name)]


def draw_edit(group: Sequence[Spec], rng: np.random.Generator) -> tuple[int, int, Spec, Spec, str]:
    """Numbers of two scenes of a group, their colourings, which differ in one or two things, and an instruction.

    Neither is held out of training, and the instruction says this edit alone.
    """
    while True:
        i = j = int(rng.integers(SCENES))
        if isinstance(group[0], Head) and rng.random() < 0.6:
            j = int(rng.choice([k for k in range(SCENES) if k != i]))
        before = coloured(group[i], rng)
        other = coloured(before, rng)
        kept = {f.name: getattr(before, f.name) for f in fields(before)}
        slots = [name for name in kept if name in ("skin", "hair", "eyes", "colour", "part", "first", "second")]
        toggled = changed(group[i], group[j]) if i != j else []
        most = 2 - len(toggled)
        count = min(int(rng.integers(0 if toggled else 1, 2 + (rng.random() < 0.3))), most, len(slots))
        new = {name: getattr(group[j], name) for name in toggled}
        new |= {str(name): getattr(other, str(name)) for name in rng.permutation(slots)[:count]}
        after = replace(before, **new)
        if after == before or is_held_out(before) or is_held_out(after) or _unsayable(before, after):
            continue
        return i, j, before, after, say(before, after, rng)


def _unsayable(before: Spec, after: Spec) -> bool:
    """Two things of one shape are told apart by colour alone: not where it is the same, nor while both change."""
    if not isinstance(before, Pair) or before.first.shape != before.second.shape:
        return False
    return before.first.colour == before.second.colour or len(changed(before, after)) == 2


def draw_batch(pairs: Pairs, rows: int, rng: np.random.Generator, views: int, camera: bool) -> EditBatch:
    """Edits of `views` views each, before a plain background that stays; some pictures soft, before and after alike."""
    before, after, said, poses = [], [], [], []
    for group in rng.integers(0, pairs.ready, rows // views):
        i, j, was, becomes, instruction = draw_edit(group_of(int(group)), rng)
        seen = rng.permutation(VIEWS)[:views]
        rgb = torch.tensor(list(BACKGROUND_RGB.values())[rng.integers(len(BACKGROUND_RGB))])
        softness = float(rng.random()) if rng.random() < 0.5 else 0.0
        for scene, spec, pictures in ((i, was, before), (j, becomes, after)):
            found = pairs.read(int(group), scene, seen)
            pictures.append(soft(picture(found, colours(spec)) + (1 - found.alpha) * rgb, softness))
        said += [instruction] * views
        poses.append(camera_vector(pairs.cameras[int(group)])[seen])
    return EditBatch(torch.cat(before), torch.cat(after), said, torch.cat(poses) if camera else None, views)


def soft(image: Tensor, share: float) -> Tensor:
    """Blended with its mean over 3 x 3 pixels: an asset that a prior made is not as sharp as an exact scene."""
    if share == 0:
        return image
    blurred = torch.nn.functional.avg_pool2d(
        torch.nn.functional.pad(image.permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate"), 3, stride=1
    )
    return torch.lerp(image, blurred.permute(0, 2, 3, 1), share)


def say(before: Spec, after: Spec, rng: np.random.Generator) -> str:
    """An instruction that makes `after` of `before`, in one of the ways in which it can be said."""
    said = [phrase(before, after, name, rng) for name in rng.permutation(changed(before, after))]
    giving = re.match(r"give \w+ ", said[0])
    if giving and len(said) == 2 and said[1].startswith("give ") and rng.random() < 0.7:
        said[1] = re.sub(r"^give \w+ ", "", said[1])  # "give her red hair and glasses"
    return str(rng.choice([" and ", ", "])).join(said)


def phrase(before: Spec, after: Spec, name: str, rng: np.random.Generator) -> str:
    """One clause: the change of one field."""
    value = getattr(after, name)
    whose, who = (("her", "her"), ("his", "him"), ("the", "it"))[rng.integers(3)]
    if name in EXTRAS:
        a = name if name == "glasses" else f"a {name}"
        giving = [f"give {who} {a}", f"add {a}", f"make {who} have {a}"]
        taking = [f"remove {whose} {name}", f"take {whose} {name} off", f"drop {whose} {name}"]
        if name == "smile":
            giving += [f"make {who} smile", f"let {who} smile"]
        elif name in ("glasses", "hat"):
            giving += [f"put on {a}", f"make {who} wear {a}"]
            taking.append(f"take off {whose} {name}")
        return str(rng.choice(giving if value else taking))
    if isinstance(before, Head):
        noun = str(rng.choice([name, "eye colour"])) if name == "eyes" else name
        ways = [f"make {whose} {noun} {value}", f"change {whose} {noun} to {value}", f"turn {whose} {noun} {value}"]
        ways.append(f"give {who} {value} {name}")
        if name == "hair":
            ways.append(f"dye {whose} hair {value}")
        return str(rng.choice(ways))
    if isinstance(before, Pair):
        thing, value = getattr(before, name), value.colour
        alike = before.first.shape == before.second.shape or rng.random() < 0.3
        noun = f"{thing.colour} {thing.shape}" if alike else thing.shape
    elif isinstance(before, Toy):
        noun = before.kind if name == "colour" else part_of(before.kind)
    else:
        noun = str(rng.choice([before.shape, "it"]))
    the = noun if noun == "it" else f"the {noun}"
    verb = str(rng.choice(["make", "paint", "turn", "colour"]))
    return f"{verb} {the} {value}"
